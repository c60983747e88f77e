"""A user's program: items in groups, a memory a group, and a noise that all of them share."""

import math

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
    to_arviz,
)  # fmt: skip

GROUPS, ITEMS, SLOTS = 40, 6, 4


class Groups(PyroModule):
    """Each item is an entry of its group's memory, moved by the group's shift and by noise."""

    def forward(self, x, memory):
        noise = pyro.sample("noise", dist.LogNormal(torch.zeros(()), 1.0))
        with pyro.plate("group", len(x), dim=-2):
            shift = pyro.sample("shift", dist.Normal(torch.zeros(()), 1.0))
            with pyro.plate("item", x.shape[1], dim=-1):
                a = pyro.sample("a", memory.prior())
                pyro.sample("x", dist.Normal(memory[a] + shift, noise), obs=x)


class GroupsGuide(PyroModule):
    def __init__(self):
        super().__init__("groups_guide")
        self.loc = nn.Parameter(torch.zeros(()))
        self.width = PyroParam(torch.tensor(0.05), dist.constraints.positive)
        self.near = ContentAddress(nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 8)))
        self.rest = nn.Linear(1, 1)
        self.doubt = PyroParam(torch.tensor(0.5), dist.constraints.positive)

    def address(self, x, memory):
        return self.near(x.unsqueeze(-1), SlotMemory(memory.values.unsqueeze(-1), batch_dim=-2))

    def forward(self, x, memory):
        pyro.sample("noise", dist.LogNormal(self.loc, self.width))
        rest = x - memory.blend(self.address(x, memory).probs)
        with pyro.plate("group", len(x), dim=-2):
            shift = pyro.sample("shift", dist.Normal(self.rest(rest.mean(-1, keepdim=True)), self.doubt))
            with pyro.plate("item", x.shape[1], dim=-1):
                pyro.sample("a", self.address(x - shift, memory))


@pytest.fixture(scope="module")
def program():
    torch.manual_seed(0)
    pyro.clear_param_store()
    memory = SlotMemory(2 * torch.randn(GROUPS, SLOTS), batch_dim=-2)
    x = memory[torch.randint(SLOTS, (GROUPS, ITEMS))] + torch.randn(GROUPS, 1) + 0.7 * torch.randn(GROUPS, ITEMS)
    model, guide = Groups("groups"), GroupsGuide()
    fit(model, guide, [(x, memory)], VIMCO(8), steps=150, learning_rate=4e-2, information_every=None, progress=False)
    return model, guide, x, memory


def log_evidence(x, memory):
    """Sums over addresses, on a grid of shifts and noises."""
    noise = torch.linspace(-2.5, 1.0, 141).double()  # its logarithm
    shift = torch.linspace(-5, 5, 401).double()
    apart = x.double().unsqueeze(-1) - memory.values.double().unsqueeze(1)
    rows = []
    for log_scale in noise:
        density = dist.Normal(apart, log_scale.exp())
        each = density.log_prob(shift.reshape(-1, 1, 1, 1)).logsumexp(-1) - math.log(SLOTS)
        group = each.sum(-1) + dist.Normal(0.0, 1.0).log_prob(shift).unsqueeze(-1)
        rows.append((group.logsumexp(0) + math.log(shift[1] - shift[0])).sum())
    total = torch.stack(rows) + dist.Normal(0.0, 1.0).log_prob(noise)
    return (total.logsumexp(0) + math.log(noise[1] - noise[0])).item()


def test_the_bound_of_the_data_set_reaches_the_integral_over_noise_and_shifts(program):
    model, guide, x, memory = program
    evidence = log_evidence(x, memory)
    bound = importance_bound(model, guide, x, memory, particles=100, draws=40, exact=["a"], chunk_size=100)
    assert (bound.unit, bound.given_globals.unit, len(bound.given_globals.bound)) == ("data set", "group", GROUPS)
    assert "a data set of 40 groups" in repr(bound)
    assert abs(bound.mean - evidence) < 5 * bound.monte_carlo_se
    assert bound.monte_carlo_se < 0.3
    assert importance_bound(model, guide, x, memory, particles=1, draws=1).mean < evidence
    assert to_arviz(bound)["bound"]["bound"].item() == bound.mean


def test_the_noise_is_told_a_data_set_the_shift_a_group_and_the_address_an_item(program):
    gain = information_gain(*program)
    assert {name: site.unit for name, site in gain.sites.items()} == {
        "noise": "data set", "shift": "group", "a": "datum",
    }  # fmt: skip
    assert gain["noise"].mean > 0
    assert gain["shift"].mean > 5 * gain["shift"].se > 0
    assert gain["a"].mean > 5 * gain["a"].se > 0
    assert gain.joint.unit == "data set"
    assert to_arviz(gain)["information_group"]["kl_shift"].sizes == {"chain": 1, "draw": GROUPS}


def test_a_group_loses_by_the_memory_of_another(program):
    worth = memory_contribution(*program, particles=100, draws=5)
    lost, se = worth.gain("shuffled")
    assert lost > 5 * se > 0
    assert len(worth.differences("shuffled")) == GROUPS
    assert "nats per group, given the global latents" in repr(worth)
    assert list(to_arviz(worth)["bound"]["memory"].values) == ["given", "shuffled"]
