"""Omniglot: 1,623 letters of 50 alphabets, each drawn by 20 people."""

from __future__ import annotations

import hashlib
import io
import zipfile
from contextlib import nullcontext
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from pyro_memory.data.images.labelled import LabelledImages
from pyro_memory.data.kept import DAMAGE, Arrays, kept, state_of
from pyro_memory.data.sources import check_content, find_file
from pyro_memory.gate import checked

CHECKSUMS = {
    "background": "e8f1dcd9cd371020aaec880d5bc777ef3394e57a531b96598ee65bacc0f2ebd3",
    "evaluation": "ba5e57d7042a0a3aec70f3cb0f10b8eb1bcca2101f95763f5ee8ba056e20e49d",
}
CONTENTS = {  # of the drawings, whatever zip they come in: names and bits, see `_decode`
    "background": "ffe345b79b8684e4cfbd517cdf633b03b1763ef72e2f25e46d528fc334c75f90",
    "evaluation": "c7648f1a0a9d9c4c9d31c199241af19eefbf560d0f9d6c48635e7f8dbd754375",
}
# The alphabets that the division "45-5" sets aside: all lie in the zip of the official evaluation split.
HELD_OUT = ("Sylheti", "Syriac_(Serto)", "Tengwar", "Tibetan", "ULOG")
URL = "https://raw.githubusercontent.com/brendenlake/omniglot/master/python/"
Part = tuple[np.ndarray, np.ndarray, np.ndarray]  # of a zip: images as bits, a row each; labels; names of the letters


@checked
def omniglot(
    split: str, *, size: int = 28, alphabets: str = "official", root: str | Path | None = None
) -> LabelledImages:
    """Reads one split of Omniglot from its official zips, as binary images with ink 1.

    Args:
        split: "background", to train on, or "evaluation".
        size: 28 takes rows and columns ``floor(i * 105 / 28)`` of the drawing, as generative matching networks did;
            26 takes the maximum over 4x4 blocks of its first 104 rows and columns. Their likelihoods do not compare.
        alphabets: which of the 50 alphabets are in which split. "official": 30 (964 letters) and 20 (659), a zip each.
            "45-5": evaluation has five of these 20, Sylheti, Syriac (Serto), Tengwar, Tibetan and ULOG (144 letters),
            background the other 45 (1,479), from both zips. Numbers on the two divisions do not compare.
        root: the folder with the zips, or with what they hold (``images_background/...``), also the one that was given
            to torchvision (``omniglot-py`` below it); by default ``$PYRO_MEMORY_DATA/omniglot``, or a download with a
            checksum.

    With ``size=26``, "45-5" has alphabets and pixels as https://github.com/yenchenlin/omniglot-45-5 makes them (2018, a
    third party's). It cites Rezende et al. (2016, https://arxiv.org/abs/1603.05106), Bornschein et al. (2017,
    https://arxiv.org/abs/1709.07116) and Reed et al. (2018, https://arxiv.org/abs/1710.10304) as users of the split;
    that they held out the same five alphabets could not be read anywhere.

    Decoding takes about ten seconds a split once; its result is kept, as bits, in the user's cache, where there is one.

    Raises:
        FileNotFoundError: if the folder lacks a zip.
        ValueError: if a zip is damaged or holds other drawings, or an argument is unknown.

    References: Human-level concept learning through probabilistic program induction (Lake et al., 2015),
    https://github.com/brendenlake/omniglot; Few-shot Generative Modelling with Generative Matching Networks (Bartunov &
    Vetrov, 2018), https://proceedings.mlr.press/v84/bartunov18a.html
    """
    if split not in CHECKSUMS:
        raise ValueError(f'`split` must be "background" or "evaluation"; got {split!r}')
    if size not in (26, 28):
        raise ValueError(f"`size` must be 28 (every 105/28-th pixel) or 26 (4x4 maximum); got {size}")
    if alphabets not in ("official", "45-5"):
        raise ValueError(
            f'`alphabets` must be "official" (30 to train on, 20 to test on) or "45-5" (45 and 5); got {alphabets!r}'
        )
    both = alphabets == "45-5" and split == "background"
    paths = tuple((part, _find(part, root)) for part in (CHECKSUMS if both else (split,)))
    held_out = None if alphabets == "official" else split == "evaluation"
    images, labels, names = _read(paths, size, held_out)
    return LabelledImages(images, labels, names, originals=partial(_drawings, paths, held_out) if size == 28 else None)


def _find(part: str, root: str | Path | None) -> Path:
    name = f"images_{part}.zip"
    others = [f"omniglot-py/{name}", *(f"{folder}images_{part}" for folder in ("", "omniglot/", "omniglot-py/"))]
    return find_file(name, folder="omniglot", root=root, url=URL + name, sha256=CHECKSUMS[part], others=others)


@lru_cache(maxsize=2)
def _drawings(paths: tuple[tuple[str, Path], ...], held_out: bool | None) -> torch.Tensor:
    """All drawings as they were made, 105x105: some 200 MB, 330 MB of 45 alphabets."""
    return _read(paths, 105, held_out)[0]


def _read(
    paths: tuple[tuple[str, Path], ...], size: int, held_out: bool | None
) -> tuple[torch.Tensor, torch.Tensor, tuple[str, ...]]:
    """Images, labels and names of some zips: of all letters, those of the held-out alphabets, or the others."""
    parts = [_stored(path, part, size) for part, path in paths]
    bits, labels, names = parts[0] if held_out is None else _divided(parts, held_out)
    images = np.unpackbits(bits, axis=-1, count=size * size).reshape(-1, 1, size, size)
    return torch.from_numpy(images), torch.from_numpy(labels), tuple(names.tolist())


def _divided(parts: list[Part], held_out: bool) -> Part:
    """The letters of the held-out alphabets, or all others, numbered anew, zip after zip."""
    bits, labels, names = (np.concatenate(of_all) for of_all in zip(*parts, strict=True))
    labels = labels + np.repeat(np.cumsum([0, *(len(n) for _, _, n in parts[:-1])]), [len(k) for _, k, _ in parts])
    kept = np.array([(name.partition("/")[0] in HELD_OUT) == held_out for name in names.tolist()])
    chosen = kept[labels]
    return bits[chosen], (kept.cumsum() - 1)[labels[chosen]], names[kept]


def _stored(path: Path, split: str, size: int) -> Part:
    """Bits, labels and names, decoded or from the cache."""
    if path.is_dir():
        state = state_of((name, path.parent / name) for name in _names(path))
    else:
        state = hashlib.sha256(path.read_bytes()).hexdigest()
    parts = kept(f"omniglot-{split}-{size}-{state[:16]}", "1", lambda: _decode(path, split, size))
    return parts["bits"], parts["labels"], parts["names"]


def shrink(drawing: np.ndarray, size: int) -> np.ndarray:
    """Brings a 105x105 drawing (ink 1) to 28x28 or 26x26, or leaves it."""
    if size == 105:
        return drawing
    if size == 28:
        rows = np.arange(28) * 105 // 28
        return drawing[rows][:, rows]
    return drawing[:104, :104].reshape(26, 4, 26, 4).max((1, 3))


def _decode(path: Path, split: str, size: int) -> Arrays:
    """Reads a zip or folder, makes sure that its drawings are Omniglot's, and shrinks them."""
    remedy = "fetch it again from " + URL
    try:
        with nullcontext() if path.is_dir() else zipfile.ZipFile(path) as archive:
            files = _names(path) if archive is None else sorted(filter(_is_drawing, archive.namelist()))
            if not files:
                raise ValueError(
                    f"`root` must hold Omniglot; {path} holds no drawings under alphabet/character: {remedy}"
                )
            read = archive.read if archive else lambda file: (path.parent / file).read_bytes()
            drawings = [_ink(read(file), path, file) for file in tqdm(files, desc=path.name, leave=False)]
    except DAMAGE as error:
        raise ValueError(f"{path} is damaged or no zip ({error}): {remedy}") from error
    letters = ["/".join(file.split("/")[1:3]) for file in files]
    names, labels = np.unique(letters, return_inverse=True)
    whole = "\n".join(file.partition("/")[2] for file in files).encode() + b"".join(map(np.packbits, drawings))
    check_content(path, whole, CONTENTS[split], URL + f"images_{split}.zip")
    small = np.stack([shrink(drawing, size) for drawing in drawings]).reshape(len(files), -1)
    return {"bits": np.packbits(small, axis=-1), "labels": labels.astype(np.int64), "names": names}


def _names(folder: Path) -> list[str]:
    """The drawings of a folder, named as in the zip."""
    files = (file.relative_to(folder.parent).as_posix() for file in folder.glob("*/*/*.png"))
    return sorted(filter(_is_drawing, files))


def _is_drawing(name: str) -> bool:
    return name.endswith(".png") and name.count("/") == 3 and "/." not in name


def _ink(png: bytes, path: Path, file: str) -> np.ndarray:
    drawing = np.asarray(Image.open(io.BytesIO(png)).convert("L")) < 128
    if drawing.shape != (105, 105):
        raise ValueError(
            f"`root`: {path} must hold drawings of 105x105; {file} is {drawing.shape}: fetch it again from {URL}"
        )
    return drawing.astype(np.uint8)
