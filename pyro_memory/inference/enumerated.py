"""Latents that are summed exactly in place of sampled."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.ops import packed
from pyro.ops.contract import contract_tensor_tree
from pyro.poutine import Trace
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from pyro_memory.gate import checked
from pyro_memory.inference.pairing import Sites, base, frames_of, stochastic_sites, summed_dim

Site = dict[str, Any]
Term = tuple[int, Tensor, Site]  # its sign, a log probability, the site that it belongs to


class Marks(Messenger):
    """Leaves the mark of enumeration to some sites of a guide, whichever bore it."""

    def __init__(self, exact: Iterable[str]) -> None:
        super().__init__()
        self.exact = frozenset(exact)

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if not msg["is_observed"]:
            mark = "parallel" if msg["name"] in self.exact else None
            msg["infer"] = {**msg["infer"], "enumerate": mark, "num_samples": None}


def symbolize(model_trace: Trace, guide_trace: Trace) -> dict[str, int]:
    """Names the dimensions of both traces alike; gives the dimension of each plate's name."""
    guide_trace.symbolize_dims()
    model_trace.symbolize_dims(guide_trace.plate_to_symbol)
    return {**guide_trace.symbol_to_dim, **model_trace.symbol_to_dim}


def sum_out(terms: list[Term], places: dict[str, int]) -> list[tuple[int, Tensor, dict[str, Any]]]:
    """Sums enumerated values out of signed log probabilities; what is left are terms of plates alone.

    The result is that of ``log sum_a exp(sum of terms)``, each plate's cells taken apart wherever they are independent
    given what was sampled before.
    """
    sums = {s["infer"]["_enumerate_symbol"] for _, _, s in terms if summed_dim(s) is not None}
    tree: dict[frozenset[str], dict[frozenset[str], Tensor]] = {}
    frames: dict[frozenset[str], set[Any]] = {}
    for sign, term, site in terms:
        symbols = site["infer"]["_dim_to_symbol"]
        own = frames_of(site)
        ordinal = frozenset(symbols[f.dim] for f in own)
        frames[ordinal] = own
        value = packed.pack(sign * term, symbols)
        group, over = tree.setdefault(ordinal, {}), frozenset(sums.intersection(value._pyro_dims))
        group[over] = _added(group[over], value) if over in group else value
    contracted = contract_tensor_tree(OrderedDict((t, list(g.values())) for t, g in tree.items()), sums)
    return [
        (1, packed.unpack(term, places), {"cond_indep_stack": tuple(_within(ordinal, frames, places))})
        for ordinal, found in contracted.items()
        for term in found
    ]


def _within(ordinal: frozenset[str], frames: dict[frozenset[str], set[Any]], places: dict[str, int]) -> set[Any]:
    dims = {places[symbol] for symbol in ordinal}
    return next({f for f in own if f.dim in dims} for known, own in frames.items() if ordinal <= known)


def _added(one: Tensor, other: Tensor) -> Tensor:
    """Their sum; added here, since a product of exponentials of two separately scaled terms underflows."""
    both = packed.broadcast_all(one, other)
    dims = both[0]._pyro_dims
    total = both[0] + both[1]
    total._pyro_dims = dims
    return total


def conditional(terms: list[Term], places: dict[str, int], name: str) -> Tensor:
    """The probabilities of an enumerated site's values given all that was sampled, ``[*plates, value]``.

    They are the derivative of the log of the sum by the log probability of each value.
    """
    own = next(site for _, _, site in terms if site["name"] == name)
    place, plates = int(own["infer"]["_enumerate_dim"]), frames_of(own)
    shape = [1] * -place
    for frame in plates:
        shape[frame.dim] = int(frame.size)
    shape[place] = own["value"].shape[place - own["fn"].event_dim]
    with torch.enable_grad():
        nudge = terms[0][1].new_zeros(shape, requires_grad=True)
        moved = [(sign, term.detach() + (nudge if site is own else 0), site) for sign, term, site in terms]
        total = sum(term.sum() for _, term, _ in sum_out(moved, places))
    (probs,) = torch.autograd.grad(total, nudge)
    lead = max((-f.dim for f in plates), default=0)
    return probs.movedim(place, -1).reshape(*probs.shape[len(shape) - lead :], shape[place])


def over_values(fn: dist.Distribution, probs: Tensor, name: str) -> dist.Distribution:
    """The distribution of a site's kind with these probabilities of its values.

    Raises:
        ValueError: for a site that is neither Categorical nor Bernoulli.
    """
    kind = base(fn)
    if isinstance(kind, torch.distributions.Bernoulli):
        return dist.Bernoulli(probs=probs[..., 1].clamp(0, 1))
    if isinstance(kind, torch.distributions.Categorical):
        return dist.Categorical(probs=probs)
    raise ValueError(
        f"site `{name}` must be Categorical or Bernoulli to be given its posterior; it is {type(kind).__name__}. Write "
        "it as a Categorical over its values"
    )


def left_to_the_model(model_sites: Sites, guide_sites: Sites) -> list[str]:
    """Names the latents that the model marks for enumeration and the guide does not sample."""
    return [
        n
        for n, s in model_sites.items()
        if not s["is_observed"] and s["infer"].get("enumerate") == "parallel" and n not in guide_sites
    ]


def mask_of(site: Site) -> Any:
    """A site's mask, but none of one that is summed: its probabilities sum to one whether it counts or not."""
    return site["mask"] if summed_dim(site) is None else None


def factors(model_trace: Trace, guide_trace: Trace) -> list[Term]:
    """The factors of p / q; a site that the guide enumerates has no q, since its values are summed."""
    signed = [(1, s["unscaled_log_prob"], s) for s in stochastic_sites(model_trace).values()]
    return signed + [
        (-1, s["unscaled_log_prob"], s) for s in stochastic_sites(guide_trace).values() if summed_dim(s) is None
    ]


@checked
def posterior_of(name: str, model_trace: Trace, guide_trace: Trace) -> dist.Distribution | None:
    """The distribution of an enumerated site given data and all that the guide sampled, for each cell of its plates;
    None for a site that is not enumerated."""
    if summed_dim(model_trace.nodes[name]) is None:
        return None
    terms = [(i, scale_and_mask(t, 1.0, mask_of(s)), s) for i, t, s in factors(model_trace, guide_trace)]
    probs = conditional(terms, symbolize(model_trace, guide_trace), name)
    return over_values(model_trace.nodes[name]["fn"], probs, name)


def completed(model: Callable, pair: tuple[Trace, Trace], args: tuple, kwargs: dict) -> tuple[Trace, Trace]:
    """Lets the guide's trace sample what the model enumerates, each site from its exact posterior given what is known.

    The weight of such a pair is that of the sum, whatever value is drawn.
    """
    model_trace, guide_trace = pair
    for name, site in stochastic_sites(model_trace).items():
        fn = posterior_of(name, model_trace, guide_trace)
        if fn is None:
            continue
        own = {
            n: site[n] for n in ("type", "name", "is_observed", "args", "kwargs", "scale", "mask", "cond_indep_stack")
        }
        guide_trace.add_node(name, **own, fn=fn, value=fn.sample(), infer={}, done=True, stop=False, continuation=None)
        again = poutine.trace(poutine.replay(model, trace=guide_trace), graph_type="flat").get_trace(*args, **kwargs)
        model_trace = prune_subsample_sites(again)
        model_trace.compute_log_prob()
        guide_trace.compute_score_parts()
    return model_trace, guide_trace
