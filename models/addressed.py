"""Variational memory addressing over any base model."""

from __future__ import annotations

from collections.abc import Sequence

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float, Int
from pyro.nn import PyroModule
from torch import Tensor, nn

from pyro_memory.addressing import UniformPrior
from pyro_memory.checks import check_images, choose_slots, resolve_memory
from pyro_memory.gate import checked
from pyro_memory.inference import KeepFrozen
from pyro_memory.models.bases.base import BaseModel, number_of_slots
from pyro_memory.naming import unique_name
from pyro_memory.nets import Context
from pyro_memory.stores import SlotMemory, TemplateMemory


@checked
class Addressed(PyroModule):
    r"""Draws each image after reading one slot of a memory; the base model draws it.

    .. code-block:: text

        a ~ p(a | M)          which slot to read; uniform by default
        x ~ base(x | m_a)     the image, with latents of the base model's own

    It is ``VMA`` with another likelihood. Over a ``DiffusionBase`` it needs no z. There, train with ``Trace_ELBO`` and
    hold an address that was trained elsewhere, by a ``VMA`` say: ``guide.address.requires_grad_(False)``. One that
    learns takes ``LeaveOneOutELBO``, whose particles share the noise of a step; on Omniglot it sharpened until it read
    one slot, and was 4.5 nats worse after as many steps.

    Over an ``AutoregressiveBase`` the address is all that is latent: train with ``VIMCO``, or, where a pass for every
    slot is not too much, ``TraceEnum_ELBO``. With ``particles=1, exact=("a",)`` ``importance_bound`` sums the slots and
    gives log p(x | memory) itself, ``posterior_address`` the exact posterior over them.

    Args:
        base: the base generative model, built with ``reads=True``; any ``BaseModel``. One with ``code_dim=1`` is told
            ln of the number of filled slots: what is looked up among many is a closer match than among few.
        address_prior: maps a memory to the distribution of a; ``UniformPrior()`` by default.
        templates: learned contents, read where ``memory`` is None; the guide takes the same instance.
        none_slot: appends a slot of zeros that is always filled, so that an empty memory is legal; set it for both.

    ``forward(x, memory)`` takes ``x [batch, channel, height, width]``; site ``a`` and the base model's in plate
    ``batch``.

    Raises:
        ValueError: for a base that reads nothing or needs a longer code, an empty memory without a "none" slot, shapes
            that do not fit, and images that the base model cannot explain.

    References: Variational Memory Addressing in Generative Models (Bornschein et al., 2017),
    https://arxiv.org/abs/1709.07116
    """

    def __init__(
        self, base: BaseModel, *, address_prior: nn.Module | None = None, templates: TemplateMemory | None = None,
        none_slot: bool = False, name: str | None = None,
    ) -> None:  # fmt: skip
        super().__init__(name or unique_name(self))
        if base.content is None or base.code_dim > 1:
            raise ValueError(
                "`base` must read what is looked up and be told no more than how many slots there are; build it with "
                "reads=True and code_dim=0 or 1"
            )
        self.base = base
        self.address_prior = UniformPrior() if address_prior is None else address_prior
        self.templates = templates
        self.none_slot = none_slot

    def a_dist(self, memory: SlotMemory) -> dist.Distribution:
        """p(a | M)."""
        return self.address_prior(memory)

    def context(self, a: Int[Tensor, "*batch"], memory: SlotMemory) -> Context:
        """What the base model is told: features of slot a, computed once a slot where slots are fewer than reads."""
        return Context(number_of_slots(self.base, memory), memory.read(a, self.base.content))

    def forward(self, x: Float[Tensor, "batch channel height width"], memory: SlotMemory | None = None) -> None:
        check_images(x, self.base.likelihood)
        memory = resolve_memory(self, x, memory)
        with pyro.plate("batch", len(x)):
            a = pyro.sample("a", self.a_dist(memory))
            self.base.explain(x, self.context(a, memory))

    @torch.no_grad()
    def generate(
        self, memory: SlotMemory | None = None, shape: Sequence[int] = (), a: Int[Tensor, "*batch"] | None = None,
        **how: bool | int | float | None,
    ) -> Float[Tensor, "*batch channel height width"]:  # fmt: skip
        """Draws images, each after a lookup of its own; arguments and errors are those of ``VMA.generate``.

        Args:
            how: numbers for the base model's ``generate``, such as its ``guidance`` or ``ddim_steps``.
        """
        with KeepFrozen():
            memory, a = choose_slots(self, memory, shape, a)
        return self.base.generate(self.context(a, memory), a.shape, **how)
