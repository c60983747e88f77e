"""Sequential addressing: a prior over slots that a neural memory gives."""

import pyro
import pytest
import torch
from conftest import ink, sharpen
from pyro.infer import TraceEnum_ELBO
from torch.testing import assert_close

from pyro_memory import VIMCO, SlotMemory, fit, information_gain
from pyro_memory.guides import TitansAddressingGuide
from pyro_memory.models import TitansAddressing

SHAPE = (1, 6, 6)


@pytest.fixture
def pair():
    size = {"hidden": (8, 8), "matching_dim": 4}
    model = TitansAddressing.mlp(SHAPE, 8, chunk_size=4, persistent=0, heads=1, **size)
    return sharpen(model, 1.5), sharpen(TitansAddressingGuide.mlp(SHAPE, **size), 1.5)


def test_the_evidence_is_the_sum_over_slots(pair, shared_memory):
    model, _ = pair
    x = ink(2, 7, *SHAPE)
    content = model.content(shared_memory.values)
    joint = [
        model.a_dist(x, shared_memory).probs[..., i].log() + model.x_dist(tuple(c[i] for c in content)).log_prob(x)
        for i in range(5)
    ]
    assert_close(model.log_evidence(x, shared_memory), torch.stack(joint).logsumexp(0))


def test_the_bound_is_the_evidence_minus_the_guides_error(pair, shared_memory):
    model, guide = pair
    x = ink(2, 7, *SHAPE)
    slots = torch.arange(5).reshape(5, 1, 1)
    q, p = guide.a_dist(x, shared_memory), model.a_dist(x, shared_memory)
    likelihood = model.x_dist(shared_memory.read(slots, model.content)).log_prob(x)
    posterior = torch.distributions.Categorical(logits=(p.log_prob(slots) + likelihood).movedim(0, -1))
    expected = model.log_evidence(x, shared_memory) - torch.distributions.kl_divergence(q, posterior)
    bound = -TraceEnum_ELBO(max_plate_nesting=2).loss(model, guide, x, shared_memory)
    assert_close(torch.tensor(bound), expected.sum())


def test_the_prior_of_a_step_sees_what_came_before_and_nothing_else(pair, shared_memory):
    model, _ = pair
    x = ink(2, 9, *SHAPE)
    before = model.a_dist(x, shared_memory).probs
    changed = x.clone()
    changed[0, 4] = 1 - changed[0, 4]
    after = model.a_dist(changed, shared_memory).probs
    assert_close(after[0, :5], before[0, :5])
    assert_close(after[1], before[1])
    assert (after[0, 5:] - before[0, 5:]).abs().amax(-1).min() > 1e-5


def test_slots_may_stand_in_any_order_and_a_sequence_may_have_its_own(pair, shared_memory):
    model, guide = pair
    x, order = ink(2, 7, *SHAPE), torch.tensor([3, 0, 4, 1, 2])
    shuffled = SlotMemory(shared_memory.values[order])
    assert_close(model.a_dist(x, shuffled).probs, model.a_dist(x, shared_memory).probs[..., order])
    own = SlotMemory(torch.stack([shared_memory.values, shuffled.values]), batch_dim=-2)
    elbo = TraceEnum_ELBO(max_plate_nesting=2)
    shared = elbo.loss(model, guide, x, shared_memory)
    assert elbo.loss(model, guide, x, own) == pytest.approx(shared, rel=1e-5)
    assert_close(model.log_evidence(x, own), model.log_evidence(x, shared_memory))


def test_it_trains_and_its_information_is_per_step(pair, shared_memory):
    model, guide = pair
    x = ink(4, 6, *SHAPE)
    gain = information_gain(model, guide, x, shared_memory, draws=1, max_plate_nesting=2)["a"]
    q, p = guide.a_dist(x, shared_memory), model.a_dist(x, shared_memory)
    assert_close(gain.kl.reshape(4, 6), torch.distributions.kl_divergence(q, p))
    for objective in (TraceEnum_ELBO(max_plate_nesting=2), VIMCO(3, max_plate_nesting=2)):
        before = [p.detach().clone() for p in (*model.parameters(), *guide.parameters())]
        fit(model, guide, [(x, shared_memory)], objective, steps=2, progress=False, information_every=None)
        after = (*model.parameters(), *guide.parameters())
        assert all(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_without_a_mixer_the_prior_is_uniform(pair, shared_memory):
    model = TitansAddressing.mlp(SHAPE, 8, hidden=(8, 8), sequential=False)
    trace = pyro.poutine.trace(model).get_trace(ink(2, 3, *SHAPE), shared_memory)
    assert_close(trace.nodes["a"]["fn"].probs, torch.full((2, 3, 5), 0.2))
    assert not [name for name, _ in model.named_parameters() if "mixer" in name or "address" in name]


@pytest.mark.parametrize(
    ("memory", "message"),
    [
        (SlotMemory(torch.rand(3, 1, 4, 4)), r"`memory` must hold items of the shape of those in `x`"),
        (SlotMemory(torch.rand(3, 2, *SHAPE), batch_dim=-2), "one for each of the 2 sequences with batch_dim=-2"),
        (SlotMemory(torch.rand(2, 2, *SHAPE), batch_dim=-1), "got 2 memories with batch_dim=-1"),
        (SlotMemory.empty(SHAPE), "`memory` must hold at least one item"),
    ],
)
def test_a_memory_that_does_not_fit_is_refused(pair, memory, message):
    with pytest.raises(ValueError, match=message):
        pair[0](ink(2, 3, *SHAPE), memory)
