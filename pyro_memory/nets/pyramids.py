"""Networks from images to features."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from pyro_memory.gate import check_image_shape, check_least, checked
from pyro_memory.nets.layers import (
    Features,
    channels_last,
    check_channels,
    check_images_of,
    coarsest,
    halvings,
    mlp,
    on_images,
    scale_for_relu,
    to_blocks,
)


@checked
class ImagePyramid(nn.Module):
    """Computes convolutional features of the images' 2x2 blocks and at each halving of the resolution from there.

    The blocks' pixels are channels, so that no map is as large as the image: in 100 seconds on two CPU cores an
    addressed VAE of Omniglot came to a bound 18 nats better than with maps at full resolution.

    Args:
        shape: channels, height, width of the images; an odd size is padded.
        channels: maps at each resolution, the finest (half the images') first.

    The features are ``[*batch, channels_l, height_l, width_l]``, of the sizes in ``shapes``.

    References: sub-pixel convolution (Shi et al., 2016), https://arxiv.org/abs/1609.05158
    """

    def __init__(self, shape: Sequence[int], channels: Sequence[int] = (48, 48, 64)) -> None:
        super().__init__()
        check_image_shape(shape)
        check_channels(channels)
        self.shape = tuple(shape)
        self.padding = (0, shape[2] % 2, 0, shape[1] % 2)
        self.shapes = [(n, *size) for n, size in zip(channels, halvings(shape, len(channels)), strict=True)]
        self.stem = nn.Conv2d(4 * shape[0], channels[0], 3, padding=1)
        self.down = nn.ModuleList(nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in pairwise(channels))
        self.keep = nn.ModuleList(nn.Conv2d(a, a, 3, padding=1) for a in channels[1:-1])
        self.out_features = math.prod(self.shapes[-1])
        scale_for_relu(self)

    def forward(self, images: Float[Tensor, "*batch channel height width"]) -> Features:
        check_images_of(self.shape, images)
        return on_images(self._levels, images)

    def _levels(self, images: Tensor) -> Features:
        blocks = channels_last(to_blocks(functional.pad(images, self.padding)))
        levels = [torch.relu(self.stem(blocks))]
        for i, down in enumerate(self.down):
            below = levels[-1] if i == 0 else torch.relu(self.keep[i - 1](levels[-1]))
            levels.append(torch.relu(down(below)))
        return tuple(levels)


@checked
class SkipPyramid(nn.Module):
    """Computes what an image adds to a ``ConvDecoder`` at each resolution: a pyramid's features, each convolved.

    A slot that many particles read is convolved once, and each particle only adds.
    """

    def __init__(self, shape: Sequence[int], channels: Sequence[int] = (48, 48, 64)) -> None:
        super().__init__()
        self.pyramid = ImagePyramid(shape, channels)
        self.shapes = self.pyramid.shapes
        self.skips = nn.ModuleList(nn.Conv2d(n, n, 3, padding=1) for n in channels)
        scale_for_relu(self.skips)

    def forward(self, images: Float[Tensor, "*batch channel height width"]) -> Features:
        return on_images(self._levels, images)

    def _levels(self, images: Tensor) -> Features:
        return tuple(skip(level) for skip, level in zip(self.skips, self.pyramid(images), strict=True))


@checked
class ImageMLP(nn.Module):
    """Computes one vector of features of a flattened image, ``[*batch, hidden[-1]]``."""

    def __init__(self, shape: Sequence[int], hidden: Sequence[int] = (256, 128)) -> None:
        super().__init__()
        check_image_shape(shape)
        if not hidden:
            raise ValueError("`hidden` must hold the size of a layer at least; got none")
        check_least(1, hidden=hidden)
        self.shape = tuple(shape)
        self.net = mlp([shape[0] * shape[1] * shape[2], *hidden])
        self.shapes = [(hidden[-1],)]
        self.out_features = hidden[-1]
        scale_for_relu(self)

    def forward(self, images: Float[Tensor, "*batch channel height width"]) -> Features:
        check_images_of(self.shape, images)
        return (torch.relu(self.net(images.flatten(-3))),)


@checked
class Embedding(nn.Module):
    """Embeds an image for matching: its coarsest features, projected to ``dim``."""

    def __init__(self, features: nn.Module, dim: int = 128) -> None:
        super().__init__()
        check_least(1, dim=dim)
        self.features = features
        self.project = nn.Linear(features.out_features, dim)

    def forward(self, images: Float[Tensor, "*batch channel height width"]) -> Float[Tensor, "*batch dim"]:
        return self.project(coarsest(self.features(images), images.dim() - 3))
