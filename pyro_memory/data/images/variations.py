"""Other drawings of the same letters, and turned letters: more to learn from than was drawn."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from pyro_memory.data.seeds import below

TURNS = 8  # the symmetries of a square


def check_shares(shape: tuple[int, ...], *, turned: float, varied: float, fixed: bool) -> None:
    """Raises a ValueError unless both are shares, images of this shape can be turned, where they are to be, and fixed
    targets are shown as they are."""
    if fixed and (turned or varied):
        raise ValueError(
            f"`turned` and `varied` must be 0 with fixed targets, which are shown as they are; got {turned}, {varied}"
        )
    if not 0 <= turned <= 1 or (turned and shape[1] != shape[2]):
        raise ValueError(f"`turned` must lie in [0, 1], and be 0 unless images are square; got {turned}")
    if not 0 <= varied <= 1:
        raise ValueError(f"`varied` must lie in [0, 1]; got {varied}")


def turn(
    images: Float[Tensor, "*image height width"], generator: torch.Generator
) -> Float[Tensor, "*image height width"]:
    """Shows all images in one of the square's eight symmetries, drawn at random."""
    return turned(images, int(below(TURNS, generator)))


def turned(images: Float[Tensor, "*image height width"], symmetry: int) -> Float[Tensor, "*image height width"]:
    """Shows all images in one of the square's eight symmetries; 0 leaves them as they are."""
    return (images.mT if symmetry >= 4 else images).rot90(symmetry % 4, (-2, -1))


def smooth_maps(noise: Float[Tensor, "map 24"], height: int, width: int) -> Float[Tensor, "map height width 2"]:
    """Where each pixel of a redrawn image comes from, as ``torch.nn.functional.grid_sample`` counts.

    Of a map's 24 standard normal numbers six make an affine map and 18 a smooth warp on a grid of 3x3 points. Standard
    deviations: turns of 0.12 radians, shears of 0.12, sizes of 8%, shifts of 2% of the width (at most 4%), and warps of
    2.5%.
    """
    count = len(noise)
    turn, shear, log_x, log_y = (noise[:, i] * s for i, s in enumerate((0.12, 0.12, 0.08, 0.08)))
    turned = torch.stack([turn.cos(), shear - turn.sin(), turn.sin(), turn.cos()], -1).reshape(count, 2, 2)
    affine = turned * torch.stack([log_x, log_y], -1).exp().reshape(count, 1, 2)
    shift = (0.04 * noise[:, 4:6]).clamp(-0.08, 0.08).unsqueeze(-1)
    grid = functional.affine_grid(torch.cat([affine, shift], -1), [count, 1, height, width], align_corners=False)
    coarse = 0.05 * noise[:, 6:24].reshape(count, 2, 3, 3)
    warp = functional.interpolate(coarse, (height, width), mode="bicubic", align_corners=True)
    return grid + warp.permute(0, 2, 3, 1)
