import pytest
import torch
from conftest import ink
from torch.testing import assert_close

from pyro_memory import SlotMemory, broadcast_cat

DATA, SLOTS, PARTICLES = 4, 3, 5
SHARED, OWN, NESTED = SlotMemory(ink(SLOTS, 2)), SlotMemory(ink(DATA, SLOTS, 2), batch_dim=-1), (6, DATA)
EVERY = torch.arange(SLOTS)
READS = {
    "sampled": (SHARED[torch.randint(SLOTS, (DATA,))], (DATA,)),
    "particles": (SHARED[torch.randint(SLOTS, (PARTICLES, DATA))], (PARTICLES, DATA)),
    "enumerated": (SHARED[EVERY[:, None]], (SLOTS, DATA)),
    "enumerated left of particles": (SHARED[EVERY[:, None, None]], (SLOTS, 1, DATA)),
    "enumerated, a memory a datum": (OWN[EVERY[:, None]], (SLOTS, DATA)),
    "particles, a memory a datum": (OWN[torch.randint(SLOTS, (PARTICLES, DATA))], (PARTICLES, DATA)),
    "a plate outside of the data's": (SHARED[torch.randint(SLOTS, NESTED)], NESTED),
}


@pytest.mark.parametrize("read", READS)
def test_each_datum_lies_beside_each_of_its_reads(read):
    m, lead = READS[read]
    y = torch.randn(DATA, 7)
    both = broadcast_cat([y, m])
    assert both.shape == (*lead, 9)
    assert_close(both[..., :7], y.expand(*lead, 7), rtol=0, atol=0)
    assert_close(both[..., 7:], m.expand(*lead, 2), rtol=0, atol=0)


def test_images_become_channels_of_one_and_gradients_reach_both():
    x, m = torch.randn(DATA, 1, 6, 5, requires_grad=True), torch.randn(SLOTS, 1, 2, 6, 5, requires_grad=True)
    both = broadcast_cat([x, m], -3)
    assert both.shape == (SLOTS, DATA, 3, 6, 5)
    weight = torch.randn_like(both)
    by_x, by_m = torch.autograd.grad((both * weight).sum(), (x, m))
    assert_close(by_x, weight[:, :, :1].sum(0))
    assert_close(by_m, weight[:, :, 1:].sum(1, keepdim=True))


def test_what_stands_right_of_the_dimension_broadcasts_and_nothing_may_be_of_size_zero():
    level = broadcast_cat([torch.zeros(DATA, 1, 6, 5), torch.ones(DATA, 1, 1, 1)], -3)
    assert_close(level[:, 1], torch.ones(DATA, 6, 5))
    assert broadcast_cat([torch.zeros(DATA, 0), torch.zeros(SLOTS, 1, 2)]).shape == (SLOTS, DATA, 2)
    assert_close(broadcast_cat([level]), level)


def test_misuse_is_refused():
    with pytest.raises(ValueError, match=r"`dim` counts from the right and is negative, .*; got 1"):
        broadcast_cat([torch.zeros(3, 2)], 1)
    with pytest.raises(ValueError, match=r"`tensors` must be one or more, each with a dimension -3; got none"):
        broadcast_cat([], -3)
    with pytest.raises(ValueError, match=r"each with a dimension -2; got \[3, 2\], \[2\]"):
        broadcast_cat([torch.zeros(3, 2), torch.zeros(2)], -2)
    with pytest.raises(ValueError, match=r"broadcast_cat cannot take `tensors` "):
        broadcast_cat([torch.zeros(3, 2), torch.zeros(4, 2)])
