"""Which slot each item goes to."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn.functional import one_hot


class Written(NamedTuple):
    """Slots after writing; ``source`` says which item ended in each, -1 for the old content."""

    source: Int[Tensor, "*batch slot"]
    filled: Bool[Tensor, "*batch slot"]
    ages: Int[Tensor, "*batch slot"]
    seen: Int[Tensor, "*batch"]


def place(
    filled: Bool[Tensor, "*batch slot"],
    ages: Int[Tensor, "*batch slot"],
    seen: Int[Tensor, "*batch"],
    items: int,
    policy: str,
    generator: torch.Generator | None,
) -> Written:
    """Places items one after the other: free slots first, then by the policy of ``SlotMemory.write``."""
    if policy not in ("ring", "reservoir"):
        raise ValueError(f'`policy` must be "ring" or "reservoir"; got {policy!r}')
    slots = filled.shape[-1]
    source = torch.full_like(ages, -1)
    for item in range(items):
        seen = seen + 1
        full = filled.all(-1)
        slot = torch.where(filled, ages, torch.iinfo(torch.long).max).argmax(-1)  # a free one, else the oldest
        kept = torch.ones_like(full)
        if policy == "reservoir":
            uniform = torch.rand(seen.shape, generator=generator, dtype=torch.float64, device="cpu").to(seen.device)
            drawn = (uniform * seen).long()
            slot, kept = torch.where(full, drawn.clamp(max=slots - 1), slot), ~full | (drawn < slots)
        chosen = one_hot(slot, slots).bool() & kept.unsqueeze(-1)
        source = torch.where(chosen, item, source)
        filled = filled | chosen
        ages = torch.where(chosen, 0, ages + 1)
    return Written(source, filled, ages, seen)


def overwrite(old: Tensor, items: Tensor, source: Int[Tensor, "*batch slot"]) -> Tensor:
    """Takes item ``source`` for each slot, or the old content where it is -1."""
    index = source.clamp(min=0)
    new = items[index] if source.dim() == 1 else items[torch.arange(len(items), device=items.device)[:, None], index]
    keep = (source < 0).reshape(source.shape + (1,) * (old.dim() - source.dim()))
    return torch.where(keep, old, new)
