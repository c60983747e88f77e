"""What a run leaves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pyro_memory.diagnostics import Axes, Record, Rows, axes_or_new
from pyro_memory.gate import checked
from pyro_memory.training.log import last_bound


@checked
@dataclass(frozen=True, repr=False)
class FitResult(Record):
    """What a run of ``fit`` did.

    Attributes:
        steps: optimizer steps taken, those before a resume included.
        seconds: wall time, likewise.
        cpu_seconds: processor time of this process, all its threads, likewise: what a busy machine blurs less.
        history: ``"step"``; ``"bound"``, the mean bound over the ten steps up to there, in nats per call: of all data
            of a batch together, as the objective gives it; ``"data"``, how many data a call explained (those of a
            subsampled plate at its full size), None where no plate holds all that the model observes.
            ``"information"`` and ``"evaluation"``, a dict a measurement, each with its ``"step"``.
        checkpoint: the file that holds the trained state, or None. Where the last writes failed, which a warning told,
            it holds an earlier step.
        units: what the information of each site is per: "datum", "data set", or the names of its plates.
        counted: what is counted as data in ``history``: "datum", or the plates that hold all latents but those of the
            data set, such as "task".
    """

    steps: int
    seconds: float
    cpu_seconds: float
    history: dict[str, list[Any]]
    checkpoint: Path | None
    units: dict[str, str] = field(default_factory=dict)
    counted: str = "datum"

    @property
    def unit(self) -> str:
        """What ``bounds`` are per: ``counted`` where the plates tell how many data each call explained, else "call"."""
        return self.counted if all(self.history["data"]) else "call"

    @property
    def bounds(self) -> list[float]:
        """The bound of each entry of the history, nats per ``unit``."""
        if self.unit == "call":
            return list(self.history["bound"])
        return [bound / data for bound, data in zip(self.history["bound"], self.history["data"], strict=True)]

    def _shown(self) -> tuple[str, Rows, Sequence[str]]:
        rows: list[tuple[str, str]] = []
        if self.history["bound"]:
            name, _, value = last_bound(self.history, 3, self.counted).partition(" ")
            rows.append((name, f"{value} (mean of the last steps)"))
        for kind in ("information", "evaluation"):
            for row in self.history[kind][-1:]:
                values = (f"{name} {self._value(kind, name, row)}" for name in row if name != "step")
                rows.append((kind, ", ".join(values)))
        rows.append(("checkpoint", str(self.checkpoint or "none kept")))
        return f"FitResult: {self.steps} steps in {self.seconds:.1f} s", rows, ()

    def _value(self, kind: str, name: str, row: dict[str, float]) -> str:
        if kind != "information":
            return f"{row[name]:.3f}"
        per = f" per {self.units[name]}" if name in self.units else ""
        return f"{row[name]:.3f} nats{per}"

    def to_dict(self) -> dict[str, Any]:
        """Gives the record as plain values that JSON can hold."""
        return asdict(self) | {"checkpoint": None if self.checkpoint is None else str(self.checkpoint)}

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draws the bound against the step on ``ax``, or on new axes, and returns them."""
        ax = axes_or_new(ax)
        ax.plot(self.history["step"], self.bounds)
        ax.set(xlabel="step", ylabel=f"bound (nats per {self.unit})")
        return ax
