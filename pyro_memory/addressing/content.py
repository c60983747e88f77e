"""An address by content."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pyro.distributions as dist
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pyro_memory.addressing.similarity import NormalizedKey
from pyro_memory.distributions import STREAM_ABOVE, StreamedCategorical
from pyro_memory.gate import checked
from pyro_memory.nets import evaluating, out_of_autocast
from pyro_memory.stores import SlotMemory, readable

BLOCK = 4096  # slots embedded at a time


@checked
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
        ValueError: if some memory holds nothing, or query and key have other dimensions.

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
        if query.shape[-1] != key.shape[-1]:
            raise ValueError(
                f"`query` and `key` must embed to one number of dimensions; got {query.shape[-1]} and {key.shape[-1]}"
            )
        own = memory.batch_dim is not None
        stream = memory.slots > STREAM_ABOVE if self.stream is None else self.stream
        if memory.divided or (stream and not own):
            return memory.streamed(query, key)
        with torch.autocast(query.device.type, enabled=False):  # scores are summed as a ``StreamedCategorical`` does
            logits = (memory.align(key) @ query.unsqueeze(-1)).squeeze(-1) if own else query @ key.mT
        return dist.Categorical(logits=memory.masked(logits))

    def query_for(self, x: Float[Tensor, "*batch *event"]) -> Float[Tensor, "*batch dim"]:
        """Gives what the score multiplies with a key of ``keys_for``."""
        query = out_of_autocast(self.query(x))
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
        key = out_of_autocast(network(readable(contents)))
        return self.similarity(key[:0], key)[1]

    @torch.no_grad()
    def embed(self, memory: SlotMemory, *, dtype: torch.dtype | None = None) -> Float[Tensor, "slot dim"]:
        """Embeds a shared memory in evaluation mode, for keys that are kept; ``dtype`` float16 halves the room."""
        contents = memory.values if memory.keys is None else memory.keys
        with evaluating(self):  # keys that are kept have no noise of training in them
            blocks = (self._block(self.key, part) for part in contents.split(BLOCK))
            return torch.cat([block if dtype is None else block.to(dtype) for block in blocks])

    def key_tensors(self) -> dict[str, Tensor]:
        """Gives all parameters and buffers that keys depend on, by name."""
        named = [*self.named_parameters(remove_duplicate=False), *self.named_buffers(remove_duplicate=False)]
        return {name: tensor for name, tensor in named if name.startswith(("key.", "similarity."))}
