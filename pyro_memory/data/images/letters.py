"""Glyphs: letters of the fonts that matplotlib carries, drawn and varied; a few-shot set that needs no download."""

from __future__ import annotations

import unicodedata
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import matplotlib
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional

from pyro_memory.data.images.labelled import LabelledImages
from pyro_memory.data.images.variations import smooth_maps
from pyro_memory.gate import checked

CANVAS = 96  # pixels of a letter before it is varied
# Scripts whose letters are set aside; no letter of them, nor one that looks like it, is in the background.
EVALUATION = frozenset({"GREEK", "ARABIC", "GEORGIAN", "TIFINAGH", "LISU"})


@checked
def glyphs(split: str, *, size: int = 28, drawings: int = 20, seed: int = 0) -> LabelledImages:
    """Draws one split of the glyphs, as binary images with ink 1; the same bits for the same seed.

    A class is a letter (shapes that repeat in another script count once). Each drawing takes a face that has the
    letter, a random affine map (turn, shear, size, place) and a smooth random warp.

    Args:
        split: "background", or "evaluation": the letters of other scripts (Greek, Arabic, Georgian, ...).
        size: pixels of a side, at least 16.
        drawings: per letter.
        seed: of the variation.

    The two splits together take about ten seconds once a process. This is not Omniglot, whose letters people drew.

    Raises:
        ValueError: if an argument is unusable.
    """
    if split not in ("background", "evaluation"):
        raise ValueError(f'`split` must be "background" or "evaluation"; got {split!r}')
    if size < 16 or drawings < 1:
        raise ValueError(f"`size` must be at least 16 and `drawings` at least 1; got {size} and {drawings}")
    kept = _draw(split, size, drawings, seed)
    return replace(kept, images=kept.images.clone(), labels=kept.labels.clone())  # a caller may write on them


@lru_cache(maxsize=8)
def _draw(split: str, size: int, drawings: int, seed: int) -> LabelledImages:
    letters = [name for name in _letters() if (_script(name) in EVALUATION) == (split == "evaluation")]
    faces: list[np.ndarray] = []
    choice, grids = [], []
    for letter in letters:
        random = np.random.default_rng([seed, ord(letter)])
        choice.append(len(faces) + random.integers(len(_letters()[letter]), size=drawings))
        faces += _letters()[letter]
        grids.append(random.standard_normal((drawings, 24)))
    originals = torch.from_numpy(np.stack(faces))
    chosen, noise = torch.from_numpy(np.concatenate(choice)), torch.from_numpy(np.concatenate(grids)).float()
    parts = [
        _vary(originals[at].float().unsqueeze(1), n, size)
        for at, n in zip(chosen.split(500), noise.split(500), strict=True)
    ]
    labels = torch.arange(len(letters), device="cpu").repeat_interleave(drawings)
    names = tuple(unicodedata.name(letter) for letter in letters)
    return LabelledImages(torch.cat(parts), labels, names)


def _vary(letters: Tensor, noise: Tensor, size: int) -> Tensor:
    """Maps letters by smooth maps made of 24 normal numbers each, and brings them to size."""
    grid = smooth_maps(noise, CANVAS, CANVAS)
    varied = functional.grid_sample(letters, grid, align_corners=False)
    small = functional.interpolate(varied, (size, size), mode="area")
    # The level sits below the darkest pixels, so that a thin letter never vanishes.
    return (small > (0.5 * small.amax((1, 2, 3), keepdim=True)).clamp(max=0.35)).byte()


@lru_cache(maxsize=1)
def _letters() -> dict[str, list[np.ndarray]]:
    """The bitmaps of each letter, one a face, without letters that look like an earlier one."""
    found: dict[str, list[np.ndarray]] = {}
    owner: dict[bytes, str] = {}
    for face in _faces():
        font = ImageFont.truetype(str(face), 64)
        missing = _bitmap(font, "\U0010ffff")
        for letter in _candidates():
            bitmap = _bitmap(font, letter)
            if bitmap is None or (missing is not None and np.array_equal(bitmap, missing)):
                continue
            if owner.setdefault(bitmap.tobytes(), letter) == letter:
                found.setdefault(letter, []).append(bitmap)
            else:
                found.pop(letter, None)  # a twin in some face is a twin: Latin A, Greek Alpha
                owner[f"twin {letter}".encode()] = letter
    twins = {letter for key, letter in owner.items() if key.startswith(b"twin ")}
    return {letter: bitmaps for letter, bitmaps in sorted(found.items()) if letter not in twins}


def _faces() -> list[Path]:
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return sorted(p for p in folder.glob("*.ttf") if p.name.startswith(("DejaVuSans", "DejaVuSerif", "STIXGeneral")))


@lru_cache(maxsize=1)
def _candidates() -> tuple[str, ...]:
    """Letters without accents: of the first plane, plain scripts, no ligatures and no compatibility forms."""
    chosen = []
    for code in range(0x41, 0xFFFF):
        letter = chr(code)
        name = unicodedata.name(letter, "")
        plain = unicodedata.category(letter) in ("Lu", "Ll", "Lo") and not unicodedata.decomposition(letter)
        if plain and " LETTER " in name and " WITH " not in name and "LIGATURE" not in name and "DIGRAPH" not in name:
            chosen.append(letter)
    return tuple(chosen)


def _script(letter: str) -> str:
    return unicodedata.name(letter).split(" ")[0]


def _bitmap(font: ImageFont.FreeTypeFont, letter: str) -> np.ndarray | None:
    """A letter, its longer side 60 pixels, in the middle of the canvas; None if the face draws nothing."""
    left, top, right, bottom = font.getbbox(letter)
    if right <= left or bottom <= top:
        return None
    ink = Image.new("L", (right - left, bottom - top))
    ImageDraw.Draw(ink).text((-left, -top), letter, font=font, fill=255)
    box = ink.getbbox()
    if box is None:
        return None
    ink = ink.crop(box)
    factor = 60 / max(ink.size)
    ink = ink.resize([max(4, round(s * factor)) for s in ink.size], Image.Resampling.BILINEAR)
    canvas = Image.new("L", (CANVAS, CANVAS))
    canvas.paste(ink, tuple((CANVAS - s) // 2 for s in ink.size))
    return (np.asarray(canvas) > 127).astype(np.uint8)
