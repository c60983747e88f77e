"""The exact bound of a small instance: all values of the discrete latents, one after the other."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO
from pyro.poutine import Trace
from torch import Tensor

from pyro_memory.inference import PARTICLES, VIMCO, Particles, stochastic_sites, weigh
from pyro_memory.testing.demands import demand, demand_close, parameters_of

SAMPLED = 40  # independent estimates of a mean
ERRORS = 5
REMEDY = (
    "Draw by pyro.sample only, read a memory by `memory[a]`, keep event dimensions by .to_event and let all else "
    "broadcast: particles and enumerated values come as dimensions to the left"
)


def check_gradient(model: Any, guide: Any, args: tuple, combinations: int) -> None:
    r"""Checks VIMCO's bound of two particles and its mean gradient against enumeration.

    Given the noise of the reparameterised latents, the bound of two particles is a finite sum over the joint values
    c, d of the discrete latents of a datum,

    .. math::
        L_2 = E_{noise} \sum_{c, d} q(c) q(d) \log \frac{w_1(c) + w_2(d)}{2}

    which autograd differentiates without a score function. Its terms come from passes without particles, one a
    combination, in which the discrete sites are given their values: so they also test that the pair works with
    particles in one pass, as VIMCO runs it. Both sides are means of independent estimates over the noise; bounds are
    compared, and for each parameter the gradient along the exact one's mean direction, all within 5 standard errors.
    """
    sampler = _looked(Particles(1), model, guide, args)
    nesting = int(sampler.max_plate_nesting)
    ((model_trace, guide_trace),) = sampler.traces(model, guide, args, {})
    latents = [s for s in stochastic_sites(model_trace).values() if not s["is_observed"]]
    values = _values(model_trace, guide_trace, combinations)
    if not latents or values is None:
        return
    parameters = parameters_of(model=model, guide=guide)
    estimates = max(10, min(20, 40 // len(values)))  # a sum over many values varies less, and costs more
    exact = [_exact(model, guide, args, values, parameters) for _ in range(estimates)]
    loss = VIMCO(2, max_plate_nesting=nesting)
    sampled = [_with_gradient(-loss.differentiable_loss(model, guide, *args), parameters) for _ in range(SAMPLED)]
    _compare("the bound of two particles", [e[0] for e in exact], [s[0] for s in sampled], "VIMCO")
    directions = {n: torch.stack([g[n] for _, g, _ in exact]).mean(0) for n in parameters}
    floor = 1e-4 * max((d.norm().item() for d in directions.values()), default=0.0)
    for name, direction in directions.items():
        unit = direction / direction.norm().clamp(min=1e-30)
        along = [torch.stack([(r[1][name] * unit).sum() for r in rows]) for rows in (exact, sampled)]
        _compare(f"the gradient of `{name}`", *along, "VIMCO", floor)
    if any(s["infer"].get("enumerate") == "parallel" for s in stochastic_sites(guide_trace).values()):
        elbo = TraceEnum_ELBO(max_plate_nesting=nesting)
        with torch.no_grad():
            summed = [torch.tensor(-elbo.loss(model, guide, *args)) for _ in range(20)]
        _compare("the bound of one particle", [e[2] for e in exact], summed, "TraceEnum_ELBO")


def check_particles(model: Any, guide: Any, args: tuple) -> None:
    """Checks that particles in one pass weigh what each of them weighs in a pass of its own, but for rounding."""
    with torch.no_grad():
        sampler = _looked(Particles(3), model, guide, args)
        traces = next(sampler.traces(model, guide, args, {}))
        together = weigh(*traces).log_weight
        for k, expected in enumerate(together):
            drawn = traces[1].copy()
            nodes: dict[str, Any] = drawn.nodes
            for name, site in stochastic_sites(drawn).items():
                if any(f.name == PARTICLES for f in site["cond_indep_stack"]):
                    nodes[name] = site | {"value": site["value"][k]}
            alone = weigh(*_traces(model, guide, args, drawn)).log_weight[0]
            demand_close(
                alone, expected, f"a particle must weigh the same beside others as alone. {REMEDY}", tolerance=1e-4
            )


def _looked(sampler: Particles, model: Any, guide: Any, args: tuple) -> Particles:
    sampler.look(model, guide, args, {})
    if sampler.global_sites:
        raise ValueError(
            f"`per_datum` must be False for a pair with global latents, {', '.join(sampler.global_sites)}: these "
            "checks are of one weight a datum"
        )
    return sampler


def _traces(model: Any, guide: Any, args: tuple, given: Trace) -> tuple[Trace, Trace]:
    """Traces of model and guide with the values given."""
    q = poutine.trace(poutine.replay(guide, trace=given)).get_trace(*args)
    p = poutine.trace(poutine.replay(model, trace=q)).get_trace(*args)
    q.compute_score_parts()
    p.compute_log_prob()
    return p, q


def _values(model_trace: Trace, guide_trace: Trace, most: int) -> list[dict[str, Tensor]] | None:
    """The joint values of the discrete latents, alike for all data; None where they cannot be enumerated."""
    sites = {n: s for n, s in stochastic_sites(guide_trace).items() if not s["fn"].has_rsample}
    data = _data_dims([*stochastic_sites(model_trace).values(), *stochastic_sites(guide_trace).values()])
    choices: list[list[Tensor]] = []
    for site in sites.values():
        if not getattr(site["fn"], "has_enumerate_support", False) or not most:
            return None
        support = site["fn"].enumerate_support(expand=False)
        event = site["value"].shape[site["value"].dim() - site["fn"].event_dim :]
        support = support.reshape(len(support), *event)
        plates = site["value"].shape[: site["value"].dim() - site["fn"].event_dim]
        inner = [1 if i - len(plates) in data else n for i, n in enumerate(plates)]
        count = len(support) ** math.prod(inner)
        if count * math.prod(len(c) for c in choices) > most:
            raise ValueError(
                f"the discrete latents of this instance have more than {most} joint values, {len(support)} at each of "
                f"{math.prod(inner)} places of `{site['name']}`. Give a smaller instance (fewer slots, one query), "
                "raise `combinations`, or set it to 0 where they cannot be enumerated"
            )
        indices = itertools.product(range(len(support)), repeat=math.prod(inner))
        choices.append([
            support[torch.tensor(i, device=support.device)].reshape(*inner, *event).expand(*plates, *event)
            for i in indices
        ])  # fmt: skip
    return [dict(zip(sites, chosen, strict=True)) for chosen in itertools.product(*choices)]


def _data_dims(sites: list[dict[str, Any]]) -> set[int]:
    """The dimensions of the plates that hold every site: a cell of those is a datum."""
    plates = [{f for f in site["cond_indep_stack"] if f.vectorized} for site in sites]
    return {f.dim for f in set.intersection(*plates)} if plates else set()


def _passes(model: Any, guide: Any, args: tuple, values: list[dict[str, Tensor]]) -> Iterator[tuple[Tensor, ...]]:
    """Log weight and log probability of the discrete latents, ``[*cells]``, at each of the values, and the scale."""
    for chosen in values:
        given = Trace()
        for name, value in chosen.items():
            given.add_node(name, type="sample", name=name, is_observed=False, value=value, infer={})
        weights = weigh(*_traces(model, guide, args, given))
        score = weights.log_score + sum(own.log_score.sum(-1) for own in weights.local)
        yield weights.log_weight[0], score[0], torch.as_tensor(weights.scale)


def _exact(
    model: Any, guide: Any, args: tuple, values: list[dict[str, Tensor]], parameters: dict[str, Tensor]
) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """An unbiased estimate of L_2 and its gradient, exact in the discrete latents, and one of L_1."""
    particles = []
    for _ in range(2):
        log_w, log_q, scale = (torch.stack(t) for t in zip(*_passes(model, guide, args, values), strict=True))
        possible = log_q > -math.inf
        particles.append((torch.where(possible, log_w, 0.0), torch.where(possible, log_q.exp(), 0.0)))
    (w1, q1), (w2, q2) = particles
    pairs = torch.logaddexp(w1.unsqueeze(1), w2.unsqueeze(0)) - math.log(2)
    bound = (scale[0] * (q1.unsqueeze(1) * q2.unsqueeze(0) * pairs).sum((0, 1))).sum()
    single = (scale[0] * (q1 * w1).sum(0)).sum().detach()
    return *_with_gradient(bound, parameters), single


def _with_gradient(bound: Tensor, parameters: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    grads = torch.autograd.grad(bound, list(parameters.values()), allow_unused=True)
    found = zip(parameters.items(), grads, strict=True)
    return bound.detach(), {name: torch.zeros_like(p) if g is None else g for (name, p), g in found}


def _compare(what: str, exact: Any, sampled: Any, by: str, floor: float = 0.0) -> None:
    """Demands two means within 5 standard errors, and the rounding of single precision."""
    one, other = (torch.stack(list(rows)).double() for rows in (exact, sampled))
    error = (one.var() / len(one) + other.var() / len(other)).sqrt()
    apart = (one.mean() - other.mean()).abs()
    demand(
        apart <= ERRORS * error + 1e-4 * one.abs().mean() + floor,
        f"{what} by {by} must be that of enumeration within {ERRORS} standard errors; got {other.mean():.5g} and "
        f"{one.mean():.5g}, {apart / error:.1f} standard errors apart. {REMEDY}",
    )
