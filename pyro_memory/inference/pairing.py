"""Whether a model and a guide belong together, and which of their plates hold the data."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pyro.distributions as dist
from pyro.poutine import Trace, runtime
from pyro.poutine.replay_messenger import ReplayMessenger

from pyro_memory.gate import checked

PARTICLES = "num_particles_vectorized"  # the plate that Pyro's ELBO puts around model and guide
Sites = dict[str, dict[str, Any]]


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


@checked
def check_sites(model_sites: dict[str, Any], guide_sites: dict[str, Any]) -> None:
    """Raises a ValueError unless the guide samples the model's latents, and else but auxiliary sites nothing."""
    latents = [name for name, site in model_sites.items() if not site["is_observed"]]
    observes = [[n for n, s in sites.items() if s["is_observed"]] for sites in (model_sites, guide_sites)]
    if observes[1] and not observes[0]:
        raise ValueError(
            f"`model` must be what observes data; it observes nothing, and the guide {', '.join(observes[1])}. Were "
            "model and guide swapped?"
        )
    extra = [
        name
        for name, site in guide_sites.items()
        if name not in latents and not site["is_observed"] and not site["infer"].get("is_auxiliary")
    ]
    missing = [name for name in latents if name not in guide_sites]
    if missing:
        found = f"; it samples {', '.join(extra)} instead" if extra else ""
        raise ValueError(
            f"`guide` must sample every latent of the model; missing: {', '.join(missing)}{found}. Sample each there, "
            "in the same plates, under the model's name, or give it its data in the model by obs="
        )
    if extra:
        raise ValueError(
            f"`guide` samples what the model does not: {', '.join(extra)}. Use the model's site names, and mark what "
            'the guide draws for itself with infer={"is_auxiliary": True}'
        )


def check_pairing(model_sites: Sites, guide_sites: Sites, noisy: bool) -> None:
    """Raises a ValueError unless every particle of the pair has a weight."""
    for name, site in {**model_sites, **guide_sites}.items():
        if site["infer"].get("noisy") and not noisy:
            raise ValueError(
                f"site `{name}` is marked as noisy: it estimates its log-probability, and the logarithm of a mean of "
                "such weights bounds nothing. Train with LeaveOneOutELBO or Trace_ELBO, or use a factor that is exact"
            )
    check_sites({n: s for n, s in model_sites.items() if summed_dim(s) is None or n in guide_sites}, guide_sites)
    points = [
        name
        for name, site in guide_sites.items()
        if isinstance(base(site["fn"]), dist.Delta) and name in model_sites and not site["is_observed"]
        if not (_may_be_a_point(model_sites[name]["fn"]) or _has_source(name, guide_sites))
    ]
    if points:
        raise ValueError(
            f"the guide must give each latent a density; {', '.join(points)} is a point there, and a density at a "
            "point bounds nothing. Use AutoNormal or a guide of your own; train a point by Trace_ELBO"
        )


def _has_source(name: str, guide_sites: Sites) -> bool:
    """Whether a point is made of an auxiliary site with a density: one of its own, or one that all share."""
    auxiliary = [n for n, site in guide_sites.items() if site["infer"].get("is_auxiliary")]
    owners = {n: n.removesuffix("_unconstrained") for n in auxiliary}
    return any(owner in (name, n) or owner not in guide_sites for n, owner in owners.items())


def _may_be_a_point(fn: Any) -> bool:
    return fn.support.is_discrete or isinstance(base(fn), dist.Delta)


def base(fn: Any) -> Any:
    """The distribution under all wrappers."""
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return fn


def frames_of(site: dict[str, Any]) -> set[Any]:
    """The plates around a site, that of particles among them."""
    return {frame for frame in site["cond_indep_stack"] if frame.vectorized}


def summed_dim(site: dict[str, Any]) -> int | None:
    """The dimension in which a site's values are enumerated; None where it has one value."""
    return site["infer"].get("_enumerate_dim")


@checked
def global_sites(sites: list[dict[str, Any]]) -> list[str]:
    """Names the sites that all data share: those in none of the plates around the observations.

    None are where no plate holds all observations.
    """
    plates = [{f for f in frames_of(s) if f.name != PARTICLES} for s in sites]
    observed = [own for own, site in zip(plates, sites, strict=True) if site["is_observed"] and own]
    data = set.intersection(*observed) if observed else set()
    return [site["name"] for own, site in zip(plates, sites, strict=True) if data and not own & data]


def kept_frames(sites: list[dict[str, Any]]) -> tuple[list[Any], list[Any]]:
    """The particle plate, and the plates that hold every site: a cell of those is a datum."""
    stacks = [frames_of(site) for site in sites]
    particles = [f for f in set().union(*stacks) if f.name == PARTICLES]
    counts = Counter(frame for stack in stacks for frame in stack if frame.name != PARTICLES)
    outer = [frame for frame, count in counts.items() if count == len(sites)]
    if counts and not outer:
        _refuse(sites, stacks, counts.most_common(1)[0][0])
    for frame in counts:
        if frame not in outer and frame.full_size not in (None, frame.size):
            raise ValueError(
                f"plate `{frame.name}` lies inside a datum and is subsampled, which would put its scale inside the "
                "logarithm. Subsample the plate over data only"
            )
    return particles, sorted(outer, key=lambda f: f.dim)


def _refuse(sites: list[dict[str, Any]], stacks: list[set[Any]], plate: Any) -> None:
    """Says why no plate holds all sites, ``plate`` holding the most."""
    outside = {s["name"]: (s, stack) for s, stack in zip(sites, stacks, strict=True) if plate not in stack}
    names = f"site `{', '.join(outside)}` lies outside plate `{plate.name}`"
    twins = {f.name: f for _, stack in outside.values() for f in stack if f.dim == plate.dim and f.name != PARTICLES}
    if twins:
        twin = next(iter(twins.values()))
        if twin.name == plate.name:
            raise ValueError(
                f"plate `{plate.name}` must have one size in model and guide; got {plate.size} of {plate.full_size} "
                f"and {twin.size} of {twin.full_size}. Give both the same data and subsample"
            )
        raise ValueError(
            f"{names} in a plate of another name, `{twin.name}`: model and guide must name the plate over data alike. "
            f'Rename one of them: pyro.plate("{plate.name}", ...)'
        )
    raise ValueError(
        f"{names}, but in another one, so the weights are not per datum. A latent may lie in the plate over data, in "
        "one inside it, or in none; if the plate is part of one observation, use .to_event instead of it"
    )


def unit_of(model_sites: Sites, outer: list[Any]) -> str:
    """What a cell of the plates around all sites is: a datum where they are those around all observations."""
    observed = [frames_of(s) for s in model_sites.values() if s["is_observed"]]
    data = {f for f in set.intersection(*observed) if f.name != PARTICLES} if observed else set(outer)
    if not outer:
        return "data set"
    return "datum" if data == set(outer) else " x ".join(f.name for f in outer)


def check_plates(sites: list[dict[str, Any]]) -> None:
    """Raises a ValueError for a site with a batch of values that neither plate nor enumeration declares."""
    enumerated = {summed_dim(site) for site in sites}
    for site in sites:
        fn = site["fn"]
        declared = {f.dim for f in frames_of(site)} | enumerated
        shape = getattr(fn, "batch_shape", ())
        free = [
            size for dim, size in zip(range(-len(shape), 0), shape, strict=True) if size > 1 and dim not in declared
        ]
        if free:
            raise ValueError(
                f"site `{site['name']}` must lie in plates that hold its batch shape {list(shape)}; no plate has "
                f'{free[0]} cells there. Put it in one over the data, with pyro.plate("batch", len(x)), or make it one '
                "event by .to_event()"
            )


@checked
def check_given(trace: Trace) -> None:
    """Raises a ValueError if something latent was drawn from its prior, whom no handler outside gave a value."""
    givers = [h for h in runtime._PYRO_STACK if isinstance(h, ReplayMessenger)]
    latent = [name for name, site in stochastic_sites(trace).items() if not site["is_observed"]]
    drawn = [n for n in latent if not any(n in (h.trace or ()) for h in givers)]
    if drawn:
        raise ValueError(
            f"latent weights of the model, {', '.join(drawn)}, must be given; drawn from their prior they have learned "
            "nothing. Condition on a draw of the guide: pyro.condition(model.generate, guide())(prompt, steps)"
        )
