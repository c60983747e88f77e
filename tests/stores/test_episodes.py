"""The episodic store."""

import math

import pytest
import torch
from torch.testing import assert_close

from pyro_memory import EpisodicMemory

EVENT, DIM, K = (1, 2, 2), 2, 3


def episode(value, items=2):
    rho = torch.tensor([[0.2, 0.3, 0.5]])
    images = torch.full((1, items, *EVENT), float(value))
    return torch.full((1, DIM), float(value)), torch.full((1, DIM), 0.5), images, torch.tensor([items]), rho


def written(slots, values, **options):
    store = EpisodicMemory.reserve(slots, 3, EVENT, DIM, K)
    for value in values:
        store = store.write(*episode(value), **options)
    return store


def test_a_full_ring_gives_up_its_oldest_episode():
    store = written(3, [1, 2, 3, 4])
    assert sorted(store.loc[:, 0].tolist()) == [2, 3, 4]
    assert store.ages[store.loc[:, 0] == 2].item() == 2
    assert_close(store.responsibilities[0], torch.tensor([0.2, 0.3, 0.5]))


def test_free_slots_are_filled_first():
    store = written(3, [1, 2, 3])
    store = store.free(store.loc[:, 0] == 3)
    assert int(store.filled.sum()) == 2
    assert_close(store.variance[~store.filled], torch.ones(1, DIM))
    assert sorted(store.write(*episode(5)).loc[:, 0].tolist()) == [1, 2, 5]


def test_several_at_once_are_as_one_after_another():
    parts = [episode(v) for v in (1, 2, 3, 4)]
    together = EpisodicMemory.reserve(3, 3, EVENT, DIM, K).write(*(torch.cat(t) for t in zip(*parts, strict=True)))
    apart = written(3, [1, 2, 3, 4])
    assert_close(together.store.keys, apart.store.keys)
    assert torch.equal(together.ages, apart.ages)


def test_shuffled_items_leave_the_addresses():
    store = written(4, [1, 2, 3])
    other = store.shuffle_items()
    assert_close(other.loc, store.loc)
    shown, before = other.items[:, 0, 0, 0, 0], store.items[:, 0, 0, 0, 0]
    assert sorted(shown.tolist()) == sorted(before.tolist())
    assert bool((shown != before)[store.filled].all())


def test_it_is_data():
    loc, variance, images, counts, rho = episode(1)
    store = EpisodicMemory.reserve(2, 3, EVENT, DIM, K)
    store = store.write(loc.requires_grad_(), variance, images, counts, rho, replayed=True)
    assert not store.loc.requires_grad
    assert store.replayed.tolist() == [True, False]
    assert "slots=2, filled=1, replayed=1" in repr(store)


def test_bad_input_is_refused_with_the_remedy():
    store = EpisodicMemory.reserve(2, 3, EVENT, DIM, K)
    loc, variance, images, counts, rho = episode(1, items=4)
    with pytest.raises(ValueError, match="`items` must be at most 3 an episode, the width of a slot; got 4"):
        store.write(loc, variance, images, counts, rho)
    loc, variance, images, counts, rho = episode(1)
    with pytest.raises(ValueError, match="`counts` must be at most the 2 images"):
        store.write(loc, variance, images, counts + 1, rho)
    with pytest.raises(ValueError, match="`loc` must be finite; got nan"):
        store.write(loc * math.nan, variance, images, counts, rho)
    with pytest.raises(ValueError, match="must be finite, of 2, 2 and 3 columns; got"):
        store.write(loc, variance, images, counts, rho[:, :2])
    with pytest.raises(ValueError, match="`slots`, `items`, `dim` and `concepts` must be at least 1"):
        EpisodicMemory.reserve(0, 3, EVENT, DIM, K)
