"""The evidence lower bound with a baseline of the other particles."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from pyro_memory.gate import checked
from pyro_memory.inference.objective import Objective, Traces
from pyro_memory.inference.weights import Weights


@checked
class LeaveOneOutELBO(Objective):
    r"""Maximises the evidence lower bound, averaged over K particles, discrete latents included.

    .. math::
        E_{h_{1..K} \sim q} \frac1K \sum_k \log w_k

    Sites that can be reparameterised get pathwise gradients; every other one gets the score function, with the mean of
    the other particles' log weights as its baseline. That is the gradient of half the variance of the log weights: it
    vanishes draw by draw where the guide is the posterior. Unlike ``VIMCO``'s, the bound is linear in log weights: all
    particles count alike, however far apart their weights, and a factor may be an unbiased estimate of its
    log-probability (a site marked as noisy). What such a factor draws without regard to the particle is common to all
    of them and cancels in the signal.

    Args:
        num_particles: K, at least 2.
        global_draws: how many draws of the global latents a step takes, where there are any.
        max_plate_nesting: how many plates the model nests; found by a trial run if not given, and then kept: use one
            instance per model.

    Raises:
        ValueError: for K < 2, and a pair that has no per-datum weights (see ``weigh``).

    Cost: K passes of model and guide in one.

    References: Buy 4 REINFORCE Samples, Get a Baseline for Free! (Kool et al., 2019),
    https://openreview.net/forum?id=r1lgTGL5DE; VarGrad: A Low-Variance Gradient Estimator for Variational Inference
    (Richter et al., 2020), https://arxiv.org/abs/2010.10436
    """

    noisy = True

    def __init__(self, num_particles: int = 2, *, global_draws: int = 1, max_plate_nesting: float = math.inf) -> None:
        if num_particles < 2:
            raise ValueError(
                f"`num_particles` must be at least 2, since each particle's baseline is made of the others; got "
                f"{num_particles}. For one particle use pyro.infer.TraceGraph_ELBO"
            )
        super().__init__(num_particles, global_draws=global_draws, max_plate_nesting=max_plate_nesting)

    def per_datum(self, weights: Weights, traces: Traces) -> Float[Tensor, "*cells"]:
        bound = weights.log_weight.mean(0)
        # One more takes log q out of the bound, where its gradient has no mean and is noise.
        score = ((self._signal(weights.log_weight) + 1) * weights.log_score).mean(0)
        for own in weights.local:
            score = score + ((self._signal(own.log_weight) + 1) * own.log_score).mean(0).sum(-1)
        return bound + score - score.detach()

    @torch.no_grad()
    def _signal(self, log_weight: Float[Tensor, "particle *cells"]) -> Float[Tensor, "particle *cells"]:
        """Each log weight less the mean of the others."""
        return (log_weight - log_weight.mean(0)) * (self.num_particles / (self.num_particles - 1))
