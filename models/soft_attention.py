"""Soft attention over a memory: what variational memory addressing is compared with."""

from __future__ import annotations

from collections.abc import Sequence

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float
from pyro.nn import PyroModule
from torch import Tensor, nn

from pyro_memory.addressing import ContentAddress
from pyro_memory.checks import check_images, resolve_memory
from pyro_memory.gate import checked
from pyro_memory.naming import unique_name
from pyro_memory.nets import BernoulliImage, ConvDecoder, Embedding, Features, ImagePyramid, SkipPyramid, mlp
from pyro_memory.stores import SlotMemory


@checked
class SoftAttentionVAE(PyroModule):
    r"""Draws each image after blending all slots by attention: no address is a latent.

    .. code-block:: text

        z ~ N(0, 1)
        w = softmax(<h(m_i), g(z)> / ||h(m_i)||)      how much of each slot
        x ~ p(x | z, sum_i w_i m_i)

    All information has to pass through the continuous z: there is no address whose KL could say what the lookup was
    worth. Networks are those of ``VMA`` besides, so that the two compare.

    Args:
        attention: maps ``(z, memory)`` to a distribution over slots whose probabilities are the weights w.
        content: computes the features of a blend of slots.
        likelihood: maps z and those features to the distribution of x.
        latent_dim: dimensions of z.

    Raises:
        ValueError: for an empty memory, shapes that do not fit, images outside the support.

    Cost: O(batch x slots x pixels) for the blends.

    References: Variational Memory Addressing in Generative Models (Bornschein et al., 2017),
    https://arxiv.org/abs/1709.07116; Learning to Generate with Memory (Li et al., 2016),
    https://arxiv.org/abs/1602.07416
    """

    none_slot = False
    templates = None

    def __init__(
        self, attention: nn.Module, content: nn.Module, likelihood: nn.Module, latent_dim: int, *,
        name: str | None = None,
    ) -> None:  # fmt: skip
        super().__init__(name or unique_name(self))
        self.attention = attention
        self.content = content
        self.likelihood = likelihood
        self.register_buffer("zero", torch.zeros(latent_dim), persistent=False)

    @classmethod
    def convolutional(
        cls, shape: Sequence[int], latent_dim: int = 64, channels: Sequence[int] = (48, 48, 64), *,
        matching_dim: int = 128, likelihood: type[nn.Module] = BernoulliImage, name: str | None = None,
    ) -> SoftAttentionVAE:  # fmt: skip
        """Builds it with convolutional pyramids, skip connections from the blend to the decoder."""
        key = Embedding(ImagePyramid(shape, channels), matching_dim)
        attention = ContentAddress(mlp([latent_dim, matching_dim, matching_dim], takes="z"), key)
        content = SkipPyramid(shape, channels)
        decoder = ConvDecoder(shape, latent_dim, channels)
        return cls(attention, content, likelihood(decoder), latent_dim, name=name)

    def z_dist(self) -> dist.Distribution:
        """p(z)."""
        return dist.Normal(self.zero, torch.ones_like(self.zero)).to_event(1)

    def x_dist(self, z: Float[Tensor, "*batch latent"], content: Features) -> dist.Distribution:
        """p(x | z, blend), from the features of the blend."""
        return self.likelihood(z, content)

    def forward(self, x: Float[Tensor, "batch channel height width"], memory: SlotMemory | None = None) -> None:
        check_images(x, self.likelihood)
        memory = resolve_memory(self, x, memory)
        with pyro.plate("batch", len(x)):
            z = pyro.sample("z", self.z_dist())
            content = self.content(memory.blend(self.attention(z, memory).probs))
            pyro.sample("x", self.x_dist(z, content), obs=x)
