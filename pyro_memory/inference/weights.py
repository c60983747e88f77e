"""Importance weights per datum, from a pair of traces."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from jaxtyping import Float
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.infer import ELBO
from pyro.infer.enum import get_importance_trace
from pyro.poutine import Trace
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from pyro_memory.gate import checked

PARTICLES = "num_particles_vectorized"  # the plate that Pyro's ELBO puts around model and guide


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
    """

    log_weight: Float[Tensor, "particle *cells"]
    log_score: Float[Tensor, "particle *cells"]
    scale: float | Tensor
    local: tuple[Local, ...] = ()

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
        return cls(*both, parts[0].scale, local)


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

    Raises:
        ValueError: if a latent lies outside the plate that holds the data, a latent is missing in model or guide,
            a plate inside a datum is subsampled, or a factor is marked as noisy: no per-datum weight exists then.
    """
    model_sites, guide_sites = stochastic_sites(model_trace), stochastic_sites(guide_trace)
    _check_pairing(model_sites, guide_sites, noisy)
    sites = [*model_sites.values(), *guide_sites.values()]
    particles, outer = _kept_frames(sites)
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
    scored = [(t, frozenset(_frames(s) - shared)) for sign, t, s in signed if sign < 0 and not s["fn"].has_rsample]

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
            added([(sign, t) for sign, t, s in signed if frames <= _frames(s)], tuple(frames)),
            added([(1, t) for t, own in scored if own == frames], tuple(frames)),
        )
        for frames in inside
    )
    return Weights(
        log_weight=added([(sign, t) for sign, t, _ in signed]),
        log_score=added([(1, t) for t, own in scored if own not in inside]),
        scale=plates_scale if common is None else plates_scale * common,
        local=local,
    )


def _ends(sites: Iterable[dict[str, Any]], plates: frozenset[Any]) -> bool:
    """Whether nothing outside these plates is sampled after something inside."""
    within = [plates <= _frames(site) for site in sites]
    return within == sorted(within)


@checked
def stochastic_sites(trace: Trace) -> dict[str, dict[str, Any]]:
    """Gives the sample sites of a trace by name, without subsampling indices and deterministic sites."""
    nodes: dict[str, Any] = trace.nodes
    return {
        name: site
        for name, site in nodes.items()
        if site["type"] == "sample"
        and type(site["fn"]).__name__ != "_Subsample"
        and not site["infer"].get("_deterministic")
    }


def _check_pairing(model_sites: dict[str, Any], guide_sites: dict[str, Any], noisy: bool) -> None:
    for name, site in {**model_sites, **guide_sites}.items():
        if site["infer"].get("noisy") and not noisy:
            raise ValueError(
                f"site `{name}` is marked as noisy: it estimates its log-probability, and the logarithm of a mean of "
                "such weights bounds nothing. Train with LeaveOneOutELBO or Trace_ELBO, or use a factor that is exact"
            )
    latents = [name for name, site in model_sites.items() if not site["is_observed"]]
    missing = [name for name in latents if name not in guide_sites]
    if missing:
        raise ValueError(f"the guide must sample every latent of the model; missing: {', '.join(missing)}")
    extra = [name for name, site in guide_sites.items() if name not in latents and not site["is_observed"]]
    if extra:
        raise ValueError(f"the guide samples what the model does not: {', '.join(extra)}. Use the model's site names")


def _frames(site: dict[str, Any]) -> set[Any]:
    return {frame for frame in site["cond_indep_stack"] if frame.vectorized}


def _kept_frames(sites: list[dict[str, Any]]) -> tuple[list[Any], list[Any]]:
    """The particle plate, and the plates that hold every site: a cell of those is a datum."""
    stacks = [_frames(site) for site in sites]
    particles = [f for f in set().union(*stacks) if f.name == PARTICLES]
    counts = Counter(frame for stack in stacks for frame in stack if frame.name != PARTICLES)
    outer = [frame for frame, count in counts.items() if count == len(sites)]
    if counts and not outer:
        plate = counts.most_common(1)[0][0]
        outside = dict.fromkeys(s["name"] for s, stack in zip(sites, stacks, strict=True) if plate not in stack)
        raise ValueError(
            f"site `{', '.join(outside)}` lies outside plate `{plate.name}`, so the weights are not per datum. Train "
            "global latents with Trace_ELBO; if the plate is part of one observation, use .to_event instead of it"
        )
    for frame in counts:
        if frame not in outer and frame.full_size not in (None, frame.size):
            raise ValueError(
                f"plate `{frame.name}` lies inside a datum and is subsampled, which would put its scale inside the "
                "logarithm. Subsample the plate over data only"
            )
    return particles, sorted(outer, key=lambda f: f.dim)


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


@checked
class KeepFrozen(Messenger):
    """Keeps frozen parameters from Pyro's store, which would set ``requires_grad`` of those that a PyroModule owns."""

    def _pyro_param(self, msg: dict[str, Any]) -> None:
        initial = msg["args"][1] if len(msg["args"]) > 1 else None
        frozen = isinstance(initial, nn.Parameter) and not initial.requires_grad
        if frozen and msg["name"] not in pyro.get_param_store():
            msg["value"], msg["done"], msg["stop"] = initial, True, True


@checked
class Particles(ELBO):
    """Draws pairs of traces, all particles in one pass; base of objectives and estimators of this package."""

    def _guess_max_plate_nesting(self, model: Callable, guide: Callable, args: tuple, kwargs: dict) -> None:
        """Finds the nesting by one trial run that leaves the random stream as it was."""
        with poutine.block(), KeepFrozen(), torch.random.fork_rng(), torch.no_grad():
            guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
            model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args, **kwargs)
        sites = [*stochastic_sites(guide_trace).values(), *stochastic_sites(model_trace).values()]
        nesting = max((-frame.dim for site in sites for frame in _frames(site)), default=0)
        self.max_plate_nesting = nesting + (self.vectorize_particles and self.num_particles > 1)

    def _get_trace(self, model: Callable, guide: Callable, args: tuple, kwargs: dict) -> tuple[Trace, Trace]:
        with KeepFrozen():
            return get_importance_trace("flat", self.max_plate_nesting, model, guide, args, kwargs)

    def traces(self, model: Callable, guide: Callable, args: tuple, kwargs: dict) -> Iterator[tuple[Trace, Trace]]:
        """Yields one pair of traces with all particles in it, or a pair a particle where not vectorised."""
        return self._get_traces(model, guide, args, kwargs)
