"""The pages' code runs, block after block, as a reader would; the tutorials run where the site is built."""

import re
import sys
import types
from pathlib import Path

import matplotlib.pyplot as plt
import pyro
import pytest

from pyro_memory import pretrained

DOCS = Path(__file__).parent.parent / "docs"
PAGES = [*(path for folder in ("guide", "models") for path in sorted((DOCS / folder).glob("*.md"))), DOCS / "choose.md",
         DOCS / "install.md", DOCS / "streaming.md"]  # fmt: skip
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("path", [p for p in PAGES if BLOCK.search(p.read_text())], ids=lambda p: p.stem)
def test_the_code_of_a_page_runs(path, tmp_path, monkeypatch, capsys):
    text = path.read_text()
    missing = [n for n in re.findall(r'load_pretrained\("([^"]+)"\)', text) if n not in pretrained()]
    assert not missing
    monkeypatch.chdir(tmp_path)
    pyro.clear_param_store()
    script = types.ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", script)  # where pickle looks for a script's classes
    for block in BLOCK.findall(text):
        exec(compile(block, str(path), "exec"), vars(script))
    plt.close("all")
    assert capsys.readouterr().out
