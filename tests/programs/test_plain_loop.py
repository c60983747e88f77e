"""A user's program: a loop in plain torch, an optimizer of torch, nothing of the package's training."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule
from torch import nn

from pyro_memory import (
    VIMCO,
    ContentAddress,
    LeaveOneOutELBO,
    RaoBlackwellELBO,
    SlotMemory,
    importance_bound,
    information_gain,
    memory_contribution,
    to_arviz,
)  # fmt: skip

MEMORY = SlotMemory(torch.eye(6) * 2)


class Bumps(PyroModule):
    def forward(self, x, memory):
        with pyro.plate("batch", len(x)):
            a = pyro.sample("a", memory.prior())
            size = pyro.sample("size", dist.Normal(1.0, 0.5))
            pyro.sample("x", dist.Normal(size.unsqueeze(-1) * memory[a], 0.5).to_event(1), obs=x)


class BumpsGuide(PyroModule):
    def __init__(self):
        super().__init__("bumps_guide")
        self.address = ContentAddress(nn.Linear(6, 6))
        self.size = nn.Linear(1, 2)

    def forward(self, x, memory):
        with pyro.plate("batch", len(x)):
            a = pyro.sample("a", self.address(x, memory))
            loc, scale = self.size((x * memory[a]).sum(-1, keepdim=True)).unbind(-1)
            pyro.sample("size", dist.Normal(loc, scale.exp()))


def data():
    torch.manual_seed(0)
    size = 1 + 0.5 * torch.randn(200, 1)
    return size * MEMORY[torch.randint(6, (200,))] + 0.5 * torch.randn(200, 6)


def log_evidence(x):
    """Given its address a datum is normal: the size adds a direction of covariance."""
    m = MEMORY.values
    covariance = 0.25 * torch.eye(6) + 0.25 * m.unsqueeze(-1) * m.unsqueeze(-2)
    return dist.MultivariateNormal(m, covariance).log_prob(x.unsqueeze(1)).logsumexp(-1) - torch.tensor(6.0).log()


def trained(objective, as_module=False, steps=80):
    x, model, guide = data(), Bumps("bumps"), BumpsGuide()
    pyro.clear_param_store()
    loss_of = objective(model, guide) if as_module else None
    parameters = loss_of.parameters() if as_module else guide.parameters()
    optimizer = torch.optim.Adam(parameters, lr=4e-2)
    torch.manual_seed(1)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = loss_of(x, MEMORY) if as_module else objective.differentiable_loss(model, guide, x, MEMORY)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return model, guide, x, losses


OBJECTIVES = [VIMCO(4), LeaveOneOutELBO(4), RaoBlackwellELBO()]


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda o: type(o).__name__)
def test_a_plain_loop_trains_and_what_it_trained_is_measured(objective):
    model, guide, x, losses = trained(objective)
    evidence = log_evidence(x).mean().item()
    assert losses[-1] / 200 < losses[0] / 200 - 1
    bound = importance_bound(model, guide, x, MEMORY, particles=100)
    assert evidence - 0.2 < bound.mean < evidence + 5 * bound.monte_carlo_se
    gain = information_gain(model, guide, x, MEMORY)
    assert gain["a"].mean > 5 * gain["a"].se > 0
    assert "nats/lookup" in repr(gain)
    wrong = {"half the size": SlotMemory(MEMORY.values / 2)}
    worth = memory_contribution(model, guide, x, MEMORY, alternatives=wrong, particles=100)
    lost, se = worth.gain("half the size")
    assert lost > 5 * se > 0
    assert to_arviz(worth)["bound"]["lost"].mean().item() == pytest.approx(lost)


def test_called_as_a_module_it_is_the_same_loop():
    losses = [trained(VIMCO(4), as_module, steps=10)[3] for as_module in (False, True)]
    assert losses[0] == losses[1]
