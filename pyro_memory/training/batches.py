"""The batch of each step, from whatever a user gives."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from itertools import chain, islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, default_collate

from pyro_memory.data import LabelledImages
from pyro_memory.gate import as_tensor, told
from pyro_memory.training.ranks import Ranks


class Epochs:
    """Batches of a data set's single items, in an order that each epoch draws anew from the seed and its number alone.

    Raises:
        ValueError: unless items can be counted and taken by number, and fill a batch.
    """

    def __init__(self, items: Any, batch_size: int, seed: int) -> None:
        if not isinstance(items, (Dataset, LabelledImages)) or isinstance(items, IterableDataset):
            raise ValueError(
                "`batch_size` must be left out unless `batches` is a torch Dataset of single items, taken by number, "
                f"or LabelledImages; got {told(items)}. TensorDataset(x, y) makes one of tensors"
            )
        if not 1 <= batch_size <= len(items):
            raise ValueError(f"`batch_size` must lie in 1 .. {len(items)}, the items of `batches`; got {batch_size}")
        self.items, self.batch_size = items, batch_size
        self.order = lru_cache(1)(lambda epoch: np.random.default_rng((seed, epoch)).permutation(len(items)))

    def __getitem__(self, step: int) -> Any:
        epoch, place = divmod(step, len(self.items) // self.batch_size)
        chosen = self.order(epoch)[place * self.batch_size : (place + 1) * self.batch_size]
        if isinstance(self.items, LabelledImages):
            return (self.items[torch.from_numpy(chosen)],)
        return _tuple_of(default_collate([_with_tensors(self.items[int(i)]) for i in chosen]))


def stream(batches: Any, skip: int, ranks: Ranks) -> tuple[Callable[[int], Any], Callable[[], Any]]:
    """Gives the batch of a step, and a batch to look at before the first step, from any kind of ``batches``."""
    if isinstance(batches, (TensorDataset, LabelledImages)):
        raise ValueError(
            f"`batches` must give batches; {told(batches)} gives single items. Say how many make a batch: batch_size=64"
            + ("; FewShotTasks draws them with a memory" if isinstance(batches, LabelledImages) else "")
        )
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
    bare = isinstance(batches, DataLoader)
    while True:
        empty = True
        for batch in batches:
            empty = False
            yield _tuple_of(batch) if bare else batch
        if empty:
            raise ValueError("`batches` ran out and cannot start again; give a list or a DataLoader, not a generator")


def _with_tensors(item: Any) -> Any:
    """An item with its arrays as tensors: collated as they are they would keep double precision."""
    return tuple(map(as_tensor, item)) if isinstance(item, (tuple, list)) else as_tensor(item)


def _tuple_of(batch: Any) -> Any:
    """A batch of a data set whose items are tensors alone, as the one argument that it is."""
    return (batch,) if isinstance(batch, Tensor) else batch


def arguments(batch: Any, device: torch.device | str | None, further: tuple[Any, ...] = ()) -> tuple[Any, ...]:
    """The arguments of model and guide, on the device: those of a batch, arrays as tensors, then ``further``."""
    if not isinstance(batch, (tuple, list)):
        raise ValueError(
            f"`batches` must give a tuple of the arguments of model and guide; got {type(batch).__name__}: write (x,)"
        )
    given = [as_tensor(a) for a in batch]
    return tuple(a.to(device) if device is not None and hasattr(a, "to") else a for a in given) + further


def warn_of_order(then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Warns that a resumed run reads a ``Dataset`` in another order than it began with."""
    changed = [key for key in ("batch_size", "seed") if (then.get(key) or 0) != (now[key] or 0)]
    if changed and now["batch_size"] is not None:
        told_of = ", ".join(f"`{key}` was {then.get(key)} and is {now[key]}" for key in changed)
        warnings.warn(f"{told_of}: from here on the run has another order of data", stacklevel=4)
