"""An address that asks memories what they hold."""

from __future__ import annotations

from typing import cast

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

    A key sums a segment up, and fails first where segments hold much; what a memory answers tells whether it has seen
    what it is asked for (docs/recall.md).

    Args:
        states: the ``StateCache`` that made the cache.
        content: an address by key that gives a Categorical, such as ``ContentAddress(..., stream=False)``.
        dim: of what is looked up by; its first ``states.dim`` dimensions are what the memories are asked.
        hidden: of f.

    Raises:
        TypeError: for a content that gives another distribution.

    Cost: a read of the memory for every element and slot; ``recalled``, where these were read before, spares it.
    """

    def __init__(self, states: nn.Module, content: nn.Module, *, dim: int | None = None, hidden: int = 128) -> None:
        super().__init__()
        self.states, self.content = states, content
        own = cast(int, states.dim)
        self.score = mlp([(dim or own) + own, hidden, 1])

    def forward(
        self, h: Float[Tensor, "batch time width"], cache: SlotMemory,
        recalled: Float[Tensor, "slot batch time dim"] | None = None,
    ) -> dist.Categorical:  # fmt: skip
        by_key = self.content(h, cache)
        if not isinstance(by_key, dist.Categorical):
            raise TypeError(
                f"`content` must give a Categorical, to which the answers' scores are added; got a "
                f"{type(by_key).__name__}. Build it with stream=False; a NearestAddress goes around a RecallAddress"
            )
        if recalled is None:
            recalled = self.states.recall(h[..., : self.states.dim], cache[self.states.every(cache)])
        score = self.score(torch.cat([h.expand(*recalled.shape[:-1], -1), recalled], -1)).squeeze(-1)
        return dist.Categorical(logits=by_key.logits + score.movedim(0, -1))
