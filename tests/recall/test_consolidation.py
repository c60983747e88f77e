"""Conversion between the stores."""

import math

import pytest
import torch
from conftest import ink
from pyro.infer import TraceEnum_ELBO
from torch.testing import assert_close

from pyro_memory import (
    ConceptMemory,
    EpisodicMemory,
    StructuredMemory,
    consolidate,
    exact_posterior,
    fit,
    importance_bound,
    replay,
)
from pyro_memory.guides import ConsolidationGuide
from pyro_memory.models import ConsolidationModel
from pyro_memory.recall import conversion_prior, conversion_scores

DIM, K, EVENT = 4, 3, (1, 3, 3)


def clusters(count, separation, seed=0, dtype=torch.float64):
    """Embeddings around two centres, and which."""
    g = torch.Generator().manual_seed(seed)
    label = torch.arange(count) % 2
    centre = separation * (label - 0.5).unsqueeze(-1) * torch.ones(DIM, dtype=dtype)
    return (
        centre + 0.3 * torch.randn(count, DIM, generator=g, dtype=dtype),
        torch.full((count, DIM), 0.02, dtype=dtype),
        label,
    )


def known(separation=2.0):
    """A store that has seen both clusters, and one empty concept."""
    loc, variance, label = clusters(20, separation)
    q = torch.nn.functional.one_hot(label, K).to(loc)
    return ConceptMemory.reserve(K, DIM, dtype=torch.float64).update(loc, variance, q)


def store(loc, variance, slots=None, dtype=torch.float64):
    n = len(loc)
    empty = EpisodicMemory.reserve(slots or n, 2, EVENT, DIM, K, dtype=dtype)
    rho = torch.full((n, K), 1 / K, dtype=dtype)
    return empty.write(loc, variance, ink(n, 2, *EVENT).to(dtype), torch.full((n,), 2), rho)


def test_the_prior_is_a_distribution_and_older_episodes_are_likelier_to_go():
    p = conversion_prior(known(), torch.tensor([0, 5, 50]), 10.0).exp()
    assert_close(p.sum(-1), torch.ones(3).double())
    assert_close(p[:, 0], torch.exp(-torch.tensor([0, 0.5, 5.0]).double()))
    assert p[1, 3] == 0  # the empty concept is reached as "new" only
    assert p[1, 4] > 0


def test_the_exact_posterior_is_bayes_of_the_model():
    """The model's evidence splits over the outcomes: exp(bound) is their sum, and each share is the posterior."""
    concepts, (loc, variance, _), ages = known(), clusters(5, 2.0, 7), torch.tensor([1, 3, 9, 27, 81])
    joint = conversion_prior(concepts, ages, 10.0) + conversion_scores(concepts, loc, variance)
    model = ConsolidationModel(timescale=10.0)

    class Exact(torch.nn.Module):
        def forward(self, concepts, loc, variance, ages):
            import pyro

            with pyro.plate("episodes", len(loc)):
                probs = exact_posterior(concepts, loc, variance, ages, 10.0)
                pyro.sample("r", pyro.distributions.Categorical(probs=probs))

    bound = importance_bound(model, Exact(), concepts, loc, variance, ages, particles=3)
    assert_close(bound.bound, joint.logsumexp(-1))  # with the exact posterior every weight is the evidence
    assert_close(
        exact_posterior(concepts, loc, variance, ages, 10.0), (joint - joint.logsumexp(-1, keepdim=True)).exp()
    )


def test_the_guide_learns_the_exact_posterior_and_all_of_it_moves():
    torch.set_default_dtype(torch.float64)
    try:
        concepts = known(1.0)
        model, guide = ConsolidationModel(10.0), ConsolidationGuide(16, 10.0)
        before = [p.clone() for p in guide.parameters()]

        def batch(step):
            loc, variance, _ = clusters(64, 1.0, step)
            return concepts, loc, variance, torch.arange(64)

        def distance():
            loc, variance, _ = clusters(200, 1.0, 10_001)
            ages = torch.arange(200)
            p, q = (
                exact_posterior(concepts, loc, variance, ages, 10.0),
                guide.probabilities(concepts, loc, variance, ages),
            )
            return (torch.special.xlogy(q, q) - torch.special.xlogy(q, p)).nan_to_num(nan=0.0).sum(-1).mean().item()

        start = distance()
        fit(
            model, guide, batch, TraceEnum_ELBO(max_plate_nesting=1), steps=400, learning_rate=1e-2, seed=0,
            progress=False, information_every=None,
        )  # fmt: skip
        assert start > 0.3
        assert distance() < 0.02
        assert all(not torch.equal(p, q) for p, q in zip(guide.parameters(), before, strict=True))
    finally:
        torch.set_default_dtype(torch.float32)


def test_alike_episodes_open_concepts_and_share_them():
    loc, variance, _ = clusters(12, 3.0)
    empty = ConceptMemory.reserve(K, DIM, prior_alpha=10.0, prior_beta=0.9, dtype=torch.float64)
    memory, record = consolidate(StructuredMemory(empty, store(loc, variance)), timescale=0.01)
    concepts, left = memory.concepts, memory.episodes
    assert int(record.converted.sum()) == 11  # the newest has age 0
    assert record.opened == 2
    counts = concepts.counts.sort(descending=True).values
    assert_close(counts, torch.tensor([6.0, 5.0, 0.0]).double(), atol=0.1, rtol=0)
    assert int(left.filled.sum()) == 1
    signs = concepts.loc[concepts.counts > 1].mean(-1).sign()
    assert sorted(signs.tolist()) == [-1, 1]
    assert bool((record.moved[concepts.counts > 1] > 1).all())


def test_the_record_says_what_was_learned_about_each_episode():
    concepts, (loc, variance, _) = known(), clusters(6, 2.0, 3)
    episodes = store(loc, variance, slots=8)
    memory, record = consolidate(StructuredMemory(concepts, episodes), timescale=5.0)
    left = memory.episodes
    first = int(episodes.ages.masked_fill(~episodes.filled, -1).argmax())
    q = exact_posterior(concepts, loc, variance, episodes.ages[:6], 5.0)[first]
    p = conversion_prior(concepts, episodes.ages[:6], 5.0)[first].exp()
    assert_close(record.probabilities[first], q)
    assert_close(record.kl[0], (torch.special.xlogy(q, q / p.clamp(min=1e-300))).sum())
    assert_close(record.entropy[0], -torch.special.xlogy(q, q).sum())
    assert record.considered.sum() == 6
    assert torch.equal(left.filled, episodes.filled & ~record.converted)
    assert_close(record.widths_before, concepts.widths())
    assert "Consolidation of 6 episodes" in repr(record)
    assert record.to_dict()["converted"] == int(record.converted.sum())
    assert record.plot().get_xlabel() == "outcome"


def test_without_a_chance_nothing_is_converted_and_nothing_lost():
    concepts, (loc, variance, _) = known(), clusters(4, 2.0)
    episodes = store(loc, variance)
    memory, record = consolidate(StructuredMemory(concepts, episodes), timescale=math.inf)
    after, left = memory.concepts, memory.episodes
    assert not record.converted.any()
    assert_close(after.loc, concepts.loc)
    assert_close(left.items, episodes.items)
    assert bool(left.filled.all())
    empty = EpisodicMemory.reserve(2, 2, EVENT, DIM, K, dtype=torch.float64)
    memory, record = consolidate(StructuredMemory(concepts, empty))
    assert_close(memory.concepts.beta, concepts.beta)
    assert "nothing to convert" in repr(record)


def test_without_an_empty_concept_the_exact_posterior_has_no_new_one():
    loc, variance, label = clusters(20, 2.0)
    full = ConceptMemory.reserve(2, DIM, dtype=torch.float64)
    full = full.update(loc, variance, torch.nn.functional.one_hot(label, 2).to(loc))
    far = torch.full((1, DIM), 40.0).double()
    assert exact_posterior(full, far, far / 100, torch.tensor([5]), 1.0)[0, -1] == 0


def test_replayed_episodes_come_from_concepts_and_do_not_go_back():
    torch.manual_seed(0)
    concepts = known()
    episodes = EpisodicMemory.reserve(40, 2, EVENT, DIM, K, dtype=torch.float64)

    def draw(s, items):
        assert s.shape == (40, DIM)
        return s[:, :1].sign().clamp(min=0).reshape(-1, 1, 1, 1, 1).expand(-1, items, *EVENT)

    filled = replay(concepts, episodes, draw)
    assert bool(filled.replayed.all())
    assert_close(filled.items[:, 0, 0, 0, 0], (filled.loc[:, 0] > 0).double())
    assert 0.2 < (filled.loc[:, 0] > 0).double().mean() < 0.8
    likeliest = filled.responsibilities.argmax(-1)
    assert set(likeliest.tolist()) <= {0, 1}
    memory, record = consolidate(StructuredMemory(concepts, filled), timescale=0.01)
    assert not record.considered.any()
    assert bool(memory.episodes.filled.all())


@pytest.mark.unchecked
def test_bad_input_is_refused_with_the_remedy():
    concepts, (loc, variance, _) = known(), clusters(2, 2.0)
    with pytest.raises(ValueError, match="`timescale` must be positive"):
        consolidate(StructuredMemory(concepts, store(loc, variance)), timescale=0)
    with pytest.raises(ValueError, match="`count` must be at most the 0 free slots; got 1"):
        replay(concepts, store(loc, variance), print, count=1)
    with pytest.raises(ValueError, match="all are empty"):
        replay(concepts.emptied(), EpisodicMemory.reserve(2, 2, EVENT, DIM, K), print)
