"""Which of paper and ink is dark, and which pixels are ink."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

CONTRAST = 32  # levels of 255 between an image's paper and its ink; where there is less, it is blank


def found_ink(inks: np.ndarray, names: Sequence[str]) -> tuple[str, list[int]]:
    """Gives "dark" or "light", as most images say, and which images say otherwise.

    Raises:
        ValueError: if as many say the one as the other.
    """
    dark, light = np.flatnonzero(inks <= -1), np.flatnonzero(inks >= 1)
    if len(dark) == len(light):
        tie = f"{len(dark)} images each, as {names[dark[0]]} and {names[light[0]]}" if len(dark) else "no image"
        raise ValueError(
            f'`ink` cannot be found: {tie} look like dark ink and like light. Give ink="dark" or ink="light"'
        )
    return ("dark", light.tolist()) if len(dark) > len(light) else ("light", dark.tolist())


def on_paper(seen: np.ndarray, opaque: np.ndarray, paper: int) -> np.ndarray:
    """Lays ``[image, channel, height, width]``, times how opaque it is, on paper of a level."""
    whole = seen.astype(np.uint16) + (255 - opaque[:, None].astype(np.uint16)) * paper // 255
    return np.minimum(whole, 255).astype(np.uint8)


def binary(ink: np.ndarray) -> np.ndarray:
    """Divides each image's levels, of 255, into ink (1) and paper, where their classes differ most.

    That is the threshold of A Threshold Selection Method from Gray-Level Histograms (Otsu, 1979),
    https://doi.org/10.1109/TSMC.1979.4310076: it maximises the variance between the two. An image whose classes then
    differ by less than ``CONTRAST`` is blank.
    """
    flat = ink.reshape(len(ink), -1)
    counts = np.stack([np.bincount(row, minlength=256) for row in flat]).astype(np.float64)
    below = counts.cumsum(-1)
    sums = (counts * np.arange(256)).cumsum(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        gap = (sums[:, -1:] - sums) / (below[:, -1:] - below) - sums / below
    gap = np.nan_to_num(gap, posinf=0, neginf=0)
    at = (below * (below[:, -1:] - below) * gap**2).argmax(-1)
    blank = gap[np.arange(len(at)), at] < CONTRAST
    at[blank] = 255
    return (flat > at[:, None]).astype(np.uint8).reshape(ink.shape)
