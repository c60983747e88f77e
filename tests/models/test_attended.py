"""Attention to all slots, over an autoregressive base."""

import pytest
import torch
from base_pairs import SHAPE, autoregressive, vae
from conftest import ink, sharpen
from pyro import poutine
from torch.testing import assert_close

from pyro_memory import Context, SlotMemory, importance_bound
from pyro_memory.guides import EmptyGuide
from pyro_memory.models import Addressed, Attended
from pyro_memory.testing import check_pair


def attended(**options):
    return sharpen(Attended(autoregressive(reads=True, looks=2, **options)[0]), 1.5).double()


def share_width(model):
    return model.base.looks[0].read_place.shape[-1]


def test_one_slot_is_what_a_base_says_that_reads_it():
    model, x, slot = attended(), ink(3, *SHAPE).double(), ink(1, *SHAPE).double()
    alone = model.base.log_prob(x, Context(content=model.base.content(slot)))
    assert_close(importance_bound(model, EmptyGuide(), x, SlotMemory(slot), particles=1).bound, alone)


@pytest.mark.parametrize("model", [Attended, Addressed])
def test_how_images_are_drawn_is_told_to_the_base(model):
    memory, told = SlotMemory(ink(4, *SHAPE)), sharpen(model(autoregressive(reads=True, unread=0.1)[0]), 2.0)

    def drawn(w):
        torch.manual_seed(0)
        return told.generate(memory, (20,), guidance=w)

    assert_close(drawn(0.0), drawn(0.0))
    assert (drawn(0.0) != drawn(30.0)).any()
    with pytest.raises(ValueError, match="`guidance` needs a model that knows"):
        model(autoregressive(reads=True)[0]).generate(memory, guidance=1.0)
    with pytest.raises(TypeError, match="`guidance` must be"):
        told.generate(memory, guidance="much")


def test_the_order_of_slots_says_nothing_and_each_is_heeded():
    model, x, slots = attended(), ink(3, *SHAPE).double(), ink(4, *SHAPE).double()

    def log_prob(values):
        return model.base.log_prob(x, model.context(SlotMemory(values)))

    assert_close(log_prob(slots.flip(0)), log_prob(slots))
    for i in range(4):
        other = slots.clone()
        other[i] = 1 - other[i]
        assert (log_prob(other) != log_prob(slots)).all()


def test_a_memory_a_datum_says_what_each_says_by_itself():
    model, x, slots = attended(code_dim=1), ink(3, *SHAPE).double(), ink(3, 4, *SHAPE).double()
    each = [model.base.log_prob(x[i : i + 1], model.context(SlotMemory(slots[i]))) for i in range(3)]
    assert_close(model.base.log_prob(x, model.context(SlotMemory(slots, batch_dim=-1))), torch.cat(each))


def test_slots_all_alike_say_what_one_says_and_how_many_there_are():
    model, x, slot = attended(code_dim=1), ink(3, *SHAPE).double(), ink(1, *SHAPE).double()
    context = model.context(SlotMemory(slot.expand(5, *SHAPE)))
    assert_close(context.code.exp(), torch.tensor([5.0]).double())
    one = Context(context.code, model.base.content(slot[0]))
    assert_close(model.base.log_prob(x, context), model.base.log_prob(x, one))


@pytest.mark.parametrize("per_datum", [False, True])
def test_attention_is_shared_out_over_the_slots(per_datum):
    model, x = attended(), ink(3, *SHAPE).double()
    slots = ink(3, 5, *SHAPE).double() if per_datum else ink(5, *SHAPE).double()
    share = model.attention(x, SlotMemory(slots, batch_dim=-1 if per_datum else None))
    assert share.shape == (3, 5)
    assert_close(share.sum(-1), torch.ones(3).double())
    seen = []
    model.base.log_prob(x, model.context(SlotMemory(slots, batch_dim=-1 if per_datum else None)), seen=seen)
    by_look = [w.mean((-3, -2)).unflatten(-1, (-1, 5, share_width(model))).sum((1, 3)) for w in seen]
    assert_close(share, sum(by_look) / 2)
    for look in model.base.looks:
        look.read.weight.data.zero_(), look.read.bias.data.zero_()  # all keys alike
    even = model.attention(x, SlotMemory(slots, batch_dim=-1 if per_datum else None))
    assert_close(even, torch.full((3, 5), 0.2).double())
    assert (share - even).abs().max() > 1e-3


def test_it_keeps_the_contract_of_a_pair_and_draws_images():
    def make():
        return Attended(autoregressive(reads=True)[0]), EmptyGuide()

    check_pair(*make(), ink(4, *SHAPE), SlotMemory(ink(3, *SHAPE)), make=make)
    model, _ = make()
    assert model.generate(SlotMemory(ink(3, *SHAPE)), (2,)).shape == (2, *SHAPE)
    assert model.generate(SlotMemory(ink(4, 3, *SHAPE), batch_dim=-1), (2,)).shape == (2, 4, *SHAPE)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: Attended(autoregressive(reads=True, looks=0)[0]), "`base` must look at what is read"),
        (lambda: Attended(autoregressive(reads=True, code_dim=2)[0]), "`base` must look at what is read"),
        (lambda: attended().float().context(SlotMemory.empty(SHAPE)), "`memory` must hold at least one item"),
        (
            lambda: attended().float().context(SlotMemory(ink(2, *SHAPE), mask=torch.tensor([True, False]))),
            "`memory` must have all slots filled",
        ),
    ],
)
def test_misuse_is_said(call, text):
    with pytest.raises(ValueError, match=text):
        call()


@pytest.mark.unchecked
def test_another_base_is_refused():
    with pytest.raises(TypeError, match="`base` must be"):
        Attended(vae(reads=True)[0])


def test_images_that_are_told_nothing_in_training_look_at_nothing_however_many_slots_there_are():
    model = attended(unread=0.9).train()
    x, memory = ink(1, *SHAPE).double().expand(40, *SHAPE).contiguous(), SlotMemory(ink(5, *SHAPE).double())
    log_prob = poutine.trace(model).get_trace(x, memory).nodes["x"]["fn"].log_prob(x)
    nothing = (log_prob - model.base.log_prob(x, Context())).abs() < 1e-9
    assert 20 < nothing.sum() < 40
