"""Teaching a recall to address."""

import math

import pytest
import torch
from conftest import ink
from pyro.infer import Trace_ELBO
from torch.testing import assert_close

from pyro_memory import Recall, Recognition, SlotMemory, fit
from pyro_memory.data import SetTasks, glyphs

SHAPE = (1, 9, 7)


def empty(x, support):
    """No latents, no guide."""


def small():
    return Recall(SHAPE, dim=3, code_dim=4, channels=(4, 5), hidden=8)


def sets(tasks=4, items=3):
    return SlotMemory(ink(tasks, items, *SHAPE), batch_dim=-2)


def test_the_bound_is_the_log_probability_of_the_own_sets():
    recall, support, x = small(), sets(), ink(4, 2, *SHAPE)
    loc, variance = recall.embed(support)
    address = recall.evidence(recall.look(x))[0]
    total = 0.0
    for t in range(4):
        for n in range(2):
            precision, shift = address.precision[t, n], address.shift[t, n]
            # Of one normal and one Gaussian likelihood, by the formula for each dimension.
            scores = torch.stack(
                [
                    (
                        0.5 * (shift * variance[j] + loc[j]) ** 2 / (variance[j] * (1 + variance[j] * precision))
                        - 0.5 * loc[j] ** 2 / variance[j]
                        - 0.5 * (1 + variance[j] * precision).log()
                    ).sum()
                    for j in range(4)
                ]
            )
            total += scores.log_softmax(-1)[t].item()
    loss = Trace_ELBO(max_plate_nesting=2).loss(Recognition(recall), empty, x, support)
    assert_close(-loss, total, rtol=1e-4, atol=1e-4)


def test_it_learns_to_recognise_unseen_letters_and_is_then_held():
    data, unseen = glyphs("background"), glyphs("evaluation")
    recall = Recall(data.shape, dim=8, code_dim=4, channels=(8, 16), hidden=32)
    recall.calibrate(data[torch.arange(0, 2000, 10)])
    recognition, test = Recognition(recall), SetTasks(unseen, tasks=20, queries=5, shots=5, seed=1)[0]
    before = recognition.accuracy(*test)
    tasks = SetTasks(data, tasks=20, queries=2, shots=range(1, 6))
    objective = Trace_ELBO(max_plate_nesting=2)
    fit(recognition, empty, tasks, objective, steps=60, learning_rate=5e-3, information_every=None, progress=False)
    assert recognition.accuracy(*test) > max(before + 0.1, 0.4)  # chance is 0.05
    recall.fixed = True
    address, content, code = recall.evidence(recall.look(data[torch.arange(3)]))
    assert not address.precision.requires_grad
    assert content.precision.requires_grad
    assert code.shift.requires_grad
    with pytest.raises(ValueError, match="`recall` must not be fixed while it is taught"):
        recognition(*test)


def test_chance_is_what_a_recall_without_evidence_gets():
    recall = small()
    with torch.no_grad():
        recall.address.weight.zero_()
        recall.address.bias[:3] = -30.0
    loss = Trace_ELBO(max_plate_nesting=2).loss(Recognition(recall), empty, ink(4, 2, *SHAPE), sets())
    assert_close(loss, 8 * math.log(4), rtol=1e-4, atol=0)


def test_an_empty_set_is_refused():
    support = SlotMemory(ink(2, 3, *SHAPE), mask=torch.tensor([[True] * 3, [False] * 3]), batch_dim=-2)
    with pytest.raises(ValueError, match="`support` must hold at least one image a task"):
        Recognition(small())(ink(2, 1, *SHAPE), support)
