"""The series by name: electricity transformers (ETT), and an embedded recording."""

from __future__ import annotations

import gzip
import hashlib
import os
from pathlib import Path

import matplotlib
import numpy as np
import torch

from pyro_memory.data.sequences.series import Series
from pyro_memory.data.sources import VARIABLE, find_file
from pyro_memory.gate import checked

CHECKSUMS = {  # of the csv files, not compressed
    "ETTh1": "f18de3ad269cef59bb07b5438d79bb3042d3be49bdeecf01c1cd6d29695ee066",
    "ETTh2": "a3dc2c597b9218c7ce1cd55eb77b283fd459a1d09d753063f944967dd6b9218b",
    "ETTm1": "6ce1759b1a18e3328421d5d75fadcb316c449fcd7cec32820c8dafda71986c9e",
}
URL = "https://raw.githubusercontent.com/zhouhaoyi/ETDataset/main/ETT-small/"
SERIES = (*CHECKSUMS, "eeg")


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
        raise ValueError(f"`root`: {name}.csv is damaged or another file; fetch it again from {URL}{name}.csv")
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
