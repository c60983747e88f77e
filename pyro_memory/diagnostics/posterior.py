"""Draws of a guide's posterior as ArviZ data."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.poutine import Trace
from torch import Tensor
from tqdm import tqdm

from pyro_memory.diagnostics.arviz import DRAWS, Group, as_arviz
from pyro_memory.diagnostics.sites import Site, base, frames
from pyro_memory.gate import checked
from pyro_memory.inference import PARTICLES, KeepFrozen, Particles, SameData, check_call, check_sites, stochastic_sites

Columns = dict[str, dict[str, tuple[tuple[str, ...], Tensor]]]  # group, variable, its dimensions and its draws


@checked
@torch.no_grad()
def posterior_to_arviz(
    model: Callable,
    guide: Callable,
    *args: Any,
    draws: int = 1000,
    chains: int = 4,
    chunk_size: int = 50,
    predictive: bool = False,
    max_plate_nesting: float = math.inf,
    progress: bool = False,
    **kwargs: Any,
) -> Any:
    r"""Draws latents from a guide's posterior and gives them to ArviZ, with what they say of the data.

    Groups, in ArviZ's schema: ``posterior``, the latents, ``[chain, draw, *plates, *event]``; ``log_likelihood``,
    ``log p(x | latents)`` of each observed site, ``[chain, draw, *plates]``, in nats; ``observed_data``, ``[*plates,
    *event]``. A plate gives its dimension its name, and a subsampling one the indices that it chose as coordinates;
    dimensions of events are ``SITE_dim_0`` and so on; a "/" in a name becomes ".". Factors are left out, and what is
    observed but follows from the draws is not in ``observed_data``.

    Draws are independent and of the guide, not of the exact posterior: r_hat and rank plots say nothing of how close
    the two are; ``importance_bound`` does. What the model enumerates is drawn given them, exactly. ``arviz.loo`` weighs
    draws by ``1 / p(x | latents)``; with latents for each datum and one draw in a thousand that suits, it warns of high
    Pareto k, and is then not to be relied on.

    Args:
        model, guide: any pair with the same latents.
        *args, **kwargs: what both are called with.
        draws: how many, all chains together.
        chains: into how many they are dealt, since some of ArviZ's tools ask for several.
        chunk_size: draws per pass, one where latents are global; memory of passes grows with it, that of the result
            with ``draws``.
        predictive: adds ``posterior_predictive``, data anew from the posterior's draws, and ``prior`` and
            ``prior_predictive``, as many draws of the model alone.
        max_plate_nesting: how many plates the model nests; found by a trial run if not given.
        progress: shows a progress bar.

    Returns:
        An ``arviz.InferenceData``, or from ArviZ 1.0 on the ``xarray.DataTree`` that took its place.

    Draws come from torch's global random stream; parameters, gradients and modes stay as they are.

    Raises:
        ValueError: if ``draws`` is no multiple of ``chains``, a latent of the model is missing in the guide, the guide
            samples what the model does not, or a site or plate is named as ArviZ's dimensions are.
        ImportError: without the extra ``arviz``.

    Cost: ``draws`` passes of model and guide; with ``predictive`` two more of the model for each.

    References: Practical Bayesian model evaluation using leave-one-out cross-validation and WAIC (Vehtari et al.,
    2017), https://arxiv.org/abs/1507.04544

    Example::

        data = posterior_to_arviz(model, guide, x, memory)
        arviz.summary(data)
        arviz.loo(data)
    """
    if min(draws, chains, chunk_size) < 1 or draws % chains:
        raise ValueError(
            "`draws`, `chains` and `chunk_size` must be at least 1, and `draws` a multiple of `chains`; got "
            f"{draws}, {chains} and {chunk_size}"
        )
    check_call(model, guide, args, kwargs, "args")
    passes: list[Columns] = []
    same, found = SameData(), Particles(completes=True, max_plate_nesting=max_plate_nesting)
    found.look(model, guide, args, kwargs)
    size = 1 if found.global_sites else chunk_size  # a program need not take weights with a dimension in front
    for start in tqdm(range(0, draws, size), desc="draws", disable=not progress, leave=False):
        sampler = found.sized(min(size, draws - start))
        ((model_trace, guide_trace),) = sampler.traces(model, guide, args, kwargs, same)
        check_sites(stochastic_sites(model_trace), stochastic_sites(guide_trace))
        columns = _of_posterior(model_trace, sampler)
        if predictive:
            for role, given in (("posterior", guide_trace), ("prior", None)):
                columns = _of_model(_without_data(model, given, sampler, same, args, kwargs), role, sampler) | columns
        passes.append(columns)
    return as_arviz({name: _group(name, passes, same, chains) for name in passes[0]}, "posterior_to_arviz")


def _of_posterior(trace: Trace, sampler: Particles) -> Columns:
    sites = stochastic_sites(trace)
    data = {n: s for n, s in sites.items() if s["is_observed"] and not isinstance(base(s["fn"]), dist.Unit)}
    seen = {n: _values(n, s, sampler) for n, s in data.items()}
    return {
        "posterior": {n: _values(n, s, sampler) for n, s in sites.items() if not s["is_observed"]},
        "log_likelihood": {n: _log_likelihood(s, sampler) for n, s in data.items()},
        "observed_data": {n: (dims, _one_of_all(v)) for n, (dims, v) in seen.items()},
    }


def _one_of_all(draws: Tensor) -> Tensor:
    """The value that all draws have; none where they differ."""
    return draws[:1] if torch.equal(draws[:1].expand_as(draws), draws) else draws[:0]


def _without_data(
    model: Callable, given: Trace | None, sampler: Particles, same: SameData, args: tuple, kwargs: dict
) -> Trace:
    """The model's trace where it samples what it observes, at given latents or at its own."""
    program = poutine.uncondition(same(model))
    if given is not None:
        program = poutine.replay(program, trace=given)
    if sampler.num_particles > 1:
        program = pyro.plate(PARTICLES, sampler.num_particles, dim=-int(sampler.max_plate_nesting))(program)
    with poutine.block(), KeepFrozen():
        return poutine.trace(program).get_trace(*args, **kwargs)


def _of_model(trace: Trace, role: str, sampler: Particles) -> Columns:
    sites = {n: s for n, s in stochastic_sites(trace).items() if not isinstance(base(s["fn"]), dist.Unit)}
    columns: Columns = {role: {}, f"{role}_predictive": {}}
    for name, site in sites.items():
        group = f"{role}_predictive" if site["infer"].get("was_observed") else role
        columns[group][name] = _values(name, site, sampler)
    return columns


def _values(name: str, site: Site, sampler: Particles) -> tuple[tuple[str, ...], Tensor]:
    events = site["fn"].event_dim
    dims = [f.name for f in frames(site)] + [f"{name}_dim_{i}" for i in range(events)]
    reserved = [n for n in (name, *dims) if n in DRAWS]
    if reserved:
        raise ValueError(f"`{reserved[0]}` is a dimension of ArviZ's; name the model's site or plate otherwise")
    return tuple(dims), _laid_out(site["value"], site, events, sampler)


def _log_likelihood(site: Site, sampler: Particles) -> tuple[tuple[str, ...], Tensor]:
    log_prob = scale_and_mask(site["unscaled_log_prob"], 1.0, site["mask"]).double()  # ArviZ weighs by its exponential
    return tuple(f.name for f in frames(site)), _laid_out(log_prob, site, 0, sampler)


def _laid_out(values: Tensor, site: Site, events: int, sampler: Particles) -> Tensor:
    """Values as ``[draw, *plates, *event]``, whatever dimensions of size 1 or none stand for a plate."""
    plates, count, depth = frames(site), sampler.num_particles, int(sampler.max_plate_nesting)
    sizes = {f.dim: int(f.size) for f in plates} | ({-depth: count} if count > 1 else {})
    batch, event = values.shape[: values.dim() - events], values.shape[values.dim() - events :]
    values = values.reshape([*batch[max(0, len(batch) - depth) :], *event])
    values = values.expand([*(sizes.get(dim, 1) for dim in range(-depth, 0)), *event])
    return values.reshape(count, *(int(f.size) for f in plates), *event)


def _spelled(name: str) -> str:
    return name.replace("/", ".")  # which names a group in files


def _group(name: str, passes: list[Columns], same: SameData, chains: int) -> Group:
    """The columns of all passes: draws behind one another, dealt to the chains; of observed data the one value."""
    data_vars: dict[str, Any] = {}
    coords: dict[str, Any] = {}
    for variable, (dims, first) in passes[0][name].items():
        parts = [columns[name][variable][1] for columns in passes]
        for dim, count in zip(dims, first.shape[1:], strict=True):
            coords[_spelled(dim)] = same.chosen.get(dim, torch.arange(count)).numpy(force=True)
        variable, dims = _spelled(variable), tuple(map(_spelled, dims))
        if name != "observed_data":
            draws = torch.cat(parts)
            dealt = draws.reshape(chains, len(draws) // chains, *draws.shape[1:])
            data_vars[variable] = ((*DRAWS, *dims), dealt.numpy(force=True))
            coords |= {"chain": range(chains), "draw": range(dealt.shape[1])}
        elif all(len(part) and torch.equal(part, first) for part in parts):
            data_vars[variable] = (dims, first[0].numpy(force=True))
    return {"data_vars": data_vars, "coords": coords}
