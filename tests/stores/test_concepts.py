"""The semantic store: conjugacy, projection, forgetting, divergence."""

import math

import pyro.distributions as dist
import pytest
import torch
from torch.testing import assert_close

from pyro_memory import ConceptMemory
from pyro_memory.distributions import expected_log_prob

DIM = 3


def store(concepts=2, seed=0):
    """Concepts that differ, none of them the weak prior."""
    g = torch.Generator().manual_seed(seed)

    def draw(low, high):
        return low + (high - low) * torch.rand(concepts, DIM, generator=g, dtype=torch.float64)

    counts = torch.arange(concepts, dtype=torch.float64)
    return ConceptMemory(draw(-1, 1), draw(0.5, 4), draw(1.5, 6), draw(0.3, 2), counts)


def episodes(count=4, seed=1):
    g = torch.Generator().manual_seed(seed)
    loc = torch.randn(count, DIM, generator=g, dtype=torch.float64)
    return loc, 0.3 * torch.rand(count, DIM, generator=g, dtype=torch.float64)


def certain(count, concepts, k):
    q = torch.zeros(count, concepts, dtype=torch.float64)
    q[:, k] = 1
    return q


@pytest.mark.parametrize("rule", ["projected", "fractional", "hard"])
def test_certain_assignments_are_the_conjugate_update(rule):
    before, (loc, _) = store(), episodes(6)
    after = before.update(loc, torch.zeros_like(loc), certain(6, 2, 1), rule=rule)
    m, kappa, alpha, beta = before.loc[1], before.kappa[1], before.alpha[1], before.beta[1]
    n, mean = 6, loc.mean(0)
    assert_close(after.kappa[1], kappa + n)
    assert_close(after.loc[1], (kappa * m + n * mean) / (kappa + n))
    assert_close(after.alpha[1], alpha + n / 2)
    scatter = (loc - mean).square().sum(0)
    assert_close(after.beta[1], beta + 0.5 * scatter + 0.5 * kappa * n * (mean - m).square() / (kappa + n))
    assert_close(after.loc[0], before.loc[0])
    assert_close(after.counts, before.counts + torch.tensor([0.0, 6.0], dtype=torch.float64))


def test_an_uncertain_embedding_enters_by_its_expected_square():
    """Adding the variance to beta is what averaging sufficient statistics over points of that variance gives."""
    before, e, v = store(1), torch.tensor([[0.4, -0.2, 1.0]]).double(), torch.tensor([[0.1, 0.2, 0.3]]).double()
    after = before.update(e, v, torch.ones(1, 1).double())
    two = [before.update(e + s * v.sqrt(), 0 * v, torch.ones(1, 1).double()) for s in (-1, 1)]

    def second(c):  # the natural parameter that holds E x^2
        return c.beta + 0.5 * c.kappa * c.loc.square()

    assert_close(second(after), (second(two[0]) + second(two[1])) / 2)
    assert_close(after.loc, (two[0].loc + two[1].loc) / 2)


def test_the_predictive_integrates_to_one_and_is_the_posterior_s_average():
    concepts = store()
    grid = torch.linspace(-400, 400, 2_000_001, dtype=torch.float64)
    t = concepts.predictive(torch.tensor(1)).base_dist
    density = dist.StudentT(t.df[0], t.loc[0], t.scale[0]).log_prob(grid).exp()
    assert_close(torch.trapezoid(density, grid), torch.tensor(1.0).double(), atol=1e-6, rtol=0)
    tau = dist.Gamma(concepts.alpha[1, 0], concepts.beta[1, 0])
    rates = torch.linspace(1e-6, 60, 200_001, dtype=torch.float64)
    kappa, x = concepts.kappa[1, 0], torch.tensor(0.7).double()
    given = dist.Normal(concepts.loc[1, 0], ((1 + 1 / kappa) / rates).sqrt()).log_prob(x).exp()
    averaged = torch.trapezoid(tau.log_prob(rates).exp() * given, rates)
    assert_close(averaged, dist.StudentT(t.df[0], t.loc[0], t.scale[0]).log_prob(x).exp(), rtol=1e-5, atol=0)


def test_moments_are_those_of_the_predictive():
    concepts = store()
    mean, variance = concepts.moments()
    t = concepts.predictive().base_dist
    assert_close(mean, t.mean)
    assert_close(variance, t.variance)


def test_the_projection_matches_the_mixture_s_four_expectations():
    before, (loc, variance), q = store(), episodes(1), torch.tensor([[0.3, 0.6]]).double()
    after = before.update(loc, variance, q)
    updated = [before.update(loc, variance, certain(1, 2, k), rule="fractional") for k in range(2)]

    def moments(c, k, draws=400_000):
        tau = dist.Gamma(c.alpha[k], c.beta[k]).sample((draws,))
        mu = dist.Normal(c.loc[k], (c.kappa[k] * tau).rsqrt()).sample()
        return torch.stack([tau, tau.log(), tau * mu, tau * mu.square()])

    for k in range(2):
        mixed = q[0, k] * moments(updated[k], k) + (1 - q[0, k]) * moments(before, k)
        own = moments(after, k)
        for wanted, got in zip(mixed, own, strict=True):
            error = (wanted.std(0) + got.std(0)) / math.sqrt(len(wanted))
            assert bool(((wanted.mean(0) - got.mean(0)).abs() < 5 * error).all())


def test_no_responsibility_changes_nothing():
    before, (loc, variance) = store(), episodes(3)
    for rule in ("projected", "fractional", "hard"):
        after = before.update(loc, variance, torch.zeros(3, 2).double(), rule=rule)
        for one, other in zip(before._tensors().values(), after._tensors().values(), strict=True):
            assert_close(one, other)


def test_order_matters_for_the_projection_and_not_for_fractions():
    before, (loc, variance) = store(), episodes(5)
    q = torch.rand(5, 2, dtype=torch.float64) / 2
    for rule, equal in (("fractional", True), ("projected", False)):
        one = before.update(loc, variance, q, rule=rule)
        other = before.update(loc.flip(0), variance.flip(0), q.flip(0), rule=rule)
        assert torch.allclose(one.beta, other.beta, atol=1e-12, rtol=0) == equal
        assert torch.allclose(one.loc, other.loc, atol=1e-12, rtol=0) == equal


def test_doubt_teaches_less_by_projection_than_by_fractions():
    """Half an assignment to a far episode: a fraction takes it for half a datum and grows surer."""
    before = ConceptMemory.reserve(1, 1, dtype=torch.float64)
    e, v = torch.tensor([[0.0]]).double(), torch.tensor([[0.01]]).double()
    before = before.update(e.expand(8, 1), v.expand(8, 1), torch.ones(8, 1).double())
    far, half = torch.tensor([[1.0]]).double(), torch.tensor([[0.5]]).double()
    kappa = {r: before.update(far, v, half, rule=r).kappa.item() for r in ("projected", "fractional")}
    assert kappa["projected"] < before.kappa.item() < kappa["fractional"]


def test_forgetting_scales_what_was_learned():
    before, (loc, variance) = ConceptMemory.reserve(2, DIM, dtype=torch.float64), episodes(4)
    learned = before.update(loc, variance, certain(4, 2, 0))
    assert learned.forget(1) is learned
    half = learned.forget(0.5)
    same = before.update(loc, variance, 0.5 * certain(4, 2, 0), rule="fractional")
    for name in ("loc", "kappa", "alpha", "beta", "counts"):
        assert_close(getattr(half, name), getattr(same, name))
    assert_close(learned.forget(1e-9).kl_to(before), torch.zeros(2).double(), atol=1e-6, rtol=0)


def test_the_divergence_is_that_of_normal_gammas():
    p, q = store(1, 0), store(1, 5)
    tau = dist.Gamma(p.alpha, p.beta)
    gamma = torch.distributions.kl_divergence(tau, dist.Gamma(q.alpha, q.beta))
    draws = tau.sample((200_000,))
    one, other = dist.Normal(p.loc, (p.kappa * draws).rsqrt()), dist.Normal(q.loc, (q.kappa * draws).rsqrt())
    normal = torch.distributions.kl_divergence(one, other)
    error = 5 * normal.std(0).norm() / math.sqrt(len(draws))
    assert abs((gamma + normal.mean(0)).sum() - p.kl_to(q).sum()) < error
    assert_close(p.kl_to(p), torch.zeros(1).double())


def test_expected_log_densities_agree_with_a_fine_grid():
    concepts, (loc, variance) = store(), episodes(2)
    got = concepts.expected_log_predictive(loc, variance)
    z = torch.linspace(-9, 9, 20_001, dtype=torch.float64).unsqueeze(-1)
    weights = dist.Normal(0.0, 1.0).log_prob(z).exp() * (z[1] - z[0])
    for i in range(2):
        for k in range(2):
            t = concepts.predictive(torch.tensor(k)).base_dist
            fine = (weights * t.log_prob(loc[i] + variance[i].sqrt() * z)).sum()
            assert_close(got[i, k], fine, atol=1e-4, rtol=0)
    alone = expected_log_prob(concepts.predictive(torch.tensor(1)), loc, torch.zeros_like(variance))
    assert_close(alone, concepts.predictive(torch.tensor(1)).log_prob(loc))


def test_responsibilities_are_bayes_for_certain_embeddings():
    concepts, (loc, _) = store(), episodes(3)
    joint = concepts.prior().logits + torch.stack(
        [concepts.predictive(torch.tensor(k)).log_prob(loc) for k in (0, 1)], -1
    )
    assert_close(concepts.responsibilities(loc, torch.zeros_like(loc)), joint.softmax(-1))


def test_large_concepts_come_to_mind_more_easily_and_empty_ones_stay_reachable():
    concepts = ConceptMemory.reserve(4, DIM, concentration=2.0, dtype=torch.float64)
    assert_close(concepts.prior().probs, torch.full((4,), 0.25).double())
    loc, variance = episodes(3)
    probs = concepts.update(loc, variance, certain(3, 4, 2)).prior().probs
    assert_close(probs, torch.tensor([0.1, 0.1, 0.7, 0.1]).double())


def test_it_says_what_it_holds():
    assert "2 concepts of 3 dimensions, 1 in use" in repr(store())


@pytest.mark.unchecked
def test_bad_input_is_refused_with_the_remedy():
    concepts, (loc, variance) = store(), episodes(2)
    q = certain(2, 2, 0)
    with pytest.raises(ValueError, match="`rule` must be one of projected, fractional, hard; got 'soft'"):
        concepts.update(loc, variance, q, rule="soft")
    with pytest.raises(ValueError, match=r"`loc` must be .* with dim = 3, as the ConceptMemory has"):
        concepts.update(loc[:, :2], variance, q)
    with pytest.raises(ValueError, match="`loc` must be finite; got nan"):
        concepts.update(loc * math.nan, variance, q)
    with pytest.raises(ValueError, match="rows summing to at most 1"):
        concepts.update(loc, variance, 2 * q)
    with pytest.raises(ValueError, match=r"`rate` must be in \(0, 1\], 1 to forget nothing; got 0"):
        concepts.forget(0)
    with pytest.raises(ValueError, match="`other` must have shape"):
        concepts.kl_to(store(3))
    with pytest.raises(ValueError, match="`concepts` and `dim` must be at least 1"):
        ConceptMemory.reserve(0, 2)
    with pytest.raises(ValueError, match="`prior_alpha` above 1"):
        ConceptMemory.reserve(2, 2, prior_alpha=0.5)
    with pytest.raises(ValueError, match="`beta` must be positive"):
        ConceptMemory(loc, variance + 1, variance + 1, -variance - 1, torch.zeros(2))
