"""An address that asks memories what they hold."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor, nn

from pyro_memory.gate import checked
from pyro_memory.nets import mlp
from pyro_memory.stores import SlotMemory


@checked
class RecallAddress(nn.Module):
    r"""Asks every cached memory, and weighs what it answers: by its key and by its answer a state is chosen.

    .. code-block:: text

        p(a | h, cache) = softmax_a (content(h, key_a) + f(h, M_a(h W)))        f an MLP with one hidden layer

    A key sums a segment up, and fails first where segments hold much. What a memory answers tells whether it has seen
    what it is asked for: where keys alone found the right one of four states of eight pairs in 93% of cases, it is
    found in 99% (docs/titans.md).

    Args:
        states: the ``StateCache`` that made the cache.
        content: an address by key, that gives a Categorical.
        dim: of what is looked up by; its first ``states.dim`` dimensions are what the memories are asked.
        hidden: of f.

    Cost: a read of the memory for every element and slot.
    """

    def __init__(self, states: nn.Module, content: nn.Module, *, dim: int | None = None, hidden: int = 128) -> None:
        super().__init__()
        self.states, self.content = states, content
        self.score = mlp([(dim or states.dim) + states.dim, hidden, 1])

    def forward(self, h: Float[Tensor, "batch time width"], cache: SlotMemory) -> dist.Categorical:
        slots = cache[torch.arange(cache.slots, device=h.device).reshape(-1, 1, 1)]
        recalled = self.states.recall(h[..., : self.states.dim], slots)
        score = self.score(torch.cat([h.expand(*recalled.shape[:-1], -1), recalled], -1)).squeeze(-1)
        return dist.Categorical(logits=self.content(h, cache).logits + score.movedim(0, -1))
