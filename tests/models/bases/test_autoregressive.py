"""The autoregressive base."""

import itertools
import math

import pyro
import pytest
import torch
from base_pairs import CODE, SHAPE, autoregressive
from conftest import ink, sharpen
from pyro import poutine
from torch.testing import assert_close

from pyro_memory import VIMCO, Context, SlotMemory, importance_bound
from pyro_memory.diagnostics import posterior_address
from pyro_memory.guides import AddressedGuide, AutoregressiveBaseGuide
from pyro_memory.models import Addressed, AutoregressiveBase
from pyro_memory.testing import check_base


def every_image(shape, levels=2):
    """All images of a shape, ``[image, *shape]``."""
    values = torch.tensor(list(itertools.product(range(levels), repeat=math.prod(shape))), dtype=torch.float64)
    return values.reshape(-1, *shape) / (levels - 1)


def small(shape, **options):
    return sharpen(autoregressive(shape, reads=True, **options)[0], 2.0).double().eval()


KINDS = {
    "blocks": ((1, 2, 3), {}),
    "pixels": ((1, 2, 3), {"block": 1}),
    "colours": ((2, 2, 2), {}),
    "grey": ((1, 2, 2), {"levels": 3}),
    "grey pixels": ((1, 1, 3), {"levels": 4, "block": 1}),
    "no look": ((1, 2, 3), {"looks": 0}),
    "a code": ((1, 2, 3), {"code_dim": CODE}),
}


def context_of(model, lead=(2,)):
    code = torch.randn(*lead, model.code_dim).double() if model.code_dim else None
    return Context(code, model.content(torch.rand(*lead, *model.shape).double()))


def often_of(drawn, x):
    """How often each image of ``x`` was drawn, ``[image, cell]``."""
    return (drawn.unsqueeze(0) == x[:, None, None]).flatten(3).all(-1).double().mean(1)


@pytest.mark.parametrize("kind", KINDS)
def test_probabilities_of_all_images_add_up_to_one(kind):
    shape, options = KINDS[kind]
    model = small(shape, **options)
    x = every_image(shape, model.levels)
    log_prob = model.log_prob(x, context_of(model, (2, 1)))
    assert log_prob.shape == (2, len(x))
    assert_close(log_prob.exp().sum(-1), torch.ones(2).double())
    assert log_prob.std() > 0.1  # it says something


@pytest.mark.parametrize("kind", KINDS)
def test_images_are_drawn_as_often_as_they_are_probable(kind):
    shape, options = KINDS[kind]
    model = small(shape, **options)
    context = context_of(model)
    torch.manual_seed(0)
    n = 4000
    drawn = model.generate(context, (n, 2))
    x = every_image(shape, model.levels)
    p = model.log_prob(x.unsqueeze(1), context).exp()
    often = often_of(drawn, x)
    assert_close(often.sum(0), torch.ones(2).double())  # each is an image of the model's
    assert ((often - p).abs() < 5 * (p * (1 - p) / n).sqrt() + 5 / n).all()


@pytest.mark.parametrize("kind", ["blocks", "pixels", "grey", "a code"])
def test_guided_pixels_are_drawn_by_the_ratio_of_told_to_untold(kind):
    shape, options = KINDS[kind]
    model = small(shape, **options, unread=0.1)
    context, x, w, n = context_of(model), every_image(shape, model.levels), 3.0, 4000
    told, untold = (model.log_prob(x.unsqueeze(1), c).exp().expand(-1, 2) for c in (context, Context()))
    numbers = model._blocks(x).movedim(1, -1)[:, model.real.bool().movedim(0, -1)]  # in the order of drawing
    p = torch.ones_like(told)
    for i in range(numbers.shape[1]):
        before = (numbers[:, None, :i] == numbers[:, :i]).all(-1)
        same = (before & (numbers[:, None, i] == numbers[:, i])).double()
        of_next = [(same @ q) / (before.double() @ q) for q in (told, untold)]
        score = of_next[0] ** (1 + w) / of_next[1] ** w
        p *= score / (before.double() @ (score / same.sum(1, keepdim=True)))
    assert_close(p.sum(0), torch.ones(2).double())
    torch.manual_seed(0)
    often = often_of(model.generate(context, (n, 2), guidance=w), x)
    assert ((often - p).abs() < 5 * (p * (1 - p) / n).sqrt() + 5 / n).all()
    from_told, from_p = (((often - q) ** 2 / q).sum() for q in (told, p))
    assert from_told > 3 * from_p


@pytest.mark.parametrize("block", [1, 2])
@pytest.mark.parametrize("shape", [(1, 9, 7), (2, 4, 5)])
def test_a_pixel_hears_of_all_pixels_before_it_and_of_no_other(shape, block):
    model, logits = small(shape, block=block, layers=(3, 4)), []
    model.head.register_forward_hook(lambda module, args, out: logits.append(out))
    real, context = model.real.bool(), context_of(model, (1,))
    places = torch.arange(real.numel()).reshape(*real.shape[1:], -1)  # a place's numbers one after the other
    order = places.movedim(-1, 0)[real]
    moved = torch.zeros(len(order), len(order), dtype=torch.bool)
    for x in ink(6, *shape).double().split(1):  # a unit that is at rest for one image is not for all
        others = x.repeat(x.numel(), 1, 1, 1)
        others.view(x.numel(), -1).diagonal().mul_(-1).add_(1)
        changed = (model._blocks(others) != model._blocks(x))[:, real].int().argmax(1)
        for images in (x, others):
            model.log_prob(images, context)
        after, before = logits.pop(), logits.pop()
        moved[changed] |= (after - before).abs().amax(2)[:, real] > 1e-10
    assert (moved == (order.unsqueeze(1) < order)).all()


def test_layers_that_see_the_image_alone_run_once_for_all_slots():
    model = small(SHAPE, layers=(2, 1))
    rows = []
    model.layers[0].above.register_forward_hook(lambda module, args, out: rows.append(len(out)))
    model.layers[-1].left.register_forward_hook(lambda module, args, out: rows.append(len(out)))
    x, slots = ink(3, *SHAPE).double(), ink(5, *SHAPE).double()
    every = model.log_prob(x, Context(content=tuple(f.unsqueeze(1) for f in model.content(slots))))
    assert rows == [3, 15]
    one = [model.log_prob(x, Context(content=model.content(slot))) for slot in slots]
    assert_close(every, torch.stack(one))


def test_the_evidence_of_a_memory_is_exact_where_its_slots_are_enumerated():
    base, _ = autoregressive(reads=True)
    model = Addressed(sharpen(base, 2.0)).double()
    x, memory = ink(4, *SHAPE).double(), SlotMemory(ink(3, *SHAPE).double())
    guide = AddressedGuide.convolutional(SHAPE, AutoregressiveBaseGuide(), (4, 5), matching_dim=4).double()
    estimate = importance_bound(model, guide, x, memory, particles=1, exact=("a",))
    each = base.log_prob(x, Context(content=tuple(f.unsqueeze(1) for f in base.content(memory.values))))
    assert_close(estimate.bound, each.logsumexp(0) - math.log(3))
    posterior = posterior_address(model, guide, x, memory, particles=1, exact=True)
    assert_close(posterior.probs, each.softmax(0).mT)


@pytest.mark.parametrize(
    ("lead", "slots"), [((), (7,)), ((3,), (5, 1)), ((2, 3), (4, 1, 1)), ((9,), ()), ((2,), (1, 2))]
)
def test_more_pairs_than_one_pass_takes_are_weighed_part_by_part(lead, slots, monkeypatch):
    model, rows = small((1, 4, 4), code_dim=CODE, unread=0.1), []
    x, context, told = ink(*lead, 1, 4, 4).double(), context_of(model, slots), torch.rand(lead) < 0.5

    @torch.no_grad()
    def weigh():
        return model.log_prob(x, context), model.log_prob(x, Context()), model.log_prob(x, context, told=told)

    at_once = weigh()
    model.layers[-1].left.register_forward_hook(lambda module, args, out: rows.append(len(out)))
    monkeypatch.setattr("pyro_memory.models.bases.autoregressive.AT_ONCE", 2)
    assert_close(weigh(), at_once)
    assert max(rows) <= 2
    rows.clear()
    model.log_prob(x, context)
    assert max(rows) == at_once[0].numel()


def test_parts_are_cut_along_the_longer_side_and_what_is_not_heard_does_not_count(monkeypatch):
    monkeypatch.setattr("pyro_memory.models.bases.autoregressive.AT_ONCE", 4)
    rows, model = [], small(SHAPE, layers=(2, 1), looks=0)
    deaf = autoregressive(SHAPE, code_dim=CODE, reads=False)[0].double()
    model.layers[0].left.register_forward_hook(lambda module, args, out: rows.append(len(out)))
    x, slots = ink(16, *SHAPE).double(), ink(2, *SHAPE).double()
    with torch.no_grad():
        model.log_prob(x, Context(content=tuple(f.unsqueeze(1) for f in model.content(slots))))
        code, unheard = torch.randn(16, CODE).double(), (torch.zeros(3, 1, 4, 5, 5).double(),)
        assert_close(deaf.log_prob(x, Context(code, unheard)), deaf.log_prob(x, Context(code)))
    assert rows == [2] * 8


@pytest.mark.parametrize(
    "options", [{"reads": True}, {"reads": True, "code_dim": CODE}, {"code_dim": CODE, "reads": False}]
)
def test_images_that_are_told_nothing_in_training_are_a_share_and_the_same_for_all_particles(options):
    base, _ = autoregressive(unread=0.5, **options)
    x = ink(1, *SHAPE).expand(200, *SHAPE).contiguous()
    code = torch.randn(3, 200, CODE) if base.code_dim else None
    content = () if base.content is None else base.content(ink(1, *SHAPE).expand(3, 200, *SHAPE))

    def weights():
        with pyro.plate("batch", 200):
            return poutine.trace(base.explain).get_trace(x, Context(code, content)).nodes["x"]["fn"].log_prob(x)

    log_prob = weights()
    nothing = (log_prob - base.log_prob(x, Context())).abs() < 1e-5
    assert (nothing == nothing[0]).all()
    assert 60 < nothing[0].sum() < 140
    base.eval()
    assert_close(weights(), base.log_prob(x, Context(code, content)))


def test_of_slots_that_all_images_share_each_is_told_once_also_where_some_hear_nothing():
    base, rows = autoregressive(reads=True, unread=0.5)[0], []
    base.tell[0].register_forward_hook(lambda module, args, out: rows.append(len(out)))
    content = tuple(f.unsqueeze(1) for f in base.content(ink(5, *SHAPE)))
    with pyro.plate("batch", 4):
        base.explain(ink(4, *SHAPE), Context(content=content))
    assert sum(rows) == 5 + 1  # and the nothing


def test_an_address_over_it_gets_a_gradient_from_vimco():
    model = Addressed(autoregressive(reads=True)[0])
    guide = AddressedGuide.convolutional(SHAPE, AutoregressiveBaseGuide(), (4, 5), matching_dim=4)
    loss = VIMCO(3, max_plate_nesting=1).differentiable_loss(model, guide, ink(4, *SHAPE), SlotMemory(ink(5, *SHAPE)))
    loss.backward()
    assert all(p.grad is not None for p in [*model.parameters(), *guide.parameters()])


@pytest.mark.parametrize("options", [{"levels": 4}, {"block": 1}, {"looks": 0}, {"heads": 1, "code_dim": CODE}])
def test_it_keeps_the_contract_of_a_base_in_all_its_forms(options):
    def make():
        return autoregressive(reads=True, **options)

    levels = options.get("levels", 2) - 1
    check_base(*make(), (ink(4, *SHAPE) * levels).round() / levels, make=make)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: AutoregressiveBase(SHAPE, levels=1), "`levels` must be at least 2; got 1"),
        (lambda: AutoregressiveBase(SHAPE, block=3), "`block` must be 1 or 2"),
        (lambda: AutoregressiveBase(SHAPE, layers=(3, 0)), "`layers` must be two numbers, the second at least 1"),
        (lambda: AutoregressiveBase(SHAPE, layers=(3, 1), looks=2, reads=True), "`looks` must be at most the 1 layers"),
        (lambda: AutoregressiveBase(SHAPE, unread=0.5), "`unread` must be 0 for a model that is told nothing anyway"),
        (lambda: autoregressive(code_dim=2)[0](ink(2, *SHAPE)), "`context` must have a code of 2 dimensions"),
        (lambda: autoregressive()[0].log_prob(ink(2, 1, 10, 8), Context()), r"`x` must hold images of \[1, 9, 7\]"),
        (lambda: autoregressive()[0].log_prob(2 * ink(2, *SHAPE), Context()), "`x` must hold the 2 levels"),
        (lambda: AutoregressiveBase(SHAPE, maps=5, heads=2, reads=True), "`heads` must divide the 5 maps; got 2"),
        (lambda: AutoregressiveBase(SHAPE, unread=1.0), r"`unread` must lie in \[0, 1\)"),
        (lambda: autoregressive()[0](torch.rand(2, *SHAPE)), "`x` must hold the 2 levels"),
        (lambda: autoregressive()[0](torch.rand(2, 1, 8, 8).round()), "as the model was built for"),
        (lambda: autoregressive()[0].generate(Context(), guidance=1.0), "`guidance` needs a model that knows"),
        (lambda: autoregressive()[0].generate(Context(), guidance=-1.0), r"`guidance` must lie in \[0, inf\); got -1"),
        (lambda: autoregressive()[0].generate(Context(), guidance=math.inf), r"`guidance` must lie in \[0, inf\)"),
    ],
)
def test_misuse_is_said(call, text):
    with pytest.raises(ValueError, match=text):
        call()
