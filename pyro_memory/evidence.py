"""How well a model explains data, and what its memory has to do with it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from pyro_memory.results import BoundEstimate, MemoryContribution
from pyro_memory.slots import SlotMemory
from pyro_memory.weights import Particles, weigh


@torch.no_grad()
def importance_bound(
    model: Callable,
    guide: Callable,
    *args: Any,
    particles: int = 1000,
    chunk_size: int = 50,
    max_plate_nesting: float = math.inf,
    progress: bool = False,
    **kwargs: Any,
) -> BoundEstimate:
    r"""Estimates ``E log 1/K sum_k p(x, h_k) / q(h_k | x) <= log p(x)`` for each datum.

    Args:
        model, guide: any pair whose latents lie in the plate over data.
        *args, **kwargs: what both are called with.
        particles: K. The bound rises with K to log p(x).
        chunk_size: particles per pass; memory grows with it, not with K.
        max_plate_nesting: how many plates the model nests; found by a trial run if not given.
        progress: shows a progress bar.

    Raises:
        ValueError: for K < 1 and for a pair that has no per-datum weights (see ``weigh``).

    Cost: K passes of model and guide.

    References: Importance Weighted Autoencoders (Burda et al., 2016), https://arxiv.org/abs/1509.00519
    """
    if particles < 1 or chunk_size < 1:
        raise ValueError(f"`particles` and `chunk_size` must be at least 1; got {particles} and {chunk_size}")
    total = total_squared = None
    sizes = [chunk_size] * (particles // chunk_size) + [particles % chunk_size] * (particles % chunk_size > 0)
    for size in tqdm(sizes, desc="bound", disable=not progress, leave=False):
        sampler = Particles(size, vectorize_particles=True, max_plate_nesting=max_plate_nesting)
        (traces,) = sampler.traces(model, guide, args, kwargs)
        max_plate_nesting = sampler.max_plate_nesting - (size > 1)
        log_weight = weigh(*traces).log_weight.flatten(1).double()
        part, part_squared = log_weight.logsumexp(0), (2 * log_weight).logsumexp(0)
        total = part if total is None else torch.logaddexp(total, part)
        total_squared = part_squared if total_squared is None else torch.logaddexp(total_squared, part_squared)
    return BoundEstimate(total - math.log(particles), (2 * total - total_squared).exp(), particles)


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

    Beating one's own emptied memory proves little, since nothing made the model good without it: claim against a
    memoryless model of equal training, and against memories of the wrong classes.

    Cost: one ``importance_bound`` a memory.
    """
    others = dict(alternatives or {})
    if memory.batch_dim is not None and len(x) > 1:
        others.setdefault("shuffled", memory.select(_derangement(len(x), seed)))
    if getattr(model, "none_slot", False):
        others.setdefault("emptied", SlotMemory.empty(memory.event_shape).to(memory.values))
    bounds = {
        name: importance_bound(model, guide, x, m, particles=particles, chunk_size=chunk_size, max_plate_nesting=1)
        for name, m in {"given": memory, **others}.items()
    }
    return MemoryContribution(bounds.pop("given"), bounds)


def _derangement(n: int, seed: int) -> Tensor:
    """A permutation that leaves nothing in place: neighbours on a random circle change places."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    out = torch.empty_like(order)
    out[order] = order.roll(1)
    return out
