"""What a run has seen so far."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pyro_memory.diagnostics import information_gain

LOG_EVERY = 10


@dataclass
class Log:
    """What a run has seen so far; a checkpoint holds it whole, so a resumed history equals an uninterrupted one."""

    step: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    pending: list[float] = field(default_factory=list)
    history: dict[str, list[Any]] = field(
        default_factory=lambda: {"step": [], "bound": [], "information": [], "evaluation": []}
    )

    def add(self, bound: float) -> None:
        self.step += 1
        self.pending.append(bound)
        if self.step % LOG_EVERY == 0:
            self.history = self.whole_history()
            self.pending = []

    def note(self, kind: str, values: dict[str, float]) -> None:
        self.history[kind].append({"step": self.step} | {name: float(value) for name, value in values.items()})

    def inform(self, model: Callable[..., Any], guide: Callable[..., Any], args: tuple[Any, ...]) -> bool:
        """Notes the information gain of each site; a pair that has none is told once and trains on."""
        try:
            sites = information_gain(model, guide, *args, draws=1).sites
        except (ValueError, NotImplementedError) as error:
            warnings.warn(f"`information_every` is off: no information gain here ({error})", stacklevel=3)
            return False
        self.note("information", {name: site.mean for name, site in sites.items() if math.isfinite(site.mean)})
        return True

    @property
    def latest(self) -> str:
        bounds = self.history["bound"][-1:] or self.pending
        shown = [f"bound {bounds[-1]:.2f} nats"] if bounds else []
        for kind in ("information", "evaluation"):
            shown += [f"{k} {v:.2f}" for row in self.history[kind][-1:] for k, v in row.items() if k != "step"]
        return ", ".join(shown)

    def whole_history(self) -> dict[str, list[Any]]:
        """The history with the steps since its last entry."""
        if not self.pending:
            return self.history
        mean = sum(self.pending) / len(self.pending)
        return self.history | {
            "step": [*self.history["step"], self.step],
            "bound": [*self.history["bound"], mean],
        }
