"""Variational memory addressing over any base model: the amortised guide."""

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
from pyro_memory.guides.bases.base import BaseGuide
from pyro_memory.naming import unique_name
from pyro_memory.nets import Context, Embedding, ImagePyramid
from pyro_memory.stores import SlotMemory, TemplateMemory


@checked
class AddressedGuide(PyroModule):
    """Looks the slot up from the image, ``q(a | M, x)``; the base model's guide infers its latents from the image.

    Args:
        address: maps ``(x, memory)`` to the distribution of a, such as ``ContentAddress``.
        base: the guide of the base model.
        templates, none_slot: as the model's, and the same.

    References: Variational Memory Addressing in Generative Models (Bornschein et al., 2017),
    https://arxiv.org/abs/1709.07116
    """

    def __init__(
        self, address: nn.Module, base: BaseGuide, *, templates: TemplateMemory | None = None,
        none_slot: bool = False, name: str | None = None,
    ) -> None:  # fmt: skip
        super().__init__(name or unique_name(self))
        self.address = address
        self.base = base
        self.templates = templates
        self.none_slot = none_slot

    @classmethod
    def convolutional(
        cls, shape: Sequence[int], base: BaseGuide, channels: Sequence[int] = (48, 48, 64), *, matching_dim: int = 128,
        **options: object,
    ) -> AddressedGuide:  # fmt: skip
        """Builds it with the address of ``VMAGuide.convolutional``: image and slot are embedded by one network."""
        return cls(ContentAddress(Embedding(ImagePyramid(shape, channels), matching_dim)), base, **options)

    def a_dist(self, x: Float[Tensor, "*batch channel height width"], memory: SlotMemory) -> dist.Distribution:
        """q(a | M, x)."""
        return self.address(x, memory)

    def forward(self, x: Float[Tensor, "batch channel height width"], memory: SlotMemory | None = None) -> None:
        check_images(x)
        memory = resolve_memory(self, x, memory)
        with pyro.plate("batch", len(x)):
            pyro.sample("a", self.a_dist(x, memory), infer={"enumerate": "parallel"})
            self.base.infer(x, Context())
