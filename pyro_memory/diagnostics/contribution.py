"""What a memory has to do with how well a model explains data."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from pyro_memory.diagnostics.axes import BLUE, GREY, Axes, axes_or_new
from pyro_memory.diagnostics.bound import BoundEstimate, bound_of
from pyro_memory.diagnostics.place import find_memory
from pyro_memory.diagnostics.tables import Record, Rows, counted, number, standard_error
from pyro_memory.gate import checked
from pyro_memory.inference import SameData, check_call
from pyro_memory.stores import SlotMemory


@checked
@dataclass(frozen=True, repr=False)
class MemoryContribution(Record):
    """What a memory was worth against others: the bound with it, and paired differences.

    Attributes:
        given: the bound with the memory as given.
        alternatives: the bound of the same data with each other memory.
    """

    given: BoundEstimate
    alternatives: dict[str, BoundEstimate]

    def differences(self, name: str) -> Float[Tensor, " unit"]:
        """``given - alternative`` for each of ``unit``, nats: of a data set with global latents, datum by datum given
        these, averaged over their draws, as its data are exchangeable given them.

        Raises:
            ValueError: if there was no such memory.
        """
        if name not in self.alternatives:
            known = ", ".join(map(repr, self.alternatives)) or "none"
            raise ValueError(f"`name` must be one of the other memories, {known}; got {name!r}")
        return self.given.exchangeable.bound - self.alternatives[name].exchangeable.bound

    @property
    def unit(self) -> str:
        """What differences are per: "datum", or the plates that hold all local sites."""
        return self.given.exchangeable.unit

    def gain(self, name: str) -> tuple[float, float]:
        """Mean and standard error of ``given - alternative``, nats per ``unit``, paired by unit.

        Raises:
            ValueError: if there was no such memory.
        """
        difference = self.differences(name)
        return difference.mean().item(), standard_error(difference)

    def _shown(self) -> tuple[str, Rows, Sequence[str]]:
        given = self.given.exchangeable
        known = ", given the global latents" if self.given.draws else ""
        rows = [
            ("memory", "log p(x) >=", "se", "lost", "se"),
            ("given", number(given.mean), number(given.se), "", ""),
        ]
        for name, other in self.alternatives.items():
            own = other.exchangeable
            rows.append((name, number(own.mean), number(own.se), *map(number, self.gain(name))))
        count = counted(len(given.bound), given.unit)
        head = f"MemoryContribution, {count}, {counted(self.given.particles, 'particle')}, nats per {given.unit}{known}"
        return head, rows, ()

    def to_dict(self) -> dict[str, Any]:
        """Gives the summary as plain numbers."""
        out: dict[str, Any] = {"given": self.given.to_dict()}
        for name, other in self.alternatives.items():
            gain, se = self.gain(name)
            out[name] = {**other.to_dict(), "lost": gain, "lost_se": se}
        return out

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draws the nats lost with each other memory, with two standard errors."""
        ax = axes_or_new(ax)
        names = list(self.alternatives)
        gains = [self.gain(name) for name in names]
        ax.barh(range(len(names)), [g for g, _ in gains], xerr=[2 * se for _, se in gains], color=BLUE)
        ax.axvline(0, color=GREY, linewidth=0.8)
        ax.set(
            yticks=range(len(names)),
            yticklabels=names,
            xlabel=f"nats per {self.unit} lost against the memory as given",
        )
        return ax


@checked
def memory_contribution(
    model: Callable,
    guide: Callable,
    *args: Any,
    alternatives: Mapping[str, Any] | None = None,
    memory: Any = None,
    particles: int = 1000,
    draws: int = 20,
    exact: Sequence[str] = (),
    chunk_size: int = 50,
    max_plate_nesting: float = math.inf,
    seed: int = 0,
    progress: bool = False,
    **kwargs: Any,
) -> MemoryContribution:
    """Compares the bound with the memory as given and with others, datum by datum.

    Args:
        model, guide: any pair.
        *args, **kwargs: what both are called with, one of them the memory.
        alternatives: other memories by name, such as ``{"wrong classes": other}``, each in place of the memory.
            "shuffled" (each owner gets another one's memory) is added for a memory per datum or group, and "emptied"
            for a model with a "none" slot.
        memory: which argument it is, by its parameter's name or position; or the memory itself, where model and guide
            call it ``memory``. Found by itself where one argument is a store; templates that model and guide own are
            what is read where the argument is None.
        particles, draws, exact, chunk_size, max_plate_nesting, progress: as in ``importance_bound``.
        seed: of the permutation behind "shuffled".

    Draws come from torch's global random stream, from the same place for each memory, so that their noise is common
    where it can be; a plate that subsamples chooses the same data for every memory.

    Beating one's own emptied memory proves little, since nothing made the model good without it: claim against a
    memoryless model of equal training, and against memories of the wrong classes.

    Raises:
        ValueError: if the memory is not among the arguments, or it is not clear which it is, there is no other to
            compare it with, and as of ``importance_bound``.

    Cost: one ``importance_bound`` a memory.
    """
    if not isinstance(memory, str | int | None):  # the model's own argument of that name
        kwargs, memory = {**kwargs, "memory": memory}, "memory"
    check_call(model, guide, args, kwargs, "args")
    place = find_memory(model, args, kwargs, memory)
    given = place.value
    others = dict(alternatives or {})
    if isinstance(given, SlotMemory):
        if given.batch_dim is not None and len(given.values) > 1:
            others.setdefault("shuffled", given.select(_derangement(len(given.values), seed)))
        if getattr(model, "none_slot", False):
            others.setdefault("emptied", _emptied(given))
    if "given" in others:
        raise ValueError(
            "`alternatives` must not be called 'given', as the memory that was given is; choose another name"
        )
    if not others:
        raise ValueError(
            "`alternatives` must hold another memory to compare with; give one by its name, such as "
            '{"wrong classes": other}'
        )
    same = SameData()  # differences are paired: each memory is asked about the same data
    options = {
        "particles": particles, "draws": draws, "exact": tuple(exact), "chunk_size": chunk_size,
        "max_plate_nesting": max_plate_nesting, "progress": progress,
    }  # fmt: skip
    with torch.no_grad():
        state = torch.random.get_rng_state()
        bounds = {}
        for name, value in {"given": given, **others}.items():
            torch.random.set_rng_state(state)
            try:
                bounds[name] = bound_of(model, guide, *place.with_value(value), same, **options)
            except Exception as error:
                error.add_note(f"This is with the memory {name!r}{' in place of the one given' * (name != 'given')}.")
                raise
    return MemoryContribution(bounds.pop("given"), bounds)


def _derangement(n: int, seed: int) -> Tensor:
    """A permutation that leaves nothing in place: neighbours on a random circle change places."""
    order = torch.randperm(n, generator=torch.Generator("cpu").manual_seed(seed), device="cpu")
    out = torch.empty_like(order)
    out[order] = order.roll(1)
    return out


def _emptied(memory: SlotMemory) -> SlotMemory:
    """A shared memory of no slots, with keys where there are keys."""
    lead = memory.ages.dim()
    return SlotMemory(*(t if t is None else t.new_zeros(0, *t.shape[lead:]) for t in (memory.values, memory.keys)))
