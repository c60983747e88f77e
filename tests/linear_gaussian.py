"""Probabilistic PCA with orthogonal directions: posterior, evidence, rate and distortion in closed form.

z ~ N(0, I), x ~ N(W z, s^2 I). A guide N(shrink m(x) + shift, (widen^2) v) is exact at shrink = widen = 1, shift = 0.
"""

import math
from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch

S = 0.6
WEIGHTS = torch.zeros(4, 3, dtype=torch.float64)
WEIGHTS[0, 0], WEIGHTS[1:3, 1] = 1.5, torch.tensor([0.5, -0.5], dtype=torch.float64)  # the third says nothing
SQUARES = WEIGHTS.square().sum(0)


def model(x):
    with pyro.plate("batch", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(3).double(), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z @ WEIGHTS.T, S).to_event(1), obs=x)


def data(n):
    return torch.randn(n, 3).double() @ WEIGHTS.T + S * torch.randn(n, 4).double()


@dataclass(frozen=True)
class Guide:
    """The exact posterior, or one that is off."""

    shrink: float = 1.0
    shift: float = 0.0
    widen: float = 1.0

    @property
    def variance(self):
        return self.widen**2 * S**2 / (SQUARES + S**2)

    def loc(self, x):
        return self.shrink * x @ WEIGHTS / (SQUARES + S**2) + self.shift

    def z_dist(self, x):
        return dist.Normal(self.loc(x), self.variance.sqrt()).to_event(1)

    def __call__(self, x):
        with pyro.plate("batch", len(x)):
            pyro.sample("z", self.z_dist(x))

    def kl(self, x):
        """By datum and dimension."""
        return 0.5 * (self.variance + self.loc(x).square() - 1 - self.variance.log())

    def distortion(self, x):
        """By datum."""
        error = (x - self.loc(x) @ WEIGHTS.T).square().sum(-1) + (SQUARES * self.variance).sum()
        return error / (2 * S**2) + 2 * math.log(2 * math.pi * S**2)

    @property
    def aggregate(self):
        """Variance, by dimension, of q(z) over all x that the model makes; its mean is the shift."""
        return self.shrink**2 * SQUARES / (SQUARES + S**2) + self.variance

    def mutual_information(self):
        return 0.5 * (self.aggregate / self.variance).log().sum().item()

    def marginal_kl(self):
        return 0.5 * (self.aggregate + self.shift**2 - 1 - self.aggregate.log()).sum().item()


EXACT, OFF = Guide(), Guide(shrink=0.6, shift=0.3, widen=1.4)


def evidence(x):
    """log p(x), by datum."""
    covariance = WEIGHTS @ WEIGHTS.T + S**2 * torch.eye(4).double()
    return dist.MultivariateNormal(torch.zeros(4).double(), covariance).log_prob(x)
