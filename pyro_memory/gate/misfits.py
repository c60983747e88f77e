"""Arguments that are each what they should be, and do not fit one another: what torch says of it, in our words."""

from __future__ import annotations

import dis
import re
from types import TracebackType
from typing import Any

from pyro_memory.gate.texts import told

OWN = __name__.partition(".")[0]
LIBRARIES = ("torch", "pyro", "numpy", "opt_einsum", "jaxtyping", "beartype", "contextlib")
RAISE = dis.opmap["RAISE_VARARGS"]
OF_THE_MACHINE = re.compile("memory|CUDA|cuda|NCCL|Gloo")


def misfit(
    error: Exception, called: str, given: list[tuple[tuple[str, Any], Any]], named: dict[str, Any]
) -> ValueError | None:
    """Gives the error to raise in place of one that torch raised on what this package handed to it; None for others.

    What this package raises itself says enough already; what a user's own code raises is the user's; and that memory ran
    out is no one's argument.
    """
    while error.__cause__ is not None:  # Pyro adds the shapes of its sites and raises again
        error = error.__cause__
    if type(error) not in (RuntimeError, IndexError, ValueError) or OF_THE_MACHINE.search(str(error)):
        return None
    if not _by_us(error.__traceback__):
        return None
    values = {name: value for (name, _), value in given if name not in ("self", "cls")} | named
    said = ", ".join(f"`{name}` {told(value)}" for name, value in values.items())
    text = " ".join(str(error).split())
    return ValueError(f"{called.removesuffix('.__init__')} cannot take {said or 'this'}: {text[:300]}")


def _by_us(trace: TracebackType | None) -> bool:
    """Whether the code that called the library is of this package, and no ``raise`` of it made the error."""
    ours = False
    while trace is not None:
        room = trace.tb_frame.f_globals.get("__name__", "").partition(".")[0]
        if room not in LIBRARIES:
            ours = room == OWN and trace.tb_frame.f_code.co_code[trace.tb_lasti] != RAISE
        trace = trace.tb_next
    return ours
