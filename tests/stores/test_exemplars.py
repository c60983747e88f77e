"""A weighted sample of what each concept took in."""

import itertools
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from pyro_memory import ConceptMemory
from pyro_memory.stores import Exemplars

TRIES = 4000


def marked(values, places=2, concepts=1, store=None):
    """Images of one pixel that say who they are, taken in with their weights."""
    store = Exemplars.reserve(concepts, places, (1,), 1) if store is None else store
    for value, shares in values:
        here = torch.tensor([float(value)])
        store = store.take_in(here.unsqueeze(0), here, here, torch.as_tensor(shares))
    return store


def every(weight):
    """The same weight in many concepts, each of which draws for itself."""
    return torch.full((TRIES,), weight)


def inclusion(weights, places):
    """The chance of each to be in a weighted sample without replacement, by all orders of drawing."""
    chance = [0.0] * len(weights)
    for order in itertools.permutations(range(len(weights)), places):
        p, left = 1.0, sum(weights)
        for i in order:
            p, left = p * weights[i] / left, left - weights[i]
        for i in order:
            chance[i] += p
    return torch.tensor(chance)


def check_kept(store, rows, weights):
    """Who is kept in these rows, as often as in a weighted sample without replacement."""
    held, expected = store.values[rows, :, 0], inclusion(weights, 2)
    share = torch.stack([(held == v).any(1).float().mean() for v in range(1, len(weights) + 1)])
    error = (expected * (1 - expected) / len(held)).sqrt()
    assert bool(((share - expected).abs() < 4 * error).all())


@pytest.mark.parametrize("rate", [1.0, 0.25])
def test_each_is_kept_as_often_as_in_a_weighted_sample_without_replacement(rate):
    torch.manual_seed(0)
    store = marked([(1, every(1.0)), (2, every(0.5))], concepts=TRIES).forget(rate)
    store = marked([(3, every(0.2)), (4, every(0.8))], store=store)
    check_kept(store, slice(None), [rate * 1.0, rate * 0.5, 0.2, 0.8])


def test_merged_concepts_have_a_sample_of_both():
    torch.manual_seed(0)
    half = torch.arange(TRIES) < TRIES // 2
    store = marked([(1, every(1.0) * half), (2, every(0.5) * half), (3, every(0.7) * ~half)], concepts=TRIES)
    for k in range(200):
        store = store.merge(k, TRIES - 1 - k)
    check_kept(store, slice(200), [1.0, 0.5, 0.7])
    assert not store.filled[-200:].any()


def test_what_is_split_stands_first_in_both():
    store = marked([(1, [1.0, 0.0]), (2, [1.0, 0.0]), (3, [1.0, 0.0])], places=4, concepts=2)
    second = store.values[0, :, 0] == 2
    parted = store.split(0, 1, second)
    assert parted.filled.tolist() == [[True, True, False, False], [True, False, False, False]]
    assert sorted(parted.values[0, :2, 0].tolist()) == [1, 3]
    assert parted.values[1, 0].item() == parted.loc[1, 0].item() == 2


def test_a_trace_of_an_episode_leaves_no_image():
    assert not marked([(1, [1e-4])]).filled.any()


def test_concepts_keep_images_by_responsibility_and_update_as_without():
    torch.manual_seed(0)
    loc, variance = torch.randn(6, 3), torch.full((6, 3), 0.1)
    q = torch.rand(6, 2).softmax(-1)
    bare = ConceptMemory.reserve(2, 3).update(loc, variance, q)
    kept = ConceptMemory.reserve(2, 3, exemplars=4, event_shape=(2,))
    kept = kept.update(loc, variance, q, items=list(torch.rand(6, 3, 2)))
    assert_close(bare.beta, kept.beta)
    assert kept.exemplars.filled.all()
    owners = (kept.exemplars.loc.unsqueeze(2) == loc).all(-1).float()
    assert_close(owners.sum(-1), torch.ones(2, 4))  # each came from one of the episodes
    assert_close(kept.forget(0.5).exemplars.times, 2 * kept.exemplars.times)


@pytest.mark.unchecked
def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="`concepts`, `places` and `dim` must be at least 1"):
        Exemplars.reserve(2, 0, (1,), 3)
    store = Exemplars.reserve(2, 3, (1,), 4)
    with pytest.raises(ValueError, match=r"`loc` must be a floating-point tensor .* with concept = 2"):
        Exemplars(store.values, store.loc[:1], store.variance, store.times)
    empty = ConceptMemory.reserve(3, 4)
    with pytest.raises(ValueError, match="`exemplars` must be of 3 concepts"):
        replace(empty, exemplars=store)


def test_a_prototype_is_mean_and_spread_of_what_a_concept_keeps():
    store = Exemplars.reserve(3, 4, (1, 2, 2), 2)
    images = torch.rand(3, 1, 2, 2)
    store = store.take_in(images, torch.zeros(2), torch.ones(2), torch.tensor([1.0, 0.0, 0.5]))
    mean, spread = store.prototypes()
    for k in (0, 2):
        assert_close(mean[k], images.mean(0))
        assert_close(spread[k], images.std(0, correction=0))
    assert not mean[1].any()
    assert not spread[1].any()
