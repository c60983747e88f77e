"""Reweighted wake-sleep with weights per datum."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from pyro.poutine import Trace
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_memory.gate import checked
from pyro_memory.inference.objective import Objective, Traces
from pyro_memory.inference.weights import Weights, weigh


@checked
class WakeWake(Objective):
    r"""Fits model and guide to K particles of the guide, weighted towards the posterior.

    .. math::
        \theta: \; \sum_k \tilde w_k \nabla \log p_\theta(x, h_k), \qquad
        \phi: \; \sum_k \tilde w_k \nabla \log q_\phi(h_k | x), \qquad
        \tilde w_k = \frac{w_k}{\sum_j w_j}, \quad h_{1..K} \sim q

    This is reweighted wake-sleep with both updates in the wake phase. The particles are constants, so no site is
    reparameterised and discrete latents are nothing special: no score function, no baseline. The model ascends the
    bound of K particles. The guide descends KL(p(h | x) || q), which covers all that is likely under the posterior, up
    to the bias of normalised weights, O(1 / K): it is better for more particles. Weights belong to a datum (see
    ``weigh``). The loss is the negative bound of K particles, which is not what the guide descends.

    It is named for its two phases, as in Le et al.: Pyro has a ``ReweightedWakeSleep`` of its own, whose weights are of
    the whole batch.

    Args:
        num_particles: K, at least 2.
        max_plate_nesting: how many plates the model nests; found by a trial run if not given, and then kept: use one
            instance per model.

    Raises:
        ValueError: for K < 2, and a pair that has no per-datum weights (see ``weigh``).

    Cost: K passes of model and guide in one.

    References: Reweighted Wake-Sleep (Bornschein & Bengio, 2015), https://arxiv.org/abs/1406.2751; Revisiting
    Reweighted Wake-Sleep (Le et al., 2019), https://arxiv.org/abs/1805.10469
    """

    def __init__(self, num_particles: int = 4, *, max_plate_nesting: float = math.inf) -> None:
        if num_particles < 2:
            raise ValueError(
                f"`num_particles` must be at least 2, since one particle has all of the weight whatever it is; got "
                f"{num_particles}. For one particle use pyro.infer.TraceGraph_ELBO"
            )
        super().__init__(num_particles, max_plate_nesting=max_plate_nesting)

    def weights(self, traces: Traces) -> Weights:
        ((model_trace, guide_trace),) = traces
        if self.global_sites:
            raise ValueError(
                f"site `{self.global_sites[0]}` lies outside the plates over data, and one draw of it, which all "
                "particles share, has no weight among others. Train with VIMCO"
            )
        return weigh(model_trace, guide_trace, pathwise=False)

    def per_datum(self, weights: Weights, traces: Traces) -> Float[Tensor, "*cells"]:
        with torch.no_grad():
            bound = weights.log_weight.logsumexp(0) - math.log(self.num_particles)
            share = weights.log_weight.softmax(0)
        both = weights.log_weight + 2 * weights.log_score  # log p + log q
        fit = torch.where(share > 0, share * both, 0).sum(0)  # a particle without weight may have no log-probability
        return bound + fit - fit.detach()

    def _get_trace(self, model: Callable, guide: Callable, args: tuple, kwargs: dict) -> tuple[Trace, Trace]:
        with _Constant():
            return super()._get_trace(model, guide, args, kwargs)


class _Constant(Messenger):
    """Detaches what is sampled, before anything is made of it."""

    def _pyro_post_sample(self, msg: dict[str, Any]) -> None:
        if not msg["is_observed"]:
            msg["value"] = msg["value"].detach()
