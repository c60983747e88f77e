import pytest
import torch

from pyro_memory.data import glyphs
from pyro_memory.data.images.letters import _draw, _letters


@pytest.fixture(scope="module")
def both():
    return {split: glyphs(split, drawings=4) for split in ("background", "evaluation")}


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(both):
    state = torch.random.get_rng_state()
    again = _draw.__wrapped__("evaluation", 28, 4, 0)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(again.images, both["evaluation"].images)
    assert not torch.equal(_draw.__wrapped__("evaluation", 28, 4, 1).images, again.images)


def test_no_script_is_in_both_splits(both):
    scripts = {s: {name.split(" ")[0] for name in both[s].class_names} for s in both}
    assert not scripts["background"] & scripts["evaluation"]
    assert both["background"].classes > 500
    assert both["evaluation"].classes > 250


def test_no_two_letters_share_a_bitmap():
    bitmaps = [b.tobytes() for faces in _letters().values() for b in {b.tobytes(): b for b in faces}.values()]
    assert len(bitmaps) == len(set(bitmaps))


@pytest.mark.parametrize("split", ["background", "evaluation"])
def test_every_drawing_has_ink_of_levels_zero_and_one(both, split):
    data = both[split]
    assert set(data.images.unique().tolist()) == {0, 1}
    ink = data.images.float().mean((1, 2, 3))
    assert ink.min() > 0.01
    assert ink.max() < 0.6
    assert len(data) == 4 * data.classes


def test_drawings_differ_within_a_letter_and_more_between_letters(both):
    images = both["background"].images.float().reshape(-1, 4, 784)
    within = (images[:, 0] - images[:, 1]).abs().mean()
    between = (images[:, 0] - images.roll(1, 0)[:, 1]).abs().mean()
    assert 0.02 < within < 0.8 * between


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match='`split` must be "background" or "evaluation"; got \'test\''):
        glyphs("test")
    with pytest.raises(ValueError, match="`size` must be at least 16"):
        glyphs("background", size=8)
