"""The multi-sample bound with discrete latents that Pyro lacks."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from pyro.infer.util import is_validation_enabled
from pyro.util import warn_if_nan
from torch import Tensor

from pyro_memory.weights import Particles, Weights, weigh


class Objective(Particles):
    """A Pyro objective given by its differentiable loss alone."""

    @abstractmethod
    def differentiable_loss(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> Tensor:
        """Estimates the negative bound by a tensor whose gradient estimates the bound's gradient."""

    def loss(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> float:
        """Estimates the negative bound, summed over the data."""
        with torch.no_grad():
            return self._checked(self.differentiable_loss(model, guide, *args, **kwargs))

    def loss_and_grads(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> float:
        """Estimates the negative bound and adds its gradient to the parameters' ``grad``."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward(retain_graph=self.retain_graph)
        return self._checked(loss)

    @staticmethod
    def _checked(loss: Tensor) -> float:
        value = loss.item()
        if is_validation_enabled():
            warn_if_nan(value, "loss")
        return value


class VIMCO(Objective):
    r"""Maximises a bound of K particles for each datum, discrete latents included.

    .. math::
        L_K = E_{h_{1..K} \sim q} \log \frac1K \sum_k w_k, \qquad w_k = \frac{p(x, h_k)}{q(h_k | x)}

    Weights belong to a datum: a cell of the plates that hold all sites. A subsample's scale stays outside the
    logarithm. Sites that can be reparameterised get pathwise gradients; every other one gets the score function
    with the signal ``L_K - L_{-k}``, where in ``L_{-k}`` the other particles stand in for the k-th weight, by their
    geometric or arithmetic mean. The gradient is unbiased for either. All particles run in one pass.

    Args:
        num_particles: K, at least 2.
        baseline: the stand-in for the k-th weight, ``"geometric"`` or ``"arithmetic"``.
        max_plate_nesting: how many plates the model nests; found by a trial run if not given, and then kept: use one
            instance per model.
        vectorize_particles: False runs the particles one by one, for a model that cannot be vectorised.

    Raises:
        ValueError: for K < 2, an unknown baseline, and a pair that has no per-datum weights (see ``weigh``).

    Cost: K passes of model and guide, and O(K^2) logarithms per datum.

    References: Variational inference for Monte Carlo objectives (Mnih & Rezende, 2016),
    https://arxiv.org/abs/1602.06725

    Example::

        svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), VIMCO(num_particles=4))
    """

    def __init__(
        self,
        num_particles: int = 4,
        *,
        baseline: str = "geometric",
        max_plate_nesting: float = math.inf,
        vectorize_particles: bool = True,
    ) -> None:
        if num_particles < 2:
            raise ValueError(
                f"`num_particles` must be at least 2, since each particle's baseline is made of the others; got "
                f"{num_particles}. For one particle use pyro.infer.TraceGraph_ELBO"
            )
        if baseline not in _STAND_IN:
            raise ValueError(f"`baseline` must be one of {sorted(_STAND_IN)}; got {baseline!r}")
        self.baseline = baseline
        super().__init__(num_particles, max_plate_nesting=max_plate_nesting, vectorize_particles=vectorize_particles)

    def differentiable_loss(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> Tensor:
        weights = self._weights(model, guide, args, kwargs)
        bound = _bound(weights.log_weight)
        with torch.no_grad():
            signal = bound - leave_one_out_bound(weights.log_weight, self.baseline)
        score = (signal * weights.log_score).sum(0)
        return -(weights.scale * (bound + score - score.detach())).sum()

    def _weights(self, model: Callable, guide: Callable, args: tuple, kwargs: dict) -> Weights:
        parts = [weigh(*traces) for traces in self.traces(model, guide, args, kwargs)]
        if len(parts) == 1:
            return parts[0]
        return Weights(
            torch.cat([p.log_weight for p in parts]), torch.cat([p.log_score for p in parts]), parts[0].scale
        )


class LeaveOneOutELBO(Objective):
    r"""Maximises the evidence lower bound, averaged over K particles, discrete latents included.

    .. math::
        E_{h_{1..K} \sim q} \frac1K \sum_k \log w_k

    Sites that can be reparameterised get pathwise gradients; every other one gets the score function, with the mean of
    the other particles' log weights as its baseline. Unlike ``VIMCO``'s, the bound is linear in log weights: all
    particles count alike, however far apart their weights, and a factor may be an unbiased estimate of its
    log-probability (a site marked as noisy). What such a factor draws without regard to the particle is common to all
    of them and cancels in the signal.

    Args:
        num_particles: K, at least 2.
        max_plate_nesting: how many plates the model nests; found by a trial run if not given, and then kept: use one
            instance per model.

    Raises:
        ValueError: for K < 2, and a pair that has no per-datum weights (see ``weigh``).

    Cost: K passes of model and guide in one.

    References: Buy 4 REINFORCE Samples, Get a Baseline for Free! (Kool et al., 2019),
    https://openreview.net/forum?id=r1lgTGL5DE
    """

    def __init__(self, num_particles: int = 2, *, max_plate_nesting: float = math.inf) -> None:
        if num_particles < 2:
            raise ValueError(
                f"`num_particles` must be at least 2, since each particle's baseline is made of the others; got "
                f"{num_particles}. For one particle use pyro.infer.TraceGraph_ELBO"
            )
        super().__init__(num_particles, vectorize_particles=True, max_plate_nesting=max_plate_nesting)

    def differentiable_loss(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> Tensor:
        ((model_trace, guide_trace),) = self.traces(model, guide, args, kwargs)
        weights = weigh(model_trace, guide_trace, noisy=True)
        bound = weights.log_weight.mean(0)
        with torch.no_grad():
            k = self.num_particles
            signal = (weights.log_weight - bound) * (k / (k - 1))  # less the mean of the others
        score = (signal * weights.log_score).mean(0)
        return -(weights.scale * (bound + score - score.detach())).sum()


def _bound(log_weight: Float[Tensor, "particle *cells"]) -> Float[Tensor, "*cells"]:
    return log_weight.logsumexp(0) - math.log(len(log_weight))


_STAND_IN = {
    "geometric": lambda w, own: w.masked_fill(own, 0.0).sum(1) / (len(w) - 1),
    "arithmetic": lambda w, own: w.masked_fill(own, -math.inf).logsumexp(1) - math.log(len(w) - 1),
}


def leave_one_out_bound(
    log_weight: Float[Tensor, "particle *cells"], baseline: str = "geometric"
) -> Float[Tensor, "particle *cells"]:
    r"""Computes ``L_{-k}``: the bound with the k-th weight replaced by a mean of the others.

    It is exact where one weight outweighs the others by any factor: nothing is subtracted inside the logarithm.
    """
    k = len(log_weight)
    rows = log_weight.expand(k, *log_weight.shape)
    own = torch.eye(k, dtype=torch.bool, device=rows.device).reshape(k, k, *[1] * (rows.dim() - 2))
    stand_in = _STAND_IN[baseline](rows, own)
    return torch.where(own, stand_in.unsqueeze(1), rows).logsumexp(1) - math.log(k)
