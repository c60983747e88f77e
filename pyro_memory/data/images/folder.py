"""Images of one's own: a folder of files, in folders of a class each, or with a table of labels."""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import PIL
import torch
from tqdm import tqdm

from pyro_memory.data.images.ink import CONTRAST, binary, found_ink, on_paper
from pyro_memory.data.images.labelled import LabelledImages
from pyro_memory.data.images.reading import SUFFIXES, read_image
from pyro_memory.data.images.sheet import labels_from
from pyro_memory.data.kept import Arrays, kept, state_of
from pyro_memory.gate import checked

MANY = 200  # images from which on a bar shows how far reading is
PARTS = {"train", "training", "test", "testing", "val", "valid", "validation"}
MORE_PARTS = PARTS | {"dev", "eval", "evaluation", "gallery", "holdout", "query", "support"}


@checked
def image_folder(
    path: str | Path,
    *,
    split: str | None = None,
    labels: str | Path | None = None,
    size: int | tuple[int, int] = 28,
    colour: str = "binary",
    ink: str = "found",
    evaluation: float = 0.25,
    seed: int = 0,
    progress: bool = True,
    cache: bool = True,
) -> LabelledImages:
    """Reads a folder of image files as people have them, of any size and kind, as labelled images of one size.

    Files are shown upright, as their EXIF says, shrunk by area (small ones are enlarged bilinearly) with their aspect
    kept, and laid in the middle of their paper, the commonest level of their border; transparent pixels are paper. Of
    16 bits the upper eight are taken. Hidden files and files that are no images are passed over.

    Args:
        path: the folder. Without ``labels`` its sub-folders are the classes, nested ones by their path from there:
            "Greek/alpha". A folder of images alone is one class.
        split: "background" to train on or "evaluation": other classes, chosen by ``seed`` and their names, so that they
            are the same on every machine, and stay where others are added but for a few at the border. None gives all.
        labels: a text table (csv) in place of sub-folders: a column of files, from the folder on or by their names, and
            one of labels; found by their titles ("file", "label", ...), or the first two.
        size: pixels of a side, or (height, width).
        colour: "binary": ink is 1, on the inner side of the threshold where ink and paper differ most in each image
            (Otsu, 1979); where they differ by less than 32 of 255 levels, all is paper. "grey": 256 levels, full ink is
            255 (``levels=255``). "colour": red, green and blue, 256 levels each, as they are; no ink is looked for, and
            transparent pixels are white.
        ink: "dark" on light paper, "light" on dark, or "found": darker or lighter than their border, as most images of
            the folder are; ``LabelledImages.ink`` tells, and a warning which images look otherwise.
        evaluation: the share of the classes that the evaluation split has.
        seed: of the split.
        progress: whether a bar is shown where there are many files.
        cache: whether what was read is kept in the user's cache, for as long as names, sizes and times of the files and
            the options stay; where there is no cache, files are read each time.

    Raises:
        FileNotFoundError: if there is no such folder or table.
        ValueError: naming the first file that cannot be read, that holds several images, that lies beside the classes
            or that has no label; if the folder holds no images, too few classes for a split, classes that seem to be
            the same in several parts, or an argument is unusable.

    References: A Threshold Selection Method from Gray-Level Histograms (Otsu, 1979),
    https://doi.org/10.1109/TSMC.1979.4310076

    Example::

        train = image_folder("letters", split="background")
        test = image_folder("letters", split="evaluation")
        tasks = FewShotTasks(train, classes=5, shots=2, targets=16)
    """
    _check(split, colour, ink, evaluation)
    height, width = (size, size) if isinstance(size, int) else size
    if min(height, width) < 1:
        raise ValueError(f"`size` must be at least 1 pixel, or (height, width); got {size}")
    files = _files(Path(path))
    of_files = labels_from(_table(Path(path), Path(labels)), files) if labels else _folders(Path(path), list(files))
    classes = _sorted(set(of_files.values()))
    chosen = classes if split is None else _part(classes, split, evaluation, seed)
    twice = _twice(classes) if split and not labels else []
    read = _read(Path(path), files, (height, width), 3 if colour == "colour" else 1, progress, cache)
    names = list(files)
    images, ink, told = _shown(read, names, colour, ink)
    for text in twice + told:
        warnings.warn(f"{path}: {text}", stacklevel=3)
    number = {name: i for i, name in enumerate(chosen)}
    taken = [i for i, name in enumerate(names) if of_files[name] in number]
    return LabelledImages(
        torch.from_numpy(images[taken]),
        [number[of_files[names[i]]] for i in taken],
        chosen,
        1 if colour == "binary" else 255,
        ink=ink,
    )


def _shown(read: Arrays, names: list[str], colour: str, ink: str) -> tuple[np.ndarray, str | None, list[str]]:
    """Images on their paper, as ink or in colours; which ink it was; and what is to be told."""
    told: list[str] = []
    seen, opaque = read["seen"], read["opaque"]
    if colour == "colour":
        images = on_paper(seen, opaque, 255)
        return images, None, _flat(images, names)
    if ink == "found":
        ink, odd = found_ink(read["ink"], names)
        if odd:
            told.append(
                f"{len(odd)} of {len(names)} images look as if their ink were not {ink}, the first is {names[odd[0]]}; "
                f'all are read as of {ink} ink. Give ink="{ink}" if that is right, or invert or leave these out'
            )
    images = on_paper(seen, opaque, 255 * (ink == "dark"))
    images = 255 - images if ink == "dark" else images
    if colour == "binary":
        images = binary(images)
        blank = np.flatnonzero(images.max((1, 2, 3)) == 0)
        if len(blank):
            told.append(
                f"{len(blank)} of {len(names)} images have no ink, the first is {names[blank[0]]}: they are of one "
                "level, or nearly. Leave them out if they should have some"
            )
    else:
        told += _flat(images, names)
    return images, ink, told


def _flat(images: np.ndarray, names: list[str]) -> list[str]:
    """What is to be told of images that keep their levels and have nearly one."""
    flat = np.flatnonzero((images.max((2, 3)) - images.min((2, 3))).max(-1) < CONTRAST)
    if not len(flat):
        return []
    return [
        f"{len(flat)} of {len(names)} images have less than {CONTRAST} of 255 levels between their darkest and "
        f"lightest pixel, the first is {names[flat[0]]}. If they are of 16 bits, of which the upper eight are taken, "
        "stretch their levels first"
    ]


def _check(split: str | None, colour: str, ink: str, evaluation: float) -> None:
    for name, value, wanted in (
        ("split", split, (None, "background", "evaluation")),
        ("colour", colour, ("binary", "grey", "colour")),
        ("ink", ink, ("found", "dark", "light")),
    ):
        if value not in wanted:
            said = " or ".join("None" if word is None else f'"{word}"' for word in wanted)
            raise ValueError(f"`{name}` must be {said}; got {value!r}")
    if not 0 < evaluation < 1:
        raise ValueError(f"`evaluation` must be a share of the classes, in (0, 1); got {evaluation}")


def _files(root: Path) -> dict[str, Path]:
    """The image files of a folder and those below it, by their path from there, in order."""
    if root.is_file():
        raise ValueError(f"`path` must be a folder of image files; {root} is a file. Unpack it, or name its folder")
    if not root.is_dir():
        raise FileNotFoundError(f"`path` must be a folder of image files; there is no {root}")
    found: dict[str, Path] = {}
    others: Counter[str] = Counter()
    entered = set()
    for folder, inner, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in entered:  # by a link
            inner.clear()
            continue
        entered.add(real)
        inner[:] = [name for name in inner if not name.startswith((".", "__MACOSX"))]
        for file in (Path(folder, name) for name in files if not name.startswith(".")):
            if file.suffix.lower() in SUFFIXES:
                found[unicodedata.normalize("NFC", file.relative_to(root).as_posix())] = file
            else:
                others[file.suffix.lower()] += 1
    if not found:
        seen = ", ".join(f"{count} {suffix or 'without a suffix'}" for suffix, count in others.most_common(3))
        raise ValueError(
            f"`path` must be a folder of image files ({', '.join(sorted(SUFFIXES))}); {root} holds "
            f"{f'only others: {seen}. Convert them to PNG' if others else 'no files'}"
        )
    return dict(sorted(found.items()))


def _folders(root: Path, names: Sequence[str]) -> dict[str, str]:
    """The class of each file: its folder."""
    classes = {name: str(PurePosixPath(name).parent) for name in names}
    beside = [name for name, label in classes.items() if label == "."]
    if len(beside) == len(names):
        return dict.fromkeys(names, root.resolve().name)
    if beside:
        raise ValueError(
            f"`path` must hold images in a sub-folder for each class, or in none; {len(beside)} lie beside the "
            f"sub-folders of {root}, the first is {beside[0]}. Move them, or give `labels`"
        )
    tops = {PurePosixPath(name).parts[0] for name in names}
    if len(tops) > 1 and {top.lower() for top in tops} <= PARTS:
        top = sorted(tops)[0]
        raise ValueError(
            f"`path` must be a folder of classes; {root} holds parts, {', '.join(sorted(tops))}, whose classes would "
            f"count twice. Read them one by one: image_folder({str(root / top)!r})"
        )
    return classes


def _twice(classes: Sequence[str]) -> list[str]:
    """What is to be told of a split of classes that share the name of their folder: they may be the same.

    Raises:
        ValueError: if they look so: the folders above hold the same names, or one is called as parts of data are.
    """
    above: dict[str, set[str]] = {}
    for name in classes:
        folder, _, inner = name.rpartition("/")
        if folder:
            above.setdefault(folder, set()).add(inner)
    count = Counter(inner for held in above.values() for inner in held)
    shared = sorted(inner for inner in count if count[inner] > 1)
    if not shared:
        return []
    one, other, *_ = sorted(folder for folder, held in above.items() if shared[0] in held)
    said = f"{len(shared)} names occur below several folders, as {one}/{shared[0]} and {other}/{shared[0]}"
    parts = any(re.split("[^a-z]", part)[0] in MORE_PARTS for folder in above for part in folder.lower().split("/"))
    if parts or len({frozenset(held) for held in above.values()}) == 1:
        raise ValueError(
            f"`split` must divide classes; {said}. If these are parts of the same classes, read them one by one "
            "without `split`; if they are different classes, rename the folders or give `labels`"
        )
    return [f"{said}; they are taken as different classes. If they are the same, give `labels`"]


def _table(root: Path, labels: Path) -> Path:
    for path in (root / labels, labels):
        if path.is_file():
            return path
    raise FileNotFoundError(f"`labels` must be a table of files and labels; there is no {root / labels}, nor {labels}")


def _sorted(names: set[str]) -> list[str]:
    """Names in order; numbers by their value."""
    numbers = all(name.isdecimal() for name in names)
    return sorted(names, key=lambda name: (int(name) if numbers else 0, name))


def _part(classes: list[str], split: str, share: float, seed: int) -> list[str]:
    """The classes of one part. Their order is that of a hash of seed and name: it does not depend on other classes."""
    count = round(share * len(classes))
    if not 0 < count < len(classes):
        raise ValueError(
            f"`split` must leave classes on both sides; {share:g} of {len(classes)} is {count}. Give another "
            "`evaluation`, or split=None for all"
        )
    drawn = sorted(classes, key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).digest())
    kept_back = set(drawn[:count])
    return [name for name in classes if (name in kept_back) == (split == "evaluation")]


def _read(
    root: Path, files: dict[str, Path], size: tuple[int, int], channels: int, progress: bool, cache: bool
) -> Arrays:
    """All images of a folder before their paper is known, read or from the cache."""

    def read() -> Arrays:
        bar = tqdm(files.values(), desc=root.name, leave=False, disable=not progress or len(files) < MANY)
        seen, opaque, ink = zip(*(read_image(file, size, channels) for file in bar), strict=True)
        return {"seen": np.stack(seen), "opaque": np.stack(opaque), "ink": np.array(ink)}

    if not cache:
        return read()
    options = f"2 {PIL.__version__} {size} {channels}"  # the first is this file's own: one more where reading changes
    name = hashlib.sha256(f"{os.path.abspath(root)} {size} {channels}".encode(errors="surrogateescape")).hexdigest()
    return kept(f"folder-{name[:16]}", f"{options} {state_of(files.items())}", read)
