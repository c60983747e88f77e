"""One image file of any kind, brought to size: what can be seen, how much, and whether its ink is dark."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageChops, ImageOps

# Of what Pillow reads everywhere, the kinds that hold pictures.
SUFFIXES = frozenset((
    ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff",
    ".webp",
))  # fmt: skip


class Reading(NamedTuple):
    """Is an image before its paper is known.

    Attributes:
        seen: ``[channel, height, width]``, levels of 255, times how opaque they are.
        opaque: ``[height, width]``, of 255; what is not is paper.
        ink: how much darker (below 0) or lighter its ink is than its paper, in levels; 0 where it has none.
    """

    seen: np.ndarray
    opaque: np.ndarray
    ink: float


def read_image(path: Path, size: tuple[int, int], channels: int) -> Reading:
    """Reads an image upright, shrinks it by area (or enlarges it, bilinearly), and lays it in the middle of its paper.

    Raises:
        ValueError: naming the file, if it cannot be read or holds several images.
    """
    try:
        with Image.open(path) as image:
            pages = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)  # MPO: photos with a preview
            seen, opaque = _bands(ImageOps.exif_transpose(image), channels)
    except Exception as error:  # Pillow's many readers raise whatever they meet
        raise ValueError(
            f"{path} is damaged or no image that can be read ({error or type(error).__name__}). Replace it, or move it "
            "out of the folder"
        ) from error
    if pages > 1:
        raise ValueError(
            f"`path` must hold an image a file; {path} holds {pages}, as pages or frames. Save each as a file, or move "
            "it out of the folder"
        )
    scale = min(size[0] / seen.height, size[1] / seen.width)
    inner = max(1, round(seen.width * scale)), max(1, round(seen.height * scale))
    if inner != seen.size:
        by = Image.Resampling.BOX if scale < 1 else Image.Resampling.BILINEAR
        seen, opaque = seen.resize(inner, by), opaque.resize(inner, by)
    return _laid(np.asarray(seen).reshape(*inner[::-1], channels), np.asarray(opaque), size)


def _bands(image: Image.Image, channels: int) -> tuple[Image.Image, Image.Image]:
    """What is seen, grey or coloured and darkened where it is transparent, and how opaque it is."""
    if image.mode.startswith(("I", "F")):
        image = _of_8_bits(image)
    opaque = Image.new("L", image.size, 255)
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        opaque = image.getchannel("A")
    if image.mode not in ("1", "L", "RGB"):
        image = image.convert("RGB")
    seen = image.convert("RGB" if channels == 3 else "L")
    return ImageChops.multiply(seen, Image.merge(seen.mode, [opaque] * channels)), opaque


def _of_8_bits(image: Image.Image) -> Image.Image:
    """An image of 16 bits, of which the upper eight are taken."""
    levels = np.asarray(image)
    if levels.dtype.kind == "f" or levels.min() < 0 or levels.max() > 65535:
        raise ValueError("its pixels are no levels of 8 or 16 bits: save it as PNG")
    return Image.fromarray((levels.astype(np.uint16) >> 8).astype(np.uint8))


def _laid(seen: np.ndarray, opaque: np.ndarray, size: tuple[int, int]) -> Reading:
    """An image on a canvas of its paper: the commonest level of its border, or nothing where that is transparent."""
    height, width = opaque.shape
    edge = np.ones(opaque.shape, bool)
    edge[1:-1, 1:-1] = False
    bordered = np.median(opaque[edge]) == 255
    paper = np.median(seen[edge], axis=0) if bordered else np.zeros(seen.shape[-1])
    if bordered:
        ink = float((seen - paper * (opaque[..., None] / 255)).mean())
    else:  # the border is transparent: ink is what can be seen
        ink = 2.0 * float(seen.sum() / seen.shape[-1] / max(1, int(opaque.sum()))) * 255 - 255
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    canvas = np.empty((*size, seen.shape[-1]), np.uint8)
    canvas[:] = paper
    whole = np.full(size, 255 * bordered, np.uint8)
    canvas[top : top + height, left : left + width] = seen
    whole[top : top + height, left : left + width] = opaque
    return Reading(canvas.transpose(2, 0, 1), whole, ink)
