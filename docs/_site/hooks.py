"""What the site is made of beside its pages: README as home, tutorials that have run, tables of the reference."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from mkdocs.utils import get_relative_url

sys.path.insert(0, str(Path(__file__).parent))
import notebooks
from names import NAMED, linked

ROOT = Path(__file__).parents[2]
LINKS = [("](docs/", "]("), ("](examples/", "](examples.md#"), ("](CHANGELOG.md", "](changelog.md")]
SHIM = "https://unpkg.com/iframe-worker/shim"
tutorials: dict[str, str] = {}


def on_files(files: Files, config: Any) -> Files:
    """Runs the tutorials; their figures and notebooks lie beside their pages."""
    import nbformat

    for name, notebook in notebooks.executed().items():
        tutorials[name], figures = notebooks.as_page(name, notebook)
        beside = {f"{name}.ipynb": nbformat.writes(notebook).encode()} | figures
        for file, content in beside.items():
            files.append(File.generated(config, f"tutorials/{file}", content=content))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Gives a page's text: what stands in its file, or what it is made of."""
    path = Path(page.file.src_uri)
    if path.parts[0] == "tutorials":
        return linked(tutorials[path.stem])
    if path.name == "index.md" and path.parent == Path():
        return linked(home())
    if path.parts[0] == "reference":
        page.meta["search"] = {"boost": 0.5}  # what explains a name comes before it
        names = NAMED.findall(markdown)
        return markdown.replace("<!-- summary -->", table(names)).replace("<!-- summaries -->", all_tables())
    return linked(markdown)


def on_post_page(output: str, page: Any, config: Any) -> str:
    """Takes the one script that the theme would fetch, which lets the search run from a disk, from the site itself."""
    return output.replace(SHIM, get_relative_url("assets/iframe-worker.js", page.url))


def home() -> str:
    """README, with its links as they are on the site."""
    text = (ROOT / "README.md").read_text()
    for written, meant in LINKS:
        text = text.replace(written, meant)
    return re.sub(r"\(examples\.md#(\w+)\.py\)", r"(examples.md#\1)", text)


def table(names: list[str]) -> str:
    """A table of names, each with the first sentence of its docstring."""
    rows = [f"| [`{name.removeprefix('pyro_memory.')}`][{name}] | {first_sentence(name)} |" for name in names]
    return "\n".join(["| name | what it does |", "|---|---|", *rows])


def all_tables() -> str:
    """The tables of all pages of the reference, in the order of the navigation's file."""
    parts = []
    for line in (ROOT / "mkdocs.yml").read_text().splitlines():
        found = re.search(r"reference/(\w+)\.md", line)
        if found and found[1] != "index":
            text = (ROOT / "docs" / "reference" / f"{found[1]}.md").read_text()
            title = text.partition("\n")[0].removeprefix("# ")
            parts.append(f"## [{title}]({found[1]}.md)\n\n{table(NAMED.findall(text))}")
    return "\n\n".join(parts)


def first_sentence(name: str) -> str:
    """What a public name does, in its own words."""
    room, _, own = name.rpartition(".")
    text = inspect.getdoc(getattr(importlib.import_module(room), own)) or ""
    sentence = " ".join(text.split("\n\n")[0].split())
    return re.split(r"(?<=\.) (?=[A-Z])", sentence)[0].replace("|", "\\|").removesuffix(":")
