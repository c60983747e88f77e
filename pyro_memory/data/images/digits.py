"""MNIST: 70,000 handwritten digits."""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path

import numpy as np
import torch

from pyro_memory.data.images.labelled import LabelledImages
from pyro_memory.data.sources import check_content, find_file
from pyro_memory.gate import checked

CHECKSUMS = {
    "train-images-idx3-ubyte.gz": "0b367032e93c5d0cea0925647cfdb18614af8ee15f83e6f2fc2ad904a6835971",
    "train-labels-idx1-ubyte.gz": "1787548bbe0bff1ec2ecdc0ef292b02df999e2d1a6002d27500982c652b17203",
    "t10k-images-idx3-ubyte.gz": "1a1a05eab793c14bb050b398624a11b0ffd1a2953baed553b1b9bd079e2a20be",
    "t10k-labels-idx1-ubyte.gz": "b91679a0acfe4ba0e50a2437a903084cba1f5f92592b016a25a7dfd00455798b",
}
CONTENTS = {  # of the files, not compressed
    "train-images-idx3-ubyte.gz": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte.gz": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte.gz": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte.gz": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
URL = "https://ossci-datasets.s3.amazonaws.com/mnist/"


@checked
def mnist(split: str, *, binary: bool = True, root: str | Path | None = None) -> LabelledImages:
    """Reads one split of MNIST from its official files.

    Args:
        split: "train" (60,000) or "test" (10,000).
        binary: whether a pixel of half the full level or more becomes ink, and the others none.
        root: the folder with the files, also the one that torchvision was given (``MNIST/raw`` below it), compressed or
            not; by default ``$PYRO_MEMORY_DATA/mnist``, or a download with a checksum.

    Raises:
        FileNotFoundError: if the folder lacks a file.
        ValueError: if a file is damaged or another one, or the split is unknown.

    References: Gradient-based learning applied to document recognition (LeCun et al., 1998),
    http://yann.lecun.com/exdb/mnist
    """
    if split not in ("train", "test"):
        raise ValueError(f'`split` must be "train" or "test"; got {split!r}')
    stem = "train" if split == "train" else "t10k"
    images, labels = (
        _read_idx(_find(name, root), dims)
        for name, dims in [(f"{stem}-images-idx3-ubyte.gz", 3), (f"{stem}-labels-idx1-ubyte.gz", 1)]
    )
    if len(images) != len(labels):
        raise ValueError(
            f"`root`: the files hold {len(images)} images and {len(labels)} labels; fetch both again from {URL}"
        )
    pixels = torch.from_numpy(images).unsqueeze(1)
    return LabelledImages(
        (pixels >= 128).byte() if binary else pixels,
        torch.from_numpy(labels).long(),
        tuple(map(str, range(10))),
        1 if binary else 255,
    )


def _find(name: str, root: str | Path | None) -> Path:
    """A file of the official ones, or what torchvision makes of it."""
    raw = name.removesuffix(".gz")
    others = [f"{folder}{file}" for folder in ("", "raw/", "MNIST/raw/") for file in (name, raw)]
    return find_file(name, folder="mnist", root=root, url=URL + name, sha256=CHECKSUMS[name], others=others)


def _read_idx(path: Path, dims: int) -> np.ndarray:
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if path.suffix == ".gz" else content
        magic, *shape = struct.unpack(f">{1 + dims}I", content[: 4 * (1 + dims)])
        if magic != 0x0800 + dims:
            raise ValueError(f"header {magic:#x}, not {0x0800 + dims:#x}")
        numbers = np.frombuffer(content, np.uint8, offset=4 * (1 + dims)).reshape(shape).copy()
    except (OSError, EOFError, zlib.error, struct.error, ValueError) as error:
        raise ValueError(f"{path} is damaged or no idx file ({error}); fetch it again from {URL}") from error
    name = path.name.removesuffix(".gz") + ".gz"
    check_content(path, content, CONTENTS[name], URL + name)
    return numbers
