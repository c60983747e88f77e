"""Variational memory addressing: the amortised guide."""

from __future__ import annotations

from collections.abc import Sequence

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float, Int
from pyro.nn import PyroModule
from torch import Tensor, nn

from pyro_memory.addressing import ContentAddress
from pyro_memory.checks import check_images, resolve_memory
from pyro_memory.gate import checked
from pyro_memory.naming import unique_name
from pyro_memory.nets import Embedding, ImageMLP, ImagePyramid, PairEncoder
from pyro_memory.stores import SlotMemory, TemplateMemory


@checked
class VMAGuide(PyroModule):
    r"""Looks the slot up from the image, then encodes what differs from it.

    .. code-block:: text

        a ~ q(a | M, x)       content address: softmax of <h(m_a), h(x)> / ||h(m_a)||
        z ~ q(z | m_a, x)     from x and m_a laid over each other as channels

    Args:
        address: maps ``(x, memory)`` to the distribution of a, such as ``ContentAddress``.
        encoder: maps ``(x, m)`` to the distribution of z.
        templates, none_slot: as the model's, and the same.

    The address is marked for parallel enumeration, which only ``TraceEnum_ELBO`` heeds: one pair serves both it
    and ``VIMCO``.

    References: Variational Memory Addressing in Generative Models (Bornschein et al., 2017),
    https://arxiv.org/abs/1709.07116
    """

    def __init__(
        self,
        address: nn.Module,
        encoder: nn.Module,
        *,
        templates: TemplateMemory | None = None,
        none_slot: bool = False,
        name: str | None = None,
    ) -> None:
        super().__init__(name or unique_name(self))
        self.address = address
        self.encoder = encoder
        self.templates = templates
        self.none_slot = none_slot

    @classmethod
    def convolutional(
        cls, shape: Sequence[int], latent_dim: int = 64, channels: Sequence[int] = (48, 48, 64), *,
        matching_dim: int = 128, tied: bool = True, **options: object,
    ) -> VMAGuide:  # fmt: skip
        """Builds it with convolutional pyramids; ``tied`` embeds image and slot by one network."""
        query = Embedding(ImagePyramid(shape, channels), matching_dim)
        key = None if tied else Embedding(ImagePyramid(shape, channels), matching_dim)
        encoder = PairEncoder(ImagePyramid((2 * shape[0], *shape[1:]), channels), latent_dim)
        return cls(ContentAddress(query, key), encoder, **options)

    @classmethod
    def mlp(
        cls, shape: Sequence[int], latent_dim: int = 32, hidden: Sequence[int] = (256, 128), *,
        matching_dim: int = 128, tied: bool = True, **options: object,
    ) -> VMAGuide:  # fmt: skip
        """Builds it with MLPs; ``tied`` embeds image and slot by one network."""
        query = Embedding(ImageMLP(shape, hidden), matching_dim)
        key = None if tied else Embedding(ImageMLP(shape, hidden), matching_dim)
        encoder = PairEncoder(ImageMLP((2 * shape[0], *shape[1:]), hidden), latent_dim)
        return cls(ContentAddress(query, key), encoder, **options)

    def a_dist(self, x: Float[Tensor, "*batch channel height width"], memory: SlotMemory) -> dist.Distribution:
        """q(a | M, x)."""
        return self.address(x, memory)

    def z_dist(
        self, x: Float[Tensor, "*batch channel height width"], m: Float[Tensor, "*lead channel height width"]
    ) -> dist.Distribution:
        """q(z | m, x)."""
        return self.encoder(x, m)

    def forward(self, x: Float[Tensor, "batch channel height width"], memory: SlotMemory | None = None) -> None:
        check_images(x)
        memory = resolve_memory(self, x, memory)
        with pyro.plate("batch", len(x)):
            a = pyro.sample("a", self.a_dist(x, memory), infer={"enumerate": "parallel"})
            pyro.sample("z", self._z_given(x, memory, a))

    def _z_given(self, x: Tensor, memory: SlotMemory, a: Int[Tensor, "*address"]) -> dist.Distribution:
        """q(z | m_a, x), encoded once for each pair of datum and slot where these are fewer than the reads."""
        shape = torch.broadcast_shapes(a.shape, x.shape[:1])
        if memory.divided or memory.batch_dim not in (None, -1) or memory.slots * len(x) >= shape.numel():
            return self.z_dist(x, memory[a])
        slots = memory.values.unsqueeze(1) if memory.batch_dim is None else memory.values.transpose(0, 1)
        q = self.z_dist(x, slots)
        if not (isinstance(q, dist.Independent) and isinstance(q.base_dist, dist.Normal)):
            return self.z_dist(x, memory[a])
        read = a.expand(shape), torch.arange(len(x), device=a.device)
        return dist.Normal(q.base_dist.loc[read], q.base_dist.scale[read]).to_event(1)
