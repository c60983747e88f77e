"""Images whose pixels are given one after the other."""

import pyro.distributions as dist
import pytest
import torch
from conftest import ink
from torch.testing import assert_close

from pyro_memory.distributions import AutoregressiveImage

SHAPE = (1, 2, 3)
PIXELS = dist.Bernoulli(torch.linspace(0.1, 0.9, 6).reshape(SHAPE)).to_event(3)


def image(batch_shape=(4,)):
    return AutoregressiveImage(PIXELS.log_prob, PIXELS.sample, batch_shape, SHAPE)


def test_probabilities_and_draws_are_those_that_it_was_given():
    x = ink(4, *SHAPE)
    assert_close(image().log_prob(x), PIXELS.log_prob(x))
    torch.manual_seed(0)
    drawn = image().sample((3000,))
    assert drawn.shape == (3000, 4, *SHAPE)
    assert (drawn.flatten(0, 1).mean(0) - PIXELS.mean).abs().max() < 5 * 0.5 / 12000**0.5


def test_one_image_is_weighed_for_each_cell_and_each_cell_of_a_wider_batch():
    x = ink(1, *SHAPE)[0]
    assert_close(image().log_prob(x), PIXELS.log_prob(x).expand(4))
    wider = image().expand((2, 4))
    assert wider.batch_shape == (2, 4)
    assert wider.log_prob(ink(4, *SHAPE)).shape == (2, 4)
    assert wider.sample().shape == (2, 4, *SHAPE)


def test_what_was_weighed_is_at_hand_for_these_images_as_they_were_and_no_others():
    x, known = ink(4, *SHAPE), torch.arange(4.0)
    weighed = image().weighed(x, known)
    assert_close(weighed.log_prob(x), known)
    assert_close(weighed.expand((4,)).log_prob(x), known)
    assert_close(weighed.log_prob(x.clone()), PIXELS.log_prob(x))
    x[0] = 1 - x[0]
    assert_close(weighed.log_prob(x), PIXELS.log_prob(x))
    assert_close(image().log_prob(x), PIXELS.log_prob(x))


def test_a_batch_that_does_not_fit_is_refused():
    assert image((1, 4)).expand((3, 4)).batch_shape == (3, 4)
    with pytest.raises(ValueError, match="must match the existing size"):
        image((4,)).expand((3,))


def test_an_image_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"`value` must end with \[1, 2, 3\], an image; got \[4, 1, 3, 3\]"):
        image().log_prob(ink(4, 1, 3, 3))
