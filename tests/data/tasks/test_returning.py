"""Classes that come, leave and come back."""

import pytest
import torch

from pyro_memory import EpisodicMemory, Lifetime, Recall, StructuredMemory
from pyro_memory.data import LabelledImages, ReturningClasses
from pyro_memory.stores import ConceptMemory

SHAPE, EACH = (1, 8, 8), 10


def labelled(classes=30):
    """Image i of class c is told by its first two pixels' bits: none is like another."""
    count = classes * EACH
    bits = (torch.arange(count).unsqueeze(-1) >> torch.arange(64) % 16) & 1
    return LabelledImages(bits.byte().reshape(count, *SHAPE), torch.arange(classes).repeat_interleave(EACH))


DATA = labelled()
OPTIONS = {"tasks": 4, "queries": 2, "shots": 3, "entering": 2, "present": 5, "held_out": 0.4}


def whose(stream, images):
    """The place of each image in the data."""
    flat = DATA.images.flatten(1).float()
    return (images.flatten(-3).unsqueeze(-2) == flat).all(-1).float().argmax(-1)


def test_a_step_is_the_same_whenever_it_is_asked_for():
    one, other = ReturningClasses(DATA, seed=3, **OPTIONS), ReturningClasses(DATA, seed=3, **OPTIONS)
    later = one[20]
    for step in (0, 7, 20):
        assert torch.equal(one[step][0], other[step][0])
        assert torch.equal(one[step][1].values, other[step][1].values)
    assert torch.equal(later[0], one[20][0])
    assert not torch.equal(one[5][0], ReturningClasses(DATA, seed=4, **OPTIONS)[5][0])


def test_classes_come_and_leave_and_come_back():
    stream = ReturningClasses(DATA, returning=0.5, **OPTIONS)
    seen, there, back = set(), [], 0
    for step in range(60):
        x, support = stream[step]
        labels = (whose(stream, x[:, 0]) // EACH).tolist()
        assert len(set(labels)) == len(labels)
        for task, label in enumerate(labels):
            new, entering = label not in seen, task < 2
            assert entering or not new  # who is drawn from those that are there was seen before
            if entering and not new:
                back += 1
                assert int(support.filled[task].sum()) <= 2
            else:
                assert int(support.filled[task].sum()) == 3
            assert entering != (label in there)
            seen.add(label)
        there = (there + labels[:2])[-5:]
    assert back > 20


def test_who_has_left_and_how_often_and_how_long_ago_they_were_met():
    stream = ReturningClasses(DATA, **OPTIONS)
    met, last, there = {}, {}, []
    for step in range(30):
        labels = (whose(stream, stream[step][0][:, 0]) // EACH).tolist()
        for label in labels:
            met[label], last[label] = met.get(label, 0) + 1, step
        there = (there + labels[:2])[-5:]
        expected = {k: (n, (step - last[k]) * 4) for k, n in met.items() if k not in there}
        assert stream.met(step) == expected


def test_what_is_asked_for_is_never_in_a_support_and_who_comes_back_neither():
    stream = ReturningClasses(DATA, **OPTIONS)
    learned, asked = set(), set()
    for step in range(80):
        x, support = stream[step]
        asked |= set(whose(stream, x).flatten().tolist())
        learned |= set(whose(stream, support.values)[support.filled].tolist())
    returned = []
    for labels, x, support in stream.returns(79, shots=2, each=3, tasks=7):
        places = torch.cat([whose(stream, x), whose(stream, support.values)], 1)
        returned += places.flatten().tolist()
        assert (places // EACH == torch.tensor(labels).unsqueeze(-1)).all()
        assert all(len(set(row)) == 3 for row in places.tolist())
    assert len(returned) == 9 * len(stream.met(79))
    assert not learned & asked
    assert not learned & set(returned)


def test_lives_have_other_classes_and_turned_ones_count_eight_times():
    stream = ReturningClasses(DATA, classes=8, life=10, **OPTIONS)

    def met(steps):
        return {int(k) for s in steps for k in whose(stream, stream[s][0][:, 0]) // EACH}

    lives = met(range(10)), met(range(10, 20))
    assert all(len(life) <= 8 for life in lives)
    assert lives[0] != lives[1]
    many = ReturningClasses(DATA, turned=True, returning=0.0, **OPTIONS)
    many[110]
    assert many.classes == 240
    assert len(set(many.met(110))) > 200


def test_a_lifetime_begins_anew_with_each_life_and_goes_on_where_it_was():
    torch.manual_seed(0)
    recall = Recall(SHAPE, dim=3, code_dim=4, channels=(4, 5), hidden=8)
    start = StructuredMemory(
        ConceptMemory.reserve(6, 3, exemplars=2, event_shape=SHAPE), EpisodicMemory.reserve(12, 3, SHAPE, 3, 6)
    )

    def life():
        stream = ReturningClasses(DATA, life=6, **OPTIONS)
        return Lifetime(stream, recall, start, consolidate_every=2, timescale=2.0, room=6, life=6)

    torch.manual_seed(1)
    whole, counts = life(), []
    for step in range(9):
        whole[step]
        counts.append(whole.memory.concepts.counts.sum().item())
        if step == 4:
            kept, state = whole.state_dict(), torch.get_rng_state()
    assert counts[5] > 0
    assert counts[6] == 0
    again = life()
    again.load_state_dict(kept)  # as after a kill
    torch.set_rng_state(state)
    for step in range(5, 9):
        again[step]
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"entering": 5}, "`tasks` .4. must be at least `entering`"),
        ({"returning": 1.5}, "`returning` must lie in"),
        ({"classes": 31}, "`classes` must be from 7"),
        ({"classes": 6}, "`classes` must be from 7"),
        ({"held_out": 0.9}, "`held_out` must leave"),
        ({"held_out": 0.1}, "`held_out` must leave"),
        ({"items": 1}, "`items` must be at least the most shots, 3"),
    ],
)
def test_what_cannot_be_is_refused(options, said):
    with pytest.raises(ValueError, match=said):
        ReturningClasses(DATA, **(OPTIONS | options))
    with pytest.raises(ValueError, match="`shots` must be below the 4 images"):
        list(ReturningClasses(DATA, **OPTIONS).returns(3, shots=4))
