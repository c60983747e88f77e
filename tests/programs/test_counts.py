"""A user's program: counts after one of twenty templates that the model owns, its address summed in the model."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import TraceEnum_ELBO
from pyro.nn import PyroModule

from pyro_memory import (
    SlotMemory,
    TemplateMemory,
    fit,
    importance_bound,
    information_gain,
    memory_contribution,
    posterior_address,
    to_arviz,
)  # fmt: skip
from pyro_memory.guides import EmptyGuide

WORDS, TEMPLATES = 30, 20


class Counts(PyroModule):
    """Each row of counts follows the word probabilities of one template."""

    def __init__(self):
        super().__init__("counts")
        self.templates = TemplateMemory(TEMPLATES, [WORDS])

    def forward(self, x, memory=None):
        memory = self.templates() if memory is None else memory
        with pyro.plate("batch", len(x)):
            a = pyro.sample("a", memory.prior(), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Poisson(memory[a].exp()).to_event(1), obs=x)


@pytest.fixture(scope="module")
def program():
    torch.manual_seed(0)
    pyro.clear_param_store()
    rates = torch.distributions.Gamma(0.5, 0.5).sample((TEMPLATES, WORDS)) + 0.05
    x = torch.poisson(rates[torch.randint(TEMPLATES, (400,))])
    model, guide = Counts(), EmptyGuide()
    result = fit(
        model, guide, [(x[i::4],) for i in range(4)], TraceEnum_ELBO(max_plate_nesting=1), steps=120,
        learning_rate=0.1, progress=False,
    )  # fmt: skip
    return model, guide, x[:100], result


def joint(model, x):
    """log p(x, a), summed by hand."""
    rates = model.templates().values.detach().exp()
    return dist.Poisson(rates).to_event(1).log_prob(x.unsqueeze(1)) - math.log(TEMPLATES)


def test_the_bound_is_the_evidence_and_the_posterior_is_exact(program):
    model, guide, x, _ = program
    bound = importance_bound(model, guide, x, particles=1)
    torch.testing.assert_close(bound.bound, joint(model, x).logsumexp(-1).double(), rtol=1e-5, atol=1e-4)
    assert "nats/datum" in repr(bound)
    found = posterior_address(model, guide, x, particles=1)
    torch.testing.assert_close(found.probs, joint(model, x).double().softmax(-1), rtol=1e-4, atol=1e-5)
    assert found.method == "enumerated"
    assert float(found.se.max()) == 0


def test_what_an_enumerated_lookup_carries_is_the_kl_of_its_posterior(program):
    model, guide, x, _ = program
    gain = information_gain(model, guide, x)
    posterior = joint(model, x).log_softmax(-1)
    kl = (posterior.exp() * (posterior + math.log(TEMPLATES))).sum(-1)
    torch.testing.assert_close(gain["a"].kl, kl, rtol=1e-4, atol=1e-4)
    assert gain["a"].mean > 2
    assert to_arviz(gain)["information"]["kl_a"].sizes == {"chain": 1, "draw": 100}


def test_the_order_of_templates_is_worth_nothing_and_their_contents_are(program):
    model, guide, x, _ = program
    own = model.templates().values.detach()
    others = {"another order": SlotMemory(own.flip(0)), "another word order": SlotMemory(own.roll(1, 1))}
    worth = memory_contribution(model, guide, x, memory="memory", alternatives=others, particles=1)
    torch.testing.assert_close(worth.differences("another order"), torch.zeros(100).double(), rtol=0, atol=1e-4)
    lost, se = worth.gain("another word order")
    assert lost > 5 * se > 0
    found = memory_contribution(model, guide, x, alternatives=others, particles=1)
    assert repr(found) == repr(worth)
    assert list(to_arviz(worth)["bound"]["memory"].values) == ["given", *others]
