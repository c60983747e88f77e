"""Attention to a whole memory, over an autoregressive base: what addressing a slot is compared with."""

from __future__ import annotations

from collections.abc import Sequence

import pyro
import torch
from jaxtyping import Float
from pyro.nn import PyroModule
from torch import Tensor

from pyro_memory.checks import check_images, resolve_memory
from pyro_memory.gate import checked
from pyro_memory.models.bases.autoregressive import AutoregressiveBase
from pyro_memory.models.bases.base import number_of_slots
from pyro_memory.naming import unique_name
from pyro_memory.nets import Context
from pyro_memory.stores import SlotMemory


@checked
class Attended(PyroModule):
    r"""Draws each image while every place looks at all places of all slots: no address is a latent.

    .. code-block:: text

        x ~ base(x | m_1 ... m_M)     attention over the slots side by side, and the mean of their features

    The deterministic rival of ``Addressed``: the same networks and as many weights, its likelihood exact as well. No
    KL says what the memory was worth, and which slot was used is read off attention (``attention``), which may lie
    anywhere. Its guide is ``EmptyGuide``.

    Args:
        base: an autoregressive base, built with ``reads=True`` and ``looks`` of 1 at least. One with ``code_dim=1`` is
            told ln of the number of slots.

    ``forward(x, memory)`` takes ``x [batch, channel, height, width]``; site ``x`` in plate ``batch``.

    Cost: a pass an image, and O(slots) keys that every place looks at: time and memory O(batch * slots * places^2).

    Raises:
        ValueError: for a base that looks at nothing, a memory with unfilled slots, and as of ``Addressed``.

    References: Few-shot Autoregressive Density Estimation (Reed et al., 2018), https://arxiv.org/abs/1710.10304
    """

    none_slot = False
    templates = None

    def __init__(self, base: AutoregressiveBase, *, name: str | None = None) -> None:
        super().__init__(name or unique_name(self))
        if not len(base.looks) or base.code_dim > 1:
            raise ValueError(
                "`base` must look at what is read and be told no more than how many slots there are; build it with "
                "reads=True, looks=1 or more, and code_dim=0 or 1"
            )
        self.base = base

    def context(self, memory: SlotMemory) -> Context:
        """What the base model is told: the slots' features side by side, and their mean."""
        memory.check_filled()
        if not bool(memory.filled.all()):
            raise ValueError("`memory` must have all slots filled, since all are looked at; give one of those that are")
        features = self.base.content(memory.values)
        local, coarse = features[0].mean(-4), torch.cat(features[-1].unbind(-4), -1)
        return Context(number_of_slots(self.base, memory), (local, coarse))

    def forward(self, x: Float[Tensor, "batch channel height width"], memory: SlotMemory | None = None) -> None:
        check_images(x, self.base.likelihood)
        memory = resolve_memory(self, x, memory)
        with pyro.plate("batch", len(x)):
            self.base.explain(x, self.context(memory))

    @torch.no_grad()
    def generate(
        self, memory: SlotMemory, shape: Sequence[int] = (), **how: bool | int | float | None
    ) -> Float[Tensor, "*batch channel height width"]:
        """Draws images, ``[*shape]`` of a shared memory, ``[*shape, batch]`` of one a datum.

        Args:
            how: numbers for the base model's ``generate``, such as ``guidance``.
        """
        lead = () if memory.batch_dim is None else memory.values.shape[:1]
        return self.base.generate(self.context(memory), (*shape, *lead), **how)

    @torch.no_grad()
    def attention(
        self, x: Float[Tensor, "batch channel height width"], memory: SlotMemory
    ) -> Float[Tensor, "batch slot"]:
        """The share of attention that each slot gets, the mean over places, heads and looks."""
        seen: list[Tensor] = []
        self.base.log_prob(x, self.context(memory), seen=seen)
        by_place = torch.stack([weights.mean((-3, -2)) for weights in seen]).mean(0)
        rows = self.base.looks[0].read_place.shape[-2]
        return by_place.reshape(len(x), rows, memory.slots, -1).sum((1, 3))
