"""A user's program: regression on the item that a lookup finds, called as ``(x, y, memory)``."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule, PyroParam
from torch import nn

from pyro_memory import (
    VIMCO,
    ContentAddress,
    SlotMemory,
    fit,
    importance_bound,
    information_gain,
    memory_contribution,
    posterior_address,
    to_arviz,
)  # fmt: skip


class Retrieval(PyroModule):
    """y is the output of an item whose input is near x, and what x adds to it."""

    def __init__(self):
        super().__init__("retrieval")
        self.near = ContentAddress(nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 8)))
        self.slope = nn.Linear(2, 1)
        self.noise = PyroParam(torch.tensor(0.5), dist.constraints.positive)

    def y_dist(self, a, x, memory):
        step = x - memory.gather(memory.keys, a)
        return dist.Normal((memory[a] + self.slope(step)).squeeze(-1), self.noise)

    def forward(self, x, y, memory):
        with pyro.plate("batch", len(x)):
            a = pyro.sample("a", self.near(x, memory))
            pyro.sample("y", self.y_dist(a, x, memory), obs=y)


class RetrievalGuide(PyroModule):
    def __init__(self):
        super().__init__("retrieval_guide")
        self.near = ContentAddress(nn.Sequential(nn.Linear(3, 64), nn.Tanh(), nn.Linear(64, 16)))

    def forward(self, x, y, memory):
        pairs = SlotMemory(memory.values, torch.cat([memory.keys, memory.values], -1))
        with pyro.plate("batch", len(x)):
            pyro.sample("a", self.near(torch.cat([x, y.unsqueeze(-1)], -1), pairs))


class Batches:
    """Each step has outputs of its own: what can be learned is to look them up."""

    def __getitem__(self, step):
        keys, values = torch.rand(12, 2) * 2 - 1, 2 * torch.randn(12, 1)
        item = torch.randint(12, (128,))
        step = 0.1 * torch.randn(128, 2)
        y = values[item, 0] + step @ torch.tensor([1.0, -2.0]) + 0.3 * torch.randn(128)
        return keys[item] + step, y, SlotMemory(values, keys)


@pytest.fixture(scope="module")
def program():
    torch.manual_seed(0)
    pyro.clear_param_store()
    model, guide = Retrieval(), RetrievalGuide()
    fit(model, guide, Batches(), VIMCO(4), steps=250, learning_rate=1e-2, information_every=None, progress=False)
    return model, guide, *Batches()[0]


def test_the_bound_lies_just_below_the_evidence_and_is_it_where_addresses_are_summed(program):
    model, guide, x, y, memory = program
    with torch.no_grad():
        each = model.y_dist(torch.arange(12).unsqueeze(-1), x, memory).log_prob(y)
        evidence = (model.near(x, memory).logits + each.T).logsumexp(-1)
        answer = (model.near(x, memory).logits + each.T).softmax(-1)
    bound = importance_bound(model, guide, x, y, memory, particles=200)
    assert bound.unit == "datum"
    assert bound.mean < evidence.mean() + 5 * bound.monte_carlo_se
    assert bound.mean > evidence.mean() - 0.1
    exact = importance_bound(model, guide, x, y, memory, particles=1, exact=["a"])
    torch.testing.assert_close(exact.bound, evidence.double(), rtol=1e-4, atol=1e-4)
    found = posterior_address(model, guide, x, y, memory, exact=True, particles=1)
    torch.testing.assert_close(found.probs, answer.double(), rtol=1e-3, atol=1e-4)


def test_the_lookup_and_the_memory_are_worth_something_however_the_memory_is_named(program):
    model, guide, *given = program
    gain = information_gain(model, guide, *given)
    assert gain["a"].mean > 5 * gain["a"].se > 0
    memory = given[2]
    other = {"others' outputs": SlotMemory(memory.values.roll(1, 0), memory.keys)}
    records = []
    for which in (None, "memory", 2, -1):
        torch.manual_seed(1)
        options = {"particles": 50, "alternatives": other, "memory": which}
        records.append(memory_contribution(model, guide, *given, **options))
    lost, se = records[0].gain("others' outputs")
    assert lost > 5 * se > 0
    assert len({repr(r) for r in records}) == 1
    assert "nats per datum" in repr(records[0])
    assert to_arviz(records[0])["bound"]["lost"].mean().item() == pytest.approx(lost)
    assert to_arviz(gain)["information"]["kl_a"].sizes == {"chain": 1, "draw": 128}
