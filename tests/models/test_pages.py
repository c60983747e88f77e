"""What a base sees of the page that was read: the image addressed, and all others of it."""

import math

import pyro
import pytest
import torch
from conftest import ink, sharpen
from set_parts import CODE, DIM, SHAPE, K, pair, sets, stores
from torch.testing import assert_close

from pyro_memory import ConceptMemory, LeaveOneOutELBO, Recall, StructuredMemory, importance_bound, remember
from pyro_memory.guides import AutoregressiveBaseGuide, VSMGuide
from pyro_memory.models import VSM, AutoregressiveBase


def kept():
    """Concepts with exemplars, the last of them empty, beside a ring with a free slot."""
    g = torch.Generator().manual_seed(0)
    loc, variance = torch.randn(8, DIM, generator=g), torch.full((8, DIM), 0.2)
    concepts = ConceptMemory.reserve(K, DIM, exemplars=2, event_shape=SHAPE)
    concepts = concepts.update(loc, variance, torch.eye(K)[torch.arange(8) % 2], items=list(ink(8, 3, *SHAPE)))
    return StructuredMemory(concepts, stores().episodes)


def whole(unread=0.0):
    recall = Recall(SHAPE, dim=DIM, code_dim=CODE, channels=(4, 5), hidden=8)
    base = AutoregressiveBase(
        SHAPE, maps=4, layers=(1, 2), looks=1, code_dim=CODE, whole_page=True, unread=unread
    )  # fmt: skip
    return sharpen(VSM(base, recall)), VSMGuide(AutoregressiveBaseGuide(), recall)


def weighed(model, memory, page, i, x):
    c = torch.zeros(1, 1, CODE)
    return model.base.log_prob(x, model.context(torch.tensor([[page]]), torch.tensor([[i]]), c, memory))


def changed(memory, slot, place):
    """The memory with another image at a place of an episode."""
    items = memory.episodes.items.clone()
    items[slot, place] = 1 - items[slot, place]
    return with_items(memory, items)


def with_items(memory, items):
    episodes = memory.episodes
    return StructuredMemory(memory.concepts, episodes._with(items, episodes.store.keys, episodes.filled))


def test_all_images_of_the_page_are_seen_and_no_others():
    torch.manual_seed(0)
    model, _ = whole()
    memory, x = remember(model.recall, kept(), sets([2], width=3)), ink(1, 1, *SHAPE)
    two = int((memory.episodes.counts == 2).nonzero()[0])
    with torch.no_grad():
        # The page read, the page changed, the place changed, and whether that is seen.
        for page, other, place, seen in ((0, 0, 1, True), (0, 0, 2, True), (0, 1, 1, False), (two, two, 1, True)):
            before, after = (weighed(model, m, page, 0, x) for m in (memory, changed(memory, other, place)))
            assert torch.equal(before, after) != seen, (page, other, place)
        # A place that no image fills is not looked at, whatever it holds.
        assert torch.equal(*(weighed(model, m, two, 0, x) for m in (memory, changed(memory, two, 2))))


def test_a_base_that_looks_at_one_image_sees_one():
    model, _ = pair("autoregressive")
    memory, x = kept(), ink(1, 1, *SHAPE)
    with torch.no_grad():
        assert torch.equal(weighed(model, memory, 0, 0, x), weighed(model, changed(memory, 0, 1), 0, 0, x))


def test_an_empty_page_is_one_image_of_zeros_and_the_order_of_a_page_does_not_matter():
    torch.manual_seed(0)
    model, _ = whole()
    memory, x = kept(), ink(1, 1, *SHAPE)
    slots, none = memory.episodes.slots, memory.width
    with torch.no_grad():
        empty = weighed(model, memory, slots + K - 1, none, x)
        assert bool(torch.isfinite(empty).all())
        assert_close(empty, weighed(model, memory, slots + K, none, x))
        other = with_items(memory, memory.episodes.items.flip(1))
        assert_close(weighed(model, memory, 0, 0, x), weighed(model, other, 0, 2, x))


@pytest.mark.parametrize("kind", ["vae", "whole"])
def test_the_evidence_is_the_sum_over_what_can_be_read_exemplars_too(kind):
    """Discrete latents by hand, continuous ones drawn from the model: the bound stays below and comes near."""
    pyro.set_rng_seed(1)
    model, guide = whole() if kind == "whole" else pair(factor=1.0)
    draws = 1000 if kind == "whole" else 4000
    x, support, memory = ink(1, 1, *SHAPE), sets([0], width=1), kept()
    parts = []
    with torch.no_grad():
        address, content, context = model.recall.gather(support)
        log_k = model.recall.k_dist(memory, address).logits[0, 0]
        for k in range(K):
            addresses = torch.full((draws, 1), k)
            s = model.recall.s_dist(addresses, memory, content).sample()
            log_j = model.recall.j_dist(addresses[:1], memory, address).logits[0, 0]
            for j in (log_j > -math.inf).nonzero().flatten().tolist():
                slots = torch.full((draws, 1), j)
                c = model.recall.c_dist(s, model.recall.episode(slots, memory), context).sample()
                page = memory.page(addresses, slots)
                log_i = memory.which(page[:1]).logits[0, 0]
                for i in (log_i > -math.inf).nonzero().flatten().tolist():
                    told = model.context(page, torch.full((draws, 1), i), c, memory)
                    if kind == "whole":
                        log_x = model.base.log_prob(x, told).flatten().double()
                    else:
                        z = model.base.z_dist(told).sample()
                        log_x = model.base.x_dist(z, told).log_prob(x[0]).flatten().double()
                    parts.append((log_k[k] + log_j[j] + log_i[i]).double() + log_x)
    evidence = torch.stack(parts).exp()
    value, error = evidence.mean(1).sum(), (evidence.var(1).sum() / draws).sqrt()
    high = importance_bound(model, guide, x, support, memory, particles=5 * draws, chunk_size=1000, max_plate_nesting=2)
    assert abs(high.bound.exp().item() - value) < 5 * (error**2 + (value * high.monte_carlo_se) ** 2).sqrt()


def test_what_is_told_nothing_hears_nothing_of_the_page():
    torch.manual_seed(0)
    model, _ = whole(unread=0.5)
    memory, x = kept(), ink(2, 1, *SHAPE)
    context = model.context(torch.zeros(2, 1).long(), torch.zeros(2, 1).long(), torch.randn(2, 1, CODE), memory)
    from pyro_memory.nets import Context

    with torch.no_grad():
        some = model.base.log_prob(x, context, told=torch.tensor([[True], [False]]))
        assert_close(some[0], model.base.log_prob(x, context)[0])
        assert_close(some[1], model.base.log_prob(x, Context())[1])
        assert not torch.allclose(some[1], model.base.log_prob(x, context)[1])


def test_many_at_once_are_as_few(monkeypatch):
    from pyro_memory.models.bases import autoregressive

    torch.manual_seed(0)
    model, _ = whole()
    memory, x = kept(), ink(2, 3, *SHAPE)
    page, i = torch.tensor([[0], [4]]), torch.tensor([[0, 1, 0], [1, 0, 3]])
    context = model.context(page, i, torch.randn(2, 1, CODE), memory)
    with torch.no_grad():
        together = model.base.log_prob(x, context)
        monkeypatch.setattr(autoregressive, "AT_ONCE", 1)
        assert_close(model.base.log_prob(x, context), together)


def test_it_trains_and_draws_sharper_when_told_to():
    torch.manual_seed(0)
    model, guide = whole(unread=0.3)
    memory = remember(model.recall, kept(), sets([2, 2]))
    support = sets([2, 2])
    memory = remember(model.recall, memory, support)
    loss = LeaveOneOutELBO(2, max_plate_nesting=2).differentiable_loss(model, guide, ink(2, 2, *SHAPE), support, memory)
    loss.backward()
    for look in model.base.looks:
        assert float(look.read.weight.grad.abs().sum()) > 0
    cold = model.generate(support, memory, 6, temperature=1e-6)
    assert cold.shape == (2, 6, *SHAPE)
    with pytest.raises(ValueError, match="`temperature` must lie in"):
        model.generate(support, memory, 1, temperature=0.0)
