"""Series of numbers, and windows to forecast from."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from pyro_memory.data.given import Numbers, finite, first, integers, names_of, tensor_of
from pyro_memory.data.seeds import below, generator_for
from pyro_memory.data.sequences.stamps import places, shown
from pyro_memory.gate import checked, told
from pyro_memory.naming import call_of

SPLITS = ("train", "valid", "test")


@checked
@dataclass(frozen=True, eq=False, init=False)
class Series:
    """Several series over the same time, normalised by the mean and deviation of their training part.

    Attributes:
        raw: ``[time, channel]``, as measured: a tensor, array, list or pandas frame of any number type; ``[time]`` is
            one channel. Where nothing was observed it holds the last number that was, or the first.
        channels: a name a channel; by default a frame's, or their numbers.
        ends: where the train, validation and test parts end; what comes later is not used. By default at 70, 80 and
            100 percent.
        observed: ``[time, channel]``, whether a number was measured; by default everywhere but where a frame has none.
            Mean and deviation are of the observed numbers.
        times: when each row was measured, numpy's ``datetime64`` or numbers, one after the other, where that is known;
            by default a frame's index, if it is of times. Rows are taken as they follow each other: where those of an
            index are not even, a warning says so.

    A channel that is constant in the training part is centred and keeps its scale; a warning names it.

    Raises:
        ValueError: if an observed number is missing or infinite, a channel has none in the training part, or ``ends``
            do not follow each other within the series, or ``times`` do not ascend. Time and channel are named.

    Example::

        series = Series(np.sin(np.arange(500)), ["sine"], (300, 400, 500))
        past, future = series.windows("train", past=20, horizon=5, batch=8, seed=0)[0]
    """

    raw: Float[Tensor, "time channel"]
    channels: tuple[str, ...]
    ends: tuple[int, int, int]
    observed: Bool[Tensor, "time channel"]
    times: np.ndarray | None

    def __init__(
        self,
        raw: Numbers,
        channels: Iterable[str] = (),
        ends: Numbers = None,
        observed: Numbers = None,
        times: Numbers = None,
    ) -> None:
        indexed = False
        if hasattr(raw, "notna"):  # of pandas, where a missing number is nobody's mistake
            raw = raw if hasattr(raw, "columns") else raw.to_frame()
            channels = tuple(channels) or tuple(raw.columns)
            observed = raw.notna().to_numpy() if observed is None else observed
            indexed = times is None and raw.index.dtype.kind == "M"
            times = raw.index.values if indexed else times
        raw = tensor_of("raw", raw)
        raw = raw if raw.is_floating_point() else raw.double()
        raw = raw.unsqueeze(-1) if raw.dim() == 1 else raw
        if raw.dim() != 2 or not raw.numel():
            raise ValueError(f"`raw` must be [time, channel]; got shape {list(raw.shape)}")
        names = names_of("channels", channels, raw.shape[1], "a channel")
        raw, seen = _filled(raw, names, observed)
        ends = [round(share * len(raw)) for share in (0.7, 0.8, 1)] if ends is None else ends
        ends = tuple(integers("ends", ends, low=0, high=len(raw), item="end").tolist())
        if len(ends) != 3 or not 2 <= ends[0] <= ends[1] <= ends[2]:
            raise ValueError(
                f"`ends` must be three times, where train (2 times at least), validation and test end one after the "
                f"other; got {ends}"
            )
        bare = ~seen[: ends[0]].any(0)
        if bool(bare.any()):
            raise ValueError(
                f"`raw` must hold observed numbers in the training part, whose deviation normalises it; channel "
                f"{names[first(bare)[0]]!r} has none before time {ends[0]}. Leave it out"
            )
        times = None if times is None else _moments(times, len(raw))
        self.__dict__.update(raw=raw, channels=names, ends=ends, observed=seen, times=times)
        finite("raw", self._normalised.float(), items=("time", "channel"))
        if indexed and (uneven := _uneven(self.times)):
            warnings.warn(uneven, stacklevel=3)
        flat = [name for name, spread in zip(names, self._spread.tolist(), strict=True) if not spread]
        if flat:
            warnings.warn(
                f"channel {flat[0]!r} is constant in the training part{f', and {len(flat) - 1} more' * (len(flat) > 1)}"
                ": it is centred and keeps its scale",
                stacklevel=3,
            )

    def __repr__(self) -> str:
        names, gaps = ", ".join(self.channels), int((~self.observed).sum())
        told = f", {gaps:,} numbers not observed" if gaps else ""
        size = f"{len(self.raw)} times of {len(self.channels)} channels"
        return f"Series({size} ({names}), parts end at {self.ends}{told})"

    @cached_property
    def _centre(self) -> Float[Tensor, " channel"]:
        train, seen = self.raw[: self.ends[0]].double(), self.observed[: self.ends[0]]
        return (train * seen).sum(0) / seen.sum(0)

    @cached_property
    def _spread(self) -> Float[Tensor, " channel"]:
        """The deviation of the training part; exactly 0 of a constant."""
        train, seen = self.raw[: self.ends[0]].double(), self.observed[: self.ends[0]]
        low, high = (end.amin(0) for end in (train.masked_fill(~seen, math.inf), -train.masked_fill(~seen, -math.inf)))
        spread = (((train - self._centre) ** 2 * seen).sum(0) / seen.sum(0)).sqrt()
        return torch.where(low == -high, 0.0, spread)

    @cached_property
    def _normalised(self) -> Float[Tensor, "time channel"]:
        """In double precision, for whatever dtype is torch's default when it is asked for."""
        scale = torch.where(self._spread > 0, self._spread, 1.0)
        return (self.raw.double() - self._centre) / scale

    @property
    def values(self) -> Float[Tensor, "time channel"]:
        """The normalised series, in torch's default dtype."""
        return self._normalised.to(torch.get_default_dtype())

    def windows(
        self, split: str, *, past: int, horizon: int, batch: int, seed: int | None = None, observed: bool = False
    ) -> SeriesWindows:
        """Gives windows of one part; see ``SeriesWindows``."""
        return SeriesWindows(self, split, past=past, horizon=horizon, batch=batch, seed=seed, observed=observed)


def _moments(times: Numbers, count: int) -> np.ndarray:
    """The times of so many rows, as an array."""
    try:
        array = np.asarray(times)
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"`times` must be one for each row; got {told(times)}") from error
    if array.shape != (count,) or array.dtype.kind not in "Miuf":
        raise ValueError(
            f"`times` must be numbers or datetime64, one for each of {count} rows; got {array.dtype} of shape "
            f"{list(array.shape)}"
        )
    late = ~(array[1:] > array[:-1])  # also of what is no time
    if late.any():
        row = int(late.argmax())
        raise ValueError(
            f"`times` must ascend, each once (a frame's are its index); {shown(array[row + 1])} follows "
            f"{shown(array[row])} in row {row + 1}. Sort the rows by time, as frame.sort_index() does, and keep one of "
            "each time"
        )
    return array


def _uneven(times: np.ndarray) -> str:
    """What is to be told of times that are not of one step."""
    after = ". Rows are taken as they follow each other; where even time matters, resample the frame first"
    try:
        at, whole, step = places(times.astype("datetime64[us]"))
    except ValueError:
        return f"`raw` has an index of times that are not of one step{after}"
    if len(whole) == len(times):
        return ""
    gap = shown(whole[np.setdiff1d(np.arange(len(whole)), at)[0]])
    return f"`raw` lacks {len(whole) - len(times)} of {len(whole)} times, {step} apart, the first is {gap}{after}"


def _filled(raw: Tensor, names: tuple[str, ...], observed: Numbers) -> tuple[Tensor, Tensor]:
    """Numbers with the gaps between them filled, and where they were observed.

    Raises:
        ValueError: if an observed one is missing or infinite.
    """
    if observed is None:
        seen = torch.ones_like(raw, dtype=torch.bool)
    else:
        seen = integers("observed", observed, low=0, high=1, item="time").bool()
        seen = seen.unsqueeze(-1) if seen.dim() == 1 and raw.shape[1] == 1 else seen
    if seen.shape != raw.shape:
        raise ValueError(f"`observed` must have the shape of `raw`, {list(raw.shape)}; got {list(seen.shape)}")
    bad = seen & ~raw.isfinite()
    if bool(bad.any()):
        time, channel = first(bad)
        raise ValueError(
            f"`raw` must be finite where it was observed; got {raw[time, channel].item()} at time {time}, channel "
            f"{channel} ({names[channel]!r}). Say where numbers miss: observed=np.isfinite(...) of them"
        )
    if bool(seen.all()):
        return raw, seen
    at = torch.arange(len(raw), device="cpu").unsqueeze(-1).where(seen, torch.tensor(-1, device="cpu")).cummax(0).values
    at = torch.where(at < 0, seen.int().argmax(0), at)
    return torch.where(seen | seen.any(0), raw.gather(0, at), 0.0), seen


@checked
class SeriesWindows:
    """Windows of one part of a series: ``windows[i]`` gives ``(past, future)``, each channel a sequence of its own.

    ``past`` is ``[batch * channel, past]``, ``future`` ``[batch * channel, horizon]``, normalised. The channels of a
    window follow each other. The future lies within the part; the past may reach back into the part before.

    Args:
        series: where from.
        split: "train", "valid" or "test".
        past: how many times are known.
        horizon: how many times are to be forecast.
        batch: windows a batch.
        seed: random windows, a batch depending on seed and index only; None gives every window in order, once: the
            windows then have a length.
        observed: whether ``windows[i]`` also says which numbers were observed: ``(past, future, past_observed,
            future_observed)``, the latter two boolean and of the same shapes.

    Raises:
        ValueError: if an argument is unusable.
    """

    def __init__(
        self,
        series: Series,
        split: str,
        *,
        past: int,
        horizon: int,
        batch: int,
        seed: int | None = None,
        observed: bool = False,
    ) -> None:
        if split not in SPLITS:
            raise ValueError(f'`split` must be "train", "valid" or "test"; got {split!r}')
        if min(past, horizon, batch) < 1:
            raise ValueError(f"`past`, `horizon` and `batch` must be at least 1; got {past}, {horizon} and {batch}")
        at = SPLITS.index(split)
        first = past if at == 0 else series.ends[at - 1]
        last = series.ends[at] - horizon - past
        if not past <= first <= last + past:
            raise ValueError(
                f"`past` + `horizon` must fit into the {split} part, which forecasts from time {first} and ends at "
                f"{series.ends[at]}; got {past} + {horizon}"
            )
        self.starts = torch.arange(first - past, last + 1, device="cpu")
        self.series = series
        self.past = past
        self.horizon = horizon
        self.batch = batch
        self.seed = seed
        self.observed = observed

    __repr__ = call_of

    def __len__(self) -> int:
        if self.seed is not None:
            raise TypeError("windows that a `seed` draws have no end, hence no length")
        return -(-len(self.starts) // self.batch)

    def __bool__(self) -> bool:
        return True  # also where there is no length to ask for

    def __getitem__(self, index: int) -> tuple[Shaped[Tensor, "sequence _"], ...]:
        times = self._starts(index)[:, None] + torch.arange(self.past + self.horizon, device="cpu")
        parts = [self.series._normalised[times].to(torch.get_default_dtype())]
        parts += [self.series.observed[times]] if self.observed else []
        return tuple(part for rows in parts for part in rows.mT.flatten(0, 1).split([self.past, self.horizon], -1))

    def _starts(self, index: int) -> Int[Tensor, " window"]:
        if self.seed is None:
            if not 0 <= index < len(self):
                raise IndexError(f"`index` must be below {len(self)}; got {index}")
            return self.starts[index * self.batch : (index + 1) * self.batch]
        chosen = below(len(self.starts), generator_for(self.seed, 7, index), self.batch)
        return self.starts[chosen]
