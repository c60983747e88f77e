"""The guide of a memory of memories."""

from __future__ import annotations

from typing import cast

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Bool, Float, Int
from pyro import poutine
from pyro.nn import PyroModule
from torch import Tensor, nn

from pyro_memory.addressing import ContentAddress, RecallAddress
from pyro_memory.gate import checked
from pyro_memory.naming import unique_name
from pyro_memory.nets import mlp
from pyro_memory.stores import SlotMemory


@checked
class CachedTitansGuide(PyroModule):
    """Looks up, from the element itself, which cached state explains it: ``q(a_t | x_t, x_<t, cache)``.

    Args:
        states: the model's ``StateCache``, the same instance.
        address: maps ``([h_t, e(x_t)], cache)``, what the model looks up by and the element's embedding side by side,
            to the distribution of a_t.
        none_slot: as the model's.

    Marked for parallel enumeration, which only ``TraceEnum_ELBO`` heeds. A past given as elements is remembered here
    too; where the states are trained already, remember it once and give the cache.
    """

    def __init__(
        self, states: nn.Module, address: nn.Module, *, none_slot: bool = False, name: str | None = None
    ) -> None:
        super().__init__(name or unique_name(self))
        self.states, self.address, self.none_slot = states, address, none_slot

    @classmethod
    def mlp(
        cls, states: nn.Module, hidden: int = 128, *, none_slot: bool = False, name: str | None = None
    ) -> CachedTitansGuide:
        """Builds it with a ``RecallAddress`` over a ``ContentAddress``, MLPs in both."""
        dim, key_dim = cast(int, states.dim), cast(int, states.key_dim)
        content = ContentAddress(mlp([2 * dim, hidden, key_dim]), nn.Linear(key_dim, key_dim))
        address = RecallAddress(states, content, dim=2 * dim, hidden=hidden)
        return cls(states, address, none_slot=none_slot, name=name)

    def a_dist(
        self, x: Int[Tensor, "batch time"] | Float[Tensor, "batch time feature"], cache: SlotMemory
    ) -> dist.Distribution:
        """q(a_t | x_t, x_<t, cache)."""
        return self.address(torch.cat([self.states.present(x), self.states.reader.embedding(x)], -1), cache)

    def forward(
        self, x: Int[Tensor, "batch time"] | Float[Tensor, "batch time feature"],
        past: SlotMemory | Int[Tensor, "batch before"] | Float[Tensor, "batch before feature"],
        mask: Bool[Tensor, "batch time"] | None = None,
    ) -> None:  # fmt: skip
        cache = self.states.given(x, past, self.none_slot)
        asked = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if mask is None else mask
        with pyro.plate("batch", x.shape[0], dim=-2), pyro.plate("time", x.shape[1], dim=-1), poutine.mask(mask=asked):
            pyro.sample("a", self.a_dist(x, cache), infer={"enumerate": "parallel"})
