"""The checkpoint of a run."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pyro_memory.training.checkpoints import save_checkpoint
from pyro_memory.training.log import Log
from pyro_memory.training.loop import Loop


@dataclass
class Kept:
    """The checkpoint file and the step it holds; None before this run has one."""

    path: Path | None
    loop: Loop
    log: Log
    settings: dict[str, Any]
    batches: Any
    step: int | None = None

    def save(self) -> None:
        if self.loop.ranks.main:
            record = {"log": asdict(self.log), "hyperparameters": self.settings}
            source = self.batches.state_dict() if hasattr(self.batches, "state_dict") else None
            save_checkpoint(
                self.path, self.loop.model, self.loop.guide, self.loop.optimizer,
                step=self.log.step, record=record, batches=source,
            )  # fmt: skip
        self.step = self.log.step

    def __str__(self) -> str:
        return "none: this run wrote none" if self.step is None else f"{self.path} (step {self.step})"
