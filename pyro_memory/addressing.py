"""Distributions over the slots of a memory."""

from __future__ import annotations

import math

import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import normalize

from pyro_memory.slots import SlotMemory


class NormalizedKey(nn.Module):
    r"""Scores by ``<k, q> / ||k||``: the key's length does not count, the query's is a learned inverse temperature.

    References: Variational Memory Addressing in Generative Models (Bornschein et al., 2017),
    https://arxiv.org/abs/1709.07116
    """

    def forward(self, query: Float[Tensor, "*batch dim"], key: Float[Tensor, "*slot dim"]):
        return query, normalize(key, dim=-1)


class Cosine(nn.Module):
    """Scores by the cosine of key and query over a learned temperature."""

    def __init__(self, temperature: float = 0.1) -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"`temperature` must be positive; got {temperature}")
        self.log_temperature = nn.Parameter(torch.tensor(math.log(temperature)))

    def forward(self, query: Float[Tensor, "*batch dim"], key: Float[Tensor, "*slot dim"]):
        return normalize(query, dim=-1) / self.log_temperature.exp(), normalize(key, dim=-1)


class Dot(nn.Module):
    """Scores by ``<k, q> / sqrt(dim)``, as attention does."""

    def forward(self, query: Float[Tensor, "*batch dim"], key: Float[Tensor, "*slot dim"]):
        return query / math.sqrt(query.shape[-1]), key


class ContentAddress(nn.Module):
    r"""Looks a datum up by its content: ``q(a | x, M) = softmax_a S(h(m_a), h(x))``.

    Args:
        query: embeds data, ``[*batch, *event] -> [*batch, dim]``.
        key: embeds the memory's keys (its values where it has no keys); by default the query's network, as in the
            paper. Each slot is embedded once a call, however many data look it up.
        similarity: maps queries and keys to the pair whose dot product is the score; ``NormalizedKey()`` by default.

    Calling it with ``(x, memory)`` gives a Categorical over the slots; an unfilled slot has probability zero.
    Cost: O(slots) embeddings and O(batch x slots x dim) for the scores.

    Raises:
        ValueError: if some memory holds nothing.

    References: Variational Memory Addressing in Generative Models (Bornschein et al., 2017),
    https://arxiv.org/abs/1709.07116
    """

    def __init__(self, query: nn.Module, key: nn.Module | None = None, similarity: nn.Module | None = None) -> None:
        super().__init__()
        self.query = query
        self.key = query if key is None else key
        self.similarity = NormalizedKey() if similarity is None else similarity

    def forward(self, x: Float[Tensor, "*batch *event"], memory: SlotMemory) -> dist.Categorical:
        memory.check_filled()
        key = self.key(memory.values if memory.keys is None else memory.keys)
        query, key = self.similarity(self.query(x), key)
        own = memory.batch_dim is not None
        logits = (memory.align(key) @ query.unsqueeze(-1)).squeeze(-1) if own else query @ key.mT
        return dist.Categorical(logits=memory.masked(logits))


class NearestAddress(nn.Module):
    r"""Keeps the ``nearest`` likeliest slots of another address and puts no mass on the rest.

    As a guide it stays valid: a bound with it is a lower bound, which converges to log p(x, a among the nearest).
    """

    def __init__(self, address: nn.Module, nearest: int) -> None:
        super().__init__()
        if nearest < 1:
            raise ValueError(f"`nearest` must be at least 1 slot; got {nearest}")
        self.address = address
        self.nearest = nearest

    def forward(self, x: Float[Tensor, "*batch *event"], memory: SlotMemory) -> dist.Categorical:
        logits = self.address(x, memory).logits
        if self.nearest >= logits.shape[-1]:
            return dist.Categorical(logits=logits)
        best = logits.topk(self.nearest, dim=-1)
        return dist.Categorical(logits=torch.full_like(logits, -math.inf).scatter(-1, best.indices, best.values))


class UniformPrior(nn.Module):
    """Gives every filled slot the same prior probability."""

    def forward(self, memory: SlotMemory) -> dist.Categorical:
        return memory.prior()


class LearnedPrior(nn.Module):
    """Scores each slot by its content: ``p(a | M) = softmax_a <w, h(m_a)>`` with a learned query ``w``."""

    def __init__(self, key: nn.Module, dim: int) -> None:
        super().__init__()
        self.key = key
        self.query = nn.Parameter(torch.zeros(dim))  # starts uniform

    def forward(self, memory: SlotMemory) -> dist.Categorical:
        memory.check_filled()
        logits = self.key(memory.values if memory.keys is None else memory.keys) @ self.query
        return dist.Categorical(logits=memory.masked(memory.align(logits)))
