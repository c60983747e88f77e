"""Turned and mirrored drawings: more classes to learn from."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from pyro_memory.data.images import LabelledImages


def check_turned(turned: float, data: LabelledImages) -> None:
    """Raises a ValueError unless ``turned`` is a share and the images can be turned."""
    if not 0 <= turned <= 1 or (turned and data.shape[1] != data.shape[2]):
        raise ValueError(f"`turned` must lie in [0, 1], and be 0 unless images are square; got {turned}")


def turn(
    images: Float[Tensor, "*image height width"], generator: torch.Generator
) -> Float[Tensor, "*image height width"]:
    """Shows all images in one of the square's eight symmetries, drawn at random."""
    symmetry = int(torch.randint(8, (), generator=generator))
    return (images.mT if symmetry >= 4 else images).rot90(symmetry % 4, (-2, -1))
