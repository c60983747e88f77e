"""Pairs that are small enough to do by hand: a table of addresses, and a chain of two normals."""

import pyro
import pyro.distributions as dist
import torch


class Table(torch.nn.Module):
    """a ~ Cat, x | a ~ N(m_a, 1) for two data: nothing but the address is random."""

    def __init__(self, slots=6, copies=1, sharpness=1.0):
        super().__init__()
        g = torch.Generator().manual_seed(2)
        self.logits = torch.nn.Parameter(sharpness * torch.randn(2, slots, generator=g, dtype=torch.float64))
        self.means = torch.nn.Parameter(2 * torch.randn(slots, generator=g, dtype=torch.float64))
        self.index = torch.arange(2).repeat(copies)
        self.x = torch.tensor([0.4, -1.3], dtype=torch.float64)
        self.bias = torch.zeros(slots, dtype=torch.float64)

    def model(self):
        with pyro.plate("batch", len(self.index)):
            a = pyro.sample("a", dist.Categorical(torch.ones_like(self.means)))
            pyro.sample("x", dist.Normal(self.means[a], 1.0), obs=self.x[self.index])

    def guide(self):
        with pyro.plate("batch", len(self.index)):
            logits = (self.logits + self.bias)[self.index]
            pyro.sample("a", dist.Categorical(logits=logits), infer={"enumerate": "parallel"})


class Chain(torch.nn.Module):
    """z1 -> z2 -> x, by hand as well; the guide's networks lie where no handler can find them."""

    def __init__(self, copies=1):
        super().__init__()
        g = torch.Generator().manual_seed(7)
        self.theta, self.phi = (torch.nn.Parameter(torch.randn(5, generator=g, dtype=torch.float64)) for _ in range(2))
        self.copies = copies
        self.x = torch.tensor(0.8, dtype=torch.float64)

    def dists(self, rows, z1=None):
        if z1 is None:
            return dist.Normal(rows[0], rows[1].exp())
        return dist.Normal(rows[2] + rows[3] * z1, rows[4].exp())

    def guide(self):
        with pyro.plate("data", self.copies):
            z1 = pyro.sample("z1", self.dists(self.phi).expand([self.copies]))
            pyro.sample("z2", self.dists(self.phi, z1))

    def model(self):
        with pyro.plate("data", self.copies):
            z1 = pyro.sample("z1", self.dists(self.theta).expand([self.copies]))
            z2 = pyro.sample("z2", self.dists(self.theta, z1))
            pyro.sample("x", dist.Normal(z2 + z1, 1.0), obs=self.x.expand(self.copies))

    def log_weight(self, z1, z2, phi):
        log_p = self.dists(self.theta).log_prob(z1) + self.dists(self.theta, z1).log_prob(z2)
        log_p = log_p + dist.Normal(z2 + z1, 1.0).log_prob(self.x)
        return log_p - self.dists(phi).log_prob(z1) - self.dists(phi, z1).log_prob(z2)
