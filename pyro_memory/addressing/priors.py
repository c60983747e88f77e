"""What an address is before anything was looked up."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import nn

from pyro_memory.distributions import STREAM_ABOVE, StreamedCategorical
from pyro_memory.gate import checked
from pyro_memory.nets import out_of_autocast
from pyro_memory.stores import SlotMemory, readable


@checked
class UniformPrior(nn.Module):
    """Gives every filled slot the same prior probability."""

    def forward(self, memory: SlotMemory) -> dist.Categorical:
        return memory.prior()


@checked
class LearnedPrior(nn.Module):
    """Scores each slot by its content: ``p(a | M) = softmax_a <w, h(m_a)>`` with a learned query ``w``.

    Other than in ``ContentAddress`` the key's length counts. The paper that it follows learns its score too; whether in
    this form was not checked (Bornschein et al., 2017, https://arxiv.org/abs/1709.07116).

    Over a shared memory of more than 16,384 slots it gives a ``StreamedCategorical``.
    """

    def __init__(self, key: nn.Module, dim: int) -> None:
        super().__init__()
        self.key = key
        self.query = nn.Parameter(torch.zeros(dim))  # starts uniform

    def forward(self, memory: SlotMemory) -> dist.Categorical | StreamedCategorical:
        memory.check_filled()
        contents = memory.values if memory.keys is None else memory.keys
        key = out_of_autocast(memory.embedder(self.key)(readable(contents)))
        if key.shape[-1] != len(self.query):
            raise ValueError(f"`key` must embed slots to the `dim` given, {len(self.query)}; got {key.shape[-1]}")
        if memory.divided or (memory.batch_dim is None and memory.slots > STREAM_ABOVE):
            return memory.streamed(self.query, key)
        with torch.autocast(key.device.type, enabled=False):
            return dist.Categorical(logits=memory.masked(memory.align(key @ self.query)))
