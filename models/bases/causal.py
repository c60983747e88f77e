"""Networks that see, at each place of an image, only what comes before it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from pyro_memory.gate import check_least, checked
from pyro_memory.nets import Pages

REACH = 2  # columns that a layer sees to the left, and above on both sides; rows above: one


@checked
class GatedLayer(nn.Module):
    r"""Passes on what lies above each place and what lies left of it, in two stacks, so that nothing is hidden.

    .. math::
        v' = v + g(K_v * v + s_v), \quad h' = h + W g(K_h * h + U v' + s_h), \quad g(a, b) = \tanh(a) \sigma(b)

    with s what it is told of each place. The caller pads (``pad_above``, ``pad_left``): a window gives one row, or one
    place, of what the whole image gives.

    References: Conditional Image Generation with PixelCNN Decoders (van den Oord et al., 2016),
    https://arxiv.org/abs/1606.05328
    """

    def __init__(self, maps: int) -> None:
        super().__init__()
        check_least(1, maps=maps)
        self.above = nn.Conv2d(maps, 2 * maps, (2, 2 * REACH + 1))
        self.left = nn.Conv2d(maps, 2 * maps, (1, REACH + 1))
        self.across = nn.Conv2d(maps, 2 * maps, 1)
        self.out = nn.Conv2d(maps, maps, 1)

    def vertical(self, v: Float[Tensor, "*lead c h w"], told: Tensor | None = None) -> Tensor:
        """The rows of v', of a window with one row more above and two columns more on each side."""
        return v[..., 1:, REACH:-REACH] + _gated(over(self.above, v), told)

    def horizontal(self, h: Float[Tensor, "*lead c h w"], v: Tensor, told: Tensor | None = None) -> Tensor:
        """The columns of h', of a window with two columns more on the left; v is that of ``vertical``."""
        mixed = over(self.left, h) + over(self.across, v)
        return h[..., REACH:] + over(self.out, _gated(mixed, told))


@checked
class Look(nn.Module):
    """Lets each place look at every place of what was read, by attention: a stroke may lie elsewhere there.

    Args:
        maps: of both sides.
        heads: of the attention; they divide ``maps``.
        places, read_places: height and width of either side.

    What was read may be several images side by side, their widths one after the other.
    """

    def __init__(self, maps: int, heads: int, places: Sequence[int], read_places: Sequence[int]) -> None:
        super().__init__()
        check_least(1, maps=maps, heads=heads)
        if maps % heads:
            raise ValueError(f"`heads` must divide the {maps} maps; got {heads}")
        self.heads = heads
        self.query, self.out = nn.Conv2d(maps, maps, 1), nn.Conv2d(maps, maps, 1)
        self.read = nn.Conv2d(maps, 2 * maps, 1)
        self.place = nn.Parameter(0.1 * torch.randn(maps, *places))
        self.read_place = nn.Parameter(0.1 * torch.randn(maps, *read_places))

    def keys(self, read: Float[Tensor, "*lead c h w"]) -> tuple[Tensor, ...]:
        """Keys ``[*lead, head, dim, place]`` and values ``[*lead, head, place, dim]``, once whatever looks at them."""
        key, value = over(self.read, read).chunk(2, -3)
        images = read.shape[-1] // self.read_place.shape[-1]
        key = key + self.read_place.repeat(1, 1, images)
        return self._heads(key), self._heads(value).mT

    def page_keys(self, pages: Pages) -> tuple[Tensor, ...]:
        """Keys and values of whole pages, for each image of the batch, and which places nobody looks at."""
        key, value = self.keys(torch.cat(pages.features.unbind(1), -1))
        height, width = pages.features.shape[-2:]
        away = ~pages.there.repeat_interleave(width, -1).repeat(1, height)
        return tuple(t[pages.place] for t in (key, value, away[:, None, None]))

    def forward(self, h: Float[Tensor, "*lead c h w"], keys: tuple[Tensor, ...], place: Tensor | None = None) -> Tensor:
        """What is seen, added to h; ``place`` is the part of ``self.place`` that h shows, all of it by default."""
        seen = self.weights(h, keys, place) @ keys[1]
        return h + over(self.out, seen.mT.reshape(seen.shape[:-3] + h.shape[-3:]))

    def weights(self, h: Float[Tensor, "*lead c h w"], keys: tuple[Tensor, ...], place: Tensor | None = None) -> Tensor:
        """How much each place looks at each place that was read, ``[*lead, head, place, read place]``."""
        key, _, *away = keys
        query = self._heads(over(self.query, h) + (self.place if place is None else place))
        scores = (query.mT @ key) / math.sqrt(query.shape[-2])
        for nobody in away:
            scores = scores.masked_fill(nobody, -math.inf)
        return scores.softmax(-1)

    def _heads(self, t: Tensor) -> Tensor:
        return t.flatten(-2).unflatten(-2, (self.heads, -1))


@checked
class OrderedHead(nn.Module):
    """Gives each number of a place its logits, in order: beside the features it sees the numbers before it.

    Args:
        maps: features of a place.
        numbers: how many numbers a place has, such as the pixels of a block.
        levels: how many values a number has.
    """

    def __init__(self, maps: int, numbers: int, levels: int) -> None:
        super().__init__()
        check_least(1, maps=maps, numbers=numbers)
        check_least(2, levels=levels)
        self.numbers = numbers
        self.hidden = nn.Conv2d(maps, numbers * maps, 1)
        self.before = nn.Parameter(torch.randn(numbers, maps, numbers) / math.sqrt(numbers)) if numbers > 1 else None
        self.logits = nn.Conv2d(numbers * maps, numbers * levels, 1, groups=numbers)
        earlier = torch.ones(numbers, numbers).tril(-1).unsqueeze(1)
        self.register_buffer("earlier", earlier, persistent=False)

    def forward(
        self, h: Float[Tensor, "*lead c h w"], values: Float[Tensor, "*more number h w"]
    ) -> Float[Tensor, "*lead number level h w"]:
        hidden = over(self.hidden, torch.relu(h))
        if self.before is not None:
            before = (self.before * self.earlier).flatten(0, 1)[..., None, None]
            hidden = hidden + over(lambda v: functional.conv2d(v, before), values)
        return over(self.logits, torch.relu(hidden)).unflatten(-3, (self.numbers, -1))


def _gated(a: Tensor, told: Tensor | None) -> Tensor:
    signal, gate = (a if told is None else a + told).chunk(2, -3)
    return torch.tanh(signal) * torch.sigmoid(gate)


def over(f: Callable[[Tensor], Tensor], maps: Float[Tensor, "*lead c h w"]) -> Tensor:
    """Runs a convolution whatever number of dimensions stands to the left."""
    flat = maps.reshape((-1, *maps.shape[-3:])).contiguous(memory_format=torch.channels_last)  # faster on a CPU
    out = f(flat)
    return out.reshape(maps.shape[:-3] + out.shape[1:])


def pad_above(v: Tensor, rows: int = 1) -> Tensor:
    """Pads for ``GatedLayer.vertical``."""
    return functional.pad(v, (REACH, REACH, rows, 0))


def pad_left(h: Tensor) -> Tensor:
    """Pads for ``GatedLayer.horizontal``."""
    return functional.pad(h, (REACH, 0))


class Heard(NamedTuple):
    """What a layer is told of the context at each place, and what it looks at before."""

    vertical: Tensor | None = None
    horizontal: Tensor | None = None
    look: Look | None = None
    keys: tuple[Tensor, ...] | None = None


def at_place(t: Tensor | None, row: int, column: int | None = None) -> Tensor | None:
    """What is told of a row, or of a place in it."""
    if t is None:
        return None
    t = t[..., row : row + 1, :]
    return t if column is None else t[..., column : column + 1]
