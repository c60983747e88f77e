"""From episodes to concepts: consolidation."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from pyro_memory.distributions import expected_log_prob
from pyro_memory.gate import check_least, checked, told
from pyro_memory.recall.assigning import assign
from pyro_memory.recall.conversion import conversion_scores, hazard_of, outcome_prior
from pyro_memory.recall.decisions import Consolidation
from pyro_memory.recall.merging import merge, merge_evidence
from pyro_memory.stores import ConceptMemory, EpisodicMemory, StructuredMemory

ENDLESS = 10**9  # episodes
TRACE = 1e-6  # a share of an episode that moves no concept


@checked
@torch.no_grad()
def consolidate(
    memory: StructuredMemory,
    episodes: int | Sequence[int] | None = None,
    *,
    guide: Callable[..., Any] | None = None,
    timescale: float = 48.0,
    rule: str = "projected",
    forgetting: float = 1.0,
    room: int = 0,
    hypotheses: int = 1,
) -> tuple[StructuredMemory, Consolidation]:
    r"""Converts episodes to concepts: each is kept, taken in by a concept, or opens a new one, by q(r).

    Episodes come in turn, the oldest first, and concepts move in between (assumed-density filtering), so that alike
    episodes may share a concept that the first of them opened. One is converted where ``q(keep) < 1/2``: then concepts
    take it in with ``q(r | converted)``, its slot is freed, and its doubt stays as doubt in them. One that stays is
    not taken in in part: it would count again next time. "new" opens the first empty concept, which takes in the
    episode with the probability of "new". Where all concepts are in use, "new" makes room by merging the two that are
    likeliest one (``merge_evidence``), and its evidence has what that costs. Replayed episodes came from concepts and
    are passed over.

    Args:
        memory: the stores.
        episodes: slots to convert now, whatever their age: they are not kept, and no others are considered.
            ``remembered_at`` says which slot a support has.
        guide: a ``ConsolidationGuide``, or anything with ``probabilities(concepts, loc, variance, ages)``; by default
            the exact posterior. It knows nothing of merging: with it "new" is impossible where no concept is empty.
        timescale: the age, in episodes, at which the prior chance of conversion is 1 - 1/e.
        rule, forgetting: see ``ConceptMemory.update`` and ``ConceptMemory.forget``; forgetting comes first.
        room: how many slots must be free afterwards: as many of the oldest episodes as that takes are not kept.
        hypotheses: above 1, those converted are taken in together by ``assign``, under so many hypotheses of who went
            where; what opened a concept stays with it. Where two concepts were merged for room, they are taken in one
            by one all the same.

    Where nothing can be converted both stores come back as they were, but for forgetting, and the record says so. Its
    ``decisions`` say for each episode what was decided and why.

    Raises:
        ValueError: for slots that hold nothing, or a replayed episode; and unusable numbers.

    Cost: O(episodes x concepts x dim); a merge O(concepts^2 x dim); ``hypotheses`` times that.
    """
    if guide is not None and not hasattr(guide, "probabilities"):
        raise TypeError(f"`guide` must have probabilities(concepts, loc, variance, ages); got {told(guide)}")
    check_least(0, room=room)
    check_least(1, hypotheses=hypotheses)
    store, start = memory.episodes, memory.concepts.forget(forgetting)
    considered, hazard = _considered(store, episodes, room, timescale)
    order = [i for i in store.ages.argsort(descending=True).tolist() if considered[i]]
    turns = _Turns(start, store, order, hazard, guide, rule)
    for n in range(len(order)):
        turns.take(n)
    concepts, shares = turns.concepts, turns.probabilities
    if hypotheses > 1 and bool(turns.converted.any()) and not turns.merged:
        concepts, shares = _together(start, store, order, turns, hypotheses)
    record = Consolidation(
        turns.converted, considered, shares, turns.evidence, hazard, store.ages, turns.went,
        _of(turns.kl, start), _of(turns.entropy, start), int(turns.opened.sum()), turns.merged,
        memory.concepts.widths(), concepts.widths(), concepts.kl_to(memory.concepts),
    )  # fmt: skip
    left = store.free(turns.converted)
    left = left.replace_responsibilities(concepts.responsibilities(left.loc, left.variance))
    return StructuredMemory(concepts, left), record


def _of(values: list[Tensor], like: ConceptMemory) -> Tensor:
    return torch.stack(values) if values else like.loc.new_zeros(0)


def _considered(
    store: EpisodicMemory, episodes: int | Sequence[int] | None, room: int, timescale: float
) -> tuple[Bool[Tensor, " slot"], Tensor]:
    """Which slots may be converted, and the prior chance of each."""
    considered = store.filled & ~store.replayed
    hazard = hazard_of(store.ages.to(store.loc), timescale) * considered
    if room > store.slots:
        raise ValueError(f"`room` must be at most the {store.slots} slots; got {room}")
    if episodes is not None:
        asked = torch.zeros_like(considered)
        for slot in [episodes] if isinstance(episodes, int) else episodes:
            if not 0 <= slot < store.slots or not considered[slot]:
                raise ValueError(
                    "`episodes` must be slots that hold an episode which was not replayed, of "
                    f"{considered.nonzero().flatten().tolist()}; got {slot}. `remembered_at` says where a support is"
                )
            asked[slot] = True
        return asked, asked.to(hazard)
    must = max(0, room - int((~store.filled).sum()))
    oldest = store.ages.masked_fill(~considered, -1).argsort(descending=True)[:must]
    hazard[oldest] = considered[oldest].to(hazard)
    return considered, hazard


class _Turns:
    """Episodes in turn, and concepts that move in between; scores of concepts that did not move are kept."""

    def __init__(
        self, concepts: ConceptMemory, store: EpisodicMemory, order: list[int], hazard: Tensor,
        guide: Any, rule: str,
    ) -> None:  # fmt: skip
        self.concepts, self.store, self.order, self.hazard = concepts, store, order, hazard
        self.guide, self.rule = guide, rule
        self.scores = conversion_scores(concepts, store.loc[order], store.variance[order])
        self.evidence = concepts.loc.new_zeros(store.slots, concepts.concepts + 2)
        self.probabilities = torch.zeros_like(self.evidence)
        self.converted, self.opened = torch.zeros_like(store.filled), torch.zeros_like(store.filled)
        self.went = torch.full_like(store.ages, -1)
        self.kl: list[Tensor] = []
        self.entropy: list[Tensor] = []
        self.merged = 0

    def take(self, n: int) -> None:
        """Decides about the n-th episode, and lets concepts take it in."""
        slot = self.order[n]
        scores, log_p = self.scores[n].clone(), outcome_prior(self.concepts, self.hazard[slot : slot + 1])[0]
        pair = None
        if self.guide is None:
            pair = self._room(scores, log_p, self.hazard[slot])
            q = (log_p + scores).softmax(-1)
        else:
            q = self._guessed(slot)
        self.evidence[slot], self.probabilities[slot] = scores, q
        self.evidence[slot, 1:-1].masked_fill_(self.concepts.counts == 0, -torch.inf)  # reached as "new" only
        self.kl.append((torch.special.xlogy(q, q) - torch.where(q > 0, q * log_p, 0.0)).sum())
        self.entropy.append(-torch.special.xlogy(q, q).sum())
        if not q[0] < 0.5:
            return
        self.converted[slot] = True
        self._take_in(n, slot, q, pair)

    def _guessed(self, slot: int) -> Tensor:
        part = slice(slot, slot + 1)
        ages = self.store.ages[part]
        if self.hazard[slot] == 1:  # what may not be kept is as old as can be
            ages = torch.full_like(ages, ENDLESS)
        return self.guide.probabilities(self.concepts, self.store.loc[part], self.store.variance[part], ages)[0]

    def _room(self, scores: Tensor, log_p: Tensor, hazard: Tensor) -> tuple[int, int] | None:
        """Gives "new" its chance where no concept is empty: the two that are likeliest one become it, at a cost."""
        concepts = self.concepts
        chance = hazard * concepts.concentration / concepts.concepts / (concepts.counts.sum() + concepts.concentration)
        hopeless = scores[-1] + chance.log() < (scores + log_p)[:-1].max()
        if concepts.concepts < 2 or bool((concepts.counts == 0).any()) or bool(hopeless):
            return None
        nats, at = merge_evidence(concepts).flatten().max(0)
        if nats == -math.inf:
            return None
        scores[-1] += nats
        log_p[-1] = chance.log()
        one, other = sorted(divmod(int(at), concepts.concepts), key=lambda k: -float(concepts.counts[k]))
        return one, other

    def _take_in(self, n: int, slot: int, q: Tensor, pair: tuple[int, int] | None) -> None:
        given = q[1:] / q[1:].sum()
        shares, new = given[:-1].masked_fill(given[:-1] < TRACE, 0.0), given[-1]
        # A concept is opened by an episode that more likely than not belongs to none of the others: a trace of doubt
        # at each conversion would otherwise use up the empty ones.
        opens = bool(new > 0.5 if self.rule != "hard" else new >= shares.max())
        moved = set()
        if opens and pair is not None:
            self.concepts = merge(self.concepts, *pair)
            self.merged += 1
            moved = set(pair)
            shares[pair[0]] = shares[list(pair)].sum()
            shares[pair[1]] = 0.0
        empty = (self.concepts.counts == 0).nonzero().flatten()
        if opens and len(empty):
            shares[empty[0]] = new
            self.opened[slot] = True
        elif bool(shares.sum() > 0):
            shares = shares / shares.sum()
        images = self.store.items[slot, : int(self.store.counts[slot])]
        part = self.store.loc[slot : slot + 1], self.store.variance[slot : slot + 1]
        self.concepts = self.concepts.update(*part, shares.unsqueeze(0), rule=self.rule, items=[images])
        self.went[slot] = empty[0] if self.opened[slot] else shares.argmax()
        self._score_again(n + 1, sorted(moved | set(shares.nonzero().flatten().tolist())))

    def _score_again(self, n: int, concepts: list[int]) -> None:
        """The scores of concepts that moved, for the episodes to come."""
        rest = self.order[n:]
        if rest and concepts:
            predictive = self.concepts.predictive(torch.tensor(concepts, device=self.scores.device))
            loc, variance = (t[rest].unsqueeze(-2) for t in (self.store.loc, self.store.variance))
            self.scores[n:, [k + 1 for k in concepts]] = expected_log_prob(predictive, loc, variance)


def _together(
    start: ConceptMemory, store: EpisodicMemory, order: list[int], turns: _Turns, hypotheses: int
) -> tuple[ConceptMemory, Tensor]:
    """Takes all that were converted in anew, under several hypotheses; those that opened a concept went there."""
    taken = [slot for slot in order if turns.converted[slot]]
    known = torch.where(turns.opened, turns.went, -1)[taken]
    items = [store.items[slot, : int(store.counts[slot])] for slot in taken]
    concepts, shares = assign(
        start, store.loc[taken], store.variance[taken], hypotheses=hypotheses, went=known, opens=False, items=items
    )
    rows = turns.probabilities.clone()
    others = [i for i, slot in enumerate(taken) if not turns.opened[slot]]
    for i in others:
        rows[taken[i]] = torch.nn.functional.pad(shares[i], (1, 1))
        turns.went[taken[i]] = shares[i].argmax()
    return concepts, rows
