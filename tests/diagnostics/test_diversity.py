"""How varied drawings are, and how many are copies."""

import pytest
from conftest import ink

from pyro_memory.diagnostics import sample_diversity

SHAPE = (1, 8, 8)


def test_the_same_images_are_as_varied_and_one_image_over_and_over_is_not():
    real, examples = ink(5, 6, *SHAPE), ink(5, 3, *SHAPE)
    features = real.flatten(2)
    same = sample_diversity((features, features), (real, real), examples)
    assert same.ratio == pytest.approx(1.0)
    assert same.copies == same.real_copies == 0
    once = real[:, :1].expand_as(real)
    poor = sample_diversity((once.flatten(2), features), (once, real), examples)
    assert poor.ratio == pytest.approx(0.0, abs=1e-6)
    assert "0%" in repr(poor)


def test_copies_of_an_example_are_counted_and_near_copies_too():
    real, examples = ink(4, 6, *SHAPE), ink(4, 3, *SHAPE)
    drawn = real.clone()
    drawn[:, :3] = examples
    drawn[:, 0, 0, 0, 0] = 1 - drawn[:, 0, 0, 0, 0]  # one pixel of some thirty
    found = sample_diversity((drawn.flatten(2), real.flatten(2)), (drawn, real), examples)
    assert found.copies == pytest.approx(0.5)
    assert found.to_dict()["ratio"] == found.ratio


@pytest.mark.unchecked
def test_one_image_of_a_class_has_no_distance():
    real = ink(3, 1, *SHAPE)
    with pytest.raises(ValueError, match="two images of each or more"):
        sample_diversity((real.flatten(2), real.flatten(2)), (real, real), real)
