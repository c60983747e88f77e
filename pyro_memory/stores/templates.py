"""Learned contents for a memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from pyro.nn import PyroModule
from torch import Tensor, nn

from pyro_memory.gate import checked
from pyro_memory.naming import unique_name
from pyro_memory.stores.slots import SlotMemory


@checked
class TemplateMemory(PyroModule):
    """Owns learned slot contents; calling it gives the SlotMemory that holds them.

    Model and guide take the same instance at construction (``templates=``) and read it when ``memory`` is None.

    Args:
        slots: the number of templates.
        event_shape: the shape of one.
        init: initial contents ``[slot, *event]``; by default normal with deviation ``scale``.
    """

    def __init__(
        self,
        slots: int,
        event_shape: Sequence[int],
        *,
        init: Float[Tensor, "slot *event"] | None = None,
        scale: float = 0.5,
        name: str | None = None,
    ) -> None:
        super().__init__(name or unique_name(self))
        shape = (slots, *event_shape)
        if slots < 1:
            raise ValueError(f"`slots` must be at least 1; got {slots}")
        if init is not None and init.shape != shape:
            raise ValueError(f"`init` must have shape {list(shape)}; got {list(init.shape)}")
        self.values = nn.Parameter(scale * torch.randn(shape) if init is None else init.detach().clone())

    def forward(self) -> SlotMemory:
        return SlotMemory(self.values)
