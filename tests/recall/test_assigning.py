"""Episodes taken in together, under several hypotheses."""

import itertools
from dataclasses import replace

import pyro.distributions as dist
import torch
from torch.testing import assert_close

from pyro_memory import ConceptMemory, EpisodicMemory, StructuredMemory, consolidate
from pyro_memory.distributions import NormalGamma
from pyro_memory.recall import assign

LOC = torch.tensor([[0.2], [-0.7], [0.9], [-0.1], [0.6]], dtype=torch.float64)


def two(separation=1.0):
    loc = torch.tensor([[-separation / 2], [separation / 2]], dtype=torch.float64)
    one = torch.ones_like(loc)
    return ConceptMemory(loc, 4 * one, 20 * one, 20 * one, torch.ones(2).double())


def enumerated(store, loc):
    """The exact posterior over all assignments: weights, labels, and what each leaves."""
    weights, labels, left = [], [], []
    for label in itertools.product(range(2), repeat=len(loc)):
        now, log_p = store, 0.0
        for e, k in zip(loc.split(1), label, strict=True):
            log_p = log_p + now.prior().logits[k] + now.predictive().log_prob(e)[k]
            now = now.update(e, torch.zeros_like(e), torch.eye(2)[[k]].double())
        weights.append(log_p)
        labels.append(label)
        left.append(now.posterior)
    stacked = NormalGamma(*(torch.stack(part) for part in zip(*left, strict=True)))
    return torch.stack(weights).softmax(0), torch.tensor(labels), stacked


def test_many_hypotheses_come_to_the_exact_posterior():
    torch.manual_seed(0)
    store = two()
    weights, labels, left = enumerated(store, LOC)
    exact = (weights.unsqueeze(-1) * (labels == 1)).sum(0)
    after, shares = assign(store, LOC, torch.zeros_like(LOC), hypotheses=20_000)
    assert_close(shares[:, 1], exact, atol=0.015, rtol=0)
    for found, wanted in zip(after.posterior, left.mean(weights), strict=True):
        assert_close(found, wanted, atol=0.03, rtol=0.01)
    assert_close(after.counts.sum(), torch.tensor(7.0).double())


def test_filtering_one_by_one_is_farther_from_it():
    """What hypotheses are for: doubt about who went where hangs together, and one projection an episode loses it."""
    store = two()
    weights, _, left = enumerated(store, LOC)
    wanted = left.mean(weights)
    filtered = store
    for e in LOC.split(1):
        nothing = torch.zeros_like(e)
        filtered = filtered.update(e, nothing, filtered.responsibilities(e, nothing))
    torch.manual_seed(0)
    together, _ = assign(store, LOC, torch.zeros_like(LOC), hypotheses=20_000)

    def error(found):
        return (found.loc - wanted.loc).abs().max()

    assert error(together.posterior) < 0.2 * error(filtered.posterior)


def test_empty_concepts_can_be_kept_closed():
    torch.manual_seed(0)
    store = replace(two(), counts=torch.tensor([1.0, 0.0]).double())
    _, shares = assign(store, LOC, torch.zeros_like(LOC), hypotheses=50, opens=False)
    assert not shares[:, 1].any()
    _, shares = assign(store, LOC, torch.zeros_like(LOC), hypotheses=50)
    assert bool(shares[:, 1].any())
    _, shares = assign(
        store, LOC, torch.zeros_like(LOC), hypotheses=50, opens=False, went=torch.tensor([1, -1, -1, -1, -1])
    )
    assert bool((shares[1:, 1] > 0).any())  # opened by the first


def test_what_is_known_is_held_to_and_concepts_that_took_nothing_in_stay_as_they_are():
    torch.manual_seed(0)
    store = two()
    after, shares = assign(store, LOC, torch.zeros_like(LOC), hypotheses=8, went=torch.zeros(5).long())
    sure = store.update(LOC, torch.zeros_like(LOC), torch.eye(2)[torch.zeros(5).long()].double())
    assert_close(shares, torch.eye(2)[torch.zeros(5).long()].double())
    for found, wanted in zip(after.posterior, sure.posterior, strict=True):
        assert_close(found, wanted)
    assert torch.equal(after.loc[1], store.loc[1])


def test_truths_lie_in_the_intervals_as_often_as_they_say():
    """90% intervals of two overlapping concepts, by simulation: filtering one by one covers four fifths."""
    torch.manual_seed(0)
    prior, covered = replace(two(2.0), counts=torch.zeros(2).double()), []
    for _ in range(120):
        tau = dist.Gamma(prior.alpha, prior.beta).sample()
        mu = dist.Normal(prior.loc, (prior.kappa * tau).rsqrt()).sample()
        label = torch.arange(30) % 2
        e = dist.Normal(mu[label], tau[label].rsqrt()).sample()
        after, _ = assign(prior, e, torch.zeros_like(e), hypotheses=64)
        scale = (after.beta / (after.alpha * after.kappa)).sqrt()
        draws = dist.StudentT(2 * after.alpha, after.loc, scale).sample((400,))
        rank = (draws < mu).double().mean(0)
        covered.append(((rank - 0.5).abs() < 0.45).double())
    share = torch.stack(covered).mean().item()
    assert abs(share - 0.9) < 3 * (0.09 / 240) ** 0.5


def test_consolidation_takes_in_together_what_it_converts():
    torch.manual_seed(0)
    g = torch.Generator().manual_seed(0)
    label = torch.arange(12) % 2
    loc = 3.0 * (label - 0.5).unsqueeze(-1).double() + 0.3 * torch.randn(12, 2, generator=g, dtype=torch.float64)
    ring = EpisodicMemory.reserve(12, 1, (1,), 2, 4, dtype=torch.float64)
    rho = torch.ones(12, 4).double() / 4
    images = torch.rand(12, 1, 1).double()
    ring = ring.write(loc, torch.full_like(loc, 0.02), images, torch.ones(12).long(), rho)
    empty = ConceptMemory.reserve(4, 2, prior_alpha=10.0, prior_beta=0.9, dtype=torch.float64)
    one, record = consolidate(StructuredMemory(empty, ring), timescale=0.01)
    several, together = consolidate(StructuredMemory(empty, ring), timescale=0.01, hypotheses=16)
    assert record.opened == together.opened == 2
    assert_close(several.concepts.counts, one.concepts.counts, atol=0.2, rtol=0)
    assert_close(several.concepts.loc[:2], one.concepts.loc[:2], atol=0.05, rtol=0)
    assert torch.equal(together.went, record.went)
