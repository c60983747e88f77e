"""What each lookup and each latent carried."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import pyro.distributions as dist
import torch
from jaxtyping import Float
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.infer.inspect import get_dependencies
from torch import Tensor
from torch.distributions import biject_to

from pyro_memory.nearest import NearestCategorical
from pyro_memory.results import AddressInformation, InformationGain, SiteInformation, TokenSurprise
from pyro_memory.slots import SlotMemory
from pyro_memory.streamed import StreamedCategorical, log_prior_row
from pyro_memory.weights import PARTICLES, Particles, stochastic_sites

Site = dict[str, Any]
ADDRESSES = (torch.distributions.Categorical, StreamedCategorical, NearestCategorical)


@torch.no_grad()
def information_gain(
    model: Callable,
    guide: Callable,
    *args: Any,
    draws: int = 10,
    max_plate_nesting: float = math.inf,
    **kwargs: Any,
) -> InformationGain:
    r"""Measures KL(q || p) of every latent site, in nats, for any model and guide.

    A site's KL is taken in closed form given its sampled ancestors where the two distributions have one, by
    enumeration where it is discrete, and otherwise as the mean of ``log q - log p`` over the draws. It is given
    where every parent of the site in the model precedes it in the guide; elsewhere only the joint is.

    Args:
        model, guide: any pair with the same latent sites; of Pyro's automatic guides, those with a site of its own
            for each latent, such as AutoNormal.
        *args, **kwargs: what both are called with.
        draws: of the ancestors; their standard error is in the record.
        max_plate_nesting: how many plates the model nests; found by a trial run if not given.

    Raises:
        ValueError: if a latent of the model is missing in the guide, or is a point there or drawn together with others.

    Cost: ``draws`` passes of model and guide.

    References: ELBO surgery (Hoffman & Johnson, 2016),
    http://approximateinference.org/accepted/HoffmanJohnson2016.pdf
    """
    if draws < 1:
        raise ValueError(f"`draws` must be at least 1; got {draws}")
    sampler = Particles(draws, vectorize_particles=True, max_plate_nesting=max_plate_nesting)
    ((model_trace, guide_trace),) = sampler.traces(model, guide, args, kwargs)
    model_sites, guide_sites = stochastic_sites(model_trace), stochastic_sites(guide_trace)
    latents = [name for name, site in model_sites.items() if not site["is_observed"]]
    missing = [name for name in latents if name not in guide_sites]
    if missing:
        raise ValueError(f"the guide must sample every latent of the model; missing: {', '.join(missing)}")
    order = [name for name in guide_sites if name in latents]
    data_plates = _data_plates(model_sites)
    undefined = _without_own_kl(model, args, kwargs, latents, order)
    guide_sites |= {name: _with_density(name, guide_sites, model_sites[name]) for name in order}
    sites, addresses = {}, {}
    for name in order:
        q, p = guide_sites[name], model_sites[name]
        plates = [f for f in _frames(q) if f in data_plates] if name not in undefined else []
        kl, method = _kl(q, p) if name not in undefined else (None, "")
        unit = _unit(_frames(q), data_plates)
        sites[name] = (
            _site(kl, method, q, plates, unit)
            if kl is not None
            else SiteInformation(None, unit, "joint only", math.nan)
        )
        if isinstance(_base(q["fn"]), ADDRESSES) and kl is not None:
            addresses[name] = _address(_base(q["fn"]), _base(p["fn"]), args, kwargs)
    notes = [f"site {n} has no KL of its own: a parent of it in the model follows it in the guide" for n in undefined]
    joint = _joint(sites, order, guide_sites, model_sites, data_plates, bool(undefined))
    return InformationGain(sites, joint, addresses, draws, tuple(notes))


@torch.no_grad()
def token_surprise(
    model: Callable, *args: Any, guide: Callable | None = None, draws: int = 1, site: str = "x", **kwargs: Any
) -> TokenSurprise:
    r"""Measures ``-log p(x_t | x_<t)`` for each element of each sequence, in nats.

    For a model whose observed site is autoregressive: its batch shape is the plate of sequences, and the first of its
    event dimensions is time. With a guide over global latents w, it is ``-log 1/K sum_k p(x_t | x_<t, w_k)``, w drawn
    from the guide, which does not learn from ``x_<t``.

    Args:
        model: such a model.
        *args, **kwargs: what model and guide are called with.
        guide: None where nothing is latent.
        draws: K.
        site: the observed site.

    Raises:
        ValueError: if there is no such site, it is not observed, or it has no dimension of time.

    Cost: ``draws`` passes of the model.
    """
    if draws < 1:
        raise ValueError(f"`draws` must be at least 1; got {draws}")
    log_probs = []
    for _ in range(draws):
        trace = poutine.trace(guide).get_trace(*args, **kwargs) if guide is not None else None
        run = model if trace is None else poutine.replay(model, trace=trace)
        sites = poutine.trace(run).get_trace(*args, **kwargs).nodes
        log_prob, scored = _element_log_probs(sites.get(site), site)
        log_probs.append(log_prob)
    mean = torch.stack(log_probs).logsumexp(0) - math.log(draws)
    return TokenSurprise(-mean, scored)


def _element_log_probs(node: Site | None, name: str) -> tuple[Tensor, Tensor]:
    """Log probabilities ``[sequence, time]`` and which of them count."""
    plates = 0 if node is None else len(_frames(node))
    if node is None or not node.get("is_observed") or plates != 1 or not node["fn"].event_dim:
        raise ValueError(
            f"`site` must be an observed site in one plate, its first event dimension time; {name!r} is none. The "
            'SequenceModel\'s is "x"'
        )
    scored, fn = None, node["fn"]
    while hasattr(fn, "base_dist"):
        scored = getattr(fn, "_mask", scored)
        fn = fn.base_dist
    log_prob = fn.log_prob(node["value"])
    log_prob = log_prob.flatten(2).sum(-1) if log_prob.dim() > 2 else log_prob
    if not isinstance(scored, Tensor):
        scored = torch.ones_like(log_prob, dtype=torch.bool)
    return log_prob, scored.expand(log_prob.shape)


def _with_density(name: str, guide_sites: dict[str, Site], p: Site) -> Site:
    """A latent's site in the guide; for an automatic guide, with the distribution that its value was made from.

    Such a guide draws ``<name>_unconstrained`` and gives the latent itself as a point.
    """
    q = guide_sites[name]
    if not isinstance(_base(q["fn"]), dist.Delta):
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


def _frames(site: Site) -> list[Any]:
    return sorted((f for f in site["cond_indep_stack"] if f.vectorized and f.name != PARTICLES), key=lambda f: f.dim)


def _data_plates(model_sites: dict[str, Site]) -> list[Any]:
    """The plates around all observations (all sites, if nothing is observed): their cells are the data."""
    observed = [set(_frames(s)) for s in model_sites.values() if s["is_observed"]]
    stacks = observed or [set(_frames(s)) for s in model_sites.values()]
    return sorted(set.intersection(*stacks), key=lambda f: f.dim) if stacks else []


def _unit(frames: Iterable[Any], data_plates: list[Any]) -> str:
    own = [f for f in frames if f in data_plates]
    if own == data_plates:
        return "datum"
    return " x ".join(f.name for f in own) if own else "data set"


def _without_own_kl(model: Callable, args: tuple, kwargs: dict, latents: list[str], order: list[str]) -> list[str]:
    """The sites that some parent of theirs in the model follows in the guide."""
    earlier = {name: set(latents[:i]) for i, name in enumerate(latents)}
    late = [name for name in latents if earlier[name] - set(order[: order.index(name)])]
    if not late:
        return []
    try:  # the trace order names more parents than there are: ask what each site really depends on
        with poutine.block(), torch.random.fork_rng():
            found = get_dependencies(model, args, kwargs)["prior_dependencies"]
        parents = {name: set(found.get(name, {})) - {name} for name in latents}
    except Exception:
        # Provenance does not survive every operation; the trace order is the safe superset.
        parents = earlier
    return [name for name in latents if (parents[name] & set(latents)) - set(order[: order.index(name)])]


def _base(fn: dist.Distribution) -> Any:
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return fn


def _kl(q: Site, p: Site) -> tuple[Tensor, str]:
    """KL(q || p) for each draw of the ancestors, and how it was taken."""
    if _by_logits(q["fn"]) and _by_logits(p["fn"]):
        # torch calls it infinite where a probability of p underflows, whatever little q puts there.
        probs = q["fn"].probs
        return torch.where(probs > 0, probs * (q["fn"].logits - p["fn"].logits), 0.0).sum(-1), "closed form"
    try:
        return torch.distributions.kl_divergence(q["fn"], p["fn"]), "closed form"
    except NotImplementedError:
        pass
    fn = q["fn"]
    if getattr(fn, "has_enumerate_support", False) and not fn.event_dim:
        values = fn.enumerate_support(expand=True)
        log_q = fn.log_prob(values)
        term = log_q.exp() * (log_q - p["fn"].log_prob(values))
        return torch.where(log_q == -math.inf, 0.0, term).sum(0), "enumerated"
    return fn.log_prob(q["value"]) - p["fn"].log_prob(q["value"]), "Monte Carlo"


def _by_logits(fn: dist.Distribution) -> bool:
    return isinstance(fn, torch.distributions.Categorical) and fn._param is vars(fn).get("logits")


def _site(kl: Tensor, method: str, site: Site, plates: list[Any], unit: str) -> SiteInformation:
    draws, scale = _cells(kl, site, plates)
    values = draws.mean(0).flatten() * scale
    return SiteInformation(values, unit, method, _draws_se(draws, scale))


def _cells(log_prob: Tensor, site: Site, plates: list[Any]) -> tuple[Tensor, float]:
    """Sums a site's values over plates inside a datum; gives ``[draw, *cells]`` and the scale of those plates."""
    inner = [f for f in _frames(site) if f not in plates]
    particle = [f for f in site["cond_indep_stack"] if f.name == PARTICLES]
    kept = sorted([f.dim for f in particle + plates])
    value = scale_and_mask(log_prob, 1.0, site["mask"])
    for dim in range(-value.dim(), 0):
        if dim not in kept:
            value = value.sum(dim, keepdim=True)
    value = value.reshape([value.shape[d] for d in kept if -d <= value.dim()])
    scale = math.prod((f.full_size or f.size) / f.size for f in inner)
    return (value if particle else value.unsqueeze(0)), scale


def _draws_se(draws: Tensor, scale: float) -> float:
    if len(draws) < 2 or torch.equal(draws[:1].expand_as(draws), draws):
        return 0.0 if len(draws) > 1 else math.nan
    return (draws.reshape(len(draws), -1).mean(1).std() * scale / math.sqrt(len(draws))).item()


def _joint(
    sites: dict[str, SiteInformation],
    order: list[str],
    guide_sites: dict[str, Site],
    model_sites: dict[str, Site],
    data_plates: list[Any],
    undefined: bool,
) -> SiteInformation:
    """The KL of all latents: the sum of the sites', or by Monte Carlo where some site has none of its own."""
    per_datum = all(s.unit == "datum" for s in sites.values())
    unit = "datum" if per_datum else "data set"
    if not sites:
        return SiteInformation(None, unit, "no latents", math.nan)
    if not undefined:
        kls = [s.kl if per_datum else s.kl.sum().reshape(1) for s in sites.values()]
        error = math.sqrt(sum(s.draws_se**2 for s in sites.values())) if per_datum else math.nan
        return SiteInformation(sum(kls), unit, "sum of sites", error)
    total: Any = 0.0
    for name in order:
        q, p = guide_sites[name], model_sites[name]
        difference = q["fn"].log_prob(q["value"]) - p["fn"].log_prob(q["value"])
        draws, scale = _cells(difference, q, data_plates if per_datum else [])
        total = total + draws * scale
    return SiteInformation(total.mean(0).flatten(), unit, "Monte Carlo", _draws_se(total, 1.0))


def _address(q: Any, p: Any, args: tuple, kwargs: dict) -> AddressInformation:
    """Describes the use of an address site."""
    slots = q.slots if hasattr(q, "slots") else q.probs.shape[-1]
    memories = [m for m in [*args, *kwargs.values()] if isinstance(m, SlotMemory)]
    reason = "each datum has a memory of its own" if any(m.batch_dim is not None for m in memories) else ""
    try:
        prior = log_prior_row(p, slots).double().exp()
    except ValueError:
        prior = p.probs.reshape(-1, slots).double()
        if torch.allclose(prior, prior[:1].expand_as(prior)):
            prior = prior[0]
        else:
            reason = reason or "the data do not share one prior over addresses"
    entropy = q.entropy().double().flatten()
    least = prior.masked_fill(prior == 0, math.inf).amin(-1)
    facts = {
        "slots": slots, "data": q.batch_shape[-1] if q.batch_shape else 1,
        "ceiling": -least.log().mean().item(), "effective_slots": entropy.exp().mean().item(),
    }  # fmt: skip
    if reason:
        return AddressInformation(**facts, reason=reason)
    usage = q.usage().double() if hasattr(q, "usage") else q.probs.reshape(-1, slots).double().mean(0)
    return AddressInformation(
        **facts, usage=usage, dead=(usage < 0.01 * prior) & (prior > 0), **_split(entropy, prior, usage)
    )


def _split(
    entropy: Float[Tensor, " datum"], prior: Float[Tensor, " slot"], usage: Float[Tensor, " slot"]
) -> dict[str, float]:
    """Splits the mean KL(q || p) into I(n; a) = H(q(a)) - E H(q(a | x)) and KL(q(a) || p(a))."""
    negative_entropy = torch.special.xlogy(usage, usage)
    marginal = (negative_entropy - torch.special.xlogy(usage, prior)).sum()
    return {"mutual_information": (-negative_entropy.sum() - entropy.mean()).item(), "marginal_kl": marginal.item()}
