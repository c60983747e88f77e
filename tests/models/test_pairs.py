"""What holds for models that read slots, beside the contract of a pair."""

import pyro
import pytest
import torch
from conftest import ink
from pyro.infer import TraceEnum_ELBO
from torch.testing import assert_close

from pyro_memory import VIMCO, ContentAddress, SlotMemory, TemplateMemory
from pyro_memory.guides import SoftAttentionVAEGuide, VAEGuide, VMAGuide
from pyro_memory.models import VMA

SHAPE = (1, 9, 7)  # odd sizes, so that up- and down-sampling must agree


def conv(model_class, guide_class, **options):
    return tuple(c.convolutional(SHAPE, latent_dim=3, channels=(4, 5), **options) for c in (model_class, guide_class))


def test_a_memory_per_datum_equal_for_all_gives_the_shared_memory_s_distributions():
    model, guide = conv(VMA, VMAGuide)
    x, values = ink(4, *SHAPE), ink(5, *SHAPE)
    shared, own = SlotMemory(values), SlotMemory(values.expand(4, *values.shape), batch_dim=-1)
    assert_close(guide.a_dist(x, shared).probs, guide.a_dist(x, own).probs)
    torch.manual_seed(0)
    one = VIMCO(3, max_plate_nesting=1).loss(model, guide, x, shared)
    torch.manual_seed(0)
    assert_close(VIMCO(3, max_plate_nesting=1).loss(model, guide, x, own), one)


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("reads", [(4,), (40, 4), (40, 1), (40, 1, 4)])
def test_a_code_encoded_once_a_slot_is_the_one_of_each_read(own, reads):
    _, guide = conv(VMA, VMAGuide)
    x, encodings = ink(4, *SHAPE), []
    memory = SlotMemory(ink(4, 5, *SHAPE), batch_dim=-1) if own else SlotMemory(ink(5, *SHAPE))
    guide.encoder.features.register_forward_hook(lambda net, args, out: encodings.append(len(out[0].flatten(0, -4))))
    a = torch.randint(5, reads)
    found = pyro.poutine.trace(pyro.condition(guide, data={"a": a})).get_trace(x, memory).nodes["z"]["fn"]
    direct = guide.z_dist(x, memory[a])
    assert_close(found.mean, direct.mean.expand(found.mean.shape))
    assert_close(found.stddev, direct.stddev.expand(found.mean.shape))
    assert encodings[0] == min(5 * 4, found.batch_shape.numel())


def test_the_order_of_slots_does_not_matter():
    _, guide = conv(VMA, VMAGuide)
    x, values, order = ink(4, *SHAPE), ink(5, *SHAPE), torch.randperm(5)
    one, other = guide.a_dist(x, SlotMemory(values)).probs, guide.a_dist(x, SlotMemory(values[order])).probs
    assert_close(one[:, order], other)


def test_a_masked_slot_is_as_good_as_none():
    model, guide = conv(VMA, VMAGuide)
    x, values = ink(4, *SHAPE), ink(5, *SHAPE)
    masked = SlotMemory(values, mask=torch.tensor([True, True, True, False, False]))
    elbo = TraceEnum_ELBO(num_particles=300, vectorize_particles=True, max_plate_nesting=1)
    assert_close(guide.a_dist(x, masked).probs[:, :3], guide.a_dist(x, SlotMemory(values[:3])).probs)
    assert_close(
        elbo.loss(model, guide, x, masked), elbo.loss(model, guide, x, SlotMemory(values[:3])), rtol=0.02, atol=0
    )


def test_an_empty_memory_is_legal_with_a_none_slot():
    model, guide = conv(VMA, VMAGuide, none_slot=True)
    assert VIMCO(2, max_plate_nesting=1).loss(model, guide, ink(4, *SHAPE), SlotMemory.empty(SHAPE)) > 0


@pytest.mark.parametrize("guide", [VAEGuide, VMAGuide, SoftAttentionVAEGuide])
def test_the_guide_which_runs_first_refuses_images_that_are_not_finite(guide):
    guide, x = guide.convolutional(SHAPE, latent_dim=3, channels=(4, 5)), ink(8, *SHAPE)
    x[0, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"`x` must be finite; got nan at \[0, 0, 0, 0\]"):
        guide(x, SlotMemory(ink(5, *SHAPE)))


@pytest.mark.parametrize(
    ("x", "memory", "message"),
    [
        (ink(2, *SHAPE), None, "`memory` must be a SlotMemory, since the module was built without `templates`"),
        (ink(2, *SHAPE), SlotMemory.empty(SHAPE), 'no slots.*"none" slot'),
        (ink(2, *SHAPE), SlotMemory(ink(3, 1, 6, 6)), r"the shape of `x`, \[1, 9, 7\]; got \[1, 6, 6\]"),
        (ink(2, *SHAPE), SlotMemory(ink(3, 4, *SHAPE), batch_dim=-1), "one for each of the 2 data"),
        (ink(2, *SHAPE) * 255, SlotMemory(ink(3, *SHAPE)), r"must lie in \[0, 1\]; got values from 0 to 255"),
        (ink(2, *SHAPE) * float("nan"), SlotMemory(ink(3, *SHAPE)), "`x` must be finite"),
        (
            ink(2, 9, 7),
            SlotMemory(ink(3, *SHAPE)),
            r"`x` must be a floating-point tensor \[batch, channel, height, width\]",
        ),
    ],
)
@pytest.mark.unchecked
def test_bad_input_is_refused_with_the_remedy(x, memory, message):
    model, _ = conv(VMA, VMAGuide)
    with pytest.raises(ValueError, match=message):
        pyro.poutine.trace(model).get_trace(x, memory)


def test_templates_are_checked():
    with pytest.raises(ValueError, match="`slots` must be at least 1"):
        TemplateMemory(0, SHAPE)
    with pytest.raises(ValueError, match="`init` must have shape"):
        TemplateMemory(2, SHAPE, init=torch.zeros(3, *SHAPE))
    assert_close(TemplateMemory(2, SHAPE, init=torch.ones(2, *SHAPE))().values, torch.ones(2, *SHAPE))
    assert isinstance(ContentAddress(torch.nn.Identity()).key, torch.nn.Identity)
