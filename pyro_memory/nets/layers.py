"""Layers, their first weights, and the ways that images are laid out for them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from pyro_memory.gate import check_least, checked

Features = tuple[Float[Tensor, "..."], ...]


@checked
class Linear(nn.Linear):
    """Is torch's, and says what it was built for where it is given something else.

    Args:
        takes: what a caller knows its input as.

    Raises:
        ValueError: for an input of another size.
    """

    def __init__(self, in_features: int, out_features: int, *, takes: str = "x") -> None:
        super().__init__(in_features, out_features)
        self.takes = takes

    def forward(self, x: Float[Tensor, "*batch features"]) -> Tensor:
        if x.shape[-1] != self.in_features:
            raise ValueError(
                f"`{self.takes}` must have {self.in_features} dimensions, as the network was built for; got "
                f"{x.shape[-1]}. Build model and guide with the same `shape`, `latent_dim`, `code_dim` and `channels`"
            )
        return super().forward(x)


def check_images_of(shape: Sequence[int], images: Tensor) -> None:
    """Raises a ValueError unless images are of the shape that a network was built for."""
    if tuple(images.shape[-3:]) != tuple(shape):
        raise ValueError(
            f"`images` must be {list(shape)}, channels, height and width, as the network was built for; got "
            f"{list(images.shape[-3:])}. Resize them, or build model and guide with shape={tuple(images.shape[-3:])}"
        )


@checked
def mlp(sizes: Sequence[int], *, takes: str = "x") -> nn.Sequential:
    """Chains linear layers with ReLU between them; ``takes`` is what errors call the first one's input.

    Raises:
        ValueError: for fewer than two sizes, or one below 1.
    """
    if len(sizes) < 2:
        raise ValueError(f"`sizes` must be two or more, of what comes in, in between and out; got {list(sizes)}")
    check_least(1, sizes=sizes)
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [Linear(before, after, takes=takes), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


@checked
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


@checked
def broadcast_cat(tensors: Sequence[Shaped[Tensor, "..."]], dim: int = -1) -> Tensor:
    r"""Concatenates a datum and what was read for it, under any shape of the address: all other dimensions broadcast.

    A read has in front what its address has: ``memory[a]`` is ``[batch, *event]`` for a sampled address,
    ``[particle, batch, *event]`` for several, ``[slot, 1, *event]`` for one enumerated over a shared memory. A datum is
    ``[batch, *event]`` in each case, and ``torch.cat`` asks for one shape.

    .. code-block:: text

        y [batch, d]        m [slot, 1, e]         dim -1 gives [slot, batch, d + e]
        x [batch, 1, h, w]  m [slot, 1, 1, h, w]   dim -3 gives [slot, batch, 2, h, w]: channels of one image

    Args:
        tensors: one or more, each with dimension ``dim``.
        dim: what is concatenated, counted from the right: the last of a vector, -3 for images laid over each other.

    Raises:
        ValueError: for no tensors, a ``dim`` that is not negative or that a tensor lacks, and shapes that do not
            broadcast.

    Example::

        m = memory[pyro.sample("a", self.address(y, memory), infer={"enumerate": "parallel"})]
        z = pyro.sample("z", self.encode(broadcast_cat([y, m])))
    """
    if dim >= 0:
        raise ValueError(f"`dim` counts from the right and is negative, since reads grow to the left; got {dim}")
    if not tensors or min(t.dim() for t in tensors) < -dim:
        shapes = ", ".join(str(list(t.shape)) for t in tensors) or "none"
        raise ValueError(f"`tensors` must be one or more, each with a dimension {dim}; got {shapes}")
    shape = torch.broadcast_shapes(*(t.shape[:dim] + (1,) + t.shape[dim:][1:] for t in tensors))
    return torch.cat([t.expand(shape[:dim] + t.shape[dim:][:1] + shape[dim:][1:]) for t in tensors], dim)


def on_images(f: Callable[[Tensor], Features], x: Tensor) -> Features:
    """Runs ``f`` with one batch dimension, whatever number ``x`` has."""
    lead = x.shape[:-3]
    return tuple(t.reshape(lead + t.shape[1:]) for t in f(x.reshape((-1,) + x.shape[-3:])))


def check_channels(channels: Sequence[int]) -> None:
    """Raises a ValueError unless there are channels at one resolution at least."""
    if not channels:
        raise ValueError("`channels` must hold a number for each resolution, the finest first; got none")
    check_least(1, channels=channels)


@checked
def out_of_autocast(t: Tensor) -> Tensor:
    """What autocast made half precision, in single: distributions are made of it, and nats are not counted in half."""
    half = t.dtype in (torch.float16, torch.bfloat16)
    return t.float() if half and torch.is_autocast_enabled(t.device.type) else t


def coarsest(features: Features, batch_dims: int) -> Tensor:
    """The last features, all but the batch dimensions in one."""
    return features[-1].flatten(batch_dims)


def halvings(shape: Sequence[int], levels: int) -> list[tuple[int, int]]:
    """The sizes of an image halved once, twice and so on, rounded up."""
    height, width = shape[1:]
    return [(-(-height // 2**level), -(-width // 2**level)) for level in range(1, levels + 1)]


def to_blocks(images: Tensor) -> Tensor:
    """The pixels of 2x2 blocks as channels; torch's ``pixel_unshuffle`` leaves an empty batch as it is."""
    n, c, h, w = images.shape
    return images.reshape(n, c, h // 2, 2, w // 2, 2).permute(0, 1, 3, 5, 2, 4).reshape(n, 4 * c, h // 2, w // 2)


def from_blocks(blocks: Tensor) -> Tensor:
    """The images whose 2x2 blocks these are."""
    n, c, h, w = blocks.shape
    return blocks.reshape(n, c // 4, 2, 2, h, w).permute(0, 1, 4, 2, 5, 3).reshape(n, c // 4, 2 * h, 2 * w)


def flat(maps: Tensor) -> Tensor:
    """One batch dimension, and channels last: on a CPU these few channels on many pixels take half the time."""
    return channels_last(maps.reshape((-1,) + maps.shape[-3:]))


def channels_last(images: Tensor) -> Tensor:
    """Lays channels out last, which convolutions on a CPU read faster."""
    return images.contiguous(memory_format=torch.channels_last)
