"""Public names: which page of the reference has them, and links to them wherever a text names one."""

from __future__ import annotations

import functools
import re
from pathlib import Path

REFERENCE = Path(__file__).parents[1] / "reference"
NAMED = re.compile(r"^::: (pyro_memory\.[\w.]+)$", re.MULTILINE)
FENCE = re.compile(r"(^[ ]*(?:```|\$\$).*?^[ ]*(?:```|\$\$)[ ]*$|^#[^\n]*$|^:::[^\n]*$)", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"(?<![\[`])(`{1,2})([A-Za-z_][\w.]*?)(\(\))?\1(?!`|\])")


@functools.cache
def public() -> dict[str, str]:
    """Each name as texts write it, with and without its room, and the whole name."""
    whole = [name for page in sorted(REFERENCE.glob("*.md")) for name in NAMED.findall(page.read_text())]
    known: dict[str, str] = {}
    for name in whole:
        parts = name.split(".")
        for start in range(len(parts)):
            known.setdefault(".".join(parts[start:]), name)
    return known


def linked(text: str) -> str:
    """A text whose inline code, where it is a public name, leads to the reference."""

    def link(code: re.Match[str]) -> str:
        name = public().get(code[2])
        return f"[{code[0]}][{name}]" if name else code[0]

    parts = FENCE.split(text)
    parts[::2] = [CODE.sub(link, part) for part in parts[::2]]
    return "".join(parts)
