import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.testing import assert_close

from pyro_memory import complete

PROBS = torch.tensor([[0.9, 0.8, 0.3], [0.2, 0.1, 0.6]])  # of three pixels, given the slot
PRIOR = torch.tensor([0.3, 0.7])


def model(x):
    with pyro.plate("batch", len(x)):
        a = pyro.sample("a", dist.Categorical(PRIOR))
        pyro.sample("x", dist.Bernoulli(PROBS[a]).to_event(1), obs=x)


def guide(x):
    """The exact posterior of the address."""
    with pyro.plate("batch", len(x)):
        likelihood = dist.Bernoulli(PROBS).to_event(1).log_prob(x.unsqueeze(1))
        pyro.sample("a", dist.Categorical(logits=PRIOR.log() + likelihood))


def test_with_the_exact_posterior_the_chain_reaches_the_exact_conditional():
    known = torch.tensor([True, False, False])
    x = torch.tensor([1.0, 0.0, 0.0]).expand(20_000, 3)
    last = complete(model, guide, x, known=known.expand_as(x), sweeps=20)[-1]
    weight = PRIOR * PROBS[:, 0]  # p(a | first pixel is ink)
    exact = (weight / weight.sum()) @ PROBS[:, 1:]
    assert ((last[:, 1:].mean(0) - exact).abs() < 5 * 0.5 / 20_000**0.5).all()
    both = (weight / weight.sum()) @ PROBS[:, 1:].prod(-1)
    assert abs((last[:, 1] * last[:, 2]).mean() - both) < 5 * 0.5 / 20_000**0.5


def test_what_is_known_stays_and_the_chain_starts_at_x(tiny_pair, shared_memory):
    x = shared_memory.values[:3]
    known = torch.rand_like(x) < 0.5
    chain = complete(*tiny_pair, x, shared_memory, known=known, sweeps=4)
    assert chain.shape == (5, *x.shape)
    assert_close(chain[0], x)
    assert (chain[:, known] == x[known]).all()
    assert (chain[1:, ~known] != x[~known]).any()


def test_without_known_all_is_drawn_anew():
    x = torch.ones(20_000, 3)
    last = complete(model, guide, x, sweeps=30)[-1]
    assert ((last.mean(0) - PRIOR @ PROBS).abs() < 5 * 0.5 / 20_000**0.5).all()


@pytest.mark.unchecked
def test_misuse_is_refused():
    x = torch.ones(2, 3)
    with pytest.raises(
        ValueError, match=r"`known` must be a boolean tensor \[batch, \*event\] with \*event = \[3\], as `x` has"
    ):
        complete(model, guide, x, known=torch.ones(2, dtype=torch.bool))
    with pytest.raises(ValueError, match="`sweeps` must be at least 1; got 0"):
        complete(model, guide, x, sweeps=0)
    for site in ("y", "a"):
        with pytest.raises(ValueError, match=f"`site` must be an observed site of the model; '{site}' is not"):
            complete(model, guide, x, site=site)
