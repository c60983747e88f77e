"""The steps of one call of ``fit``: what happens in each, and what ends them."""

from __future__ import annotations

import signal
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from pyro_memory.training.batches import arguments
from pyro_memory.training.checkpoints import random_state
from pyro_memory.training.kept import Kept
from pyro_memory.training.log import Log
from pyro_memory.training.loop import Loop, aside
from pyro_memory.training.schedules import Schedule, factor_at
from pyro_memory.training.signals import deferred_signals


@dataclass
class Run:
    """The steps that are left, with what is measured and kept between them; see ``fit``."""

    loop: Loop
    log: Log
    kept: Kept
    trained: nn.Module
    batch_at: Callable[[int], Any]
    further: tuple[Any, ...]
    device: torch.device | str | None
    steps: int
    learning_rate: float
    schedule: Schedule | None
    evaluate: Callable[[int], Mapping[str, float]] | None
    evaluate_every: int | None
    information_every: int | None
    checkpoint_every: int

    def go(self, progress: bool) -> int:
        """Takes the steps; gives the signal that ended them early, or 0."""
        log, kept, ranks = self.log, self.kept, self.loop.ranks
        started, cpu_started = time.perf_counter() - log.seconds, time.process_time() - log.cpu_seconds
        shown = progress and ranks.main and log.step < self.steps
        bar = tqdm(total=self.steps, initial=log.step, unit="step", disable=not shown)
        with bar, deferred_signals(kept.path is not None) as signals, warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Encountered (NaN|[+-]inf)")  # the loop's own message says more
            warnings.filterwarnings(
                "ignore", message=".* was not registered in the param store because requires_grad=False"
            )
            stop = ranks.any(bool(signals))
            while log.step < self.steps and not stop:
                args = self._step()
                self._measure(args)
                log.seconds, log.cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
                stop = ranks.any(bool(signals))
                if _due(log.step, self.checkpoint_every) or log.step == self.steps or stop:
                    kept.save()
                bar.set_postfix_str(log.latest, refresh=False)
                bar.update()
            stop = ranks.any(bool(signals))
            if stop and kept.step != log.step:
                kept.save()  # the signal came after the loop had looked
        interrupted = signals and signal.SIGTERM not in signals
        return 0 if not stop else signal.SIGINT if interrupted else signal.SIGTERM

    def _step(self) -> tuple[Any, ...]:
        step = self.log.step
        self.loop.ranks.begin_step(step)
        streams = None if self.kept.path is None else random_state()
        try:
            args = arguments(self.batch_at(step), self.device, self.further)
            rate = self.learning_rate * factor_at(self.schedule, step)
            self.log.add(-self.loop.step(args, step, rate, str(self.kept)), self.loop.data)
        except Exception as error:
            self.kept.rescue(error, streams)
            raise
        return args

    def _measure(self, args: tuple[Any, ...]) -> None:
        log, loop = self.log, self.loop
        if not (loop.ranks.main or loop.ranks.divided):
            return
        try:
            with aside(self.trained), torch.no_grad():
                if _due(log.step, self.information_every) and not log.inform(loop.model, loop.guide, args):
                    self.information_every = None
            if self.evaluate and (_due(log.step, self.evaluate_every) or log.step == self.steps):
                with aside(self.trained), torch.no_grad():
                    log.evaluate(self.evaluate)
        except Exception as error:
            self.kept.rescue(error, None)
            raise


def _due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0
