"""Importance weights per datum, from a pair of traces."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from pyro.distributions.util import scale_and_mask
from pyro.poutine import Trace
from torch import Tensor

from pyro_memory.gate import checked
from pyro_memory.inference.enumerated import Site, Term, factors, mask_of, sum_out, symbolize
from pyro_memory.inference.pairing import (
    PARTICLES,
    check_pairing,
    check_plates,
    frames_of,
    global_sites,
    kept_frames,
    stochastic_sites,
    summed_dim,
    unit_of,
)


@checked
@dataclass(frozen=True)
class Weights:
    """Log weights of the particles, a cell per datum.

    Attributes:
        log_weight: ``log p(x, latents) - log q(latents)``, ``[particle, *cells]``, without the plates' scale.
        log_score: the part of log q that belongs to sites without a pathwise gradient, same shape.
        scale: what a cell counts for: data set size over subsample size, times a scale common to all sites.
        local: of the sites without a pathwise gradient, those in a plate inside a datum that ends both programs; they
            are not in ``log_score``.
        unit: what a cell is: "datum", "data set" where no plate holds all sites, or the plates that do.
        plates: the names of the plates whose cells they are.
        shared: what all data share, where the pair has global latents; the cells are then those of the data given it.
    """

    log_weight: Float[Tensor, "particle *cells"]
    log_score: Float[Tensor, "particle *cells"]
    scale: float | Tensor
    local: tuple[Local, ...] = ()
    unit: str = "datum"
    plates: tuple[str, ...] = ()
    shared: Shared | None = None

    @classmethod
    def cat(cls, parts: list[Weights]) -> Weights:
        """Lays particles of several passes behind one another."""
        if len(parts) == 1:
            return parts[0]
        for part in parts[1:]:
            check_same_globals(parts[0].shared, part.shared)
        both = [torch.cat([getattr(p, name) for p in parts]) for name in ("log_weight", "log_score")]
        local = tuple(
            Local(torch.cat([t.log_weight for t in group]), torch.cat([t.log_score for t in group]))
            for group in zip(*(p.local for p in parts), strict=True)
        )
        return cls(*both, parts[0].scale, local, parts[0].unit, parts[0].plates, parts[0].shared)


@dataclass(frozen=True)
class Local:
    """What a plate inside a datum adds to the datum's weight, cell by cell.

    Given what was sampled before the plate its cells are independent: what is sampled in one has no say in the rest of
    the datum's weight, and need not be scored by it.

    Attributes:
        log_weight: the part of the datum's log weight that lies in each cell, ``[particle, *cells, inner]``.
        log_score: the part of log q of the cell's sites without a pathwise gradient, same shape.
    """

    log_weight: Float[Tensor, "particle *cells inner"]
    log_score: Float[Tensor, "particle *cells inner"]


@dataclass(frozen=True)
class Shared:
    """What the sites outside the plates over data add to the weight of a data set, by one draw of the global latents.

    Attributes:
        log_weight: ``log p(g) - log q(g)``, a scalar.
        log_score: the part of log q of the global sites without a pathwise gradient, a scalar.
        scale: a scale common to all sites.
    """

    log_weight: Float[Tensor, ""]
    log_score: Float[Tensor, ""]
    scale: float | Tensor


@checked
def weigh(model_trace: Trace, guide_trace: Trace, *, noisy: bool = False, pathwise: bool = True) -> Weights:
    """Computes the weights of one pair of traces; without vectorised particles the first dimension has size 1.

    Args:
        noisy: whether factors marked as noisy may take part, for an objective that averages log weights.
        pathwise: whether sites that can be reparameterised have no score; else ``log_score`` is all of log q.

    Sites that a guide draws for its own use (``infer={"is_auxiliary": True}``, as automatic guides do) count as its
    others: with the density of the latents that it makes of them, log q is whole. Enumerated sites are summed. Sites in
    none of the plates over data are global: all particles share one draw of them (``OneDraw``).

    Raises:
        ValueError: if a latent lies in another plate than the data, a latent is missing in model or guide, or is a
            point in the guide, which has no density, a plate inside a datum is subsampled, a factor is marked as
            noisy, or particles differ in their global latents: no per-datum weight exists then.
    """
    model_sites, guide_sites = stochastic_sites(model_trace), stochastic_sites(guide_trace)
    check_pairing(model_sites, guide_sites, noisy)
    sites = [*model_sites.values(), *guide_sites.values()]
    check_plates(sites)
    above = global_sites(sites)
    signed = factors(model_trace, guide_trace)
    local_sites = [s for s in sites if s["name"] not in above]
    particles, outer = kept_frames(local_sites)
    plates_scale = math.prod((f.full_size or f.size) / f.size for f in outer)
    scales = [s["scale"] if s["name"] in above else _divide(s["scale"], plates_scale) for s in sites]
    # Outside the logarithm where all sites agree; a scale of single sites (annealing) tempers their factor inside.
    common = scales[0] if all(_same(scale, scales[0]) for scale in scales) else None
    of_site = {id(s): 1.0 if common is not None else scale for s, scale in zip(sites, scales, strict=True)}
    summed = [s for s in sites if summed_dim(s) is not None]
    if summed:
        _check_summed(summed, sites, of_site)
    # A score is that of log q itself, however its site is scaled.
    guides = [(scale_and_mask(t, 1.0, s["mask"]), s) for sign, t, s in signed if sign < 0]
    scores = [(t, s) for t, s in guides if not (pathwise and s["fn"].has_rsample)]
    signed = [(sign, scale_and_mask(term, of_site[id(s)], mask_of(s)), s) for sign, term, s in signed]
    shared = _shared(
        [term for term in signed if term[2]["name"] in above], [one for one in scores if one[1]["name"] in above],
        1.0 if common is None else common,
    )  # fmt: skip
    signed = [term for term in signed if term[2]["name"] not in above]
    kept = {*particles, *outer}
    scored = [(t, frozenset(frames_of(s) - kept)) for t, s in scores if s["name"] not in above]
    if summed:
        signed = sum_out(signed, symbolize(model_trace, guide_trace))

    def added(chosen: list[tuple[int, Tensor]], inner: tuple[Any, ...] = ()) -> Tensor:
        shape, cells = _shapes(particles, [*outer, *inner])
        total = sum((sign * _sum_to(term, shape) for sign, term in chosen), signed[0][1].new_zeros(shape))
        total = total.reshape(cells)
        frames = sorted([*outer, *inner], key=lambda f: f.dim)
        total = total.permute(0, *(1 + frames.index(f) for f in [*outer, *inner]))
        return total.flatten(1 + len(outer)) if inner else total

    programs = [[s for s in p.values() if s["name"] not in above] for p in (model_sites, guide_sites)]
    inner = {own for _, own in scored if own and pathwise}
    over = [frozenset(frames_of(s) - kept) for s in summed]  # a sum that cells share makes them depend on each other
    inside = [f for f in inner if all(_ends(sites, f) for sites in programs) and all(f <= own for own in over)]
    local = tuple(
        Local(
            added([(sign, t) for sign, t, s in signed if frames <= frames_of(s)], tuple(frames)),
            added([(1, t) for t, own in scored if own == frames], tuple(frames)),
        )
        for frames in inside
    )
    return Weights(
        log_weight=added([(sign, t) for sign, t, _ in signed]),
        log_score=added([(1, t) for t, own in scored if own not in inside]),
        scale=plates_scale if common is None else plates_scale * common,
        local=local,
        unit=unit_of({n: s for n, s in model_sites.items() if n not in above}, outer),
        plates=tuple(f.name for f in outer),
        shared=shared,
    )


def _check_summed(summed: list[Site], sites: list[Site], of_site: dict[int, Any]) -> None:
    """Raises a ValueError where the sum over a site's values would be no sum of probabilities."""
    noisy = [s["name"] for s in sites if s["infer"].get("noisy")]
    if noisy:
        raise ValueError(
            f"site `{noisy[0]}` is marked as noisy, and `{summed[0]['name']}` is summed: the logarithm of a sum of "
            "estimates bounds nothing. Let the guide sample it"
        )
    scaled = [s["name"] for s in summed if not _same(of_site[id(s)], 1.0)]
    if scaled:
        raise ValueError(
            f"site `{scaled[0]}` is summed, and scaled otherwise than other sites: its probabilities would not sum to "
            "one. Scale all sites alike"
        )


@checked
def check_same_globals(one: Shared | None, other: Shared | None) -> None:
    """Raises a ValueError if two passes by one draw of the global latents differ in what these add."""
    if one is not None and other is not None and not torch.allclose(one.log_weight, other.log_weight, equal_nan=True):
        raise ValueError(f"a site {_OUTSIDE}")


_OUTSIDE = (
    "outside the plates over data must not depend on latents inside them, nor differ between particles. Sample global "
    "latents first, in model and guide"
)


def _shared(signed: list[Term], scores: list[tuple[Tensor, Site]], scale: float | Tensor) -> Shared | None:
    """What global sites add, of which all particles have the same."""
    if not signed:
        return None
    summed = [site["name"] for _, _, site in signed if summed_dim(site) is not None]
    if summed:
        raise ValueError(
            f"site `{summed[0]}` is enumerated outside the plates over data, where all data share its value. Let the "
            "guide sample it instead"
        )
    for _, term, site in signed:
        rows = _by_particle(term, site)
        if not torch.allclose(rows, rows[:1], equal_nan=True):
            raise ValueError(f"site `{site['name']}` {_OUTSIDE}")
    ones = [(sign, _by_particle(term, site)[0], site) for sign, term, site in signed]
    zero = ones[0][1].new_zeros(())
    score = [_by_particle(term, site)[0] for term, site in scores]
    return Shared(sum((sign * t for sign, t, _ in ones), zero), sum(score, zero), scale)


def _by_particle(term: Tensor, site: dict[str, Any]) -> Tensor:
    """A site's log probability, ``[particle]``: all other dimensions summed."""
    dims = [f.dim for f in frames_of(site) if f.name == PARTICLES]
    if not dims or term.dim() < -dims[0]:
        return term.sum().reshape(1)
    return term.movedim(dims[0], 0).flatten(1).sum(1)


def _ends(sites: Iterable[dict[str, Any]], plates: frozenset[Any]) -> bool:
    """Whether nothing outside these plates is sampled after something inside."""
    within = [plates <= frames_of(site) for site in sites]
    return within == sorted(within)


def _shapes(particles: list[Any], plates: list[Any]) -> tuple[list[int], list[int]]:
    """The shape that keeps particle and plate dimensions in place, and the same without the others."""
    shape = [1] * max((-f.dim for f in particles + plates), default=0)
    for frame in particles + plates:
        shape[frame.dim] = int(frame.size)
    lead = int(particles[0].size) if particles else 1
    return shape, [lead, *(int(f.size) for f in sorted(plates, key=lambda f: f.dim))]


def _sum_to(log_prob: Tensor, shape: list[int]) -> Tensor:
    """Sums out every dimension that ``shape`` does not keep, and expands to it."""
    for dim in range(-log_prob.dim(), 0):
        if -dim > len(shape) or shape[dim] == 1:
            log_prob = log_prob.sum(dim, keepdim=True)
    return log_prob.reshape(log_prob.shape[max(0, log_prob.dim() - len(shape)) :]).expand(shape)


def _divide(scale: float | Tensor, by: float) -> float | Tensor:
    return scale if by == 1.0 else scale / by


def _same(one: float | Tensor, other: float | Tensor) -> bool:
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return one is other or (torch.as_tensor(one).numel() == 1 and bool((torch.as_tensor(one) == other).all()))
    return math.isclose(one, other)
