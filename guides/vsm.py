"""Variational structured memory: the amortised guide."""

from __future__ import annotations

import pyro
from jaxtyping import Float
from pyro.nn import PyroModule
from torch import Tensor, nn

from pyro_memory.gate import checked
from pyro_memory.guides.bases.base import BaseGuide
from pyro_memory.naming import unique_name
from pyro_memory.nets import Context
from pyro_memory.recall import Recall, check_task
from pyro_memory.stores import SlotMemory, StructuredMemory


@checked
class VSMGuide(PyroModule):
    """Recalls from support and queries together, then looks each query up among the images of the episode recalled,
    and encodes it beside the one found: ``q(h | S and Q) q(i | x, j) q(z | x, c, m_ji)``.

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
        self.beside = nn.Linear(recall.key.out_features, recall.code_dim, bias=False) if base.encodes else None

    def forward(
        self, x: Float[Tensor, "task query channel height width"], support: SlotMemory, memory: StructuredMemory
    ) -> None:
        check_task(x, support, memory, self.recall)
        with pyro.plate("task", len(x), dim=-2):
            seen = self.recall.look(x)
            page, c = self.recall(memory, self.recall.gather_all(support, seen))
            with pyro.plate("item", x.shape[1], dim=-1):
                like, key = self.recall.matches(seen, page, memory)
                i = pyro.sample("i", like, infer={"enumerate": "parallel"})
                self.base.infer(x, Context(c if self.beside is None else c + self.beside(key(i))))
