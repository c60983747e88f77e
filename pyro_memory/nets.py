"""Networks of addressed models; those that end a conditional return a distribution.

Features are tuples of tensors, finest first, coarsest last: a convolutional pyramid has several, an MLP has one, a
model without memory has none. Any number of batch dimensions may stand to the left.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

Features = tuple[Tensor, ...]


def mlp(sizes: Sequence[int]) -> nn.Sequential:
    """Chains linear layers with ReLU between them."""
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def scale_for_relu(module: nn.Module) -> None:
    """Draws weights that keep the signal's size through ReLU layers, and zeroes biases.

    PyTorch's default shrinks it by a factor of about 2.4 a layer: a deep encoder then starts blind to its input, and
    the latent collapses before it sees anything.

    References: Delving Deep into Rectifiers (He et al., 2015), https://arxiv.org/abs/1502.01852
    """
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            inputs = float(layer.in_features)
        elif isinstance(layer, nn.ConvTranspose2d):  # each output pixel sees a share of the kernel
            inputs = layer.in_channels * math.prod(layer.kernel_size) / math.prod(layer.stride)
        elif isinstance(layer, nn.Conv2d):
            inputs = layer.in_channels * math.prod(layer.kernel_size)
        else:
            continue
        nn.init.normal_(layer.weight, std=math.sqrt(2 / inputs))
        nn.init.zeros_(layer.bias)


def _on_images(f: Callable[[Tensor], Features], x: Tensor) -> Features:
    """Runs ``f`` with one batch dimension, whatever number ``x`` has."""
    lead = x.shape[:-3]
    return tuple(t.reshape(lead + t.shape[1:]) for t in f(x.reshape((-1,) + x.shape[-3:])))


class ImagePyramid(nn.Module):
    """Computes convolutional features at each resolution: 3x3 convolutions, every second one with stride 2.

    Args:
        shape: channels, height, width of the images.
        channels: maps at each of the coarser resolutions; the finest has the first number too.

    The features are ``[*batch, channels_l, height_l, width_l]``: the images' resolution, then half of it and so on.
    """

    def __init__(self, shape: Sequence[int], channels: Sequence[int] = (48, 48, 64)) -> None:
        super().__init__()
        inputs, height, width = shape
        self.stem = nn.Conv2d(inputs, channels[0], 3, padding=1)
        self.down, self.keep = nn.ModuleList(), nn.ModuleList()
        self.shapes = [(channels[0], height, width)]
        for before, after in pairwise((channels[0], *channels)):
            height, width = (height + 1) // 2, (width + 1) // 2
            self.down.append(nn.Conv2d(before, after, 3, stride=2, padding=1))
            self.shapes.append((after, height, width))
        for after in channels[:-1]:
            self.keep.append(nn.Conv2d(after, after, 3, padding=1))
        self.out_features = channels[-1] * height * width
        scale_for_relu(self)

    def forward(self, images: Float[Tensor, "*batch channel height width"]) -> Features:
        return _on_images(self._levels, images)

    def _levels(self, images: Tensor) -> Features:
        levels = [torch.relu(self.stem(images))]
        for i, down in enumerate(self.down):
            below = levels[-1] if i == 0 else torch.relu(self.keep[i - 1](levels[-1]))
            levels.append(torch.relu(down(below)))
        return tuple(levels)


class ImageMLP(nn.Module):
    """Computes one vector of features of a flattened image, ``[*batch, hidden[-1]]``."""

    def __init__(self, shape: Sequence[int], hidden: Sequence[int] = (256, 128)) -> None:
        super().__init__()
        self.net = mlp([shape[0] * shape[1] * shape[2], *hidden])
        self.shapes = [(hidden[-1],)]
        self.out_features = hidden[-1]
        scale_for_relu(self)

    def forward(self, images: Float[Tensor, "*batch channel height width"]) -> Features:
        return (torch.relu(self.net(images.flatten(-3))),)


class Embedding(nn.Module):
    """Embeds an image for matching: its coarsest features, projected to ``dim``."""

    def __init__(self, features: nn.Module, dim: int = 128) -> None:
        super().__init__()
        self.features = features
        self.project = nn.Linear(features.out_features, dim)

    def forward(self, images: Float[Tensor, "*batch channel height width"]) -> Float[Tensor, "*batch dim"]:
        return self.project(_coarsest(self.features(images), images.dim() - 3))


class GaussianHead(nn.Module):
    """Maps the coarsest features to a diagonal normal distribution of ``latent_dim`` dimensions."""

    def __init__(self, in_features: int, latent_dim: int) -> None:
        super().__init__()
        self.project = nn.Linear(in_features, 2 * latent_dim)

    def forward(self, features: Float[Tensor, "*batch feature"]) -> dist.Independent:
        loc, scale = self.project(features).chunk(2, -1)
        return dist.Normal(loc, functional.softplus(scale) + 1e-4).to_event(1)


class GaussianMLP(nn.Module):
    """Maps a vector to a diagonal normal distribution through one hidden layer."""

    def __init__(self, in_features: int, hidden: int, latent_dim: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(in_features, hidden)
        scale_for_relu(self.hidden)
        self.head = GaussianHead(hidden, latent_dim)

    def forward(self, features: Float[Tensor, "*batch feature"]) -> dist.Independent:
        return self.head(torch.relu(self.hidden(features)))


class ContentPrior(nn.Module):
    """Gives p(z | m), a normal distribution, from the coarsest features of the content, of shape ``shape``."""

    def __init__(self, shape: Sequence[int], latent_dim: int) -> None:
        super().__init__()
        self.event_dim = len(shape)
        self.head = GaussianHead(math.prod(shape), latent_dim)

    def forward(self, content: Features) -> dist.Independent:
        return self.head(content[-1].flatten(-self.event_dim))


class PairEncoder(nn.Module):
    """Gives q(z | x, m), a normal distribution, from features of the images laid over each other as channels.

    With ``m`` None it is the encoder of a model without memory, q(z | x).
    """

    def __init__(self, features: nn.Module, latent_dim: int) -> None:
        super().__init__()
        self.features = features
        self.head = GaussianHead(features.out_features, latent_dim)

    def forward(self, x: Tensor, m: Tensor | None = None) -> dist.Independent:
        if m is not None:
            lead = torch.broadcast_shapes(x.shape[:-3], m.shape[:-3])
            x = torch.cat([x.expand(lead + x.shape[-3:]), m.expand(lead + m.shape[-3:])], -3)
        return self.head(_coarsest(self.features(x), x.dim() - 3))


def _coarsest(features: Features, batch_dims: int) -> Tensor:
    return features[-1].flatten(batch_dims)


class ConvDecoder(nn.Module):
    """Draws an image from z by transposed convolutions, beside the content's features at each resolution.

    Args:
        shape: channels, height, width of the image.
        latent_dim: dimensions of z.
        content_shapes: shapes of the content's features (``ImagePyramid.shapes``), or () without memory.
        channels: maps at each of the coarser resolutions, as in the pyramid.
    """

    def __init__(
        self,
        shape: Sequence[int],
        latent_dim: int,
        content_shapes: Sequence[tuple[int, ...]] = (),
        channels: Sequence[int] = (48, 48, 64),
    ) -> None:
        super().__init__()
        sizes = [tuple(shape[1:])]
        for _ in channels:
            sizes.append(tuple((s + 1) // 2 for s in sizes[-1]))
        skips = [s[0] for s in content_shapes] or [0] * len(sizes)
        maps = [channels[0], *channels]
        self.sizes = sizes
        self.start_shape = (maps[-1], *sizes[-1])
        self.start = nn.Linear(latent_dim, maps[-1] * sizes[-1][0] * sizes[-1][1])
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(maps[i + 1] + skips[i + 1], maps[i], 3, stride=2, padding=1)
            for i in range(len(channels))
        )
        self.out = nn.Conv2d(maps[0] + skips[0], shape[0], 3, padding=1)
        scale_for_relu(self)

    def forward(self, z: Float[Tensor, "*batch latent"], content: Features = ()) -> Float[Tensor, "*batch c h w"]:
        lead = torch.broadcast_shapes(z.shape[:-1], *(c.shape[:-3] for c in content))
        # Channels last: on a CPU these few channels on many pixels take half the time.
        skips = [_channels_last(c.expand(lead + c.shape[-3:]).reshape((-1,) + c.shape[-3:])) for c in content]
        hidden = torch.relu(self.start(z)).reshape(z.shape[:-1] + self.start_shape)
        hidden = _channels_last(hidden.expand(lead + self.start_shape).reshape((-1, *self.start_shape)))
        for level in range(len(self.up) - 1, -1, -1):
            hidden = self.up[level](self._beside(hidden, skips, level + 1), output_size=self.sizes[level])
            hidden = torch.relu(hidden)
        out = self.out(self._beside(hidden, skips, 0))
        return out.reshape(lead + out.shape[1:])

    @staticmethod
    def _beside(hidden: Tensor, skips: list[Tensor], level: int) -> Tensor:
        return torch.cat([hidden, skips[level]], 1) if skips else hidden


def _channels_last(images: Tensor) -> Tensor:
    return images.contiguous(memory_format=torch.channels_last)


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
        self.shape = tuple(shape)
        self.net = mlp([latent_dim + sum(s[0] for s in content_shapes), *hidden, shape[0] * shape[1] * shape[2]])
        scale_for_relu(self)

    def forward(self, z: Float[Tensor, "*batch latent"], content: Features = ()) -> Float[Tensor, "*batch c h w"]:
        lead = torch.broadcast_shapes(z.shape[:-1], *(c.shape[:-1] for c in content))
        inputs = torch.cat([t.expand(lead + t.shape[-1:]) for t in (z, *content)], -1)
        return self.net(inputs).reshape(lead + self.shape)


class BernoulliImage(nn.Module):
    """Reads a decoder's output as the logits of independent pixels."""

    support = (0.0, 1.0)

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, z: Tensor, content: Features = ()) -> dist.Independent:
        # Grey levels in [0, 1] are allowed, as is usual for MNIST: their "log-probability" is a cross-entropy.
        return dist.Bernoulli(logits=self.decoder(z, content), validate_args=False).to_event(3)


class GaussianImage(nn.Module):
    """Reads a decoder's output as the means of independent normal pixels with one learned deviation."""

    support = None

    def __init__(self, decoder: nn.Module, scale: float = 0.3) -> None:
        super().__init__()
        self.decoder = decoder
        self.log_scale = nn.Parameter(torch.tensor(scale).log())

    def forward(self, z: Tensor, content: Features = ()) -> dist.Independent:
        return dist.Normal(self.decoder(z, content), self.log_scale.exp()).to_event(3)
