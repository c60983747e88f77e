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
from pyro_memory.inference.pairing import check_pairing, check_plates, frames_of, kept_frames, stochastic_sites, unit_of


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
    """

    log_weight: Float[Tensor, "particle *cells"]
    log_score: Float[Tensor, "particle *cells"]
    scale: float | Tensor
    local: tuple[Local, ...] = ()
    unit: str = "datum"

    @classmethod
    def cat(cls, parts: list[Weights]) -> Weights:
        """Lays particles of several passes behind one another."""
        if len(parts) == 1:
            return parts[0]
        both = [torch.cat([getattr(p, name) for p in parts]) for name in ("log_weight", "log_score")]
        local = tuple(
            Local(torch.cat([t.log_weight for t in group]), torch.cat([t.log_score for t in group]))
            for group in zip(*(p.local for p in parts), strict=True)
        )
        return cls(*both, parts[0].scale, local, parts[0].unit)


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


@checked
def weigh(model_trace: Trace, guide_trace: Trace, *, noisy: bool = False) -> Weights:
    """Computes the weights of one pair of traces; without vectorised particles the first dimension has size 1.

    Args:
        noisy: whether factors marked as noisy may take part, for an objective that averages log weights.

    Sites that a guide draws for its own use (``infer={"is_auxiliary": True}``, as automatic guides do) count as its
    others: with the density of the latents that it makes of them, log q is whole.

    Raises:
        ValueError: if a latent lies outside the plate that holds the data, a latent is missing in model or guide, or
            is a point in the guide, which has no density, a plate inside a datum is subsampled, or a factor is marked
            as noisy: no per-datum weight exists then.
    """
    model_sites, guide_sites = stochastic_sites(model_trace), stochastic_sites(guide_trace)
    check_pairing(model_sites, guide_sites, noisy)
    sites = [*model_sites.values(), *guide_sites.values()]
    check_plates(sites)
    particles, outer = kept_frames(sites)
    plates_scale = math.prod((f.full_size or f.size) / f.size for f in outer)
    scales = [_divide(site["scale"], plates_scale) for site in sites]
    # Outside the logarithm where all sites agree; a scale of single sites (annealing) tempers their factor inside.
    common = scales[0] if all(_same(scale, scales[0]) for scale in scales) else None
    terms = [
        scale_and_mask(s["unscaled_log_prob"], 1.0 if common is not None else scale, s["mask"])
        for s, scale in zip(sites, scales, strict=True)
    ]
    signed = [(1, t, s) for t, s in zip(terms, model_sites.values(), strict=False)]
    signed += [(-1, t, s) for t, s in zip(terms[len(model_sites) :], guide_sites.values(), strict=True)]
    shared = {*particles, *outer}
    scored = [(t, frozenset(frames_of(s) - shared)) for sign, t, s in signed if sign < 0 and not s["fn"].has_rsample]

    def added(chosen: list[tuple[int, Tensor]], inner: tuple[Any, ...] = ()) -> Tensor:
        shape, cells = _shapes(particles, [*outer, *inner])
        total = sum((sign * _sum_to(term, shape) for sign, term in chosen), terms[0].new_zeros(shape)).reshape(cells)
        frames = sorted([*outer, *inner], key=lambda f: f.dim)
        total = total.permute(0, *(1 + frames.index(f) for f in [*outer, *inner]))
        return total.flatten(1 + len(outer)) if inner else total

    programs = model_sites.values(), guide_sites.values()
    inside = [f for f in {own for _, own in scored} if f and all(_ends(sites, f) for sites in programs)]
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
        unit=unit_of(model_sites, outer),
    )


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
