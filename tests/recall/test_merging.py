"""Concepts that are one, and concepts that are two."""

import math

import pytest
import torch
from torch.testing import assert_close

from pyro_memory import ConceptMemory, reorganise
from pyro_memory.distributions import NormalGamma
from pyro_memory.recall import merge, merge_evidence, split, split_evidence

DIM = 3
PRIOR = {"prior_kappa": 0.1, "prior_alpha": 3.0, "prior_beta": 0.3}


def around(*centres, count=6, seed=0, spread=0.3):
    g = torch.Generator().manual_seed(seed)
    return torch.cat([c + spread * torch.randn(count, DIM, generator=g, dtype=torch.float64) for c in centres])


def taken(loc, labels, concepts=4, exemplars=8):
    store = ConceptMemory.reserve(
        concepts, DIM, dtype=torch.float64, exemplars=exemplars, event_shape=(1,), **PRIOR
    )  # fmt: skip
    q = torch.nn.functional.one_hot(torch.tensor(labels), concepts).double()
    return store.update(loc, torch.zeros_like(loc), q, items=list(loc[:, None, :1]))


def log_evidence(loc):
    """log p of observations, each given those before it: a product of Student-ts."""
    now = ConceptMemory.reserve(1, DIM, dtype=torch.float64, **PRIOR)
    total = 0.0
    for e in loc.split(1):
        total += now.predictive().log_prob(e).item()
        now = now.update(e, torch.zeros_like(e), torch.ones(1, 1).double())
    return total


def test_the_normalizer_gives_the_evidence():
    loc = around(0.5)
    store = taken(loc, [0] * 6, concepts=1)
    start = store.emptied().posterior
    gained = (store.posterior.log_normalizer() - start.log_normalizer()).item() - 0.5 * loc.numel() * math.log(
        2 * math.pi
    )
    assert math.isclose(gained, log_evidence(loc), rel_tol=1e-9)
    natural = NormalGamma.of_natural(store.posterior.natural())
    for one, other in zip(natural, store.posterior, strict=True):
        assert_close(one, other)


def test_the_factor_of_a_merge_is_the_ratio_of_evidences_times_that_of_partitions():
    loc = around(-0.4, 0.4)
    store = taken(loc, [0] * 6 + [2] * 6)
    found = merge_evidence(store)
    ratio = log_evidence(loc) - log_evidence(loc[:6]) - log_evidence(loc[6:])
    g = store.concentration / 4

    def labelled(*counts):  # the chance of one partition: labels in any of their orders
        orders = math.perm(4, len(counts))
        return math.log(orders) + sum(math.lgamma(n + g) - math.lgamma(g) for n in counts)

    assert math.isclose(found[0, 2], ratio + labelled(12) - labelled(6, 6), rel_tol=1e-6)
    assert found[0, 0] == found[0, 1] == -math.inf
    assert_close(found, found.T)


def test_what_is_merged_is_what_one_concept_would_have_been():
    loc = around(-0.2, 0.2)
    one = taken(loc, [0] * 12)
    both = merge(taken(loc, [0] * 6 + [2] * 6), 0, 2)
    for a, b in zip(both.posterior, one.posterior, strict=True):
        assert_close(a, b)
    assert both.counts.tolist() == [12, 0, 0, 0]
    assert not both.exemplars.filled[2].any()


@pytest.mark.parametrize(("apart", "one"), [(0.0, True), (0.2, True), (1.5, False), (4.0, False)])
def test_two_that_are_one_are_merged_and_two_that_are_two_are_not(apart, one):
    store = taken(around(-apart / 2, apart / 2), [0] * 6 + [1] * 6)
    after, record = reorganise(store)
    assert len(record.merged) == one
    assert int((after.counts > 0).sum()) == 2 - one


@pytest.mark.parametrize(("apart", "two"), [(0.0, False), (0.3, False), (3.0, True), (6.0, True)])
def test_one_that_is_two_is_split_where_it_should_be(apart, two):
    torch.manual_seed(0)
    loc = around(-apart / 2, apart / 2, count=4)
    store = taken(loc, [0] * 8)
    nats, _ = split_evidence(store, 0)
    assert (nats > 0) == two
    after, record = reorganise(store)
    assert len(record.split) == two
    if two:
        assert after.counts[:2].tolist() == [4, 4]
        assert sorted(after.loc[:2].mean(-1).sign().tolist()) == [-1, 1]
        alone = taken(loc[:4], [0] * 4)
        k = int(after.loc[:2].mean(-1).argmin())
        for a, b in zip(after.posterior, alone.posterior, strict=True):
            assert_close(a[k], b[0])  # every episode stands for itself: nothing was lost
        assert "is two" in repr(record)
        assert record.to_dict()["merged"] == []


def test_the_factor_of_a_split_is_that_of_all_divisions():
    loc = around(-0.5, 0.5, count=2)
    store = taken(loc, [0] * 4)
    nats, _ = split_evidence(store, 0)
    whole, parts = log_evidence(loc), []
    for code in range(1, 8):
        side = torch.tensor([code & 1, code & 2, code & 4, 0]).bool()
        parts.append(log_evidence(loc[side]) + log_evidence(loc[~side]))
    expected = torch.tensor(parts).logsumexp(0).item() - math.log(7) - whole
    assert math.isclose(nats, expected, rel_tol=1e-6)


def test_images_of_one_episode_stay_together():
    loc = around(0.0, count=1)
    store = ConceptMemory.reserve(2, DIM, dtype=torch.float64, exemplars=4, event_shape=(1,), **PRIOR)
    store = store.update(loc, torch.zeros_like(loc), torch.eye(2)[:1].double(), items=[torch.rand(4, 1).double()])
    nats, second = split_evidence(store, 0)
    assert nats == -math.inf
    assert not second.any()


def test_variance_of_embeddings_is_kept_where_concepts_part():
    torch.manual_seed(0)
    loc = around(-3.0, 3.0, count=3)
    q = torch.nn.functional.one_hot(torch.zeros(6).long(), 2).double()
    store = ConceptMemory.reserve(2, DIM, dtype=torch.float64, exemplars=8, event_shape=(1,), **PRIOR)
    store = store.update(loc, torch.full_like(loc, 0.5), q, items=list(loc[:, None, :1]))
    after, _ = reorganise(store)
    alone = ConceptMemory.reserve(1, DIM, dtype=torch.float64, **PRIOR)
    alone = alone.update(loc[:3], torch.full_like(loc[:3], 0.5), torch.ones(3, 1).double())
    k = int(after.loc.mean(-1).argmin())
    assert_close(after.beta[k], alone.beta[0])


@pytest.mark.unchecked
def test_what_cannot_be_is_refused():
    store = taken(around(0.0), [0] * 6, concepts=1)
    with pytest.raises(ValueError, match="`other` must be another concept"):
        merge(taken(around(0.0), [0] * 6), 1, 1)
    with pytest.raises(ValueError, match="must have an empty concept"):
        split(store, 0, store.exemplars.filled[0])
    bare = ConceptMemory.reserve(2, DIM)
    with pytest.raises(ValueError, match="must keep from 1 to 16 exemplars"):
        split_evidence(bare, 0)
    assert not reorganise(bare)[1].merged
    with pytest.raises(ValueError, match=r"`k` must .*concept"):
        split_evidence(store, 1)
    two = taken(around(0.0), [0] * 6)
    with pytest.raises(ValueError, match=r"`k` must .*concept"):
        split(two, 9, two.exemplars.filled[0])
    with pytest.raises(ValueError, match=f"`second` must mark the {two.exemplars.places} places"):
        split(two, 0, two.exemplars.filled[0][:-1])
