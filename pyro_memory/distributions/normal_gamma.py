"""Normal-Gamma distributions over mean and precision, dimensions independent: what a concept is made of."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class NormalGamma(NamedTuple):
    r"""``mu | tau ~ N(loc, 1 / (kappa tau)), tau ~ Gamma(alpha, beta)``; a row a distribution.

    An exponential family with natural parameters ``kappa``, ``kappa loc``, ``2 alpha``, ``2 beta + kappa loc^2``:
    observations add to them.
    """

    loc: Float[Tensor, "*row dim"]
    kappa: Float[Tensor, "*row dim"]
    alpha: Float[Tensor, "*row dim"]
    beta: Float[Tensor, "*row dim"]

    def observed(self, e: Tensor, variance: Tensor, weight: Tensor | float = 1.0) -> NormalGamma:
        """After an observation known as N(e, variance), by its expected statistics, counted ``weight`` times."""
        kappa = self.kappa + weight
        loc = (self.kappa * self.loc + weight * e) / kappa
        beta = self.beta + 0.5 * weight * (variance + self.kappa * (e - self.loc).square() / kappa)
        return NormalGamma(loc, kappa, self.alpha + weight / 2, beta)

    def natural(self) -> Float[Tensor, "4 *row dim"]:
        """The natural parameters, in double precision: what is added and taken away."""
        loc, kappa, alpha, beta = (t.double() for t in self)
        return torch.stack([kappa, kappa * loc, 2 * alpha, 2 * beta + kappa * loc.square()])

    @staticmethod
    def of_natural(natural: Float[Tensor, "4 *row dim"]) -> NormalGamma:
        """The distribution with these natural parameters."""
        kappa, moment, twice_alpha, second = natural
        return NormalGamma(moment / kappa, kappa, twice_alpha / 2, (second - moment.square() / kappa) / 2)

    def log_normalizer(self) -> Float[Tensor, "*row"]:
        """The logarithm of the integral of the unnormalised density, without the constants that evidence cancels.

        With n observations more, its rise less ``n dim log(2 pi) / 2`` is their log-evidence, nats.
        """
        _, kappa, alpha, beta = (t.double() for t in self)
        return (torch.lgamma(alpha) - alpha * beta.log() - 0.5 * kappa.log()).sum(-1)

    def mixed(self, updated: NormalGamma, q: Float[Tensor, "*row one"]) -> NormalGamma:
        """Projects ``q updated + (1 - q) self`` on the family. Certainty, q = 0 or 1, needs no projection."""
        moments = [torch.lerp(old, new, q.double()) for old, new in zip(self._means(), updated._means(), strict=True)]
        kept = [torch.where(q == 0, old, p.to(old.dtype)) for old, p in zip(self, _projected(*moments), strict=True)]
        return NormalGamma(*(torch.where(q == 1, new, k) for new, k in zip(updated, kept, strict=True)))

    def mean(self, weights: Float[Tensor, " row"]) -> NormalGamma:
        """Projects the mixture of the rows on the family."""
        return _projected(*(torch.tensordot(weights.double(), moment, 1) for moment in self._means()))

    def _means(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """E[tau], E[log tau], E[tau mu], E[tau mu^2], in double precision: projection takes their differences."""
        loc, kappa, alpha, beta = (t.double() for t in self)
        tau = alpha / beta
        return tau, alpha.digamma() - beta.log(), tau * loc, 1 / kappa + tau * loc.square()


def _projected(tau: Tensor, log_tau: Tensor, tau_mu: Tensor, tau_mu2: Tensor) -> NormalGamma:
    """The Normal-Gamma of these E[tau], E[log tau], E[tau mu] and E[tau mu^2].

    References: Expectation propagation for approximate Bayesian inference (Minka, 2001),
    https://arxiv.org/abs/1301.2294
    """
    loc = tau_mu / tau
    alpha = _gamma_shape((tau.log() - log_tau).clamp(min=1e-12))
    return NormalGamma(loc, 1 / (tau_mu2 - loc * tau_mu), alpha, alpha / tau)


def _gamma_shape(c: Tensor) -> Tensor:
    """Solves ``log(a) - digamma(a) = c`` for a > 0, by Newton steps on 1 / a from Minka's approximation."""
    a = (3 - c + ((c - 3).square() + 24 * c).sqrt()) / (12 * c)
    for _ in range(6):
        slope = a.square() * (1 / a - torch.polygamma(1, a))
        a = 1 / (1 / a + (a.log() - a.digamma() - c) / slope)
    return a
