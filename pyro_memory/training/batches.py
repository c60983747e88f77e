"""The batch of each step, from whatever a user gives."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from typing import Any

import torch
from torch.utils.data import IterableDataset

from pyro_memory.training.ranks import Ranks


def stream(batches: Any, skip: int, ranks: Ranks) -> tuple[Callable[[int], Any], Callable[[], Any]]:
    """Gives the batch of a step, and a batch to look at before the first step, from any kind of ``batches``."""
    if hasattr(batches, "__getitem__") and not isinstance(batches, IterableDataset):
        try:
            length = len(batches)
        except (TypeError, NotImplementedError):  # it has no end, or does not tell
            length = None
        if length == 0:
            raise ValueError("`batches` must hold at least one batch; got none")

        def at(step: int) -> Any:
            number = ranks.share(step)
            return batches[number % length if length else number]

        return at, lambda: batches[0]
    if callable(batches):
        return lambda step: batches(ranks.share(step)), lambda: batches(0)
    if not isinstance(batches, Iterable):
        raise ValueError(f"`batches` must have `[step]`, be callable or iterable; got {type(batches).__name__}")
    endless = _endless(batches)
    first = next(endless)
    rest: Iterator[Any] | None = None

    def read(step: int) -> Any:
        nonlocal rest
        if rest is None:  # each process reads all batches and keeps its own, unless all share each batch
            rest = islice(chain([first], endless), ranks.share(skip), None, ranks.share(1) - ranks.share(0))
        return next(rest)

    return read, lambda: first


def _endless(batches: Iterable[Any]) -> Iterator[Any]:
    while True:
        empty = True
        for batch in batches:
            empty = False
            yield batch
        if empty:
            raise ValueError("`batches` ran out and cannot start again; give a list or a DataLoader, not a generator")


def arguments(batch: Any, device: torch.device | str | None) -> tuple[Any, ...]:
    """The arguments of model and guide in a batch, on the device."""
    if not isinstance(batch, (tuple, list)):
        raise ValueError(
            f"`batches` must give a tuple of the arguments of model and guide; got {type(batch).__name__}: write (x,)"
        )
    return tuple(a.to(device) if device is not None and hasattr(a, "to") else a for a in batch)
