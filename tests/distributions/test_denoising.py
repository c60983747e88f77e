"""The noise of a diffusion, and paths through it."""

import math

import pyro.distributions as dist
import pytest
import torch
from base_pairs import at, exact, posterior
from conftest import ink
from torch.testing import assert_close

from pyro_memory.distributions import CosineSchedule, DenoisingPath, NoisingPath


@pytest.fixture
def schedule():
    return exact(CosineSchedule(6, 0.5))


def test_the_schedule_removes_all_but_everything(schedule):
    kept, beta = schedule.kept, schedule.beta
    assert kept[0] == 1
    assert (kept[1:] < kept[:-1]).all()
    assert (1 - kept[1]).sqrt().item() == pytest.approx(0.5)
    assert 0 < kept[-1] < 1e-3
    assert ((beta[1:] > 0) & (beta[1:] < 1)).all()
    assert_close((1 - beta).cumprod(0), kept)
    ratio = kept / (1 - kept)
    assert_close(schedule.gain[2:].flip(0).cumsum(0).flip(0), ratio[1:-1] - ratio[-1])
    assert schedule.gain[1] == math.inf


@pytest.mark.parametrize("t", [2, 4, 6])
def test_the_posterior_is_bayes_rule(schedule, t):
    x0, before, xt = torch.randn(3, 5, 1, 1, 1, dtype=torch.float64)
    steps, ahead = at(t, 5), schedule.beta[t]
    joint = dist.Normal((1 - ahead).sqrt() * before, ahead.sqrt()).log_prob(xt)
    joint = joint + schedule.marginal(x0, steps - 1).log_prob(before)
    bayes = joint - schedule.marginal(x0, steps).log_prob(xt)
    assert_close(posterior(schedule, x0, xt, steps).log_prob(before), bayes)


def test_a_path_forwards_is_a_path_backwards(schedule):
    x0 = 2 * ink(4, 1, 2, 2).double() - 1
    q = NoisingPath(x0, schedule)
    path = q.rsample((3,))
    assert path.shape == (3, 4, 6, 1, 2, 2)
    total = schedule.marginal(x0, at(6, 4)).log_prob(path[..., -1, :, :, :])
    for t in range(6, 1, -1):
        xt, before = path[..., t - 1, :, :, :], path[..., t - 2, :, :, :]
        total = total + posterior(schedule, x0, xt, at(t, 3, 4)).log_prob(before)
    assert_close(q.log_prob(path), total.sum((-3, -2, -1)))


def test_a_path_has_the_schedule_s_marginals(schedule):
    x0 = torch.ones(1, 1, 1, dtype=torch.float64)
    path = NoisingPath(x0, schedule).rsample((20000,)).flatten(1)
    deviation = (1 - schedule.kept[1:]).sqrt()
    assert ((path.mean(0) - schedule.kept[1:].sqrt()) / (deviation / 20000**0.5)).abs().max() < 5
    assert ((path.var(0) / deviation**2 - 1) / (2 / 20000) ** 0.5).abs().max() < 5


def test_a_reverse_step_mixes_the_two_posteriors(schedule):
    xt, t = torch.randn(3, 1, 2, 2, dtype=torch.float64), at(4, 3)
    logits = torch.randn_like(xt)
    step = schedule.reverse(logits, xt, t)
    ink_part, paper = (posterior(schedule, x0 * torch.ones_like(xt), xt, t) for x0 in (1.0, -1.0))
    p = logits.sigmoid()
    value = step.sample()
    mixed = (p * ink_part.log_prob(value).exp() + (1 - p) * paper.log_prob(value).exp()).log()
    assert_close(step.log_prob(value), mixed.sum((-3, -2, -1)))
    assert_close(step.mean, schedule.posterior_mean(2 * p - 1, xt, t))
    certain = schedule.reverse(torch.full_like(xt, 60.0), xt, t)
    assert_close(certain.variance, schedule.posterior_variance[4].expand_as(xt))


def test_a_denoising_path_is_scored_as_it_is_drawn(schedule):
    """E of q over p under p is 1, whatever q, if p is the density of its samples."""
    p = DenoisingPath(lambda xt, t: schedule.reverse(0.5 + xt, xt, t), schedule, (20000,), (1, 1, 1))
    path = p.sample()
    assert path.shape == (20000, 6, 1, 1, 1)
    ratio = (dist.Normal(0.1, 0.6).log_prob(path).sum((-4, -3, -2, -1)) - p.log_prob(path)).exp()
    assert abs(ratio.mean() - 1) < 5 * ratio.std() / 20000**0.5


@pytest.mark.parametrize(("steps", "first", "name"), [(1, 0.4, "steps"), (8, 0.0, "first"), (8, 1.0, "first")])
def test_a_schedule_that_is_none_is_refused(steps, first, name):
    with pytest.raises(ValueError, match=f"`{name}` must"):
        CosineSchedule(steps, first)


def test_a_batch_that_does_not_fit_is_refused(schedule):
    path = DenoisingPath(lambda xt, t: schedule.reverse(xt, xt, t), schedule, (1, 4), (1, 1, 1))
    assert path.expand((3, 4)).batch_shape == (3, 4)
    with pytest.raises(ValueError, match="must match the existing size"):
        path.expand((3, 5))
