"""Wake updates of model and guide, by hand, by enumeration, and against the exact posterior."""

import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from mixture import gradients
from small_pairs import Chain, Table
from torch.testing import assert_close

from pyro_memory import VIMCO, WakeWake
from pyro_memory.inference import weigh


def test_given_the_draws_it_is_the_gradient_derived_by_hand():
    toy = Chain(copies=4)
    torch.manual_seed(3)
    loss = WakeWake(5, max_plate_nesting=1).differentiable_loss(toy.model, toy.guide)
    loss.backward()
    torch.manual_seed(3)
    noise = [torch.randn(5, 4, dtype=torch.float64) for _ in range(2)]
    with torch.no_grad():
        z1 = toy.phi[0] + toy.phi[1].exp() * noise[0]
        z2 = toy.phi[2] + toy.phi[3] * z1 + toy.phi[4].exp() * noise[1]
        log_w = toy.log_weight(z1, z2, toy.phi)
    log_q = toy.dists(toy.phi).log_prob(z1) + toy.dists(toy.phi, z1).log_prob(z2)
    log_p = toy.log_weight(z1, z2, toy.phi.detach()) + log_q.detach()
    wanted = torch.autograd.grad((log_w.softmax(0) * (log_p + log_q)).sum(), [toy.theta, toy.phi])
    assert_close(torch.stack([toy.theta.grad, toy.phi.grad]), -torch.stack(wanted))
    assert_close(loss, -(log_w.logsumexp(0) - math.log(5)).sum())


def tables(toy):
    """log p and log q of each address, ``[datum, slot]``."""
    log_p = dist.Normal(toy.means, 1.0).log_prob(toy.x.unsqueeze(-1)) - math.log(len(toy.means))
    return log_p, toy.logits.log_softmax(-1)


def mean_gradient(objective, toy, calls):
    rows = []
    for _ in range(calls):
        toy.zero_grad()
        objective.loss_and_grads(toy.model, toy.guide)
        rows.append(gradients(toy) * 2 / len(toy.index))
    rows = torch.stack(rows)
    return rows.mean(0), rows.std(0) / math.sqrt(calls)


def test_the_mean_gradient_is_that_of_all_pairs_of_addresses():
    toy = Table(4)
    log_p, log_q = tables(toy)
    total = 0.0
    for pair in itertools.product(range(4), repeat=2):
        pair = list(pair)
        share = (log_p - log_q)[:, pair].detach().softmax(-1)
        chance = log_q[:, pair].sum(-1).exp().detach()
        total = total + (chance * (share * (log_p + log_q)[:, pair]).sum(-1)).sum()
    (-total).backward()
    exact = gradients(toy)
    mean, se = mean_gradient(WakeWake(2, max_plate_nesting=1), Table(4, copies=500), 40)
    assert ((mean - exact).abs() < 5 * se + 1e-9).all()
    assert se.max() < 0.05 * exact.abs().max()  # a test that can fail


def test_many_particles_give_the_score_of_the_exact_posterior():
    toy = Table(4)
    log_p, log_q = tables(toy)
    (-(log_p.softmax(-1).detach() * (log_p + log_q)).sum()).backward()
    mean, se = mean_gradient(WakeWake(1000, max_plate_nesting=1), Table(4, copies=10), 20)
    assert ((mean - gradients(toy)).abs() < 5 * se + 2e-3).all()  # the bias of 1000 particles
    assert se.max() < 5e-3


def test_the_score_of_all_sites_is_log_q():
    toy = Chain(3)
    (traces,) = VIMCO(2, max_plate_nesting=1).traces(toy.model, toy.guide, (), {})
    weights = weigh(*traces, pathwise=False)
    assert_close(weights.log_score, sum(traces[1].nodes[name]["log_prob"] for name in ("z1", "z2")))
    assert weights.local == ()
    assert (weigh(*traces).log_score == 0).all()


def test_a_particle_without_weight_counts_for_nothing():
    logits = torch.zeros(3, requires_grad=True)

    def model():
        with pyro.plate("batch", 50):
            pyro.sample("a", dist.Categorical(torch.tensor([0.5, 0.5, 0.0])))
            pyro.sample("x", dist.Normal(torch.zeros(50), 1.0), obs=torch.zeros(50))

    def guide():
        with pyro.plate("batch", 50):
            pyro.sample("a", dist.Categorical(logits=logits))

    torch.manual_seed(0)
    (slope,) = torch.autograd.grad(WakeWake(6, max_plate_nesting=1).differentiable_loss(model, guide), logits)
    assert slope.isfinite().all()
    assert slope[2] > 0 > slope[:2].max()


def test_one_particle_is_refused():
    with pytest.raises(ValueError, match=r"`num_particles` must be at least 2.*got 1.*TraceGraph_ELBO"):
        WakeWake(1)
