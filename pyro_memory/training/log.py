"""What a run has seen so far."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pyro_memory.diagnostics import information_gain
from pyro_memory.gate import told

LOG_EVERY = 10


@dataclass
class Log:
    """What a run has seen so far; a checkpoint holds it whole, so a resumed history equals an uninterrupted one.

    Attributes:
        pending, counted: the bounds of the steps since the last entry, and how many data each call explained.
        units: what the information of each site is per.
        unit: what a datum of ``counted`` is: "datum", or the names of its plates.
        streams: what the random streams of other processes are made from, see ``Ranks``; None in older files.
    """

    step: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    pending: list[float] = field(default_factory=list)
    counted: list[float | None] = field(default_factory=list)
    history: dict[str, list[Any]] = field(
        default_factory=lambda: {"step": [], "bound": [], "data": [], "information": [], "evaluation": []}
    )
    units: dict[str, str] = field(default_factory=dict)
    streams: int | None = None
    unit: str = "datum"

    def __post_init__(self) -> None:
        # Files of format 1 do not know how many data a call explained.
        self.history.setdefault("data", [None] * len(self.history["bound"]))
        self.counted += [None] * (len(self.pending) - len(self.counted))

    def add(self, bound: float, data: float | None) -> None:
        self.step += 1
        self.pending.append(bound)
        self.counted.append(data)
        if self.step % LOG_EVERY == 0:
            self.history = self.whole_history()
            self.pending, self.counted = [], []

    def note(self, kind: str, values: Mapping[str, float]) -> None:
        self.history[kind].append({"step": self.step} | {name: float(value) for name, value in values.items()})

    def evaluate(self, evaluate: Callable[[int], Mapping[str, float]]) -> None:
        values = evaluate(self.step)
        if not isinstance(values, Mapping):
            raise TypeError(f'`evaluate` must give a dict of numbers, such as {{"score": 1.5}}; got {told(values)}')
        self.note("evaluation", values)

    def inform(self, model: Callable[..., Any], guide: Callable[..., Any], args: tuple[Any, ...]) -> bool:
        """Notes the information gain of each site; a pair that has none is told once and trains on."""
        try:
            sites = information_gain(model, guide, *args, draws=1).sites
        except (ValueError, NotImplementedError) as error:
            warnings.warn(f"`information_every` is off: no information gain here ({error})", stacklevel=3)
            return False
        self.units |= {name: site.unit for name, site in sites.items()}
        self.note("information", {name: site.mean for name, site in sites.items() if math.isfinite(site.mean)})
        return True

    @property
    def latest(self) -> str:
        history = self.history if self.history["bound"] else self.whole_history()
        shown = [last_bound(history, 2, self.unit)] if history["bound"] else []
        for kind in ("information", "evaluation"):
            shown += [f"{k} {v:.2f}" for row in history[kind][-1:] for k, v in row.items() if k != "step"]
        return ", ".join(shown)

    def whole_history(self) -> dict[str, list[Any]]:
        """The history with the steps since its last entry."""
        if not self.pending:
            return self.history
        known = [n for n in self.counted if n is not None]
        data = sum(known) / len(known) if len(known) == len(self.pending) else None
        return self.history | {
            "step": [*self.history["step"], self.step],
            "bound": [*self.history["bound"], sum(self.pending) / len(self.pending)],
            "data": [*self.history["data"], data],
        }


def last_bound(history: Mapping[str, list[Any]], digits: int, unit: str) -> str:
    """The last bound with its unit."""
    bound, data = history["bound"][-1], history["data"][-1]
    value, unit = (bound / data, unit) if data else (bound, "call")
    return f"bound {value:.{digits}f} nats per {unit}"
