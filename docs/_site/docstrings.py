"""Docstrings as Markdown: their blocks of reStructuredText, which ``help()`` shows well, become fences."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from textwrap import dedent, indent
from typing import Any

import griffe

sys.path.insert(0, str(Path(__file__).parent))
from names import linked

ONE_LINE = re.compile(r"^([ ]*)\.\. math:: (.+)$", re.MULTILINE)
INLINE = re.compile(r":math:`([^`]+)`")
BLOCK = re.compile(r"^(?P<margin>[ ]*)(?P<head>\.\. math::|\.\. code-block:: (?P<language>\w+)|Example::)\n\n?"
                   r"(?P<body>(?:(?P=margin)[ ]+.*(?:\n|$)|[ ]*\n)+)", re.MULTILINE)  # fmt: skip


def fenced(block: re.Match[str]) -> str:
    """A block of reStructuredText in Markdown."""
    head, body = block["head"], dedent(block["body"]).strip("\n")
    if head == ".. math::":
        text = f"$$\n{body}\n$$"
    elif block["language"]:
        text = f"```{block['language']}\n{body}\n```"
    else:
        text = f"**Example**\n\n```python\n{body}\n```"
    return indent(text, block["margin"]) + "\n\n"


class Blocks(griffe.Extension):
    """Rewrites each docstring before its sections are read."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            text = ONE_LINE.sub(r"\1.. math::\n\n\1    \2", INLINE.sub(r"$\1$", obj.docstring.value))
            obj.docstring.value = linked(BLOCK.sub(fenced, text))
