"""The checkpoint of a run."""

from __future__ import annotations

import warnings
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pyro_memory.stores import MappedMemory, probe_file
from pyro_memory.training.checkpoints import restore_random_state, write_checkpoint
from pyro_memory.training.log import Log
from pyro_memory.training.loop import Loop, NotFinite
from pyro_memory.training.summary import write_summary

LARGEST = 2**26  # bytes of a memory that a checkpoint holds


@dataclass
class Kept:
    """The checkpoint file and the step it holds; None before this run has one."""

    path: Path | None
    loop: Loop
    log: Log
    settings: dict[str, Any]
    batches: Any
    further: tuple[Any, ...] = ()
    step: int | None = None
    told: set[str] = field(default_factory=set)

    def save(self) -> None:
        """Writes the checkpoint; where that fails, says which step is still on the disk, and lets the run go on."""
        if self.path is None:
            return
        if self.loop.ranks.main:
            record = {"log": asdict(self.log), "hyperparameters": self.settings}
            source = self.batches.state_dict() if hasattr(self.batches, "state_dict") else None
            try:
                summary = write_checkpoint(
                    self.path, self.loop.model, self.loop.guide, self.loop.optimizer,
                    step=self.log.step, record=record, batches=source, stores=self._stores(),
                )  # fmt: skip
            except OSError as error:
                self._warn(f"Step {self.log.step} could not be kept ({error}). The last good checkpoint is {self}")
                return
            self._warn(write_summary(self.path, summary))
        self.step = self.log.step

    def _stores(self) -> Any:
        """The memory that each step reads, unless it would make every write a long one."""
        stores = next((given for given in self.further if hasattr(given, "to_tensors")), None)
        if stores is None or isinstance(stores, MappedMemory):
            return stores
        size = sum(t.numel() * t.element_size() for t in stores.to_tensors().values())
        if size > LARGEST:
            self._warn(
                f"The memory among `further` has {size / 2**20:.0f} MiB and is not written with each checkpoint; keep "
                "it yourself, or `save` the pair with it at the end"
            )
            return None
        return stores

    def _warn(self, text: str) -> None:
        if text and text not in self.told:
            self.told.add(text)
            warnings.warn(text, stacklevel=4)

    def rescue(self, error: Exception, streams: dict[str, Any] | None) -> None:
        """Writes the state before what went wrong, if a step was taken, and tells the error where it is.

        Args:
            streams: the random states of that step's beginning; None after the step.
        """
        if isinstance(error, NotFinite) or not self.log.step:
            return
        if self.path is not None and self.loop.whole and self.step != self.log.step:
            if streams is not None:
                restore_random_state(streams)
            try:
                self.save()
            except Exception as trouble:
                error.add_note(f"the checkpoint of step {self.log.step} could not be written: {trouble}")
        again = "; the same call goes on from there" if self.file else ""
        error.add_note(f"`fit` had taken {self.log.step} steps. The last good checkpoint is {self}{again}")

    @property
    def file(self) -> Path | None:
        """The file, if it holds a step of this run."""
        return self.path if self.path is not None and self.step is not None and self.path.exists() else None

    def __str__(self) -> str:
        if self.step is None:
            return "none: this run wrote none"
        return f"{self.path} (step {self.step})" if self.file else f"none: {self.path} is gone"


def probe(path: Path) -> None:
    """Refuses a place where no checkpoint can be written, before the run has begun."""
    if path.is_dir():
        raise ValueError(f"`checkpoint` must be a file; got the folder {path}. Give {path / 'run.safetensors'}")
    try:
        probe_file(path)
    except OSError as error:
        raise ValueError(
            f"`checkpoint` must be a file that can be written; {path} cannot ({error}). Give one in a folder of yours"
        ) from error
