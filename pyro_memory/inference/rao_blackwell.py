"""The evidence lower bound with a discrete latent summed over its likeliest values and sampled elsewhere."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from pyro.poutine import Trace
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_memory.distributions import NearestCategorical
from pyro_memory.gate import checked
from pyro_memory.inference.objective import Objective, Traces
from pyro_memory.inference.pairing import base, stochastic_sites
from pyro_memory.inference.weights import Weights
from pyro_memory.inference.without_replacement import chances_of_order, draw_distinct


@checked
class RaoBlackwellELBO(Objective):
    r"""Sums the likeliest values of one discrete site exactly, and lets a sample stand for the rest.

    .. math::
        \sum_{a \in top_k} q(a) f(a) + (1 - Q_k) \sum_{a \in S} P(a \text{ first} | S) f(a), \quad
        f(a) = E_{q(z | a)} \log \frac{p(x, a, z)}{q(a, z)}

    S are m values of the rest, drawn without replacement; a single one has all of its weight. This is the bound of one
    particle, estimated with k + m passes: the sum has no address noise, and what noise the rest brings is weighted by
    the mass it has. The rest's score function has a baseline: the sum's mean for m = 1; else, for each value, an
    estimate of the rest's mean from the others of S. Both value and gradient are unbiased for any k and m, and exact
    in the site where k + m are all values. The other latents must be reparameterised.

    Args:
        likeliest: k, how many values are summed; below the number of values, else enumerate with ``TraceEnum_ELBO``.
            With 0 this is the unordered-set estimator.
        sampled: m, how many of the others are drawn, 1 to 8; at least 2 where none is summed.
        site: the name of the discrete site. It lies in the plates over data and has no sampled ancestors.
        max_plate_nesting: how many plates the model nests; found by a trial run if not given, and then kept: use one
            instance per model.

    Raises:
        ValueError: for k and m out of range or together above the number of values, a missing or continuous site,
            another latent without a pathwise gradient, and a pair that has no per-datum weights (see ``weigh``).

    Cost: k + m passes of model and guide in one, and O(m 2^m) a datum.

    References: Rao-Blackwellized Stochastic Gradients for Discrete Distributions (Liu et al., 2019),
    https://arxiv.org/abs/1810.04777; Estimating Gradients for Discrete Random Variables by Sampling without Replacement
    (Kool et al., 2020), https://openreview.net/forum?id=rklEj2EFvB

    Example::

        svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), RaoBlackwellELBO(likeliest=4))
    """

    def __init__(
        self, likeliest: int = 4, *, sampled: int = 1, site: str = "a", max_plate_nesting: float = math.inf
    ) -> None:
        if not 1 <= sampled <= 8:
            raise ValueError(f"`sampled` must be 1 to 8 values, as their orders are all summed; got {sampled}")
        if likeliest < 0 or (likeliest == 0 and sampled == 1):
            raise ValueError(
                f"`likeliest` must be at least 1 value; got {likeliest}. With 0, sample 2 or more: their baselines are "
                "the others"
            )
        self.likeliest, self.sampled = likeliest, sampled
        self.site = site
        super().__init__(likeliest + sampled, max_plate_nesting=max_plate_nesting)

    def per_datum(self, weights: Weights, traces: Traces) -> Float[Tensor, "*cells"]:
        ((_, guide_trace),) = traces
        self._check_sites(guide_trace, weights.log_weight)
        log_weight, log_q = weights.log_weight, weights.log_score  # no other site has a score: log_score is log q(a)
        value = guide_trace.nodes[self.site]["value"].reshape(log_weight.shape)
        again = torch.stack([(value[:i] == value[i]).any(0) for i in range(len(value))])
        used = (log_q > -math.inf) & ~again
        # A value of no mass counts for nothing, though log q and with it the weight is infinite there.
        log_weight, log_q = torch.where(used, log_weight, 0), torch.where(used, log_q, 0)
        k = self.likeliest
        mass = log_q[:k].exp() * used[:k]
        known = (mass * log_weight[:k]).sum(0)
        rest = (1 - mass.sum(0)).clamp(min=0) * used[k]
        if self.sampled == 1:
            share, mean = torch.ones_like(log_weight[k:]), (known / mass.sum(0)).detach()
            baseline = mean
        else:
            drawn = (log_q[k:].exp() * used[k:]).detach()
            outside = self._mass_outside(guide_trace).reshape(rest.shape)
            share, mean, baseline = _unordered(drawn, outside, log_weight[k:].detach())
        score = (log_weight[k:].detach() - baseline) * (log_q[k:] - log_q[k:].detach())
        unknown = rest.detach() * (share * (log_weight[k:] + score)).sum(0) + mean * (rest - rest.detach())
        return known + unknown

    def _mass_outside(self, guide_trace: Trace) -> Tensor:
        """The mass of what is neither summed nor drawn."""
        site = guide_trace.nodes[self.site]
        return _probs(site["fn"])[0].detach().scatter(-1, site["value"].movedim(0, -1), 0).sum(-1)

    def _get_trace(self, model: Callable, guide: Callable, args: tuple, kwargs: dict) -> tuple[Trace, Trace]:
        return super()._get_trace(
            model, _LikeliestThenRest(self.site, self.likeliest, self.sampled)(guide), args, kwargs
        )

    def _check_sites(self, guide_trace: Trace, log_weight: Tensor) -> None:
        sites = stochastic_sites(guide_trace)
        if self.site not in sites:
            raise ValueError(f"`site` must be a latent of the guide, one of {', '.join(sites)}; got {self.site!r}")
        others = [name for name, s in sites.items() if name != self.site and not s["fn"].has_rsample]
        if others:
            raise ValueError(
                f"all latents but `{self.site}` must be reparameterised; {', '.join(others)} cannot. Use VIMCO"
            )
        if self.site in self.global_sites:
            raise ValueError(f"site `{self.site}` must have a value for each datum; all data share one")
        if sites[self.site]["value"].numel() != log_weight.numel():
            raise ValueError(
                f"site `{self.site}` must have one value for each datum; it lies in a plate inside a datum"
            )


def _unordered(mass: Tensor, outside: Tensor, f: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What each drawn value stands for, the mean of f, and what the others say of that mean: the value's baseline."""
    share, second = chances_of_order(mass, outside)
    p = mass / (mass.sum(0) + outside).clamp(min=torch.finfo(mass.dtype).tiny)
    return share, (share * f).sum(0), p * f + (1 - p) * (second * f).sum(1)


def _probs(fn: Any) -> Tensor:
    probs = base(fn).probs
    return probs.expand(fn.batch_shape + probs.shape[-1:])


class _LikeliestThenRest(Messenger):
    """Sets a categorical site's particles: the k likeliest values in turn, then a sample of the others.

    Where the others have no mass, the likeliest value stands again in their place.
    """

    def __init__(self, site: str, likeliest: int, sampled: int) -> None:
        super().__init__()
        self.site, self.likeliest, self.sampled = site, likeliest, sampled

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if msg["name"] != self.site:
            return
        kind = base(msg["fn"])
        if not isinstance(kind, (torch.distributions.Categorical, NearestCategorical)):
            raise ValueError(f"`site` {self.site} must be Categorical; got {type(kind).__name__}")
        with torch.no_grad():
            probs = _probs(msg["fn"])
            if not torch.equal(probs[:1].expand_as(probs), probs):
                raise ValueError(
                    f"site `{self.site}` must have no sampled ancestors; its distribution differs by particle"
                )
            self._check_number(probs.shape[-1])
            top = probs[0].topk(max(self.likeliest, 1), -1).indices
            others = probs[0].scatter(-1, top[..., : self.likeliest], 0)
            if self.sampled == 1:
                some = (others.sum(-1, keepdim=True) > 0).expand_as(others)
                drawn = torch.distributions.Categorical(torch.where(some, others, 1.0)).sample()[None]
            else:
                drawn = draw_distinct(others, self.sampled)
            left = others.gather(-1, drawn.movedim(0, -1)).movedim(-1, 0) > 0
            drawn = torch.where(left, drawn, top[..., 0])
            msg["value"] = torch.cat([top[..., : self.likeliest].movedim(-1, 0), drawn])

    def _check_number(self, values: int) -> None:
        if self.likeliest >= values:
            raise ValueError(
                f"`likeliest` must be below the {values} values of site `{self.site}`; got {self.likeliest}. "
                "Enumerate them all with TraceEnum_ELBO"
            )
        if self.likeliest + self.sampled > values:
            raise ValueError(
                f"`likeliest` and `sampled` must be at most the {values} values of site `{self.site}` together; got "
                f"{self.likeliest} and {self.sampled}"
            )
