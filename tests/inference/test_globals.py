"""Latents that all data share: their bounds and gradients against integrals, sums and Pyro's own objective."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from pyro.nn import PyroModule
from torch import nn
from torch.testing import assert_close

from pyro_memory import VIMCO, DReG, LeaveOneOutELBO, WakeWake, importance_bound

X = torch.tensor([0.3, -1.2, 0.8, 1.9, -0.4])
SPREAD, NOISE = 0.8, 0.5
COVARIANCE = 1.0 + torch.diag(torch.full((5,), SPREAD**2 + NOISE**2))
EVIDENCE = dist.MultivariateNormal(torch.zeros(5), COVARIANCE).log_prob(X).item()


def model(x=X):
    g = pyro.sample("g", dist.Normal(0.0, 1.0))
    with pyro.plate("batch", len(x)):
        z = pyro.sample("z", dist.Normal(g, SPREAD))
        pyro.sample("x", dist.Normal(z, NOISE), obs=x)


def guide(x=X):
    g = pyro.sample("g", dist.Normal(0.6, 0.6))
    with pyro.plate("batch", len(x)):
        pyro.sample("z", dist.Normal(0.5 * (g + x), 0.7))


def test_a_bound_of_a_data_set_reaches_its_evidence():
    bound = importance_bound(model, guide, particles=300, draws=250, chunk_size=300)
    assert bound.unit == "data set"
    assert bound.draws == 250
    assert abs(bound.mean - EVIDENCE) < 5 * bound.monte_carlo_se
    assert bound.monte_carlo_se < 0.15
    assert bound.given_globals.unit == "datum"
    assert len(bound.given_globals.bound) == 5
    assert "data set of 5 data" in repr(bound)


def test_the_nested_estimate_lies_below_the_evidence_and_rises_with_draws_and_particles():
    torch.manual_seed(0)
    means = {}
    for draws, particles in ((1, 1), (1, 8), (8, 1), (8, 8)):
        rows = torch.tensor([importance_bound(model, guide, particles=particles, draws=draws).mean for _ in range(30)])
        means[draws, particles] = rows.mean(), rows.std() / math.sqrt(len(rows))
    for mean, se in means.values():
        assert mean < EVIDENCE + 5 * se
    assert means[1, 1][0] < EVIDENCE - 3 * means[1, 1][1]
    assert means[1, 1][0] < means[1, 8][0] < means[8, 8][0]
    assert means[1, 1][0] < means[8, 1][0] < means[8, 8][0]


class Mixture(PyroModule):
    """A global value g of three and an address a of two for each datum, all of them enumerable."""

    def __init__(self):
        super().__init__("globals_mixture")
        self.level = nn.Parameter(torch.tensor([-1.0, 0.2, 1.1]))
        self.step = nn.Parameter(torch.tensor([0.0, 0.7]))

    def forward(self, size=None):
        g = pyro.sample("g", dist.Categorical(torch.tensor([0.2, 0.5, 0.3])))
        with pyro.plate("batch", len(X), subsample_size=size) as index:
            a = pyro.sample("a", dist.Categorical(torch.tensor([0.6, 0.4])))
            pyro.sample("x", dist.Normal(self.level[g] + self.step[a], 1.0), obs=X[index])


class MixtureGuide(PyroModule):
    def __init__(self):
        super().__init__("globals_mixture_guide")
        self.shared = nn.Parameter(torch.tensor([0.4, 0.1, -0.3]))
        self.own = nn.Parameter(torch.tensor([[0.1, -0.2], [0.3, 0.0], [-0.5, 0.2]]))

    def forward(self, size=None):
        g = pyro.sample("g", dist.Categorical(logits=self.shared))
        with pyro.plate("batch", len(X), subsample_size=size):
            pyro.sample("a", dist.Categorical(logits=self.own[g]))


def exact(pair):
    """sum_g q(g) (log p(g) / q(g) + sum_n L_2(n; g)), by sums over all values of both particles."""
    log_q = pair.guide.shared.log_softmax(-1)
    own = pair.guide.own.log_softmax(-1)
    likelihood = dist.Normal(pair.model.level[:, None, None] + pair.model.step[:, None], torch.ones(())).log_prob(
        X
    )  # [g, a, n]
    log_w = torch.tensor([0.6, 0.4]).log()[:, None] + likelihood - own[..., None]
    two = torch.logaddexp(log_w[:, :, None], log_w[:, None, :]) - math.log(2)
    chance = (own[:, :, None] + own[:, None, :]).exp()[..., None]
    return (log_q.exp() * (torch.tensor([0.2, 0.5, 0.3]).log() - log_q + (chance * two).sum((1, 2, 3)))).sum()


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.model, self.guide = Mixture(), MixtureGuide()


@pytest.mark.parametrize(("draws", "size"), [(1, None), (3, None), (2, 2)])
def test_the_objective_has_the_exact_gradient_of_global_and_local_parameters(draws, size):
    pair = Pair()
    wanted = torch.autograd.grad(exact(pair), list(pair.parameters()))
    objective = VIMCO(2, global_draws=draws, max_plate_nesting=1)
    torch.manual_seed(1)
    values, rows = [], []
    for _ in range(300):
        loss = objective.differentiable_loss(pair.model, pair.guide, size)
        values.append(-loss.detach())
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(pair.parameters()))]))
    for sample, truth in (
        (torch.stack(values), exact(pair).detach()),
        (-torch.stack(rows), torch.cat([w.flatten() for w in wanted])),
    ):
        error = sample.std(0) / math.sqrt(len(sample))
        assert ((sample.mean(0) - truth).abs() < 5 * error + 1e-6).all()
        assert (error < 0.3 * truth.abs().max()).all()


def test_reparameterised_globals_have_the_gradient_of_trace_elbo():
    scale = nn.Parameter(torch.tensor(0.1))

    def moved():
        g = pyro.sample("g", dist.Normal(scale * 3, scale.exp()))
        with pyro.plate("batch", 5):
            pyro.sample("z", dist.Normal(0.5 * g + scale, 0.7))

    def measured(objective):
        rows = torch.stack(
            [torch.autograd.grad(objective.differentiable_loss(model, moved), scale)[0] for _ in range(100)]
        )
        return rows.mean(), rows.std() / math.sqrt(len(rows))

    torch.manual_seed(0)
    (ours, se), (theirs, their_se) = (
        measured(LeaveOneOutELBO(4, max_plate_nesting=1)),
        measured(Trace_ELBO(4, vectorize_particles=True, max_plate_nesting=1)),
    )
    assert abs(ours - theirs) < 5 * math.hypot(se, their_se)


def test_particles_share_the_global_draw_whether_they_run_at_once_or_one_by_one():
    seen = []

    def watched():
        seen.append(pyro.sample("g", dist.Normal(torch.zeros(2), 1.0).to_event(1)))
        with pyro.plate("batch", 5):
            z = pyro.sample("z", dist.Normal(seen[-1][0], SPREAD))
            pyro.sample("x", dist.Normal(z, NOISE), obs=X)

    def narrow():
        pyro.sample("g", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("batch", 5):
            pyro.sample("z", dist.Normal(0.0, 0.7))

    VIMCO(3).loss(watched, narrow)
    assert seen[-1].shape == (2,)  # as in a single pass: a program need not know of particles
    seen.clear()
    VIMCO(3, vectorize_particles=False, max_plate_nesting=1).loss(watched, narrow)
    assert_close(torch.stack(seen[-3:]), seen[-1].expand(3, 2))


def test_what_has_no_nested_bound_is_refused():
    with pytest.raises(ValueError, match="`draws` must be 1 where data are subsampled"):
        importance_bound(Mixture(), MixtureGuide(), 2, particles=3)
    assert importance_bound(Mixture(), MixtureGuide(), 2, particles=3, draws=1).unit == "data set"

    def late():
        with pyro.plate("batch", 5):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, NOISE), obs=X)
        pyro.sample("g", dist.Normal(z.sum(-1, keepdim=True), 1.0))

    with pytest.raises(ValueError, match="site `g` outside the plates over data must not depend on latents"):
        importance_bound(late, guide, particles=3)

    def crossed(observed=True):
        users, items = pyro.plate("user", 4, dim=-2), pyro.plate("item", 5, dim=-1)
        with users:
            u = pyro.sample("u", dist.Normal(0.0, 1.0))
        with items:
            v = pyro.sample("v", dist.Normal(0.0, 1.0))
        with users, items:
            if observed:
                pyro.sample("x", dist.Normal(u + v, 1.0), obs=torch.zeros(4, 5))

    with pytest.raises(ValueError, match=r"site `v` lies outside plate `user`, but in another one"):
        importance_bound(crossed, lambda: crossed(observed=False), particles=3)
    with pytest.raises(ValueError, match="`global_draws` must be at least 1; got 0"):
        VIMCO(2, global_draws=0)

    def summed():
        g = pyro.sample("g", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})
        with pyro.plate("batch", 5):
            pyro.sample("x", dist.Normal(g, 1.0), obs=X)

    with pytest.raises(ValueError, match="site `g` is enumerated outside the plates over data"):
        importance_bound(summed, lambda: None, particles=3)


def test_global_latents_under_the_other_objectives():
    pair = nn.ParameterDict({"loc": nn.Parameter(torch.tensor(0.4)), "own": nn.Parameter(torch.tensor(-0.2))})

    def moved():
        g = pyro.sample("g", dist.Normal(pair["loc"], 0.6))
        with pyro.plate("batch", 5):
            pyro.sample("z", dist.Normal(0.5 * (g + X), pair["own"].exp()))

    def gradient(objective):
        torch.manual_seed(2)
        rows = [
            torch.stack(torch.autograd.grad(objective.differentiable_loss(model, moved), list(pair.values())))
            for _ in range(150)
        ]
        return torch.stack(rows).mean(0), torch.stack(rows).std(0) / math.sqrt(len(rows))

    (plain, plain_se), (twice, twice_se) = gradient(VIMCO(6)), gradient(DReG(6))
    assert ((plain - twice).abs() < 5 * (plain_se**2 + twice_se**2).sqrt()).all()
    with pytest.raises(ValueError, match="site `g` lies outside the plates over data, and one draw"):
        WakeWake(3).loss(model, moved)


def test_a_site_outside_that_depends_on_latents_inside_is_refused_also_one_particle_at_a_time():
    def summed_up():
        with pyro.plate("batch", 5):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, NOISE), obs=X)
        pyro.sample("y", dist.Normal(z.sum(-1, keepdim=True), 0.5), obs=torch.tensor([2.0]))

    def proposal():
        with pyro.plate("batch", 5):
            pyro.sample("z", dist.Normal(X, 1.0))

    for call in (
        lambda: VIMCO(4, vectorize_particles=False).loss(summed_up, proposal),
        lambda: importance_bound(summed_up, proposal, particles=5, chunk_size=1),
    ):
        with pytest.raises(ValueError, match="outside the plates over data must not depend on latents inside them"):
            call()


def test_the_score_of_a_site_is_not_scaled_with_it():
    """Annealing tempers what a site counts, not how likely the guide draws it."""
    logits = nn.Parameter(torch.tensor([0.2, -0.3]))

    def model():
        with poutine.scale(scale=0.25):
            g = pyro.sample("g", dist.Categorical(torch.tensor([0.7, 0.3])))
        with pyro.plate("batch", 5):
            pyro.sample("x", dist.Normal(g.float(), 1.0), obs=X)

    def guide():
        with poutine.scale(scale=0.25):
            pyro.sample("g", dist.Categorical(logits=logits))

    log_q = logits.log_softmax(-1)
    value = 0.25 * (torch.tensor([0.7, 0.3]).log() - log_q)
    value = value + dist.Normal(torch.arange(2.0)[:, None], 1.0).log_prob(X).sum(-1)
    (exact,) = torch.autograd.grad((log_q.exp() * value).sum(), logits)
    torch.manual_seed(0)
    objective = VIMCO(2, global_draws=4, max_plate_nesting=1)
    rows = torch.stack(
        [torch.autograd.grad(-objective.differentiable_loss(model, guide), logits)[0] for _ in range(200)]
    )
    error = rows.std(0) / math.sqrt(len(rows))
    assert ((rows.mean(0) - exact).abs() < 5 * error).all()
    assert (error < 0.2 * exact.abs().max()).all()
