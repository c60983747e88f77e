"""Distributions over the slots of a memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pyro.distributions as dist
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.utils.checkpoint import checkpoint

from pyro_memory.slots import SlotMemory, readable
from pyro_memory.streamed import STREAM_ABOVE, StreamedCategorical

BLOCK = 4096  # slots embedded at a time


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
        stream: True gives a ``StreamedCategorical``, which never holds a score for every datum and slot and has no
            parallel enumeration; False a Categorical. By default the first over a shared memory of more than 16,384
            slots. A memory per datum always gives a Categorical.

    Calling it with ``(x, memory)`` gives the distribution over the slots; an unfilled slot has probability zero.
    Cost: O(slots) embeddings and O(batch x slots x dim) for the scores.

    Raises:
        ValueError: if some memory holds nothing.

    References: Variational Memory Addressing in Generative Models (Bornschein et al., 2017),
    https://arxiv.org/abs/1709.07116
    """

    def __init__(
        self,
        query: nn.Module,
        key: nn.Module | None = None,
        similarity: nn.Module | None = None,
        *,
        stream: bool | None = None,
    ) -> None:
        super().__init__()
        self.query = query
        self.key = query if key is None else key
        self.similarity = NormalizedKey() if similarity is None else similarity
        self.stream = stream

    def forward(self, x: Float[Tensor, "*batch *event"], memory: SlotMemory) -> dist.Categorical | StreamedCategorical:
        memory.check_filled()
        query, key = self.query_for(x), self.keys_for(memory)
        own = memory.batch_dim is not None
        stream = memory.slots > STREAM_ABOVE if self.stream is None else self.stream
        if memory.divided or (stream and not own):
            return memory.streamed(query, key)
        logits = (memory.align(key) @ query.unsqueeze(-1)).squeeze(-1) if own else query @ key.mT
        return dist.Categorical(logits=memory.masked(logits))

    def query_for(self, x: Float[Tensor, "*batch *event"]) -> Float[Tensor, "*batch dim"]:
        """Gives what the score multiplies with a key of ``keys_for``."""
        query = self.query(x)
        return self.similarity(query, query.new_zeros(1, query.shape[-1]))[0]

    def keys_for(self, memory: SlotMemory, slots: Int[Tensor, "*batch"] | None = None) -> Float[Tensor, "*slot dim"]:
        """Embeds the slots, all of them or those given; of many, a block at a time, computed again for the gradient."""
        contents = memory.values if memory.keys is None else memory.keys
        embed = partial(self._block, memory.embedder(self.key))
        if slots is not None:
            flat = self._embedded(embed, contents[slots.reshape(-1)])
            return flat.reshape(slots.shape + flat.shape[-1:])
        return self._embedded(embed, contents)

    def _embedded(
        self, embed: Callable[[Tensor], Tensor], contents: Float[Tensor, "*slot *event"]
    ) -> Float[Tensor, "*slot dim"]:
        if len(contents) <= BLOCK:
            return embed(contents)
        parts = contents.split(BLOCK)
        if torch.is_grad_enabled():
            return torch.cat([checkpoint(embed, part, use_reentrant=False) for part in parts])
        return torch.cat([embed(part) for part in parts])

    def _block(
        self, network: Callable[[Tensor], Tensor], contents: Float[Tensor, "*slot *event"]
    ) -> Float[Tensor, "*slot dim"]:
        key = network(readable(contents))
        return self.similarity(key[:0], key)[1]

    @torch.no_grad()
    def embed(self, memory: SlotMemory, *, dtype: torch.dtype | None = None) -> Float[Tensor, "slot dim"]:
        """Embeds a shared memory for a ``FrozenAddress`` or a ``SlotIndex``; ``dtype`` float16 halves the room."""
        contents = memory.values if memory.keys is None else memory.keys
        blocks = (self._block(self.key, part) for part in contents.split(BLOCK))
        return torch.cat([block if dtype is None else block.to(dtype) for block in blocks])


class FrozenAddress(nn.Module):
    """Looks data up among keys that were embedded beforehand: for a large memory whose key network no longer moves.

    The memory carries them: ``SlotMemory(values, keys=address.embed(memory))``, or a ``MappedMemory`` with keys, which
    may be in half precision and larger than RAM.

    Args:
        address: the ``ContentAddress`` that made the keys; it embeds the queries.
        sharpness: what scores are multiplied by. An address trained among few slots spreads over too many of a larger
            memory; a sharpness chosen on held-out data gathers it again. Bounds stay bounds.

    Raises:
        ValueError: if ``sharpness`` is not positive, or the memory has no keys ``[slot, dim]`` of the queries' size.

    Cost: O(batch x slots x dim) for the scores, in one pass over the keys.
    """

    def __init__(self, address: ContentAddress, *, sharpness: float = 1.0) -> None:
        super().__init__()
        if not sharpness > 0:
            raise ValueError(f"`sharpness` must be positive; got {sharpness}")
        self.address, self.sharpness = address, sharpness

    def forward(self, x: Float[Tensor, "*batch *event"], memory: SlotMemory) -> StreamedCategorical:
        memory.check_filled()
        query, keys = self.query_for(x), self.embed(memory)
        if keys.shape[-1] != query.shape[-1]:
            raise ValueError(
                f"`memory` must hold keys of the queries' dimension, {query.shape[-1]}; got {keys.shape[-1]}. Embed it "
                "with this address"
            )
        return memory.streamed(query, keys)

    def query_for(self, x: Float[Tensor, "*batch *event"]) -> Float[Tensor, "*batch dim"]:
        """Gives what the score multiplies with a key of the memory."""
        return self.sharpness * self.address.query_for(x)

    def keys_for(self, memory: SlotMemory, slots: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch dim"]:
        """Gives the keys of some slots."""
        return readable(self.embed(memory)[slots])

    def embed(self, memory: SlotMemory) -> Float[Tensor, "slot dim"]:
        """Gives the keys that the memory carries."""
        if memory.keys is None or memory.keys.dim() != 2 or memory.batch_dim is not None:
            raise ValueError(
                "`memory` must carry embedded keys, [slot, dim], shared by all data; got "
                f"{'none' if memory.keys is None else list(memory.keys.shape)}. Make them with "
                "`SlotMemory(values, keys=address.embed(memory))`"
            )
        return memory.keys


class UniformPrior(nn.Module):
    """Gives every filled slot the same prior probability."""

    def forward(self, memory: SlotMemory) -> dist.Categorical:
        return memory.prior()


class LearnedPrior(nn.Module):
    """Scores each slot by its content: ``p(a | M) = softmax_a <w, h(m_a)>`` with a learned query ``w``.

    Over a shared memory of more than 16,384 slots it gives a ``StreamedCategorical``.
    """

    def __init__(self, key: nn.Module, dim: int) -> None:
        super().__init__()
        self.key = key
        self.query = nn.Parameter(torch.zeros(dim))  # starts uniform

    def forward(self, memory: SlotMemory) -> dist.Categorical | StreamedCategorical:
        memory.check_filled()
        contents = memory.values if memory.keys is None else memory.keys
        key = memory.embedder(self.key)(readable(contents))
        if memory.divided or (memory.batch_dim is None and memory.slots > STREAM_ABOVE):
            return memory.streamed(self.query, key)
        return dist.Categorical(logits=memory.masked(memory.align(key @ self.query)))
