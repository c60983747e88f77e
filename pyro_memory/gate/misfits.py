"""Arguments that are each what they should be, and do not fit one another: what torch says of it, in our words."""

from __future__ import annotations

import re
import traceback
from typing import Any

from pyro_memory.gate.texts import told

OWN = __name__.partition(".")[0]
LIBRARIES = ("torch", "pyro", "numpy", "opt_einsum", "jaxtyping", "beartype", "contextlib")
OF_THE_MACHINE = re.compile("memory|CUDA|cuda|NCCL|Gloo")


def misfit(
    error: BaseException, called: str, given: list[tuple[tuple[str, Any], Any]], named: dict[str, Any]
) -> ValueError | None:
    """Gives the error to raise in place of one that torch raised on what this package handed to it; None for others.

    A text of this package names an argument in backticks and says enough already; what a user's own code raises is the
    user's; and that memory ran out is no one's argument.
    """
    while error.__cause__ is not None:
        if _rooms(error)[-1] == OWN:  # this package says it in its own words
            return None
        error = error.__cause__  # Pyro adds its sites' shapes and raises again
    text = " ".join(str(error).split())
    callers = [room for room in _rooms(error) if room not in LIBRARIES]
    ours = type(error) in (RuntimeError, IndexError, ValueError) and callers[-1:] == [OWN]
    if not ours or "`" in text or OF_THE_MACHINE.search(text):
        return None
    values = {name: value for (name, _), value in given if name not in ("self", "cls")} | named
    said = ", ".join(f"`{name}` {told(value)}" for name, value in values.items())
    return ValueError(f"{called.removesuffix('.__init__')} cannot take {said or 'this'}: {text[:300]}")


def _rooms(error: BaseException) -> list[str]:
    """The packages whose frames an error went through, from the first that called to the last."""
    return [
        frame.f_globals.get("__name__", "").partition(".")[0] for frame, _ in traceback.walk_tb(error.__traceback__)
    ]
