"""One look at a pair: its latents, in the guide's order, and the plates that hold the data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer.inspect import get_dependencies
from torch.distributions import biject_to

from pyro_memory.diagnostics.sites import Site, base, frames
from pyro_memory.inference import KeepFrozen, Particles, SameData, check_call, check_sites, stochastic_sites


@dataclass(frozen=True)
class Look:
    """What draws of a pair found.

    Attributes:
        model_sites, guide_sites: both programs' sample sites by name, all draws in one.
        order: the latents, as the guide draws them.
        undefined: those of them that some parent of theirs in the model follows in the guide: no KL of their own.
        data_plates: the plates around all observations (all sites, if nothing is observed): their cells are the data.
        draws: how many.
    """

    model_sites: dict[str, Site]
    guide_sites: dict[str, Site]
    order: list[str]
    undefined: list[str]
    data_plates: list[Any]
    draws: int

    def unit(self, plates: Iterable[Any]) -> str:
        """What a cell of such plates is."""
        own = [f for f in plates if f in self.data_plates]
        if own and own == self.data_plates:
            return "datum"
        return " x ".join(f.name for f in own) if own else "data set"

    @property
    def data(self) -> int:
        """How many data there are."""
        return math.prod(f.size for f in self.data_plates)


def looks(
    model: Callable, guide: Callable, args: tuple, kwargs: dict, draws: int, max_plate_nesting: float
) -> Iterator[Look]:
    """Draws from the guide, and lays model and guide side by side: all draws at once, or one by one where all data
    share latents, whose draws a program need not take with a dimension in front."""
    if draws < 1:
        raise ValueError(f"`draws` must be at least 1; got {draws}")
    check_call(model, guide, args, kwargs, "args")
    sampler = Particles(draws, completes=True, max_plate_nesting=max_plate_nesting)
    sampler.look(model, guide, args, kwargs)
    if sampler.global_sites:
        sampler, same = sampler.sized(1), SameData()
        for _ in range(draws):
            yield _look(sampler, model, guide, args, kwargs, same, 1)
    else:
        yield _look(sampler, model, guide, args, kwargs, SameData(), draws)


def _look(
    sampler: Particles, model: Callable, guide: Callable, args: tuple, kwargs: dict, same: SameData, draws: int
) -> Look:
    (traces,) = sampler.traces(model, guide, args, kwargs, same)
    model_sites, guide_sites = map(stochastic_sites, traces)
    latents = [name for name, site in model_sites.items() if not site["is_observed"]]
    check_sites(model_sites, guide_sites)
    order = [name for name in guide_sites if name in latents]
    undefined = _without_own_kl(model, args, kwargs, latents, order)
    guide_sites |= {name: _with_density(name, guide_sites, model_sites[name]) for name in order}
    observed = [set(frames(s)) for s in model_sites.values() if s["is_observed"]]
    stacks = observed or [set(frames(s)) for s in model_sites.values()]
    data_plates = sorted(set.intersection(*stacks), key=lambda f: f.dim) if stacks else []
    return Look(model_sites, guide_sites, order, undefined, data_plates, draws)


def _with_density(name: str, guide_sites: dict[str, Site], p: Site) -> Site:
    """A latent's site in the guide; for an automatic guide, with the distribution that its value was made from.

    Such a guide draws ``<name>_unconstrained`` and gives the latent itself as a point.
    """
    q = guide_sites[name]
    if not isinstance(base(q["fn"]), dist.Delta):
        return q
    source = guide_sites.get(f"{name}_unconstrained")
    if source is None:
        raise ValueError(
            f"the guide must give each latent a density; {name} is a point there, or drawn together with others. Use "
            "AutoNormal, or a guide of your own"
        )
    if torch.equal(source["value"], q["value"]):
        return q | {"fn": source["fn"]}
    return q | {"fn": dist.TransformedDistribution(source["fn"], biject_to(p["fn"].support))}


def _without_own_kl(model: Callable, args: tuple, kwargs: dict, latents: list[str], order: list[str]) -> list[str]:
    """The sites that some parent of theirs in the model follows in the guide."""
    earlier = {name: set(latents[:i]) for i, name in enumerate(latents)}
    late = [name for name in latents if earlier[name] - set(order[: order.index(name)])]
    if not late:
        return []
    try:  # the trace order names more parents than there are: ask what each site really depends on
        with poutine.block(), KeepFrozen(), torch.random.fork_rng():
            found = get_dependencies(model, args, kwargs)["prior_dependencies"]
        parents = {name: set(found.get(name, {})) - {name} for name in latents}
    except Exception:
        # Provenance does not survive every operation; the trace order is the safe superset.
        parents = earlier
    return [name for name in latents if (parents[name] & set(latents)) - set(order[: order.index(name)])]
