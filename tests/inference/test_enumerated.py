"""Latents that the model enumerates, against mixtures in closed form, brute force and Pyro's own marginals."""

import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO
from pyro.nn import PyroModule
from torch import nn
from torch.testing import assert_close

from pyro_memory import (
    VIMCO,
    LeaveOneOutELBO,
    SlotMemory,
    importance_bound,
    information_gain,
    posterior_address,
)  # fmt: skip

ITEMS = torch.tensor([[0.0, 1.0], [2.0, -1.0], [-1.5, 0.5]], dtype=torch.float64)
X = torch.tensor([[0.2, 0.4], [1.7, -0.2], [-1.0, 0.9], [0.1, -0.6]], dtype=torch.float64)
LOG_PRIOR = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64).log()
ENUMERATED = {"enumerate": "parallel"}


def empty(*args, **kwargs):
    pass


class Summed(PyroModule):
    """x ~ N(item + z, 1), the item summed by Pyro's enumeration or by hand."""

    def __init__(self, by_hand=False):
        super().__init__("summed")
        self.by_hand = by_hand
        self.items = nn.Parameter(ITEMS.clone())

    def forward(self, x):
        with pyro.plate("batch", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=x.dtype), 1.0))
            if self.by_hand:
                parts = dist.Normal(self.items + z[..., None, None], 1.0).to_event(1)
                mixing = dist.Categorical(logits=LOG_PRIOR.expand(z.shape + LOG_PRIOR.shape))
                pyro.sample("x", dist.MixtureSameFamily(mixing, parts), obs=x)
            else:
                a = pyro.sample("a", dist.Categorical(logits=LOG_PRIOR), infer=ENUMERATED)
                pyro.sample("x", dist.Normal(self.items[a] + z[..., None], 1.0).to_event(1), obs=x)


class Guide(PyroModule):
    def __init__(self):
        super().__init__("summed_guide")
        self.scale = nn.Parameter(torch.tensor(-0.3, dtype=torch.float64))

    def forward(self, x):
        with pyro.plate("batch", len(x)):
            pyro.sample("z", dist.Normal(0.3 * x.sum(-1), self.scale.exp()))


def test_an_address_that_the_model_enumerates_is_a_mixture_summed_by_hand():
    rows = []
    for by_hand in (False, True):
        model, guide = Summed(by_hand), Guide()
        torch.manual_seed(0)
        loss = VIMCO(4, max_plate_nesting=1).differentiable_loss(model, guide, X)
        torch.manual_seed(0)
        bound = importance_bound(model, guide, X, particles=7, chunk_size=3).bound
        rows.append([loss, bound, *torch.autograd.grad(loss, [model.items, guide.scale])])
    for one, other in zip(*rows, strict=True):
        assert_close(one, other)


def test_without_other_latents_the_bound_is_the_evidence_also_with_empty_slots_that_hold_junk():
    items = torch.cat([ITEMS, torch.tensor([[0.2, 0.4]], dtype=torch.float64) + 1e-3])  # the junk fits best
    memory = SlotMemory(items, mask=torch.tensor([True, True, True, False]))

    def model(x):
        with pyro.plate("batch", len(x)):
            a = pyro.sample("a", memory.prior(), infer=ENUMERATED)
            pyro.sample("x", dist.Normal(memory[a], 0.01).to_event(1), obs=x)

    exact = dist.Normal(ITEMS, 0.01).to_event(1).log_prob(X[:, None]).logsumexp(-1) - math.log(3)
    assert_close(importance_bound(model, empty, X, particles=1).bound, exact)
    assert_close(importance_bound(model, empty, X, particles=5, chunk_size=2).bound, exact)


def nested(x):
    """Two groups with an address each, items with one of their own that depends on it."""
    with pyro.plate("group", 2, dim=-2):
        c = pyro.sample("c", dist.Categorical(logits=LOG_PRIOR), infer=ENUMERATED)
        with pyro.plate("item", 2, dim=-1):
            a = pyro.sample("a", dist.Bernoulli(torch.tensor([0.2, 0.5, 0.9]).double()[c]), infer=ENUMERATED)
            pyro.sample("x", dist.Normal(c + 2 * a, 1.0), obs=x)


def test_plates_inside_a_datum_are_summed_cell_by_cell():
    x, level = X[:2], torch.tensor([0.2, 0.5, 0.9]).double()
    exact = []
    for row in x:
        terms = []
        for c, a in itertools.product(range(3), itertools.product(range(2), repeat=2)):
            a = torch.tensor(a, dtype=torch.float64)
            items = dist.Bernoulli(level[c]).log_prob(a) + dist.Normal(c + 2 * a, 1.0).log_prob(row)
            terms.append(LOG_PRIOR[c] + items.sum())
        exact.append(torch.stack(terms).logsumexp(0))
    bound = importance_bound(nested, empty, x, particles=3)
    assert bound.unit == "group"
    assert_close(bound.bound, torch.stack(exact))


def test_sites_of_the_guide_can_be_summed_in_place_of_sampled():
    def model(x):
        with pyro.plate("batch", len(x)):
            a = pyro.sample("a", dist.Categorical(logits=LOG_PRIOR))
            z = pyro.sample("z", dist.Normal(ITEMS[a].sum(-1), 1.0))
            pyro.sample("x", dist.Normal(ITEMS[a] + z[..., None], 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("batch", len(x)):
            a = pyro.sample("a", dist.Categorical(logits=torch.zeros(3).double()), infer=ENUMERATED)
            pyro.sample("z", dist.Normal(0.6 * ITEMS[a].sum(-1) + 0.3 * x.sum(-1), 0.8))

    covariance = torch.ones(2, 2, dtype=torch.float64) + torch.eye(2, dtype=torch.float64)
    means = ITEMS + ITEMS.sum(-1, keepdim=True)
    exact = (LOG_PRIOR + dist.MultivariateNormal(means, covariance).log_prob(X[:, None])).logsumexp(-1)
    torch.manual_seed(0)
    sampled = importance_bound(model, guide, X, particles=4000, chunk_size=1000)
    summed = importance_bound(model, guide, X, particles=4000, chunk_size=1000, exact=["a"])
    assert abs(summed.mean - exact.mean()) < 5 * summed.monte_carlo_se
    assert summed.monte_carlo_se < 0.5 * sampled.monte_carlo_se
    with pytest.raises(ValueError, match=r"`exact` must name discrete latents that the guide samples.*, of a; got 'z'"):
        importance_bound(model, guide, X, particles=2, exact=["z"])


def test_information_of_a_summed_address_is_that_of_its_posterior():
    def model(x):
        with pyro.plate("batch", len(x)):
            a = pyro.sample("a", dist.Categorical(logits=LOG_PRIOR), infer=ENUMERATED)
            pyro.sample("x", dist.Normal(ITEMS[a], 1.0).to_event(1), obs=x)

    gain = information_gain(model, empty, X)
    posterior = (LOG_PRIOR + dist.Normal(ITEMS, 1.0).to_event(1).log_prob(X[:, None])).log_softmax(-1)
    assert_close(gain["a"].kl, (posterior.exp() * (posterior - LOG_PRIOR)).sum(-1))
    marginals = TraceEnum_ELBO(max_plate_nesting=1).compute_marginals(model, empty, X)["a"]
    assert_close(gain.addresses["a"].usage, marginals.probs.mean(0))
    assert gain["a"].method == "closed form"
    assert gain["a"].draws_se == 0


def test_two_summed_sites_are_drawn_one_given_the_other():
    gain = information_gain(nested, empty, X[:2], draws=400)
    bound = importance_bound(nested, empty, X[:2], particles=1).bound
    # with the exact posterior, KL(q || p) = E log p(x | a, c) - log p(x): compare with brute force over all values
    level, total = torch.tensor([0.2, 0.5, 0.9]).double(), []
    for row, evidence in zip(X[:2], bound, strict=True):
        kl = 0.0
        for c, a in itertools.product(range(3), itertools.product(range(2), repeat=2)):
            a = torch.tensor(a, dtype=torch.float64)
            likelihood = dist.Normal(c + 2 * a, 1.0).log_prob(row).sum()
            joint = LOG_PRIOR[c] + dist.Bernoulli(level[c]).log_prob(a).sum() + likelihood
            kl += (joint - evidence).exp() * (likelihood - evidence)
        total.append(kl)
    both = gain["c"].mean + gain["a"].kl.sum().item() / 2
    assert abs(both - torch.stack(total).mean().item()) < 5 * (gain["a"].draws_se * 2) + 1e-6


def test_a_masked_cell_counts_for_nothing_whatever_is_summed_in_it():
    seen = torch.tensor([True, False, True, False])

    def model(x):
        with pyro.plate("batch", len(x)), poutine.mask(mask=seen):
            a = pyro.sample("a", dist.Categorical(logits=LOG_PRIOR), infer=ENUMERATED)
            pyro.sample("x", dist.Normal(ITEMS[a], 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("batch", len(x)), poutine.mask(mask=seen):
            pyro.sample("a", dist.Categorical(logits=torch.zeros(len(x), 3).double()))

    exact = (LOG_PRIOR + dist.Normal(ITEMS, 1.0).to_event(1).log_prob(X[:, None])).logsumexp(-1) * seen
    assert_close(importance_bound(model, empty, X, particles=2).bound, exact)
    assert_close(importance_bound(model, guide, X, particles=2, exact=["a"]).bound, exact)
    probs = posterior_address(model, empty, X, particles=1).probs
    assert_close(probs[1], LOG_PRIOR.exp())


def test_items_that_share_a_summed_value_are_scored_by_all_of_it():
    """Given the sum the items are not independent: a cell's own share of the weight does not exist."""
    logits = nn.Parameter(torch.tensor([0.3, -0.4], dtype=torch.float64))
    x = torch.tensor([[0.4], [2.9]], dtype=torch.float64)
    values = torch.tensor([0.0, 1.0], dtype=torch.float64)

    def model():
        with pyro.plate("batch", 1, dim=-1):
            c = pyro.sample("c", dist.Bernoulli(torch.tensor(0.4).double()), infer=ENUMERATED)
            with pyro.plate("item", 2, dim=-2):
                z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.5).double()))
                pyro.sample("x", dist.Normal(2 * c + 1.5 * z, 0.5), obs=x)

    def guide():
        with pyro.plate("batch", 1, dim=-1), pyro.plate("item", 2, dim=-2):
            pyro.sample("z", dist.Bernoulli(logits=logits.unsqueeze(-1)))

    pairs = torch.cartesian_prod(values, values)
    log_c = torch.tensor([0.6, 0.4], dtype=torch.float64).log()
    likelihood = dist.Normal(2 * values[:, None, None] + 1.5 * pairs, 0.5).log_prob(x.flatten()).sum(-1)  # [c, pair]
    log_q = dist.Bernoulli(logits=logits).log_prob(pairs).sum(-1)
    log_w = (log_c[:, None] + likelihood).logsumexp(0) + 2 * math.log(0.5) - log_q
    two = torch.logaddexp(log_w[:, None], log_w[None]) - math.log(2)
    (exact,) = torch.autograd.grad(((log_q[:, None] + log_q[None]).exp() * two).sum(), logits)
    torch.manual_seed(0)
    objective = VIMCO(2, max_plate_nesting=2)
    rows = torch.stack(
        [torch.autograd.grad(-objective.differentiable_loss(model, guide), logits)[0] for _ in range(400)]
    )
    error = rows.std(0) / math.sqrt(len(rows))
    assert ((rows.mean(0) - exact).abs() < 5 * error).all()
    assert (error < 0.2 * exact.abs().max()).all()


def test_what_is_no_sum_of_probabilities_is_refused():
    def model(x, **mark):
        with pyro.plate("batch", len(x)):
            a = pyro.sample("a", dist.Categorical(logits=LOG_PRIOR), infer={**ENUMERATED, **mark})
            pyro.sample("x", dist.Normal(ITEMS[a], 1.0).to_event(1), obs=x)

    def estimated(x):
        with pyro.plate("batch", len(x)):
            a = pyro.sample("a", dist.Categorical(logits=LOG_PRIOR), infer=ENUMERATED)
            pyro.sample("f", dist.Unit(a * 1.0), infer={"noisy": True}, obs=torch.empty(0))

    def tempered(x):
        with pyro.plate("batch", len(x)):
            with poutine.scale(scale=0.5):
                a = pyro.sample("a", dist.Categorical(logits=LOG_PRIOR), infer=ENUMERATED)
            pyro.sample("x", dist.Normal(ITEMS[a], 1.0).to_event(1), obs=x)

    with pytest.raises(ValueError, match="site `a` is marked with `num_samples`"):
        importance_bound(model, empty, X, particles=1, num_samples=20, expand=True)
    with pytest.raises(ValueError, match="site `f` is marked as noisy, and `a` is summed"):
        LeaveOneOutELBO(2).loss(estimated, empty, X)
    with pytest.raises(ValueError, match="site `a` is summed, and scaled otherwise"):
        importance_bound(tempered, empty, X, particles=1)
    with pytest.raises(ValueError, match=r"`max_plate_nesting` must be at least 1, where plate \"batch\" lies; got 0"):
        importance_bound(model, empty, X, particles=1, max_plate_nesting=0)
