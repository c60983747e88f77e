"""Posteriors of addresses, against enumeration in closed form."""

import json

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.testing import assert_close

from pyro_memory import StreamedCategorical, posterior_address

ITEMS = torch.tensor([[0.0, 1.0], [2.0, -1.0], [-1.5, 0.5]])
X = torch.tensor([[0.2, 0.4], [1.7, -0.2], [-1.0, 0.9], [0.1, -0.6]])
LOG_PRIOR = torch.tensor([0.5, 0.2, 0.3]).log()
COVARIANCE = 1.0 + torch.eye(2)
EXACT = (LOG_PRIOR + dist.MultivariateNormal(ITEMS, COVARIANCE).log_prob(X[:, None])).softmax(-1)


def model(x, infer=None):
    with pyro.plate("batch", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        a = pyro.sample("a", dist.Categorical(logits=LOG_PRIOR), infer=infer)
        pyro.sample("x", dist.Normal(ITEMS[a] + z[..., None], 1.0).to_event(1), obs=x)


def guide(x, infer=None):
    with pyro.plate("batch", len(x)):
        pyro.sample("z", dist.Normal(0.3 * x.sum(-1), 0.9))
        if infer is None:
            pyro.sample("a", dist.Categorical(logits=torch.zeros(len(x), 3)))


@pytest.mark.parametrize(
    ("options", "method"),
    [
        ({}, "importance weights"),
        ({"exact": True}, "enumerated"),
        ({"infer": {"enumerate": "parallel"}}, "enumerated"),
        ({"infer": {"enumerate": "parallel"}, "exact": True}, "enumerated"),
    ],
)
def test_it_is_the_exact_posterior_within_its_error(options, method):
    torch.manual_seed(0)
    found = posterior_address(model, guide, X, particles=4000, chunk_size=1000, **options)
    assert found.method == method
    assert_close(found.probs.sum(-1), torch.ones(4, dtype=torch.float64))
    assert ((found.probs - EXACT).abs() < 5 * found.se).all()
    assert (found.se < 0.02).all()
    assert f"PosteriorAddress of a: 4 data, 3 values, 4000 particles each, {method}" in repr(found)
    assert json.loads(json.dumps(found.to_dict()))["site"] == "a"
    found.plot().figure.clear()


def test_its_error_is_the_spread_of_repeated_estimates():
    torch.manual_seed(0)
    rows = [posterior_address(model, guide, X, particles=200, chunk_size=100) for _ in range(60)]
    spread = torch.stack([r.probs for r in rows]).std(0)
    told = torch.stack([r.se for r in rows]).mean(0)
    assert ((spread / told - 1).abs() < 0.5).all()  # a standard deviation of 60 is known within a tenth


def test_enumeration_alone_has_no_error():
    def alone(x):
        with pyro.plate("batch", len(x)):
            a = pyro.sample("a", dist.Categorical(logits=LOG_PRIOR), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(ITEMS[a], 1.0).to_event(1), obs=x)

    found = posterior_address(alone, lambda x: None, X, particles=1)
    assert_close(
        found.probs, (LOG_PRIOR + dist.Normal(ITEMS, 1.0).to_event(1).log_prob(X[:, None])).softmax(-1).double()
    )
    assert (found.se == 0).all()


def test_items_of_a_group_and_a_global_latent():
    def grouped(x):
        g = pyro.sample("g", dist.Normal(0.0, 1.0))
        with pyro.plate("group", 2, dim=-2):
            c = pyro.sample("c", dist.Normal(g, 1.0))
            with pyro.plate("item", 2, dim=-1):
                a = pyro.sample("a", dist.Bernoulli(0.3))
                pyro.sample("x", dist.Normal(c + 2 * a, 1.0), obs=x)

    def proposal(x):
        g = pyro.sample("g", dist.Normal(0.2, 0.9))
        with pyro.plate("group", 2, dim=-2):
            pyro.sample("c", dist.Normal(g * 0.5, 1.0).expand([2, 1]))
            with pyro.plate("item", 2, dim=-1):
                pyro.sample("a", dist.Bernoulli(0.5 * torch.ones(2, 2)))

    # given a the data are jointly normal: enumerate all 16 values
    codes = torch.tensor([[i >> k & 1 for k in range(4)] for i in range(16)]).float()
    same = torch.block_diag(torch.ones(2, 2), torch.ones(2, 2))
    joint = dist.MultivariateNormal(2 * codes, torch.ones(4, 4) + same + torch.eye(4)).log_prob(X[:2].flatten())
    weights = (joint + dist.Bernoulli(0.3).log_prob(codes).sum(-1)).softmax(0)
    exact = (weights[:, None] * codes).sum(0).reshape(2, 2)
    torch.manual_seed(0)
    found = posterior_address(grouped, proposal, X[:2], particles=300, draws=300, chunk_size=300)
    assert found.unit == "group x item"
    assert ((found.probs[..., 1] - exact).abs() < 5 * found.se[..., 1]).all()
    assert (found.se < 0.05).all()


def test_a_streamed_address_is_found_by_its_draws():
    def streamed(x):
        with pyro.plate("batch", len(x)):
            a = pyro.sample("a", dist.Categorical(logits=LOG_PRIOR))
            pyro.sample("x", dist.Normal(ITEMS[a], 1.0).to_event(1), obs=x)

    def lookup(x):
        with pyro.plate("batch", len(x)):
            pyro.sample("a", StreamedCategorical(x, ITEMS))

    torch.manual_seed(0)
    found = posterior_address(streamed, lookup, X, particles=3000, chunk_size=1000)
    exact = (LOG_PRIOR + dist.Normal(ITEMS, 1.0).to_event(1).log_prob(X[:, None])).softmax(-1)
    assert ((found.probs - exact).abs() < 5 * found.se + 1e-9).all()


def test_what_is_no_address_is_refused():
    with pytest.raises(ValueError, match="`site` must be a latent site of the model, of z, a; got 'nosuch'"):
        posterior_address(model, guide, X, site="nosuch", particles=2)
    with pytest.raises(ValueError, match="`site` must be Categorical or Bernoulli; z is Normal"):
        posterior_address(model, guide, X, site="z", particles=2)


def test_a_latent_that_all_data_share():
    x = X[:, 0]

    def shared(x):
        k = pyro.sample("k", dist.Categorical(logits=LOG_PRIOR))
        with pyro.plate("batch", len(x)):
            z = pyro.sample("z", dist.Normal(k.float(), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def proposal(x):
        pyro.sample("k", dist.Categorical(torch.ones(3)))
        with pyro.plate("batch", len(x)):
            pyro.sample("z", dist.Normal(0.5 + 0.5 * x, 0.9))

    exact = (LOG_PRIOR + dist.Normal(torch.arange(3.0), 2**0.5).log_prob(x[:, None]).sum(0)).softmax(-1)
    torch.manual_seed(0)
    found = posterior_address(shared, proposal, x, site="k", particles=200, draws=150, chunk_size=200)
    assert found.unit == "data set"
    assert found.probs.shape == (3,)
    assert ((found.probs - exact).abs() < 5 * found.se + 1e-9).all()
    assert "PosteriorAddress of k: 1 data set, 3 values" in repr(found)
