"""Omniglot: 1,623 letters of 50 alphabets, each drawn by 20 people."""

from __future__ import annotations

import hashlib
import io
import struct
import zipfile
import zlib
from contextlib import suppress
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from pyro_memory.data.images.labelled import LabelledImages
from pyro_memory.data.sources import cache_dir, check_content, find_file
from pyro_memory.gate import checked
from pyro_memory.stores import replace_file

CHECKSUMS = {
    "background": "e8f1dcd9cd371020aaec880d5bc777ef3394e57a531b96598ee65bacc0f2ebd3",
    "evaluation": "ba5e57d7042a0a3aec70f3cb0f10b8eb1bcca2101f95763f5ee8ba056e20e49d",
}
CONTENTS = {  # of the drawings, whatever zip they come in: names and bits, see `_decode`
    "background": "ffe345b79b8684e4cfbd517cdf633b03b1763ef72e2f25e46d528fc334c75f90",
    "evaluation": "c7648f1a0a9d9c4c9d31c199241af19eefbf560d0f9d6c48635e7f8dbd754375",
}
# What zipfile, zlib and Pillow raise: RuntimeError and NotImplementedError where a flipped bit says "encrypted".
DAMAGE = (zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError, SyntaxError, struct.error)
URL = "https://raw.githubusercontent.com/brendenlake/omniglot/master/python/"


@checked
def omniglot(split: str, *, size: int = 28, root: str | Path | None = None) -> LabelledImages:
    """Reads one split of Omniglot from its official zip, as binary images with ink 1.

    Args:
        split: "background" (964 letters) or "evaluation" (659).
        size: 28 takes rows and columns ``floor(i * 105 / 28)`` of the drawing, as generative matching networks did;
            26 takes the maximum over 4x4 blocks of its first 104 rows and columns. Their likelihoods do not compare.
        root: the folder with the zips; by default ``$PYRO_MEMORY_DATA/omniglot``, or a download with a checksum.

    Decoding takes about ten seconds once; its result is kept, as bits, in the user's cache, where there is one.

    Raises:
        FileNotFoundError: if the folder lacks the zip.
        ValueError: if the zip is damaged or holds other drawings, or an argument is unknown.

    References: Human-level concept learning through probabilistic program induction (Lake et al., 2015),
    https://github.com/brendenlake/omniglot; Few-shot Generative Modelling with Generative Matching Networks (Bartunov &
    Vetrov, 2018), https://proceedings.mlr.press/v84/bartunov18a.html
    """
    if split not in CHECKSUMS:
        raise ValueError(f'`split` must be "background" or "evaluation"; got {split!r}')
    if size not in (26, 28):
        raise ValueError(f"`size` must be 28 (every 105/28-th pixel) or 26 (4x4 maximum); got {size}")
    name = f"images_{split}.zip"
    path = find_file(name, folder="omniglot", root=root, url=URL + name, sha256=CHECKSUMS[split])
    images, labels, names = _stored(path, split, size)
    return LabelledImages(images, labels, names, originals=partial(_drawings, path, split) if size == 28 else None)


@lru_cache(maxsize=2)
def _drawings(path: Path, split: str) -> torch.Tensor:
    """All drawings as they were made, 105x105: some 200 MB."""
    return _stored(path, split, 105)[0]


def _stored(path: Path, split: str, size: int) -> tuple[torch.Tensor, torch.Tensor, tuple[str, ...]]:
    """Images, labels and names, decoded or from the cache: a convenience, whose failures cost time and nothing else."""
    checksum = hashlib.sha256(path.read_bytes()).hexdigest()
    try:
        cached = cache_dir() / f"omniglot-{split}-{size}-{checksum[:16]}.npz"
        bits, labels, names = _cached(cached, size)
    except (*DAMAGE, ValueError, KeyError):
        bits, labels, names = _decode(path, split, size)
        with suppress(OSError):
            _write(cache_dir() / f"omniglot-{split}-{size}-{checksum[:16]}.npz", bits, labels, names)
    images = np.unpackbits(bits, axis=-1, count=size * size).reshape(-1, 1, size, size)
    return torch.from_numpy(images), torch.from_numpy(labels), tuple(names.tolist())


def _cached(path: Path, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What ``_write`` kept; an error if it is not there, or damaged."""
    with open(path, "rb") as file, np.load(file) as stored:
        bits, labels, names = stored["bits"], stored["labels"], stored["names"]
    if bits.shape != (len(labels), -(-size * size // 8)) or labels.max() >= len(names):
        raise ValueError("parts do not fit")
    return bits, labels, names


def shrink(drawing: np.ndarray, size: int) -> np.ndarray:
    """Brings a 105x105 drawing (ink 1) to 28x28 or 26x26, or leaves it."""
    if size == 105:
        return drawing
    if size == 28:
        rows = np.arange(28) * 105 // 28
        return drawing[rows][:, rows]
    return drawing[:104, :104].reshape(26, 4, 26, 4).max((1, 3))


def _decode(path: Path, split: str, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Reads a zip, makes sure that its drawings are Omniglot's, and shrinks them."""
    remedy = "fetch it again from " + URL
    try:
        with zipfile.ZipFile(path) as archive:
            files = sorted(n for n in archive.namelist() if n.endswith(".png") and n.count("/") == 3)
            if not files:
                raise ValueError(f"{path} holds no drawings under alphabet/character folders: {remedy}")
            drawings = [_ink(archive.read(file), path, file) for file in tqdm(files, desc=path.name, leave=False)]
    except DAMAGE as error:
        raise ValueError(f"{path} is damaged or no zip ({error}): {remedy}") from error
    letters = ["/".join(file.split("/")[1:3]) for file in files]
    names, labels = np.unique(letters, return_inverse=True)
    whole = "\n".join(file.partition("/")[2] for file in files).encode() + b"".join(map(np.packbits, drawings))
    check_content(path, whole, CONTENTS[split], URL + path.name)
    small = np.stack([shrink(drawing, size) for drawing in drawings]).reshape(len(files), -1)
    return np.packbits(small, axis=-1), labels.astype(np.int64), names


def _ink(png: bytes, path: Path, file: str) -> np.ndarray:
    drawing = np.asarray(Image.open(io.BytesIO(png)).convert("L")) < 128
    if drawing.shape != (105, 105):
        raise ValueError(f"{path} must hold drawings of 105x105; {file} is {drawing.shape}: fetch it again from {URL}")
    return drawing.astype(np.uint8)


def _write(path: Path, bits: np.ndarray, labels: np.ndarray, names: np.ndarray) -> None:
    """Writes the cache whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:
            np.savez(file, bits=bits, labels=labels, names=names)

    replace_file(path, write)
