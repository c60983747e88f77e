"""The site: every public name is in the reference once, model pages follow one template, tutorials are notebooks."""

import importlib
import re
from pathlib import Path

import pytest

import pyro_memory

DOCS = Path(__file__).parent.parent / "docs"
NAMED = re.compile(r"^::: (pyro_memory\.[\w.]+)$", re.MULTILINE)
ROOMS = ("models", "guides", "kernels", "data", "diagnostics", "distributions", "nets", "testing", "training")
INNER = {  # exported for other rooms, not for users
    "data": {"CHARACTERS", "LICENCES", "NAMES", "SERIES"},
    "diagnostics": {"Axes", "BLUE", "GREY", "ORANGE", "Rows", "axes_or_new"},
    "distributions": {"Copied", "Division", "Group", "STREAM_ABOVE", "Summed", "all_of", "log_prior_row", "spread"},
    "kernels": {"refuse_transforms"},
    "nets": {"out_of_autocast"},
    "training": {"rebuild"},
}
MODELS = sorted(p for p in (DOCS / "models").glob("*.md") if p.stem != "index")
TUTORIALS = sorted((DOCS / "tutorials").glob("*.md"))
TEMPLATE = [
    "What it is for", "Generative story", "Inference", "Cost", "Limits", "When to use something else", "Code", "Figure",
    "References",
]  # fmt: skip


def public():
    top = set(pyro_memory.__all__)
    yield from (f"pyro_memory.{name}" for name in top)
    for room in ROOMS:
        exported = set(importlib.import_module(f"pyro_memory.{room}").__all__)
        yield from (f"pyro_memory.{room}.{name}" for name in exported - top - INNER.get(room, set()))


def test_the_reference_has_every_public_name_once():
    told = [name for page in (DOCS / "reference").glob("*.md") for name in NAMED.findall(page.read_text())]
    assert sorted(told) == sorted(set(told))
    rooms = {f"pyro_memory.{room}" for room in ROOMS} | {"pyro_memory"}
    assert {name for name in told if name.rpartition(".")[0] in rooms} == set(public())


@pytest.mark.parametrize("page", MODELS, ids=lambda p: p.stem)
def test_a_model_page_follows_the_template(page):
    assert re.findall(r"^## (.+)$", page.read_text(), re.MULTILINE) == TEMPLATE


@pytest.mark.parametrize("page", TUTORIALS, ids=lambda p: p.stem)
def test_a_tutorial_is_a_notebook_and_ends_with_what_to_change(page):
    text = page.read_text()
    assert text.startswith("---\njupyter:\n  jupytext:")
    assert re.findall(r"^## (.+)$", text, re.MULTILINE)[-1] == "For your own problem"


def test_every_example_is_shown():
    text = (DOCS / "examples.md").read_text()
    for path in (DOCS.parent / "examples").glob("*.py"):
        assert f'    --8<-- "examples/{path.name}"\n' in text


def test_what_the_site_shows_comes_from_the_site():
    """Formulas and search take their scripts from the repository: a reader may have no network."""
    config = (DOCS.parent / "mkdocs.yml").read_text()
    for own in re.findall(r"assets/[\w./-]+", config):
        assert (DOCS / own).is_file(), own
    assert "http" not in config
