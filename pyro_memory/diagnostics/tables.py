"""How records print: numbers, columns, and the standard error beside each mean."""

from __future__ import annotations

import math
from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from pyro_memory.gate import checked


@checked
def standard_error(values: Float[Tensor, " datum"]) -> float:
    """The standard error of the mean; NaN for fewer than two values."""
    return (values.std() / math.sqrt(len(values))).item() if len(values) > 1 else math.nan


def number(value: float | None, digits: int = 3) -> str:
    """Writes a number, or a dash for one that is not known."""
    return "-" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Lays rows out in columns, the first to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for first, *others in rows:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join(["  " + first.ljust(widths[0]), *cells]))
    return "\n".join(line.rstrip() for line in lines)


def counted(count: int, unit: str) -> str:
    """Says how many of a unit there are."""
    return f"{count} {unit}" + ("s" if count != 1 else "") if unit != "datum" else f"{count} data"
