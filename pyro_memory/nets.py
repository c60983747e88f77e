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
        self.padding = (0, shape[2] % 2, 0, shape[1] % 2)
        self.shapes = [(n, *size) for n, size in zip(channels, _halvings(shape, len(channels)), strict=True)]
        self.stem = nn.Conv2d(4 * shape[0], channels[0], 3, padding=1)
        self.down = nn.ModuleList(nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in pairwise(channels))
        self.keep = nn.ModuleList(nn.Conv2d(a, a, 3, padding=1) for a in channels[1:-1])
        self.out_features = math.prod(self.shapes[-1])
        scale_for_relu(self)

    def forward(self, images: Float[Tensor, "*batch channel height width"]) -> Features:
        return _on_images(self._levels, images)

    def _levels(self, images: Tensor) -> Features:
        blocks = _channels_last(_blocks(functional.pad(images, self.padding)))
        levels = [torch.relu(self.stem(blocks))]
        for i, down in enumerate(self.down):
            below = levels[-1] if i == 0 else torch.relu(self.keep[i - 1](levels[-1]))
            levels.append(torch.relu(down(below)))
        return tuple(levels)


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
        return _on_images(self._levels, images)

    def _levels(self, images: Tensor) -> Features:
        return tuple(skip(level) for skip, level in zip(self.skips, self.pyramid(images), strict=True))


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
    """Draws an image from z by transposed convolutions; the content adds to the maps at each resolution.

    The last convolution gives the pixels of the image's 2x2 blocks as channels.

    Args:
        shape: channels, height, width of the image.
        latent_dim: dimensions of z.
        channels: maps at each resolution, the finest (half the image's) first, as the content's ``SkipPyramid`` has.
    """

    def __init__(self, shape: Sequence[int], latent_dim: int, channels: Sequence[int] = (48, 48, 64)) -> None:
        super().__init__()
        self.shape = tuple(shape)
        self.sizes = _halvings(shape, len(channels))
        self.start_shape = (channels[-1], *self.sizes[-1])
        self.start = nn.Linear(latent_dim, math.prod(self.start_shape))
        self.up = nn.ModuleList(nn.ConvTranspose2d(b, a, 3, stride=2, padding=1) for a, b in pairwise(channels))
        self.out = nn.Conv2d(channels[0], 4 * shape[0], 3, padding=1)
        scale_for_relu(self)

    def forward(self, z: Float[Tensor, "*batch latent"], content: Features = ()) -> Float[Tensor, "*batch c h w"]:
        lead = torch.broadcast_shapes(z.shape[:-1], *(c.shape[:-3] for c in content))
        hidden = self.start(z).reshape(z.shape[:-1] + self.start_shape).expand(lead + self.start_shape)
        hidden = torch.relu(self._add(_flat(hidden), content, len(self.up), lead))
        for level in range(len(self.up) - 1, -1, -1):
            hidden = self.up[level](hidden, output_size=self.sizes[level])
            hidden = torch.relu(self._add(hidden, content, level, lead))
        out = _pixels(self.out(hidden))[..., : self.shape[1], : self.shape[2]]
        return out.reshape(lead + self.shape)

    @staticmethod
    def _add(hidden: Tensor, content: Features, level: int, lead: torch.Size) -> Tensor:
        if not content:
            return hidden
        own = content[level]
        return hidden + _flat(own.expand(lead + own.shape[-3:]))


def _halvings(shape: Sequence[int], levels: int) -> list[tuple[int, int]]:
    """The sizes of an image halved once, twice and so on, rounded up."""
    height, width = shape[1:]
    return [(-(-height // 2**level), -(-width // 2**level)) for level in range(1, levels + 1)]


def _blocks(images: Tensor) -> Tensor:
    """The pixels of 2x2 blocks as channels; torch's ``pixel_unshuffle`` leaves an empty batch as it is."""
    n, c, h, w = images.shape
    return images.reshape(n, c, h // 2, 2, w // 2, 2).permute(0, 1, 3, 5, 2, 4).reshape(n, 4 * c, h // 2, w // 2)


def _pixels(blocks: Tensor) -> Tensor:
    """The images whose 2x2 blocks these are."""
    n, c, h, w = blocks.shape
    return blocks.reshape(n, c // 4, 2, 2, h, w).permute(0, 1, 4, 2, 5, 3).reshape(n, c // 4, 2 * h, 2 * w)


def _flat(maps: Tensor) -> Tensor:
    """One batch dimension, and channels last: on a CPU these few channels on many pixels take half the time."""
    return _channels_last(maps.reshape((-1,) + maps.shape[-3:]))


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
