"""An autoregressive model as a base model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import zip_longest

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._pytree import tree_map
from tqdm import tqdm

from pyro_memory.distributions import AutoregressiveImage
from pyro_memory.gate import check_image_shape, check_least, checked
from pyro_memory.models.bases.base import BaseModel, content_network
from pyro_memory.models.bases.causal import (
    REACH,
    GatedLayer,
    Heard,
    Look,
    OrderedHead,
    at_place,
    over,
    pad_above,
    pad_left,
)
from pyro_memory.nets import Context, Linear, Pages, out_of_autocast, scale_for_relu

AT_ONCE = 256  # pairs of image and slot in one pass of a CPU without gradients; of more, features leave the cache


@checked
class AutoregressiveBase(BaseModel):
    r"""Draws an image block after block, each beside those before it and the context: its likelihood is exact.

    .. code-block:: text

        x ~ prod_i p(x_i | x_1 ... x_(i-1), c, m)      blocks row by row; in a block its pixels, in order

    There is no latent, so log p(x | c, m) is a number and no bound: one pass of the network for all pixels of all
    images. A slot m that was read is told to every layer at its own place, without a mask, and looked at by attention,
    since the same stroke may lie elsewhere in it. The first layers see the image only: however many slots are read for
    one image, by particles or by enumeration, these run once.

    Args:
        shape: channels, height, width; any size.
        levels: values of a pixel: 2 for binary images, 256 for grey ones of a byte, spread evenly over [0, 1].
        block: height and width of a block; the network runs on blocks, and an odd size is padded.
        code_dim: dimensions of c; 0 for the model without memory.
        maps: features of a block.
        layers: how many see the image alone, and how many are told the context too; without one all see the same.
        looks: how many times a place looks at what was read, before the first layers that are told.
        heads: of that attention.
        reads: whether it sees the image read from memory; by default where there is a c.
        whole_page: whether it looks at all images of the page that an image was read from, by the same attention.
        unread: the share of images that are told nothing while training, neither slot nor code, so that the model
            knows p(x) as well: ``Context()``. Which, is drawn anew in each pass, alike for its particles.

    Cost: O(layers * maps^2 * blocks) an image, and O(looks * maps * blocks * places of the slot); to draw, a pass of
    one place for each block.

    Raises:
        ValueError: for images of other levels, heads that do not divide the maps, and sizes below 1.

    References: Conditional Image Generation with PixelCNN Decoders (van den Oord et al., 2016),
    https://arxiv.org/abs/1606.05328; Few-shot Autoregressive Density Estimation (attention to a support; Reed et al.,
    2018), https://arxiv.org/abs/1710.10304
    """

    support = (0.0, 1.0)

    def __init__(
        self, shape: Sequence[int], *, levels: int = 2, block: int = 2, code_dim: int = 0, maps: int = 32,
        layers: Sequence[int] = (2, 4), looks: int = 2, heads: int = 2, reads: bool | None = None,
        whole_page: bool = False, unread: float = 0.0, name: str | None = None,
    ) -> None:  # fmt: skip
        super().__init__(name)
        check_image_shape(shape)
        check_least(2, levels=levels)
        check_least(0, layers=layers, looks=looks)
        if block not in (1, 2):
            raise ValueError(f"`block` must be 1 or 2, pixels on a side; got {block}")
        if len(layers) != 2 or layers[1] < 1:
            raise ValueError(f"`layers` must be two numbers, the second at least 1; got {list(layers)}")
        if not 0 <= unread < 1:
            raise ValueError(f"`unread` must lie in [0, 1), a share of the images; got {unread}")
        self.shape, self.levels, self.block, self.unread = tuple(shape), levels, block, unread
        self.code_dim, self.maps = code_dim, maps
        self.places = tuple(-(-n // block) for n in shape[1:])
        self.content = content_network(shape, (maps,) * (2 if looks else 1), reads, code_dim)
        tells = self.content is not None or code_dim > 0
        if self.content is not None and looks > layers[1]:
            raise ValueError(f"`looks` must be at most the {layers[1]} layers that are told; got {looks}")
        self.whole_page = whole_page
        if whole_page and not (looks and self.content is not None):
            raise ValueError("`whole_page` is looked at: the base must read, and have `looks` of 1 at least")
        if unread and not tells:
            raise ValueError(f"`unread` must be 0 for a model that is told nothing anyway; got {unread}")
        numbers = shape[0] * block**2
        self.above, self.left = nn.Conv2d(numbers, maps, (2, 2 * REACH + 1)), nn.Conv2d(numbers, maps, (1, REACH))
        self.place = nn.Parameter(torch.zeros(maps, *self.places))
        self.layers = nn.ModuleList(GatedLayer(maps) for _ in range(sum(layers)))
        self.code = Linear(code_dim, maps, takes="c") if code_dim else None
        self.tell = nn.ModuleList(nn.Conv2d(maps, 4 * maps, 1) for _ in range(layers[1] if tells else 0))
        seen = self.content.shapes[-1][1:] if self.content else ()
        self.looks = nn.ModuleList(Look(maps, heads, self.places, seen) for _ in range(looks if self.content else 0))
        self.head = OrderedHead(maps, numbers, levels)
        scale_for_relu(self)
        self.head.logits.weight.data.mul_(0.1)  # all levels begin about as probable
        self.register_buffer("real", self._blocks(torch.ones(1, *shape))[0], persistent=False)

    @property
    def likelihood(self) -> AutoregressiveBase:
        """What says which pixels can be explained: this model."""
        return self

    def x_dist(self, context: Context, shape: Sequence[int] = ()) -> AutoregressiveImage:
        """p(x | c, m)."""
        lead = torch.broadcast_shapes(tuple(shape), *self._leads(context))
        return AutoregressiveImage(
            lambda x: self.log_prob(x, context), lambda shape: self._draw(context, shape), lead, self.shape
        )

    def explain(self, x: Float[Tensor, "*batch channel height width"] | None, context: Context) -> None:
        told = None
        if x is not None and self.training and self.unread:
            told = torch.rand(x.shape[:-3], device=x.device) >= self.unread
        images = self.x_dist(context, () if x is None else x.shape[:-3])
        if x is not None:  # weighed now, while Pyro sees which parameters take part
            images = images.weighed(x, self.log_prob(x, context, told=told))
        pyro.sample("x", images, obs=x)

    def log_prob(
        self, x: Float[Tensor, "*batch channel height width"], context: Context, *,
        told: Bool[Tensor, "*batch"] | None = None, seen: list[Tensor] | None = None,
    ) -> Tensor:  # fmt: skip
        """log p(x | c, m) of each image, in nats.

        Args:
            x, context: whose leading dimensions broadcast.
            told: which images hear of the context; all by default.
            seen: gets the weights of attention of every look.
        """
        self._check(x)
        lead = torch.broadcast_shapes(x.shape[:-3], *self._leads(context))
        if lead.numel() > AT_ONCE and not (torch.is_grad_enabled() or x.is_cuda or seen is not None):
            return self._in_halves(x, context, told, lead)
        pixels = self._blocks(x)
        values = 2 * pixels - 1
        v = over(self.above, pad_above(values, 2)[..., :-1, :]) + self.place
        h = over(self.left, pad_left(values)[..., :-1]) + v
        for layer, heard in zip(self.layers, self._heard(context, told), strict=True):
            if heard.look:
                if seen is not None:
                    seen.append(heard.look.weights(h, heard.keys))
                h = heard.look(h, heard.keys)
            v = layer.vertical(pad_above(v), heard.vertical)
            h = layer.horizontal(pad_left(h), v, heard.horizontal)
        logits = out_of_autocast(self.head(h, values))
        level = (pixels * (self.levels - 1)).round().long().unsqueeze(-3)
        level = level.expand(logits.shape[:-4] + level.shape[-4:])
        return (logits.log_softmax(-3).gather(-3, level).squeeze(-3) * self.real).sum((-3, -2, -1))

    def _leads(self, context: Context) -> list[torch.Size]:
        """The leading dimensions of what is heard of a context."""
        code = [context.code.shape[:-1]] if self.code_dim and context.code is not None else []
        page = [context.pages.place.shape] if self.whole_page and context.pages is not None else []
        return code + page + [f.shape[:-3] for f in context.content if self.content is not None]

    def _in_halves(self, x: Tensor, context: Context, told: Tensor | None, lead: torch.Size) -> Tensor:
        """``log_prob`` of either half along the longest dimension."""
        dim = lead.index(max(lead)) - len(lead)

        def half(t: Tensor | None, own: int, i: int) -> Tensor | None:
            along = dim - own
            whole = t is None or t.dim() < -along or t.shape[along] == 1
            return t if whole else t.tensor_split(2, along)[i]

        def weighed(i: int) -> Tensor:
            content, pages = tuple(half(f, 3, i) for f in context.content), context.pages
            pages = None if pages is None else replace(pages, place=half(pages.place, 0, i))
            given = Context(half(context.code, 1, i), content, pages)
            return self.log_prob(half(x, 3, i), given, told=half(told, 0, i))

        return torch.cat([weighed(0), weighed(1)], dim)

    @torch.no_grad()
    def generate(
        self, context: Context, shape: Sequence[int] = (), *, guidance: float = 0.0, temperature: float = 1.0,
        progress: bool = False,
    ) -> Float[Tensor, "*batch channel height width"]:  # fmt: skip
        r"""Draws images: draws of pixels, since there is no last distribution that has all their means.

        Args:
            context, shape: as of any base.
            guidance: w >= 0; above 0 each pixel is drawn in proportion to
                :math:`p(x_i | x_{<i}, c, m) \, (p(x_i | x_{<i}, c, m) / p(x_i | x_{<i}))^w`, nearer to what was read
                and less varied than the model; it must know p(x), built with ``unread`` above 0.
            temperature: T > 0; each pixel is drawn in proportion to the power 1/T of that. 1 draws from the model.
            progress: shows a bar of the rows.

        Cost: a pass of one place for each block, as layers keep what they have seen; guided, two.

        References: Classifier-Free Diffusion Guidance (Ho & Salimans, 2022), https://arxiv.org/abs/2207.12598
        """
        if not 0 <= guidance < math.inf:
            raise ValueError(f"`guidance` must lie in [0, inf); got {guidance}")
        if guidance and not self.unread:
            raise ValueError("`guidance` needs a model that knows p(x) as well, built with `unread` above 0")
        if not 0 < temperature < math.inf:
            raise ValueError(f"`temperature` must lie in (0, inf), 1 to draw from the model; got {temperature}")
        return self._draw(context, self.x_dist(context, shape).batch_shape, guidance, temperature, progress)

    def _draw(
        self, context: Context, image: torch.Size, guidance: float = 0.0, temperature: float = 1.0,
        progress: bool = False,
    ) -> Tensor:  # fmt: skip
        (rows, columns), maps = self.places, self.maps
        both = torch.tensor([True, False], device=self.place.device).reshape(-1, *(1 for _ in image))
        lead, heard = (1 + (guidance > 0), *image), self._heard(context, both if guidance else None)
        canvas = self.place.new_zeros(*lead, len(self.real), rows + 2, columns + 2 * REACH)
        above = [self.place.new_zeros(*lead, maps, 1, columns) for _ in self.layers]
        for r in tqdm(range(rows), desc="rows", disable=not progress):
            v = over(self.above, canvas[..., r : r + 2, :]) + self.place[:, r : r + 1]
            start, vertical = v, []
            for i, layer in enumerate(self.layers):
                window, above[i] = torch.cat([above[i], v], -2), v
                v = layer.vertical(pad_above(window, 0), at_place(heard[i].vertical, r))
                vertical.append(v)
            left = [self.place.new_zeros(*lead, maps, 1, REACH) for _ in self.layers]
            for c in range(columns):
                h = over(self.left, canvas[..., r + 2 : r + 3, c : c + REACH]) + start[..., c : c + 1]
                for i, (layer, told) in enumerate(zip(self.layers, heard, strict=True)):
                    h = told.look(h, told.keys, at_place(told.look.place, r, c)) if told.look else h
                    window = torch.cat([left[i], h], -1)
                    left[i] = window[..., 1:]
                    h = layer.horizontal(window, vertical[i][..., c : c + 1], at_place(told.horizontal, r, c))
                place = canvas[..., r + 2 : r + 3, c + REACH : c + REACH + 1]
                for n, real in enumerate(self.real[:, r, c]):
                    logits = out_of_autocast(self.head(h, place)[..., n, :, 0, 0]).log_softmax(-1)
                    logits = (logits[0] + guidance * (logits[0] - logits[-1])) / temperature
                    drawn = dist.Categorical(logits=logits, validate_args=False).sample()
                    place[..., n, 0, 0] = real * 2 * drawn / (self.levels - 1) - 1
        values = canvas[0, ..., 2:, REACH:-REACH]
        x = functional.pixel_shuffle((values + 1) / 2, self.block)
        return x[..., : self.shape[1], : self.shape[2]]

    def _check(self, x: Tensor) -> None:
        if tuple(x.shape[-3:]) != self.shape:
            raise ValueError(
                f"`x` must hold images of {list(self.shape)}, as the model was built for; got {list(x.shape[-3:])}"
            )
        steps = x * (self.levels - 1)
        if x.numel() and bool(((steps - steps.round()).abs() > 1e-3).any() | (x < 0).any() | (x > 1).any()):
            raise ValueError(
                f"`x` must hold the {self.levels} levels that the model was built for, from 0 to 1 in equal steps; got "
                "others. Round it to these, or give the model the `levels` of the data, such as 256 for bytes"
            )

    def _blocks(self, x: Tensor) -> Tensor:
        """The pixels of blocks as channels."""
        missing = [-n % self.block for n in x.shape[-2:]]
        return functional.pixel_unshuffle(functional.pad(x, (0, missing[1], 0, missing[0])), self.block)

    def _heard(self, context: Context, told: Tensor | None = None) -> list[Heard]:
        """What the context says to each layer, computed once a slot or code, however many images hear it."""
        if not self.tell:
            return [Heard()] * len(self.layers)
        if self.code_dim and context.code is None and (context.content or not self.unread):
            raise ValueError(
                f"`context` must have a code of {self.code_dim} dimensions, as the model was built for; got none. A "
                "model that is told nothing at times, and so knows p(x) as well, is built with `unread` above 0"
            )
        shapes = self.content.shapes if self.content is not None else ()
        content = context.content or tuple(self.place.new_zeros(shape) for shape in shapes)
        pages = context.pages if self.whole_page else None
        given = self._said(content, context.code, pages)
        if told is None:
            return given
        nothing = self._said(tuple(f.new_zeros(f.shape[-3:]) for f in content), None, pages and pages.nothing())
        mask = told[..., None, None, None]
        return tree_map(lambda a, b: torch.where(mask, a, b) if isinstance(a, Tensor) else a, given, nothing)

    def _said(self, content: Sequence[Tensor], code: Tensor | None, pages: Pages | None) -> list[Heard]:
        says, looks = self.place.new_zeros(self.maps, 1, 1), []
        if self.content is not None:
            says = over(lambda f: functional.interpolate(f, self.places), content[0])
            looks = [(look, look.page_keys(pages) if pages else look.keys(content[-1])) for look in self.looks]
        if code is not None:
            says = says + self.code(code)[..., None, None]
        each = [over(tell, says).expand(*says.shape[:-3], -1, *self.places).chunk(2, -3) for tell in self.tell]
        pairs = zip_longest(each, looks, fillvalue=(None, None))
        return [Heard()] * (len(self.layers) - len(each)) + [Heard(*said, *look) for said, look in pairs]
