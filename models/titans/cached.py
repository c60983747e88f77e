"""A memory of memories: each read draws which cached state of a neural memory to ask."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Bool, Float, Int
from pyro import poutine
from pyro.nn import PyroModule, pyro_method
from torch import Tensor, nn

from pyro_memory.addressing import ContentAddress, RecallAddress
from pyro_memory.gate import checked
from pyro_memory.models.titans.neural_memory import NeuralMemory
from pyro_memory.models.titans.readouts import TokenReadout
from pyro_memory.models.titans.sequence import Elements, MakeMixer, SequenceModel
from pyro_memory.models.titans.states import Past, StateCache
from pyro_memory.naming import unique_name
from pyro_memory.stores import SlotMemory


@checked
class CachedTitans(PyroModule):
    r"""Writes a sequence down with the memories of its past at hand: each element after asking one of them.

    .. code-block:: text

        h_t = reader(x_<t) + memory(reader(x_<t))       what the present segment says
        a_t ~ p(a_t | h_t, cache)                       which of the past's states to ask
        x_t ~ readout(h_t + M_{a_t}(h_t W))             M_a: the memory with the weights of slot a

    A state of a neural memory is a value, so that a store can hold many. One that must keep everything forgets by its
    decay, or runs full; a cache of many keeps each segment, and grows with the sequence. Given the past, addresses are
    independent: ``TraceEnum_ELBO`` sums them out, ``VIMCO`` draws them.

    Args:
        states: makes the cache; the guide takes the same instance.
        address: maps ``(h, cache)`` to the distribution of a_t: ``RecallAddress``, or any address by content from
            ``states.dim`` dimensions to ``states.key_dim``; None leaves the prior uniform.
        none_slot: appends a slot of zeros, so that an empty cache is legal; set it for both. What a memory of zero
            weights answers is a learned map of the question, zero only without ``residual_norm``.

    ``forward(x, past, mask=None)``: ``x [batch, time]`` is the present segment, ``past`` the cache of what came before
    (a ``SlotMemory`` of ``states.remember``, shared or one a sequence with ``batch_dim=-2``), or the past's elements
    themselves, remembered on the way, by which memory and keys are trained. Sites ``a`` and ``x`` in plates ``batch``
    and ``time``; where ``mask [batch, time]`` is false, an element is read, but neither looked up nor scored.

    Raises:
        ValueError: for a cache that holds nothing, other states, other shapes.

    Cost: a read of the memory for every element and slot, by a ``RecallAddress`` or where addresses are summed out; by
    keys alone, and drawn, one for every element.

    References: Memory Caching (Behrouz et al., 2026), https://arxiv.org/abs/2602.24281; the latent address is that of
    Variational Memory Addressing in Generative Models (Bornschein et al., 2017), https://arxiv.org/abs/1709.07116;
    their composition is ours.
    """

    def __init__(
        self, states: StateCache, address: nn.Module | None, *, none_slot: bool = False, name: str | None = None
    ) -> None:
        super().__init__(name or unique_name(self))
        self.states, self.address, self.none_slot = states, address, none_slot

    @classmethod
    def tokens(
        cls, vocabulary: int, mixer: MakeMixer, *, dim: int = 64, key_dim: int = 256, segment: int = 64,
        none_slot: bool = False, name: str | None = None, **memory: Any,
    ) -> CachedTitans:  # fmt: skip
        """Builds it for tokens: a reader of one block with the given mixer, a ``NeuralMemory`` with the options."""
        reader = SequenceModel.tokens(vocabulary, mixer, dim=dim, blocks=1)
        states = StateCache(reader, NeuralMemory(dim, **memory), key_dim=key_dim, segment=segment)
        content = ContentAddress(states.to_key, nn.Identity())  # what is asked about looks like what was read of it
        address = RecallAddress(states, content)
        return cls(states, address, none_slot=none_slot, name=name)

    def a_dist(self, h: Float[Tensor, "batch time dim"], cache: SlotMemory) -> dist.Distribution:
        """p(a_t | h_t, cache)."""
        return cache.prior().expand(h.shape[:2]) if self.address is None else self.address(h, cache)

    def x_dist_at(
        self, a: Int[Tensor, "*address"], h: Float[Tensor, "batch time dim"], cache: SlotMemory
    ) -> dist.Distribution:
        """p(x_t | h_t, M_{a_t}), at addresses that were drawn or enumerated."""
        return self._answer(h, self.states.recall(h, cache[a]))

    def _answer(self, h: Tensor, recalled: Tensor) -> dist.Distribution:
        return self.states.reader.readout(self.states.norm(h + recalled))

    def forward(self, x: Elements, past: Past, mask: Bool[Tensor, "batch time"] | None = None) -> None:
        cache, h = self.states.given(x, past, self.none_slot), self.states.present(x)
        asked = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if mask is None else mask
        with pyro.plate("batch", x.shape[0], dim=-2), pyro.plate("time", x.shape[1], dim=-1), poutine.mask(mask=asked):
            a = pyro.sample("a", self.a_dist(h, cache))
            pyro.sample("x", self.x_dist_at(a, h, cache), obs=x)

    @pyro_method
    def marginal(self, x: Elements, past: Past, mask: Bool[Tensor, "batch time"] | None = None) -> None:
        """The model of tokens with its addresses summed out: one site ``x``, exact, for an ``EmptyGuide``.

        ``fit(model.marginal, EmptyGuide(), ...)`` is maximum likelihood. A guide is trained after it, the model frozen.
        """
        x_dist = self.x_dist(x, past)
        with pyro.plate("batch", x.shape[0], dim=-2), pyro.plate("time", x.shape[1], dim=-1):
            pyro.sample("x", x_dist if mask is None else x_dist.mask(mask), obs=x)

    @pyro_method
    def x_dist(self, x: Elements, past: Past) -> dist.Distribution:
        """p(x_t | x_<t, past) of tokens for every t, the addresses summed out, as ``log_evidence`` does."""
        if not isinstance(self.states.reader.readout, TokenReadout):
            raise TypeError(
                "`x_dist` is for tokens, whose mixture over slots is a Categorical again; this reader ends in a "
                f"{type(self.states.reader.readout).__name__}. Take log_evidence, or x_dist_at of drawn addresses"
            )
        weights, answers = self._of_every_slot(x, past)
        return dist.Categorical(logits=(weights.unsqueeze(-1) + answers.logits).logsumexp(0))

    @pyro_method
    def log_evidence(self, x: Elements, past: Past) -> Float[Tensor, "batch time"]:
        """Computes log p(x_t | x_<t, past) in nats, exactly. Cost: O(batch x time x slots) reads."""
        weights, answers = self._of_every_slot(x, past)
        return (weights + answers.log_prob(x)).logsumexp(0)

    def _of_every_slot(self, x: Tensor, past: Past) -> tuple[Tensor, dist.Distribution]:
        """log p(a) and p(x | a) for each slot, in the first dimension; each memory is asked once."""
        cache, h = self.states.given(x, past, self.none_slot), self.states.present(x)
        slots = self.states.every(cache)
        recalled = self.states.recall(h, cache[slots])
        asks = isinstance(self.address, RecallAddress)
        a_dist = self.address(h, cache, recalled) if asks else self.a_dist(h, cache)
        return a_dist.log_prob(slots), self._answer(h, recalled)
