"""What a memory tells a base generative model about an image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pyro_memory.gate import checked
from pyro_memory.nets.layers import Features, broadcast_cat


@checked
@dataclass(frozen=True)
class Pages:
    """Pages of images that were read whole, for a base model that looks at all images of one.

    Attributes:
        features: the coarsest of each image, ``[page, image, channels, height, width]``.
        there: which are looked at, one a page at least.
        place: the page that each image of the batch hears of.
    """

    features: Float[Tensor, "page image channels height width"]
    there: Bool[Tensor, "page image"]
    place: Int[Tensor, "*batch"]

    def nothing(self) -> Pages:
        """The same of a page that shows one image of zeros."""
        first = torch.arange(self.there.shape[1], device=self.there.device) == 0
        return Pages(torch.zeros_like(self.features[:1]), first.unsqueeze(0), self.place.new_zeros(()))


@checked
@dataclass(frozen=True)
class Context:
    """What an image is generated from, beside the base model's own latents.

    Attributes:
        code: the context vector c, ``[*batch, code_dim]``, or None without memory.
        content: features of what was read from an episode, made by the base model's ``content`` network, each
            ``[*batch, channels, height, width]``; () where nothing can be read.
        pages: the whole page that each was read from, or None.

    Leading dimensions broadcast against those of the images.
    """

    code: Float[Tensor, "*batch code"] | None = None
    content: Features = ()
    pages: Pages | None = None


@checked
def with_code(z: Float[Tensor, "*batch latent"], context: Context) -> Float[Tensor, "*lead both"]:
    """Lays the context's code beside a latent."""
    return z if context.code is None else broadcast_cat([z, context.code])
