"""Series of numbers: electricity transformers (ETT), and an embedded recording; windows to forecast from."""

from __future__ import annotations

import gzip
import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import matplotlib
import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from pyro_memory.data.given import Numbers, finite, first, integers, names_of, tensor_of
from pyro_memory.data.seeds import below, generator_for
from pyro_memory.data.sources import VARIABLE, find_file
from pyro_memory.gate import checked
from pyro_memory.naming import call_of

CHECKSUMS = {  # of the csv files, not compressed
    "ETTh1": "f18de3ad269cef59bb07b5438d79bb3042d3be49bdeecf01c1cd6d29695ee066",
    "ETTh2": "a3dc2c597b9218c7ce1cd55eb77b283fd459a1d09d753063f944967dd6b9218b",
    "ETTm1": "6ce1759b1a18e3328421d5d75fadcb316c449fcd7cec32820c8dafda71986c9e",
}
URL = "https://raw.githubusercontent.com/zhouhaoyi/ETDataset/main/ETT-small/"
SERIES = (*CHECKSUMS, "eeg")
SPLITS = ("train", "valid", "test")


@checked
@dataclass(frozen=True, eq=False, init=False)
class Series:
    """Several series over the same time, normalised by the mean and deviation of their training part.

    Attributes:
        raw: ``[time, channel]``, as measured: a tensor, array or list of any number type; ``[time]`` is one channel.
        channels: a name a channel; their numbers if none are given.
        ends: where the train, validation and test parts end; what comes later is not used.

    Raises:
        ValueError: if a number is missing or infinite, a channel is constant in the training part (it cannot be
            normalised), or ``ends`` do not follow each other within the series. Time and channel are named.

    Example::

        series = Series(np.sin(np.arange(500)), ["sine"], (300, 400, 500))
        past, future = series.windows("train", past=20, horizon=5, batch=8, seed=0)[0]
    """

    raw: Float[Tensor, "time channel"]
    channels: tuple[str, ...]
    ends: tuple[int, int, int]

    def __init__(self, raw: Numbers, channels: Iterable[str], ends: Numbers) -> None:
        raw = tensor_of("raw", raw)
        raw = raw if raw.is_floating_point() else raw.double()
        raw = raw.unsqueeze(-1) if raw.dim() == 1 else raw
        if raw.dim() != 2 or not raw.numel():
            raise ValueError(f"`raw` must be [time, channel]; got shape {list(raw.shape)}")
        names = names_of("channels", channels, raw.shape[1], "a channel")
        finite("raw", raw, items=("time", "channel"))
        ends = tuple(integers("ends", ends, low=0, high=len(raw), item="end").tolist())
        if len(ends) != 3 or not 2 <= ends[0] <= ends[1] <= ends[2]:
            raise ValueError(
                f"`ends` must be three times, where train (2 times at least), validation and test end one after the "
                f"other; got {ends}"
            )
        train = raw[: ends[0]]
        flat = train.amax(0) == train.amin(0)
        if bool(flat.any()):
            raise ValueError(
                f"`raw` must vary in the training part, whose deviation normalises it; channel "
                f"{names[first(flat)[0]]!r} is {train[0, first(flat)[0]].item():g} throughout. Leave it out"
            )
        self.__dict__.update(raw=raw, channels=names, ends=ends)
        finite("raw", self._normalised.float(), items=("time", "channel"))

    def __repr__(self) -> str:
        names = ", ".join(self.channels)
        return f"Series({len(self.raw)} times of {len(self.channels)} channels ({names}), parts end at {self.ends})"

    @cached_property
    def _normalised(self) -> Float[Tensor, "time channel"]:
        """In double precision, for whatever dtype is torch's default when it is asked for."""
        train = self.raw[: self.ends[0]].double()
        return (self.raw.double() - train.mean(0)) / train.std(0, correction=0)

    @property
    def values(self) -> Float[Tensor, "time channel"]:
        """The normalised series, in torch's default dtype."""
        return self._normalised.to(torch.get_default_dtype())

    def windows(self, split: str, *, past: int, horizon: int, batch: int, seed: int | None = None) -> SeriesWindows:
        """Gives windows of one part; see ``SeriesWindows``."""
        return SeriesWindows(self, split, past=past, horizon=horizon, batch=batch, seed=seed)


@checked
def load_series(name: str, root: str | Path | None = None) -> Series:
    """Loads "ETTh1", "ETTh2" (hourly), "ETTm1" (quarter-hourly), or the embedded "eeg".

    The transformers' parts are 12, 4 and 4 months of 30 days, as is usual for them. "eeg" is matplotlib's sample
    recording, 800 times of four electrodes, cut at 60 and 80 percent; it needs no file.

    Args:
        name: which.
        root: the folder with the csv files, plain or compressed with gzip; by default ``$PYRO_MEMORY_DATA/ett``, or a
            download with a checksum.

    Raises:
        FileNotFoundError: if the folder lacks the file.
        ValueError: if the file is damaged or another one, or the name is unknown.

    References: Informer (Zhou et al., 2021), https://github.com/zhouhaoyi/ETDataset
    """
    if name not in SERIES:
        raise ValueError(f"`name` must be one of {', '.join(SERIES)}; got {name!r}")
    if name == "eeg":
        path = Path(matplotlib.get_data_path()) / "sample_data" / "eeg.dat"
        values = np.fromfile(path, dtype="<f8").reshape(800, 4)
        return Series(torch.from_numpy(values).float(), ("1", "2", "3", "4"), (480, 640, 800))
    content = _csv(f"{name}.csv", root)
    if hashlib.sha256(content).hexdigest() != CHECKSUMS[name]:
        raise ValueError(f"{name}.csv is damaged or another file; fetch it again from {URL}{name}.csv")
    head, *lines = content.decode().splitlines()
    values = np.array([line.split(",")[1:] for line in lines], dtype=np.float64)
    month = 30 * 24 * (4 if name.startswith("ETTm") else 1)
    ends = (12 * month, 16 * month, 20 * month)
    return Series(torch.from_numpy(values).float(), tuple(head.split(",")[1:]), ends)


def _csv(name: str, root: str | Path | None) -> bytes:
    folder = os.environ.get(VARIABLE) if root is None else root
    for packed in () if folder is None else (Path(folder) / f"{name}.gz", Path(folder) / "ett" / f"{name}.gz"):
        if not packed.is_file():
            continue
        try:
            return gzip.decompress(packed.read_bytes())
        except (OSError, EOFError) as error:
            raise ValueError(f"{packed} is damaged or no gzip ({error}); fetch it again from {URL}{name}") from error
    checksum = CHECKSUMS[name.removesuffix(".csv")]
    return find_file(name, folder="ett", root=root, url=URL + name, sha256=checksum).read_bytes()


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

    Raises:
        ValueError: if an argument is unusable.
    """

    def __init__(
        self, series: Series, split: str, *, past: int, horizon: int, batch: int, seed: int | None = None
    ) -> None:
        if split not in SPLITS:
            raise ValueError(f'`split` must be "train", "valid" or "test"; got {split!r}')
        if min(past, horizon, batch) < 1:
            raise ValueError(f"`past`, `horizon` and `batch` must be at least 1; got {past}, {horizon} and {batch}")
        at = SPLITS.index(split)
        first = past if at == 0 else series.ends[at - 1]
        self.starts = torch.arange(first - past, series.ends[at] - horizon - past + 1, device="cpu")
        if first < past or len(self.starts) == 0:
            raise ValueError(
                f"`past` + `horizon` must fit into the {split} part, which forecasts from time {first} and ends at "
                f"{series.ends[at]}; got {past} + {horizon}"
            )
        self.series = series
        self.past = past
        self.horizon = horizon
        self.batch = batch
        self.seed = seed

    __repr__ = call_of

    def __len__(self) -> int:
        if self.seed is not None:
            raise TypeError("windows that a `seed` draws have no end, hence no length")
        return -(-len(self.starts) // self.batch)

    def __bool__(self) -> bool:
        return True  # also where there is no length to ask for

    def __getitem__(self, index: int) -> tuple[Float[Tensor, "sequence past"], Float[Tensor, "sequence horizon"]]:
        starts = self._starts(index)
        rows = self.series._normalised[starts[:, None] + torch.arange(self.past + self.horizon, device="cpu")]
        past, future = rows.to(torch.get_default_dtype()).mT.flatten(0, 1).split([self.past, self.horizon], -1)
        return past, future

    def _starts(self, index: int) -> Int[Tensor, " window"]:
        if self.seed is None:
            if not 0 <= index < len(self):
                raise IndexError(f"`index` must be below {len(self)}; got {index}")
            return self.starts[index * self.batch : (index + 1) * self.batch]
        chosen = below(len(self.starts), generator_for(self.seed, 7, index), self.batch)
        return self.starts[chosen]
