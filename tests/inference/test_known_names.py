"""Estimators by the names under which others know them, each given the same draws."""

import math

import pyro.distributions as dist
import torch
from small_pairs import Chain, Table
from torch.testing import assert_close

from pyro_memory import VIMCO, LeaveOneOutELBO


def leaving_one_out(toy, particles):
    """The gradient of the guide, with log w and log q of the same draws."""
    objective = LeaveOneOutELBO(particles, max_plate_nesting=1)
    torch.manual_seed(0)
    slope = torch.autograd.grad(objective.differentiable_loss(toy.model, toy.guide), toy.logits)[0]
    torch.manual_seed(0)
    a = dist.Categorical(logits=toy.logits).expand([particles, 2]).sample()
    log_q = toy.logits.log_softmax(-1)[torch.arange(2), a]
    return slope, dist.Normal(toy.means[a], 1.0).log_prob(toy.x) - math.log(6) - log_q, log_q


def test_leaving_one_out_is_reinforce_with_the_mean_of_the_others_as_baseline():
    toy = Table()
    slope, log_w, log_q = leaving_one_out(toy, 3)
    f = log_w.detach()
    signal = torch.stack([f[k] - (f.sum(0) - f[k]) / 2 for k in range(3)])
    assert_close(slope, torch.autograd.grad(-(signal * log_q).mean(0).sum(), toy.logits)[0])


def test_leaving_one_out_is_vargrad_the_gradient_of_half_the_variance_of_log_weights():
    toy = Table()
    slope, log_w, _ = leaving_one_out(toy, 4)
    assert_close(slope, torch.autograd.grad(log_w.var(0).sum() / 2, toy.logits)[0])


def test_with_the_posterior_as_guide_leaving_one_out_has_no_gradient_in_any_draw():
    toy = Table()
    with torch.no_grad():
        toy.logits.copy_(dist.Normal(toy.means, 1.0).log_prob(toy.x.unsqueeze(-1)))
    slope, _, log_q = leaving_one_out(toy, 4)
    assert log_q.std() > 0.1
    assert_close(slope, torch.zeros_like(slope))


def test_vimco_without_discrete_latents_is_iwae():
    toy = Chain(copies=4)
    torch.manual_seed(3)
    VIMCO(5, max_plate_nesting=1).differentiable_loss(toy.model, toy.guide).backward()
    torch.manual_seed(3)
    noise = [torch.randn(5, 4, dtype=torch.float64) for _ in range(2)]
    z1 = toy.phi[0] + toy.phi[1].exp() * noise[0]
    z2 = toy.phi[2] + toy.phi[3] * z1 + toy.phi[4].exp() * noise[1]
    bound = (toy.log_weight(z1, z2, toy.phi).logsumexp(0) - math.log(5)).sum()
    wanted = torch.autograd.grad(-bound, [toy.theta, toy.phi])
    assert_close(torch.stack([toy.theta.grad, toy.phi.grad]), torch.stack(wanted))
