"""How records print and are displayed: numbers, columns, and the standard error beside each mean."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from html import escape

from jaxtyping import Float
from torch import Tensor

from pyro_memory.gate import checked

Rows = Sequence[Sequence[str]]


class Record(ABC):
    """Prints as text, and in a notebook as a table, what ``_shown`` tells.

    Rows of three or more cells are numbers under the names in the first row; rows of two are a name and what is said
    of it.
    """

    @abstractmethod
    def _shown(self) -> tuple[str, Rows, Sequence[str]]:
        """A headline, rows, and lines of text that follow them."""

    def __repr__(self) -> str:
        head, rows, notes = self._shown()
        return "\n".join([head, *([table(rows)] if rows else []), *notes])

    def _repr_html_(self) -> str:
        head, rows, notes = self._shown()
        said = [f"<p>{escape(note)}</p>" for note in notes]
        return "\n".join([f"<p>{escape(head)}</p>", *([_html_table(rows)] if rows else []), *said])


@checked
def standard_error(values: Float[Tensor, " datum"]) -> float:
    """The standard error of the mean; NaN for fewer than two values."""
    return (values.std() / math.sqrt(len(values))).item() if len(values) > 1 else math.nan


def clustered(values: Float[Tensor, "cluster *cells"]) -> tuple[float, float]:
    """The mean of all values that are numbers, and its standard error where only clusters are independent."""
    here = ~values.isnan()
    counts, sums = (t.double().reshape(len(t), -1).sum(-1) for t in (here, values.where(here, 0.0)))
    mean = (sums.sum() / counts.sum()).item()
    return mean, standard_error((sums - mean * counts) / counts.mean())


def number(value: float | None, digits: int = 3) -> str:
    """Writes a number, or a dash for one that is not known."""
    return "-" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def table(rows: Rows) -> str:
    """Lays rows out in columns, the first to the left, the others to the right; what is said of a name to the left."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for first, *others in rows:
        cells = others if len(others) == 1 else [c.rjust(w) for c, w in zip(others, widths[1:], strict=True)]
        lines.append("  ".join(["  " + first.ljust(widths[0]), *cells]))
    return "\n".join(line.rstrip() for line in lines)


def _html_table(rows: Rows) -> str:
    names, body = ([rows[0]], rows[1:]) if len(rows[0]) > 2 else ([], rows)
    lines = [*(_html_row(row, "th") for row in names), *(_html_row(row, "td") for row in body)]
    return "\n".join(["<table>", *lines, "</table>"])


def _html_row(row: Sequence[str], tag: str) -> str:
    sides = ["left", *["left" if len(row) == 2 else "right"] * (len(row) - 1)]
    cells = (f'<{tag} style="text-align: {side}">{escape(cell)}</{tag}>' for cell, side in zip(row, sides, strict=True))
    return f"<tr>{''.join(cells)}</tr>"


def counted(count: int, unit: str) -> str:
    """Says how many of a unit there are."""
    return f"{count} {unit}" + ("s" if count != 1 else "") if unit != "datum" else f"{count} data"


def percent(share: float, se: float) -> str:
    """Writes a share with its standard error, in percent: 61% (2)."""
    digits = 0 if math.isnan(se) or se >= 0.01 else 1
    return f"{100 * share:.{digits}f}% ({'-' if math.isnan(se) else f'{100 * se:.{digits}f}'})"
