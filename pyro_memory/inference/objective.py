"""What the objectives of this package have in common."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from pyro.infer.util import is_validation_enabled
from pyro.poutine import Trace
from pyro.util import warn_if_nan
from torch import Tensor

from pyro_memory.gate import checked
from pyro_memory.inference.particles import OneDraw, Particles
from pyro_memory.inference.weights import Weights, weigh
from pyro_memory.naming import call_of

Traces = Sequence[tuple[Trace, Trace]]


@checked
class Objective(Particles):
    r"""A Pyro objective that is a bound for each datum, and for a data set with global latents g

    .. math::
        L = E_{g \sim q} \left[ \log \frac{p(g)}{q(g)} + \sum_n s_n L_n(g) \right] \le \log p(X)

    with L_n the bound of datum n given g, whose particles share g, and s_n what a datum of a subsample counts for.
    Global sites that can be reparameterised get pathwise gradients, the others the score function.

    Args:
        global_draws: how many g a step draws; the score function of each has the mean of the others as its baseline,
            and with one none.
    """

    noisy = False  # whether factors marked as noisy may take part

    def __init__(
        self,
        num_particles: int = 1,
        *,
        global_draws: int = 1,
        max_plate_nesting: float = math.inf,
        vectorize_particles: bool = True,
    ) -> None:
        if global_draws < 1:
            raise ValueError(f"`global_draws` must be at least 1; got {global_draws}")
        self.global_draws = global_draws
        super().__init__(num_particles, max_plate_nesting=max_plate_nesting, vectorize_particles=vectorize_particles)

    __repr__ = call_of

    @abstractmethod
    def per_datum(self, weights: Weights, traces: Traces) -> Float[Tensor, "*cells"]:
        """Gives a tensor whose value is each datum's bound and whose gradient estimates that bound's gradient."""

    def weights(self, traces: Traces) -> Weights:
        """The weights of a pass, or of one a particle."""
        return Weights.cat([weigh(*pair, noisy=self.noisy) for pair in traces])

    def differentiable_loss(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> Tensor:
        """Estimates the negative bound by a tensor whose gradient estimates the bound's gradient."""
        rounds = [self._given_globals(model, guide, args, kwargs)]
        weights, bound = rounds[0]
        if weights.shared is None:
            return -(weights.scale * bound).sum()
        if self.global_sites:
            rounds += [self._given_globals(model, guide, args, kwargs) for _ in range(self.global_draws - 1)]
        shared = [weights.shared for weights, _ in rounds]
        bounds = [s.scale * s.log_weight + (w.scale * b).sum() for s, (w, b) in zip(shared, rounds, strict=True)]
        bound, scores = torch.stack(bounds), torch.stack([s.log_score for s in shared])
        signal = bound.detach()
        if len(rounds) > 1:
            signal = (signal - signal.mean()) * len(rounds) / (len(rounds) - 1)
        return -(bound + signal * (scores - scores.detach())).mean()

    def _given_globals(self, model: Callable, guide: Callable, args: tuple, kwargs: dict) -> tuple[Weights, Tensor]:
        self.look(model, guide, args, kwargs)
        traces = list(self.traces(model, guide, args, kwargs, draw=OneDraw(self.global_sites)))
        weights = self.weights(traces)
        return weights, self.per_datum(weights, traces)

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
