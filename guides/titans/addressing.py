"""The guide of sequential addressing."""

from __future__ import annotations

from collections.abc import Sequence

import pyro
import pyro.distributions as dist
from jaxtyping import Float
from pyro.nn import PyroModule
from torch import Tensor, nn

from pyro_memory.addressing import ContentAddress
from pyro_memory.gate import checked
from pyro_memory.naming import unique_name
from pyro_memory.nets import Embedding, ImageMLP
from pyro_memory.stores import SlotMemory


@checked
class TitansAddressingGuide(PyroModule):
    """Looks each item up by its content, whatever came before: ``q(a_t | x_t, M)``.

    Args:
        address: maps ``(x, memory)`` to the distribution of the addresses, such as ``ContentAddress``.

    Marked for parallel enumeration, which only ``TraceEnum_ELBO`` heeds.
    """

    def __init__(self, address: nn.Module, *, name: str | None = None) -> None:
        super().__init__(name or unique_name(self))
        self.address = address

    @classmethod
    def mlp(
        cls, shape: Sequence[int], hidden: Sequence[int] = (256, 128), *, matching_dim: int = 64,
        name: str | None = None,
    ) -> TitansAddressingGuide:  # fmt: skip
        """Builds it for images, with an MLP."""
        return cls(ContentAddress(Embedding(ImageMLP(shape, hidden), matching_dim)), name=name)

    def a_dist(self, x: Float[Tensor, "batch time *event"], memory: SlotMemory) -> dist.Distribution:
        """q(a_t | x_t, M)."""
        return self.address(x, memory)

    def forward(self, x: Float[Tensor, "batch time *event"], memory: SlotMemory) -> None:
        with pyro.plate("batch", x.shape[0], dim=-2), pyro.plate("time", x.shape[1], dim=-1):
            pyro.sample("a", self.a_dist(x, memory), infer={"enumerate": "parallel"})
