"""Variational structured memory: the amortised guide."""

from __future__ import annotations

import pyro
from jaxtyping import Float
from pyro.nn import PyroModule
from torch import Tensor

from pyro_memory.checks import check_task
from pyro_memory.context import Context
from pyro_memory.guides.base import BaseGuide
from pyro_memory.naming import unique_name
from pyro_memory.recall import Recall
from pyro_memory.slots import SlotMemory
from pyro_memory.structured import StructuredMemory


class VSMGuide(PyroModule):
    """Recalls from support and queries together, then encodes each query: ``q(h | S and Q) q(z | x, c)``.

    Args:
        base: the guide of the base model, built with the same ``code_dim``.
        recall: the model's own ``Recall``: recall from few images is learned from more.

    Addresses are marked for parallel enumeration, which only ``TraceEnum_ELBO`` heeds: one pair serves both it and
    ``VIMCO``.
    """

    def __init__(self, base: BaseGuide, recall: Recall, *, name: str | None = None) -> None:
        super().__init__(name or unique_name(self))
        self.base = base
        self.recall = recall

    def forward(
        self, x: Float[Tensor, "task query channel height width"], support: SlotMemory, memory: StructuredMemory
    ) -> None:
        check_task(x, support, memory, self.recall)
        with pyro.plate("task", len(x), dim=-2):
            _, c = self.recall(memory, self.recall.gather_all(support, x))
            with pyro.plate("item", x.shape[1], dim=-1):
                self.base.infer(x, Context(c))
