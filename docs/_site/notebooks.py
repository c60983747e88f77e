"""Tutorials: Markdown that is a notebook, run from top to bottom in a fresh kernel, and shown with what it printed."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from nbclient import NotebookClient
from traitlets.config import Config

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "docs" / "tutorials"
KEPT = ROOT / "out" / "tutorials"
PACKAGE = ("pyro_memory", "models", "guides", "kernels")
SECONDS = 600  # a cell may take; they are made for minutes at most
ENVIRONMENT = {
    "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": str(ROOT),
    "PYTHONWARNINGS": "ignore:IProgress not found",
}
ESCAPE = re.compile(r"\x1b\[[0-9;]*m")


def executed() -> dict[str, Any]:
    """Each tutorial as a notebook that has run, from ``out/tutorials`` where neither it nor the package has changed."""
    package = hashlib.sha256()
    for path in sorted(p for folder in PACKAGE for p in (ROOT / folder).rglob("*.py")):
        package.update(path.read_bytes())
    KEPT.mkdir(parents=True, exist_ok=True)
    sources = sorted(SOURCES.glob("*.md"))
    with ThreadPoolExecutor(int(os.environ.get("TUTORIALS_AT_ONCE", "2"))) as pool:
        notebooks = pool.map(lambda path: _executed(path, package.hexdigest()), sources)
        return {path.stem: notebook for path, notebook in zip(sources, notebooks, strict=True)}


def _executed(source: Path, package: str) -> Any:
    key = hashlib.sha256((package + source.read_text()).encode()).hexdigest()
    kept = KEPT / f"{source.stem}.ipynb"
    if kept.exists():
        notebook = nbformat.read(kept, as_version=4)
        if notebook.metadata.get("made_from") == key:
            return notebook
    notebook, began = jupytext.read(source), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        # By a socket of files: the kernel would warn of one that others on the machine can listen to.
        by_file = Config(KernelManager={"transport": "ipc", "ip": str(Path(folder) / "kernel")})
        client = NotebookClient(
            notebook, timeout=SECONDS, resources={"metadata": {"path": folder}}, config=by_file, coalesce_streams=True
        )
        client.execute(env=os.environ | ENVIRONMENT)
    print(f"tutorial {source.stem}: {time.monotonic() - began:.0f} s", flush=True)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # the times of day
        if any("image/png" in output.get("data", {}) for output in cell.get("outputs", ())):
            cell.outputs = [o for o in cell.outputs if o.output_type != "execute_result"]  # `<Axes: >`
    notebook.metadata["made_from"] = key
    nbformat.write(notebook, kept)
    return notebook


def as_page(name: str, notebook: Any) -> tuple[str, dict[str, bytes]]:
    """The Markdown of a notebook with what its cells printed, and its figures by file name."""
    parts: list[str] = []
    figures: dict[str, bytes] = {}
    for cell in notebook.cells:
        if cell.cell_type != "code":
            parts.append(cell.source)
            continue
        parts.append(f"```python\n{cell.source}\n```")
        for output in cell.outputs:
            data = output.get("data", {})
            if "image/png" in data:
                figure = f"{name}_{len(figures) + 1}.png"
                figures[figure] = base64.b64decode(data["image/png"])
                parts.append(f"![What the cell above drew]({figure})")
            elif printed := ESCAPE.sub("", output.get("text", data.get("text/plain", ""))).rstrip():
                parts.append(f"```{{.text .printed}}\n{printed}\n```")
    if not figures:
        raise ValueError(f"tutorial {name} drew no figure")
    note = f"[Download this page as a notebook]({name}.ipynb){{ .notebook download }}\n"
    title, _, rest = "\n\n".join(parts).partition("\n")
    return f"{title}\n\n{note}\n{rest}\n", figures
