"""Conversion that is asked for, and what is said of it."""

import math

import pytest
import torch
from conftest import ink
from set_parts import DIM, pair, sets, stores
from torch.testing import assert_close

from pyro_memory import ConceptMemory, EpisodicMemory, StructuredMemory, consolidate, remember, remembered_at
from pyro_memory.guides import ConsolidationGuide

EVENT = (1, 3, 3)


def lived(centres, concepts=4, slots=8, exemplars=2):
    """A ring of one episode a centre, newest last, and concepts that are empty."""
    loc = torch.stack([torch.full((DIM,), float(c)) for c in centres])
    ring = EpisodicMemory.reserve(slots, 2, EVENT, DIM, concepts)
    count = len(centres)
    rho = torch.ones(count, concepts) / concepts
    ring = ring.write(loc, torch.full_like(loc, 0.01), ink(count, 2, *EVENT), torch.full((count,), 2), rho)
    empty = ConceptMemory.reserve(
        concepts, DIM, exemplars=exemplars, event_shape=EVENT, prior_alpha=10.0, prior_beta=0.9
    )  # fmt: skip
    return StructuredMemory(empty, ring)


def test_an_episode_of_age_0_is_kept_unless_it_is_asked_for():
    memory = lived([0.5])
    _, record = consolidate(memory, timescale=8.0)
    assert not record.converted.any()
    assert "slot 0, age 0: kept (q 1.00); chance of conversion beforehand 0.00" in str(record.decisions[0])
    after, record = consolidate(memory, 0, timescale=8.0)
    assert record.converted.tolist() == [True] + [False] * 7
    assert after.concepts.counts[0] == pytest.approx(1.0)
    decision = record.decisions[0]
    assert (decision.outcome, decision.concept, decision.chance) == ("opened", 0, 1.0)
    assert "opened concept 0 (q 1.00)" in str(decision)
    assert after.concepts.exemplars.filled[0].all()


def test_only_those_asked_for_are_considered():
    memory = lived([-1.0, 1.0, -1.1, 1.1])
    after, record = consolidate(memory, [0, 2], timescale=8.0)
    assert record.considered.nonzero().flatten().tolist() == [0, 2]
    assert after.episodes.filled.tolist() == [False, True, False, True] + [False] * 4
    first, second = record.decisions
    assert (first.outcome, second.outcome, second.concept) == ("opened", "taken in", 0)
    assert "taken in by concept 0" in str(second)
    assert set(second.evidence) == {"concept 0", "new"}


def test_the_evidence_is_what_decided():
    memory = lived([0.0, 0.2, 2.0])
    after, _ = consolidate(memory, [0], timescale=8.0)
    _, record = consolidate(after, [1], timescale=8.0)
    beside = record.evidence[1] - record.evidence[1, 0]
    said = record.decisions[0].evidence
    assert said["concept 0"] == pytest.approx(beside[1].item())
    loc, variance = after.episodes.loc[1:2], after.episodes.variance[1:2]
    assert_close(record.evidence[1, 1], after.concepts.expected_log_predictive(loc, variance)[0, 0])
    prior = after.concepts.prior().probs
    weights = torch.cat([prior[:1].log() + record.evidence[1, 1:2], (prior[1:].sum()).log() + record.evidence[1, -1:]])
    assert record.probabilities[1, 1].item() == pytest.approx(weights.softmax(0)[0].item(), rel=1e-4)


def test_a_guide_is_asked_about_an_episode_that_may_not_be_kept():
    memory = lived([0.5, -0.5])
    after, record = consolidate(memory, [1], guide=ConsolidationGuide(timescale=500.0), timescale=math.inf)
    assert record.converted.tolist() == [False, True] + [False] * 6
    assert after.concepts.counts.sum() == pytest.approx(1.0)


def test_room_is_made_of_the_oldest():
    memory = lived([-1.0, 1.0, 0.0, 2.0], slots=4)
    after, record = consolidate(memory, timescale=math.inf, room=3)
    assert int((~after.episodes.filled).sum()) == 3
    assert record.converted.tolist() == [True, True, True, False]
    assert consolidate(after, timescale=math.inf, room=3)[1].converted.sum() == 0


def test_where_no_concept_is_empty_the_two_that_are_likeliest_one_make_room():
    memory = lived([-3.0, -3.1, 3.0], concepts=2)
    concepts = memory.concepts.update(
        memory.episodes.loc[:2], memory.episodes.variance[:2], torch.eye(2), items=list(ink(2, 2, *EVENT))
    )
    memory = StructuredMemory(concepts, memory.episodes.free(torch.arange(8) < 2))
    after, record = consolidate(memory, [2], timescale=8.0)
    assert (record.opened, record.merged) == (1, 1)
    assert sorted(after.concepts.counts.tolist()) == pytest.approx([1.0, 2.0])
    assert sorted(after.concepts.loc.mean(-1).sign().tolist()) == [-1, 1]
    assert record.decisions[0].outcome == "opened"
    assert "1 pairs merged for room" in repr(record)


def test_scores_that_are_kept_are_those_of_the_concepts_as_they_are():
    """Concepts that did not move are not scored again: the decisions are those of one episode at a time."""
    centres = [-2.0, 2.0, -2.1, 2.1, 0.0, -1.9, 1.9, 0.1]
    together, record = consolidate(lived(centres), range(8), timescale=8.0)
    memory = lived(centres)
    for slot in range(8):
        memory, one = consolidate(memory, [slot], timescale=8.0)
        assert_close(one.probabilities[slot], record.probabilities[slot], atol=1e-4, rtol=1e-3)
    assert_close(memory.concepts.loc, together.concepts.loc, atol=1e-4, rtol=1e-3)


def test_remember_can_be_asked_where_a_support_is():
    model, _ = pair()
    memory = stores()
    first, second = sets([2, 0, 3]), sets([1])
    assert remembered_at(first, memory).tolist() == [-1, -1, -1]
    memory = remember(model.recall, memory, first)
    memory = remember(model.recall, memory, second)
    at = remembered_at(first, memory)
    assert at[1] == -1
    assert at[2] >= 0
    assert_close(memory.episodes.items[at[2]], first.values[2])
    slot = int(remembered_at(second, memory))
    assert memory.episodes.ages[slot] == 0
    after, record = consolidate(memory, slot)
    assert bool(record.converted[slot])
    assert not after.episodes.filled[slot]


@pytest.mark.unchecked
def test_what_cannot_be_converted_is_named():
    memory = lived([0.0])
    with pytest.raises(ValueError, match=r"`episodes` must be slots that hold an episode .* of \[0\]; got 3"):
        consolidate(memory, 3)
    with pytest.raises(ValueError, match="`room` must be at most the 8 slots"):
        consolidate(memory, room=9)
    with pytest.raises(ValueError, match="`hypotheses` must be at least 1"):
        consolidate(memory, hypotheses=0)
