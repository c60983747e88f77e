"""What a memory tells a base generative model about an image."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from pyro_memory.gate import checked
from pyro_memory.nets.layers import Features, broadcast_cat


@checked
@dataclass(frozen=True)
class Context:
    """What an image is generated from, beside the base model's own latents.

    Attributes:
        code: the context vector c, ``[*batch, code_dim]``, or None without memory.
        content: features of what was read from an episode, made by the base model's ``content`` network, each
            ``[*batch, channels, height, width]``; () where nothing can be read.

    Leading dimensions broadcast against those of the images.
    """

    code: Float[Tensor, "*batch code"] | None = None
    content: Features = ()


@checked
def with_code(z: Float[Tensor, "*batch latent"], context: Context) -> Float[Tensor, "*lead both"]:
    """Lays the context's code beside a latent."""
    return z if context.code is None else broadcast_cat([z, context.code])
