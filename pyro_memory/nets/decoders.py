"""Networks from a code, and what was read, to an image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pyro_memory.gate import check_image_shape, check_least, checked
from pyro_memory.nets.layers import (
    Features,
    Linear,
    broadcast_cat,
    check_channels,
    flat,
    from_blocks,
    halvings,
    mlp,
    scale_for_relu,
)


@checked
class ConvDecoder(nn.Module):
    """Draws an image from z by transposed convolutions; the content adds to the maps at each resolution.

    The last convolution gives the pixels of the image's 2x2 blocks as channels.

    Args:
        shape: channels, height, width of the image.
        latent_dim: dimensions of z.
        channels: maps at each resolution, the finest (half the image's) first, as the content's ``SkipPyramid`` has.
    """

    def __init__(self, shape: Sequence[int], latent_dim: int, channels: Sequence[int] = (48, 48, 64)) -> None:
        super().__init__()
        check_image_shape(shape)
        check_least(1, latent_dim=latent_dim)
        check_channels(channels)
        self.shape = tuple(shape)
        self.sizes = halvings(shape, len(channels))
        self.start_shape = (channels[-1], *self.sizes[-1])
        self.start = Linear(latent_dim, math.prod(self.start_shape), takes="z")
        self.up = nn.ModuleList(nn.ConvTranspose2d(b, a, 3, stride=2, padding=1) for a, b in pairwise(channels))
        self.out = nn.Conv2d(channels[0], 4 * shape[0], 3, padding=1)
        scale_for_relu(self)

    def forward(self, z: Float[Tensor, "*batch latent"], content: Features = ()) -> Float[Tensor, "*lead c h w"]:
        if content and len(content) < len(self.sizes):
            raise ValueError(
                f"`content` must have features at {len(self.sizes)} resolutions, or none; got {len(content)}"
            )
        lead = torch.broadcast_shapes(z.shape[:-1], *(c.shape[:-3] for c in content))
        hidden = self.start(z).reshape(z.shape[:-1] + self.start_shape).expand(lead + self.start_shape)
        hidden = torch.relu(self._add(flat(hidden), content, len(self.up), lead))
        for level in range(len(self.up) - 1, -1, -1):
            hidden = self.up[level](hidden, output_size=self.sizes[level])
            hidden = torch.relu(self._add(hidden, content, level, lead))
        out = from_blocks(self.out(hidden))[..., : self.shape[1], : self.shape[2]]
        return out.reshape(lead + self.shape)

    @staticmethod
    def _add(hidden: Tensor, content: Features, level: int, lead: torch.Size) -> Tensor:
        if not content:
            return hidden
        own = content[level]
        if own.shape[-3:] != hidden.shape[-3:]:
            raise ValueError(
                f"`content` must add {list(hidden.shape[-3:])} at resolution {level}; got {list(own.shape[-3:])}. "
                "Build its network with the decoder's `shape` and `channels`"
            )
        return hidden + flat(own.expand(lead + own.shape[-3:]))


@checked
class MLPDecoder(nn.Module):
    """Draws an image from z and the content's feature vector by an MLP."""

    def __init__(
        self,
        shape: Sequence[int],
        latent_dim: int,
        content_shapes: Sequence[tuple[int, ...]] = (),
        hidden: Sequence[int] = (128, 256),
    ) -> None:
        super().__init__()
        check_image_shape(shape)
        check_least(0, latent_dim=latent_dim)  # 0: it draws what it reads
        check_least(1, hidden=hidden)
        self.shape = tuple(shape)
        widths = [latent_dim + sum(s[0] for s in content_shapes), *hidden, shape[0] * shape[1] * shape[2]]
        self.net = mlp(widths, takes="z")
        scale_for_relu(self)

    def forward(self, z: Float[Tensor, "*batch latent"], content: Features = ()) -> Float[Tensor, "*lead c h w"]:
        inputs = broadcast_cat([z, *content])
        return self.net(inputs).reshape(inputs.shape[:-1] + self.shape)
