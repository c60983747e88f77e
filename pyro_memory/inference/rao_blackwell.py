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
from pyro_memory.inference.pairing import stochastic_sites
from pyro_memory.inference.weights import Weights


@checked
class RaoBlackwellELBO(Objective):
    r"""Sums the likeliest values of one discrete site exactly, and lets a sample stand for the rest.

    .. math::
        \sum_{a \in top_k} q(a) f(a) + (1 - Q_k) f(a'), \quad a' \sim q(a | a \notin top_k), \quad
        f(a) = E_{q(z | a)} \log \frac{p(x, a, z)}{q(a, z)}

    This is the bound of one particle, estimated with k + 1 passes: the sum has no address noise, and what noise the
    rest brings is weighted by the mass it has. The rest's score function has the sum's mean as its baseline. Both value
    and gradient are unbiased for any k. The other latents must be reparameterised.

    Args:
        likeliest: k, how many values are summed; below the number of values, else enumerate with ``TraceEnum_ELBO``.
        site: the name of the discrete site. It lies in the plates over data and has no sampled ancestors.
        max_plate_nesting: how many plates the model nests; found by a trial run if not given, and then kept: use one
            instance per model.

    Raises:
        ValueError: for k < 1 or not below the number of values, a missing or continuous site, another latent without a
            pathwise gradient, and a pair that has no per-datum weights (see ``weigh``).

    Cost: k + 1 passes of model and guide in one.

    References: Rao-Blackwellized Stochastic Gradients for Discrete Distributions (Liu et al., 2019),
    https://arxiv.org/abs/1810.04777

    Example::

        svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), RaoBlackwellELBO(likeliest=4))
    """

    def __init__(self, likeliest: int = 4, *, site: str = "a", max_plate_nesting: float = math.inf) -> None:
        if likeliest < 1:
            raise ValueError(f"`likeliest` must be at least 1 value; got {likeliest}")
        self.likeliest = likeliest
        self.site = site
        super().__init__(likeliest + 1, max_plate_nesting=max_plate_nesting)

    def per_datum(self, weights: Weights, traces: Traces) -> Float[Tensor, "*cells"]:
        ((_, guide_trace),) = traces
        self._check_sites(guide_trace, weights.log_weight)
        log_weight, log_q = weights.log_weight, weights.log_score  # no other site has a score: log_score is log q(a)
        value = guide_trace.nodes[self.site]["value"].reshape(log_weight.shape)
        used = log_q > -math.inf
        used = torch.cat([used[:-1], used[-1:] & (value[:-1] != value[-1]).all(0, keepdim=True)])
        # A value of no mass counts for nothing, though log q and with it the weight is infinite there.
        log_weight, log_q = torch.where(used, log_weight, 0), torch.where(used, log_q, 0)
        mass = log_q[:-1].exp() * used[:-1]
        rest = (1 - mass.sum(0)).clamp(min=0) * used[-1]
        known = (mass * log_weight[:-1]).sum(0)
        baseline = (known / mass.sum(0)).detach()
        score = (log_weight[-1].detach() - baseline) * (log_q[-1] - log_q[-1].detach())
        unknown = rest.detach() * (log_weight[-1] + score) + baseline * (rest - rest.detach())
        return known + unknown

    def _get_trace(self, model: Callable, guide: Callable, args: tuple, kwargs: dict) -> tuple[Trace, Trace]:
        return super()._get_trace(model, _LikeliestThenRest(self.site, self.likeliest)(guide), args, kwargs)

    def _check_sites(self, guide_trace: Trace, log_weight: Tensor) -> None:
        sites = stochastic_sites(guide_trace)
        if self.site not in sites:
            raise ValueError(f"`site` must be a latent of the guide, one of {', '.join(sites)}; got {self.site!r}")
        others = [name for name, s in sites.items() if name != self.site and not s["fn"].has_rsample]
        if others:
            raise ValueError(
                f"all latents but `{self.site}` must be reparameterised; {', '.join(others)} cannot. Use VIMCO"
            )
        if sites[self.site]["value"].numel() != log_weight.numel():
            raise ValueError(
                f"site `{self.site}` must have one value for each datum; it lies in a plate inside a datum"
            )


class _LikeliestThenRest(Messenger):
    """Sets a categorical site's particles: the k likeliest values in turn, then a sample of the others.

    Where the others have no mass, the likeliest value stands again in their place.
    """

    def __init__(self, site: str, likeliest: int) -> None:
        super().__init__()
        self.site, self.likeliest = site, likeliest

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if msg["name"] != self.site:
            return
        base = msg["fn"]
        while hasattr(base, "base_dist"):
            base = base.base_dist
        if not isinstance(base, (torch.distributions.Categorical, NearestCategorical)):
            raise ValueError(f"`site` {self.site} must be Categorical; got {type(base).__name__}")
        with torch.no_grad():
            probs = base.probs.expand(msg["fn"].batch_shape + base.probs.shape[-1:])
            if not torch.equal(probs[:1].expand_as(probs), probs):
                raise ValueError(
                    f"site `{self.site}` must have no sampled ancestors; its distribution differs by particle"
                )
            values = probs.shape[-1]
            if self.likeliest >= values:
                raise ValueError(
                    f"`likeliest` must be below the {values} values of site `{self.site}`; got {self.likeliest}. "
                    "Enumerate them all with TraceEnum_ELBO"
                )
            top = probs[0].topk(self.likeliest, -1)
            others = probs[0].scatter(-1, top.indices, 0)
            left = others.sum(-1) > 0
            drawn = torch.distributions.Categorical(torch.where(left.unsqueeze(-1), others, 1.0)).sample()
            msg["value"] = torch.cat([top.indices.movedim(-1, 0), torch.where(left, drawn, top.indices[..., 0])[None]])
