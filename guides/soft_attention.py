"""Soft attention over a memory: the amortised guide."""

from __future__ import annotations

from collections.abc import Sequence

import pyro
import pyro.distributions as dist
from jaxtyping import Float
from pyro.nn import PyroModule
from torch import Tensor, nn

from pyro_memory.addressing import ContentAddress
from pyro_memory.checks import check_images, resolve_memory
from pyro_memory.gate import checked
from pyro_memory.naming import unique_name
from pyro_memory.nets import Embedding, ImagePyramid, PairEncoder
from pyro_memory.stores import SlotMemory


@checked
class SoftAttentionVAEGuide(PyroModule):
    r"""Blends the slots by attention from the image, then encodes image and blend.

    .. code-block:: text

        w = softmax(<h(m_i), h(x)> / ||h(m_i)||)
        z ~ q(z | x, sum_i w_i m_i)

    Args:
        attention: maps ``(x, memory)`` to a distribution over slots whose probabilities are the weights w.
        encoder: maps ``(x, blend)`` to the distribution of z.

    References: Variational Memory Addressing in Generative Models (Bornschein et al., 2017),
    https://arxiv.org/abs/1709.07116
    """

    none_slot = False
    templates = None

    def __init__(self, attention: nn.Module, encoder: nn.Module, *, name: str | None = None) -> None:
        super().__init__(name or unique_name(self))
        self.attention = attention
        self.encoder = encoder

    @classmethod
    def convolutional(
        cls, shape: Sequence[int], latent_dim: int = 64, channels: Sequence[int] = (48, 48, 64), *,
        matching_dim: int = 128, name: str | None = None,
    ) -> SoftAttentionVAEGuide:  # fmt: skip
        """Builds it with convolutional pyramids."""
        query = Embedding(ImagePyramid(shape, channels), matching_dim)
        encoder = PairEncoder(ImagePyramid((2 * shape[0], *shape[1:]), channels), latent_dim)
        return cls(ContentAddress(query), encoder, name=name)

    def z_dist(
        self, x: Float[Tensor, "*batch channel height width"], blend: Float[Tensor, "*lead channel height width"]
    ) -> dist.Distribution:
        """q(z | x, blend)."""
        return self.encoder(x, blend)

    def forward(self, x: Float[Tensor, "batch channel height width"], memory: SlotMemory | None = None) -> None:
        check_images(x)
        memory = resolve_memory(self, x, memory)
        with pyro.plate("batch", len(x)):
            blend = memory.blend(self.attention(x, memory).probs)
            pyro.sample("z", self.z_dist(x, blend))
