"""Looks at the built site in a headless browser, from the disk and without a network: make browse."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, sync_playwright

ROOT = Path(__file__).parents[2]
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--allow-file-access-from-files",
]
SIZES = {"desktop": (1400, 900), "phone": (390, 844)}
SHOWN = ["index", "choose", "models/vma", "tutorials/compose", "reference/objectives", "results"]
# What a new user types, and a page that must be among the first three found.
ASKED = {
    "batch_dim": ("choose", "reference/memories", "tutorials/groups"),
    "global latent": ("choose", "tutorials/groups", "guide/any_program"),
    "regression": ("choose", "tutorials/regression"),
    "Poisson": ("choose", "reference/likelihoods"),
    "NUTS": ("choose",),
    "folder of images": ("choose", "tutorials/images", "guide/data"),
    "resume training": ("choose", "training"),
    "streaming state": ("choose", "streaming", "tutorials/sequences"),
    "out of memory": ("choose",),
    "cite": ("cite",),
    "pip install": ("install",),
    "load_weights": ("reference/saving", "guide/saving"),
}


def address(site: Path, page: str) -> str:
    return (site / f"{page}.html").as_uri()


def check_pages(browser: Browser, site: Path) -> list[str]:
    """What is wrong with any page, at a desktop's width and a phone's."""
    wrong: list[str] = []

    def hear(said: Any) -> None:
        wrong.extend([f"console: {said.text}"] if said.type == "error" else [])

    def meet(asked: Any) -> None:
        wrong.extend([] if asked.url.startswith(("file:", "data:", "blob:")) else [f"asks for {asked.url}"])

    for size, (width, height) in SIZES.items():
        page = browser.new_page(viewport={"width": width, "height": height})
        page.on("console", hear)
        page.on("request", meet)
        for path in sorted(set(site.rglob("*.html")) - {site / "404.html"}):  # that one is for servers
            name = str(path.relative_to(site))
            page.goto(path.as_uri())
            page.wait_for_load_state("load")
            if page.evaluate("document.documentElement.scrollWidth > innerWidth + 1"):
                wrong.append(f"{name}: wider than a {size}")
            raw = page.evaluate(
                "[...document.querySelectorAll('.arithmatex')].filter(e => !e.querySelector('.katex')).length"
            )
            bad = page.evaluate("document.querySelectorAll('.katex-error').length")
            lost = page.evaluate("[...document.images].filter(i => !i.complete || !i.naturalWidth).map(i => i.src)")
            wrong += [f"{name}: {n} formulas {what}" for n, what in ((raw, "not set"), (bad, "wrong")) if n]
            wrong += [f"{name}: no figure {src}" for src in lost]
            text = page.inner_text("article") if page.query_selector("article") else ""
            wrong += [
                f"{name}: shows {mark}"
                for mark in ("$$", "Example::", ".. math", ".. code-block", "][pyro_memory")
                if mark in text
            ]
        page.close()
    return wrong


def found(page: Page, site: Path, words: str) -> list[tuple[str, str]]:
    """The first results of the site's search: where they lead, and their titles."""
    page.goto(address(site, "index"))
    page.click("input.md-search__input")
    page.keyboard.type(words)
    page.wait_for_function("document.querySelector('.md-search-result__meta').innerText.match(/matching/)")
    page.wait_for_timeout(600)
    items = page.query_selector_all(".md-search-result__item")
    answers = []
    for item in items[:3]:
        link = item.query_selector("a")
        where = (
            link.get_attribute("href")
            .split("?")[0]
            .split("#")[0]
            .removeprefix(site.as_uri() + "/")
            .removesuffix(".html")
        )
        answers.append((where.removeprefix("./"), item.query_selector("h1, h2").inner_text()))
    return answers


def check_search(browser: Browser, site: Path, out: Path) -> list[str]:
    """Asks what new users ask; prints what comes first."""
    page, wrong = browser.new_page(viewport={"width": 1400, "height": 900}), []
    for words, wanted in ASKED.items():
        answers = found(page, site, words)
        print(f"{words:>18}: " + "; ".join(f"{title} ({where})" for where, title in answers))
        if not {where for where, _ in answers} & set(wanted):
            wrong.append(f"search for {words!r} finds none of {', '.join(wanted)} first")
    page.screenshot(path=out / "search.png")
    page.close()
    return wrong


def take_pictures(browser: Browser, site: Path, out: Path) -> None:
    for size, (width, height) in SIZES.items():
        for scheme in ("light", "dark"):
            page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
            for name in SHOWN:
                page.goto(address(site, name))
                page.wait_for_timeout(300)
                page.screenshot(path=out / f"{name.replace('/', '_')}_{size}_{scheme}.png")
            page.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--site", type=Path, default=ROOT / "out" / "site")
    parser.add_argument("--browser", default="/usr/bin/chromium", help="the program of a Chromium")
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "browse", help="for the screenshots")
    options = parser.parse_args()
    site = options.site.resolve()
    options.out.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=options.browser, args=FLAGS)
        wrong = check_search(browser, site, options.out) + check_pages(browser, site)
        take_pictures(browser, site, options.out)
        browser.close()
    print(*wrong, f"pictures in {options.out}", sep="\n")
    sys.exit(f"{len(wrong)} things are wrong" if wrong else 0)


if __name__ == "__main__":
    main()
