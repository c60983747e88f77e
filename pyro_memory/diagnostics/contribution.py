"""What a memory has to do with how well a model explains data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_memory.diagnostics.axes import BLUE, GREY, Axes, axes_or_new
from pyro_memory.diagnostics.bound import BoundEstimate, bound_of
from pyro_memory.diagnostics.tables import counted, number, standard_error, table
from pyro_memory.gate import checked
from pyro_memory.inference import SameData
from pyro_memory.stores import SlotMemory


@checked
@dataclass(frozen=True, repr=False)
class MemoryContribution:
    """What a memory was worth against others: the bound with it, and paired differences.

    Attributes:
        given: the bound with the memory as given.
        alternatives: the bound of the same data with each other memory.
    """

    given: BoundEstimate
    alternatives: dict[str, BoundEstimate]

    def gain(self, name: str) -> tuple[float, float]:
        """Mean and standard error of ``given - alternative``, nats per datum, paired by datum.

        Raises:
            ValueError: if there was no such memory.
        """
        if name not in self.alternatives:
            known = ", ".join(map(repr, self.alternatives)) or "none"
            raise ValueError(f"`name` must be one of the other memories, {known}; got {name!r}")
        difference = self.given.bound - self.alternatives[name].bound
        return difference.mean().item(), standard_error(difference)

    def __repr__(self) -> str:
        rows = [
            ("memory", "log p(x) >=", "se", "lost", "se"),
            ("given", number(self.given.mean), number(self.given.se), "", ""),
        ]
        for name, other in self.alternatives.items():
            gain, se = self.gain(name)
            rows.append((name, number(other.mean), number(other.se), number(gain), number(se)))
        unit = self.given.unit
        count = counted(len(self.given.bound), unit)
        head = f"MemoryContribution, {count}, {self.given.particles} particles, nats per {unit}"
        return f"{head}\n{table(rows)}"

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
            xlabel=f"nats per {self.given.unit} lost against the memory as given",
        )
        return ax


@checked
def memory_contribution(
    model: Callable,
    guide: Callable,
    x: Tensor,
    memory: SlotMemory,
    alternatives: Mapping[str, SlotMemory] | None = None,
    *,
    particles: int = 1000,
    chunk_size: int = 50,
    seed: int = 0,
) -> MemoryContribution:
    """Compares the bound with the memory as given and with others, datum by datum.

    Args:
        x: the data; model and guide are called as ``(x, memory)``.
        memory: the memory as given.
        alternatives: other memories by name, such as ``{"wrong classes": other}``. "shuffled" (each datum gets
            another one's memory) is added for a memory per datum, and "emptied" for a model with a "none" slot.
        particles, chunk_size: as in ``importance_bound``.
        seed: of the permutation behind "shuffled".

    Draws come from torch's global random stream; a plate that subsamples chooses the same data for every memory.

    Beating one's own emptied memory proves little, since nothing made the model good without it: claim against a
    memoryless model of equal training, and against memories of the wrong classes.

    Cost: one ``importance_bound`` a memory.
    """
    others = dict(alternatives or {})
    if memory.batch_dim is not None and len(x) > 1:
        others.setdefault("shuffled", memory.select(_derangement(len(x), seed)))
    if getattr(model, "none_slot", False):
        others.setdefault("emptied", SlotMemory.empty(memory.event_shape).to(memory.values))
    same = SameData()  # differences are paired: each memory is asked about the same data
    options = {"particles": particles, "chunk_size": chunk_size, "max_plate_nesting": 1}
    with torch.no_grad():
        bounds = {
            name: bound_of(model, guide, (x, m), {}, same, **options) for name, m in {"given": memory, **others}.items()
        }
    return MemoryContribution(bounds.pop("given"), bounds)


def _derangement(n: int, seed: int) -> Tensor:
    """A permutation that leaves nothing in place: neighbours on a random circle change places."""
    order = torch.randperm(n, generator=torch.Generator("cpu").manual_seed(seed), device="cpu")
    out = torch.empty_like(order)
    out[order] = order.roll(1)
    return out
