"""States of a neural memory in slots: how they come there, and how they are asked."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from pyro import poutine
from torch import Tensor, nn

from pyro_memory.checks import check_owners
from pyro_memory.gate import check_least, checked
from pyro_memory.models.titans.neural_memory import NeuralMemory
from pyro_memory.models.titans.sequence import Elements, SequenceModel
from pyro_memory.models.titans.state import Lengths, check_lengths
from pyro_memory.naming import unique_name
from pyro_memory.nets import PlainModule, mlp
from pyro_memory.stores import SlotMemory

Past = SlotMemory | Int[Tensor, "batch before"] | Float[Tensor, "batch before feature"]


@checked
class StateCache(PlainModule):
    r"""Reads a past segment by segment, and keeps what a neural memory has learned of each segment in a slot.

    .. code-block:: text

        h = reader(segment)                                   each segment read anew
        value = the memory's weights after h_1 .. h_segment   all layers in one row
        key = sum_t g_t f(h_t) / sum_t g_t                    what a slot is found by; g_t = sigmoid(w h_t)

    As each segment starts from the initial weights, a slot holds its own segment and nothing else, decay works within
    a segment only, and all segments are read at once. Model and guide take one instance, as they take templates; build
    both before the first call, or Pyro says that a "submodule has executed outside of supermodule".

    Args:
        reader: a sequence model, trained or not, whose hidden vectors the memory learns.
        memory: of the reader's ``dim``.
        key_dim: of the keys.
        segment: elements a segment.

    Cost: that of reader and memory over the past; a slot is as large as the memory's weights.

    References: Memory Caching: RNNs with Growing Memory (Behrouz et al., 2026), https://arxiv.org/abs/2602.24281, where
    cached states are added up, by gates or a selected few. Here one is read, and which one is latent.
    """

    def __init__(
        self, reader: SequenceModel, memory: NeuralMemory, *, key_dim: int = 256, segment: int = 64,
        name: str | None = None,
    ) -> None:  # fmt: skip
        super().__init__(name or unique_name(self))
        check_least(1, key_dim=key_dim, segment=segment)
        dim = len(reader.start)
        if memory.dim != dim:
            raise ValueError(f"`memory` must mix vectors of the reader's {dim} dimensions; got {memory.dim}")
        self.reader, self.memory = reader, memory
        self.dim, self.key_dim, self.segment = dim, key_dim, segment
        self.to_key, self.to_gate = mlp([dim, key_dim, key_dim]), nn.Linear(dim, 1)
        self.to_recall = nn.Linear(dim, memory.heads * memory.head_dim, bias=False)
        self.norm = nn.RMSNorm(dim)

    @property
    def event_shape(self) -> torch.Size:
        """The shape of a slot's value: every weight of one memory."""
        return torch.Size([sum(self.memory.heads * a * b for a, b in self.memory.shapes)])

    def reserve(self, batch: int, slots: int) -> SlotMemory:
        """Makes a cache of unfilled slots for a batch of sequences, for ``remember`` to write to."""
        check_least(1, batch=batch, slots=slots)
        like = self.to_gate.weight.detach()
        value, key = (like.new_zeros(batch, slots, size) for size in (self.event_shape[0], self.key_dim))
        mask = torch.zeros(batch, slots, dtype=torch.bool, device=like.device)
        return SlotMemory(value, key, mask, batch_dim=-2)

    def remember(self, past: Elements, cache: SlotMemory | None = None, lengths: Lengths = None) -> SlotMemory:
        """Gives a cache with a slot for each segment of ``past``, or ``cache`` with these written to it.

        Args:
            past: ``[batch, time]`` or ``[batch, time, feature]``; the last segment may be short.
            cache: a memory of ``reserve`` or of an earlier call; once full, the oldest slots are overwritten.
            lengths: how many elements of each sequence count; only without a ``cache``.

        Raises:
            ValueError: for a past that the reader cannot read, or an empty one; lengths outside it, or beside a cache;
                a cache of other shapes.
        """
        if cache is not None and lengths is not None:
            raise ValueError("`lengths` must be left out where a `cache` is given: it takes a slot for every segment")
        if past.shape[1] == 0:
            raise ValueError("`past` must hold at least one element; got none. An empty cache is reserve(batch, slots)")
        hidden, sizes = self._segments(past, lengths)
        inside = torch.arange(self.segment, device=past.device) < sizes.flatten()[:, None]
        gate = self.to_gate(hidden).squeeze(-1).sigmoid() * inside
        keys = (gate.unsqueeze(1) @ self.to_key(hidden)).squeeze(1) / gate.sum(1, keepdim=True).clamp_min(1e-6)
        with poutine.block():  # a memory that records its surprise records that of the present
            _, state = self.memory(hidden, None, sizes.flatten())
        values = torch.cat([w.flatten(1) for w in state.weights], 1)
        values, keys = (t.to(hidden.dtype).unflatten(0, sizes.shape) for t in (values, keys))
        if cache is not None:
            return cache.write(values, keys)
        filled = sizes > 0
        return SlotMemory(values, keys, None if filled.all() else filled, batch_dim=-2)

    def given(self, x: Elements, past: Past, none_slot: bool) -> SlotMemory:
        """Gives the cache that ``x`` is read with, checked: what model and guide do with their arguments.

        Raises:
            ValueError: for an x without elements, a cache that holds nothing, other states or other sequences.
        """
        if not x.numel():
            raise ValueError(f"`x` must hold at least one element; got shape {list(x.shape)}")
        cache = past if isinstance(past, SlotMemory) else self.remember(past)
        cache = cache.with_none() if none_slot else cache
        cache.check_filled()
        key = (self.key_dim,)
        if cache.event_shape != self.event_shape or cache.keys is None or cache.keys.shape[-1:] != key:
            raise ValueError(
                f"`past` must hold states of this memory, {list(self.event_shape)} numbers each, keys of {list(key)}; "
                f"got {list(cache.event_shape)} and keys {None if cache.keys is None else list(cache.keys.shape[-1:])}"
            )
        check_owners("past", cache, len(x), "sequences", -2)
        return cache

    def present(self, x: Elements) -> Float[Tensor, "batch time dim"]:
        """h_t, from x_<t of the present segment alone."""
        hidden = self.reader.hidden(x)[:, :-1]
        return self.norm(hidden + self.memory(hidden)[0])

    def recall(
        self, h: Float[Tensor, "batch time dim"], slots: Float[Tensor, "*read number"]
    ) -> Float[Tensor, "*answer dim"]:
        """Asks the memories of ``slots [*lead, batch, time or 1, number]`` what they hold of each ``h``."""
        lead = torch.broadcast_shapes(slots.shape[:-1], h.shape[:2])
        apart = slots.shape[-2]  # 1 where the batch's elements ask the same memories, side by side
        q = self.to_recall(h).expand(*lead, -1).reshape(-1, lead[-1] // apart, self.to_recall.out_features)
        return self.memory.retrieve(q, self.weights(slots.expand(*lead[:-1], apart, -1))).reshape(*lead, -1)

    @staticmethod
    def every(cache: SlotMemory) -> Int[Tensor, "slot one one"]:
        """The addresses of all slots, as parallel enumeration lays them out."""
        return torch.arange(cache.slots, device=cache.values.device).reshape(-1, 1, 1)

    def weights(self, slots: Float[Tensor, "*read number"]) -> tuple[Tensor, ...]:
        """Takes slots' values apart: the memory's weights, each ``[read, head, in, out]``."""
        sizes = [self.memory.heads * a * b for a, b in self.memory.shapes]
        parts = slots.reshape(-1, slots.shape[-1]).split(sizes, -1)
        return tuple(w.view(-1, self.memory.heads, a, b) for w, (a, b) in zip(parts, self.memory.shapes, strict=True))

    def _segments(self, past: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
        """Hidden vectors of all segments, ``[batch * segment, time, dim]``, and their lengths, ``[batch, segment]``."""
        batch, time = past.shape[:2]
        check_lengths(past, lengths, least=0)
        total = torch.full((batch,), time, device=past.device) if lengths is None else lengths
        count = -(-time // self.segment)
        padded = torch.cat([past, past[:, -1:].expand(-1, count * self.segment - time, *past.shape[2:])], 1)
        sizes = (total[:, None] - torch.arange(count, device=past.device) * self.segment).clamp(0, self.segment)
        hidden = self.reader.hidden(padded.unflatten(1, (count, self.segment)).flatten(0, 1), sizes.flatten())
        return hidden[:, 1:], sizes
