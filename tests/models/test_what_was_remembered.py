"""A model recalls what was written to its memory, with what its weights say now."""

import pytest
import torch
from set_parts import pair, sets, stores

from pyro_memory import remember


def test_a_support_that_was_never_remembered_is_refused_with_the_remedy():
    model, _ = pair("vae")
    support, memory = sets([0, 2]), stores()
    with pytest.raises(ValueError, match=r"that of task 1 is no episode of `memory`. Write it, .*remembered=False"):
        model.generate(support, memory, 3)
    written = remember(model.recall, memory, support)
    assert len(model.generate(support, written, 3)) == 2
    halved = type(written)(written.concepts, written.episodes.to(torch.float16).to(torch.float32))
    assert len(model.generate(support, halved, 3)) == 2
    assert len(model.generate(sets([0, 0], width=2), memory, 3)) == 2  # of nothing there is nothing to remember
    assert len(model.generate(support, memory, 3, remembered=False)) == 2


CHANGES = {
    "another layer's weights": lambda recall, s: recall.hidden.weight.mul_(2.0),
    "a weight by .data": lambda recall, s: setattr(recall.address.weight, "data", recall.address.weight.data * 2),
    "an image": lambda recall, s: s.values[0].fill_(1.0),
    "which images there are": lambda recall, s: s.mask[0, 1].fill_(False),
}


@torch.no_grad()
@pytest.mark.parametrize("name", CHANGES)
def test_evidence_that_a_guide_left_is_not_used_after_a_change(name):
    recall = pair("vae")[0].recall
    support = sets([2, 1])
    before = recall.gather_all(support, recall.look(support.values))
    CHANGES[name](recall, support)
    after = recall.gather(support)  # takes what the guide left, if it may
    recall.given = None
    anew = recall.gather(support)
    for one, other in zip(after, anew, strict=True):
        assert torch.equal(one.precision, other.precision)
        assert torch.equal(one.shift, other.shift)
    assert not torch.equal(before[0].shift, anew[0].shift)
