"""A small pair, batches for it, and a call of ``fit`` that tests share."""

import random

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import Trace_ELBO
from pyro.nn import PyroModule, PyroParam
from torch import nn

from pyro_memory.naming import unique_name
from pyro_memory.training import fit


class Model(PyroModule):
    """x ~ N(W z, 1), z ~ N(0, 1)."""

    def __init__(self, net=None, name=None):
        super().__init__(name or unique_name(self))
        self.net = net or nn.Linear(2, 3)
        self.scale = PyroParam(torch.tensor(1.0), dist.constraints.positive)

    def forward(self, x):
        with pyro.plate("batch", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.net(z), self.scale).to_event(1), obs=x)


class Guide(PyroModule):
    def __init__(self, net=None, name=None):
        super().__init__(name or unique_name(self))
        self.net = net or nn.Linear(3, 2)
        self.width = PyroParam(torch.tensor(0.5), dist.constraints.positive)

    def forward(self, x):
        with pyro.plate("batch", len(x)):
            pyro.sample("z", dist.Normal(self.net(x), self.width).to_event(1))


class Noisy:
    """Batches that draw from every global random stream."""

    def __getitem__(self, step):
        noise = random.random() + np.random.random()  # noqa: NPY002
        return (torch.randn(4, 3) + noise + step / 100,)


class Plain:
    def __getitem__(self, step):
        return (torch.randn(4, 3, generator=torch.Generator().manual_seed(step)) + 1.0,)


def pair(seed=0):
    torch.manual_seed(seed)
    return Model(), Guide()


def run(model, guide, *, steps=20, batches=None, objective=None, **options):
    options = {"progress": False, "information_every": None, "learning_rate": 0.05, "seed": 1} | options
    return fit(model, guide, batches or Plain(), objective or Trace_ELBO(), steps=steps, **options)


def iter_only(batches):
    return dict(enumerate(batches)).values()


def by_step(batches):
    return lambda step: batches[step % 3]


def weights(*modules):
    return [p.detach().clone() for m in modules for p in m.state_dict().values()]


def assert_same(left, right):
    torch.testing.assert_close(left, right, rtol=0, atol=0)
