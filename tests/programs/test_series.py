"""A user's program: ragged series read by a memory that learns at test time, with a Bayesian read-out."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule, PyroSample
from torch import nn

from pyro_memory import VIMCO, fit, importance_bound, information_gain, memory_contribution, to_arviz
from pyro_memory.models import NeuralMemory

SERIES, PAST, DIM = 100, 6, 4


class Series(PyroModule):
    """Each value given those before it, and what a memory holds of the past."""

    def __init__(self):
        super().__init__("series")
        self.embed = nn.Linear(2, DIM)
        self.memory = NeuralMemory(DIM, heads=1, chunk_size=8)
        self.readout = PyroModule[nn.Linear](DIM + 1, 1)
        self.readout.weight = PyroSample(dist.Normal(torch.zeros(1, DIM + 1), 1.0).to_event(2))
        self.readout.bias = PyroSample(dist.Normal(torch.zeros(1), 1.0).to_event(1))

    def read(self, x, state=None, lengths=None):
        known = torch.stack([x, torch.ones_like(x)], -1)
        return self.memory(self.embed(known), state, lengths)

    def features(self, x, lengths, state):
        before = torch.nn.functional.pad(x, (1, 0))[:, :-1]
        return torch.cat([self.read(before, state, lengths)[0], before.unsqueeze(-1)], -1)

    def forward(self, x, lengths, state=None):
        mean = self.readout(self.features(x, lengths, state)).squeeze(-1)
        there = torch.arange(x.shape[1]) < lengths.unsqueeze(-1)
        with pyro.plate("batch", len(x)):
            pyro.sample("x", dist.Normal(mean, 0.5).mask(there).to_event(1), obs=x)


@pytest.fixture(scope="module")
def program():
    torch.manual_seed(0)
    pyro.clear_param_store()
    level = torch.randn(SERIES, 1)
    x = level + 0.3 * torch.randn(SERIES, PAST + 8)
    lengths = torch.randint(2, 9, (SERIES,))
    model = Series()
    guide = AutoNormal(model, init_scale=0.05)

    def batch(step):
        return x[:, PAST:], lengths, model.read(x[:, :PAST])[1]

    fit(model, guide, batch, VIMCO(2), steps=40, learning_rate=5e-2, information_every=None, progress=False)
    x, lengths, state = batch(0)
    return model, guide, x, lengths, state.detach()


def log_evidence(model, x, lengths, state):
    """Given the features, this is linear regression with a normal prior over its weights."""
    with torch.no_grad():
        features = model.features(x, lengths, state)
    there = torch.arange(x.shape[1]) < lengths.unsqueeze(-1)
    rows = torch.nn.functional.pad(features, (0, 1), value=1.0)[there].double()
    covariance = rows @ rows.T + 0.25 * torch.eye(len(rows)).double()
    return dist.MultivariateNormal(torch.zeros(len(rows)).double(), covariance).log_prob(x[there].double()).item()


def test_the_bound_of_the_series_lies_below_their_evidence_in_closed_form(program):
    model, guide, *given = program
    evidence = log_evidence(model, *given)
    bound = importance_bound(model, guide, *given, particles=1, draws=50)
    assert bound.unit == "data set"
    assert bound.mean < evidence + 5 * bound.monte_carlo_se
    assert bound.mean > evidence - 20
    assert "a data set of 100 data, 50 draws of the global latents" in repr(bound)


def test_the_weights_are_told_a_data_set_and_the_written_state_is_worth_something_a_series(program):
    model, guide, *given = program
    gain = information_gain(model, guide, *given)
    assert {site.unit for site in gain.sites.values()} == {"data set"}
    assert gain["series.readout.weight"].mean > 5
    state = given[2]
    others = {"nothing read": None, "another series": state.map(lambda t: t.roll(1, 0))}
    options = {"memory": "state", "alternatives": others, "particles": 1, "draws": 10}
    worth = memory_contribution(model, guide, *given, **options)
    for name in others:
        lost, se = worth.gain(name)
        assert lost > 5 * se > 0
    assert "nats per datum, given the global latents" in repr(worth)
    assert len(worth.differences("nothing read")) == SERIES
    assert to_arviz(worth)["bound"].sizes["memory"] == 3
    with pytest.raises(ValueError, match="`memory` must say which argument it is"):
        memory_contribution(model, guide, *given, alternatives=others)
