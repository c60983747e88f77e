"""A mixture that is small enough to enumerate, and mean gradients of objectives on it."""

import itertools
import math

import numpy as np
import pyro
import pyro.distributions as dist
import torch

SLOTS, DATA = 3, 2


class Mixture(torch.nn.Module):
    """a ~ Cat, z | a ~ N(m_a, 1), x | z, a ~ N(z + shift_a, 0.7); the guide has free parameters per datum.

    The plate holds ``copies`` of the data, each with draws of its own: many estimates in one pass.
    """

    def __init__(self, copies=1):
        super().__init__()
        generator = torch.Generator().manual_seed(3)

        def draw(*shape):
            return torch.nn.Parameter(torch.randn(*shape, generator=generator, dtype=torch.float64))

        self.means, self.shift = draw(SLOTS), draw(SLOTS)
        self.logits, self.loc = draw(DATA, SLOTS), draw(DATA, SLOTS)
        self.copies = copies
        self.index = torch.arange(DATA).repeat(copies)
        self.x = torch.tensor([0.4, -1.3], dtype=torch.float64)
        self.noise = torch.tensor(0.7, dtype=torch.float64)

    def model(self):
        with pyro.plate("batch", len(self.index)):
            a = pyro.sample("a", dist.Categorical(logits=torch.zeros(SLOTS, dtype=torch.float64)))
            z = pyro.sample("z", dist.Normal(self.means[a], torch.ones_like(self.noise)))
            pyro.sample("x", dist.Normal(z + self.shift[a], self.noise), obs=self.x[self.index])

    def guide(self):
        with pyro.plate("batch", len(self.index)):
            a = pyro.sample("a", dist.Categorical(logits=self.logits[self.index]))
            pyro.sample("z", dist.Normal(self.loc[self.index, a], self.noise))

    def log_weight(self, a, eps):
        """log w for addresses and standard normal draws that broadcast against the data."""
        index = torch.arange(DATA)
        loc = self.loc[index, a]
        z = loc + self.noise * eps
        log_p = -math.log(SLOTS) + dist.Normal(self.means[a], 1.0).log_prob(z)
        log_p = log_p + dist.Normal(z + self.shift[a], self.noise).log_prob(self.x)
        log_q = self.logits.log_softmax(-1)[index, a] + dist.Normal(loc, self.noise).log_prob(z)
        return log_p - log_q

    def exact_bound(self, particles, nodes=12):
        """E log mean_k w_k: every tuple of addresses, Gauss-Hermite quadrature over the normals."""
        points, mass = np.polynomial.hermite_e.hermegauss(nodes)
        points, mass = torch.tensor(points), torch.tensor(mass / mass.sum())
        grid = torch.cartesian_prod(*[points] * particles).reshape(-1, particles)
        weight = torch.cartesian_prod(*[mass] * particles).reshape(-1, particles).prod(-1)
        log_q = self.logits.log_softmax(-1)
        total = 0.0
        for addresses in itertools.product(range(SLOTS), repeat=particles):
            log_w = [
                self.log_weight(torch.full((DATA,), a), grid[:, k : k + 1].expand(-1, DATA))
                for k, a in enumerate(addresses)
            ]
            bound = torch.stack(log_w).logsumexp(0) - math.log(particles)
            chance = sum(log_q[:, a] for a in addresses).exp()
            total = total + (chance * (weight[:, None] * bound).sum(0)).sum()
        return total

    def log_evidence(self):
        scale = torch.sqrt(1 + self.noise**2)
        return (dist.Normal(self.means + self.shift, scale).log_prob(self.x[:, None]).logsumexp(-1)).sum() - DATA * (
            math.log(SLOTS)
        )


def gradients(module):
    return torch.cat([p.grad.reshape(-1).clone() for p in module.parameters()])


def mean_gradient(objective, calls=30, copies=300):
    """Mean and standard error of the gradient over calls, each the mean over copies of the data."""
    toy, rows = Mixture(copies), []
    for _ in range(calls):
        toy.zero_grad()
        objective.loss_and_grads(toy.model, toy.guide)
        rows.append(gradients(toy) / copies)
    rows = torch.stack(rows)
    return rows.mean(0), rows.std(0) / math.sqrt(calls)
