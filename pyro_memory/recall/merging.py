"""Two concepts that have become one, and one that has become two: inference over how concepts are divided."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pyro_memory.diagnostics import Record, Rows
from pyro_memory.distributions import NormalGamma
from pyro_memory.gate import check_places, checked
from pyro_memory.stores import ConceptMemory, Exemplars


@checked
def merge_evidence(concepts: ConceptMemory) -> Float[Tensor, "concept other"]:
    r"""Log Bayes factor of each pair being one concept, against two, nats; minus infinity for empty ones and itself.

    .. math::
        \log \frac{p(D_a \cup D_b)}{p(D_a) p(D_b)} + \log \frac{\Gamma(n_a + n_b + g) \Gamma(g)}
        {\Gamma(n_a + g) \Gamma(n_b + g)} - \log(E + 1), \quad g = \gamma / K

    with E the number of empty concepts. The evidence of what a concept took in follows from its posterior in closed
    form, since natural parameters add up; the rest is the prior of the partition under ``ConceptMemory.prior``, labels
    exchangeable. Exact for concepts that took episodes in for sure, and what the projection holds them to be otherwise.

    Cost: O(concepts^2 x dim).

    References: Bayesian Hierarchical Clustering (Heller & Ghahramani, 2005), https://doi.org/10.1145/1102351.1102389
    """
    own, prior = concepts.posterior, concepts.emptied(1).posterior
    natural, start = own.natural(), prior.natural()
    joined = NormalGamma.of_natural(natural.unsqueeze(2) + natural.unsqueeze(1) - start.unsqueeze(2))
    alone, counts, g = own.log_normalizer(), concepts.counts.double(), concepts.concentration / concepts.concepts
    # Concepts that contradictions left less sure than the prior have no sum.
    valid = torch.stack([t > 0 for t in joined[1:]]).all(0).all(-1)
    found = joined.log_normalizer() + prior.log_normalizer() - alone.unsqueeze(1) - alone
    n, m = counts.unsqueeze(1), counts.unsqueeze(0)
    found = found + torch.lgamma(n + m + g) + math.lgamma(g) - torch.lgamma(n + g) - torch.lgamma(m + g)
    empty = concepts.counts == 0
    found = found - math.log(int(empty.sum()) + 1)
    never = ~valid | empty.unsqueeze(1) | empty | torch.eye(len(empty), dtype=torch.bool, device=empty.device)
    return found.masked_fill(never, -torch.inf).to(concepts.loc)


@checked
def merge(concepts: ConceptMemory, one: int, other: int) -> ConceptMemory:
    """Returns a store in which concept ``one`` has what both had, and ``other`` is empty.

    Their exemplars compete for the places of one: the result is a sample of what both took in.

    Raises:
        ValueError: for a concept that is merged with itself.
    """
    check_places("one", torch.tensor([one, other], device="cpu"), concepts.concepts, "the concepts")
    if one == other:
        raise ValueError(f"`other` must be another concept than `one`; got {other} for both")
    natural = concepts.posterior.natural()
    start = concepts.emptied(1).posterior.natural()[:, 0]
    natural[:, one] += natural[:, other] - start
    natural[:, other] = start
    counts = concepts.counts.clone()
    counts[one], counts[other] = counts[one] + counts[other], 0
    kept = concepts.exemplars
    return _changed(concepts, natural, counts, None if kept is None else kept.merge(one, other))


@checked
def split_evidence(concepts: ConceptMemory, k: int) -> tuple[float, Bool[Tensor, " place"]]:
    r"""Log Bayes factor of a concept's exemplars being of two concepts, against one, nats; and the likeliest division.

    Every division of its exemplars in two is weighed by its evidence under two Normal-Gammas; the factor is the mean
    over divisions, :math:`\log \frac{1}{2^{n-1} - 1} \sum_D p(A_D) p(B_D) - \log p(A \cup B)`. Images of one episode
    have one embedding and stay together.

    Returns:
        the factor, minus infinity for fewer than two episodes, and for each place whether it is of the second part.

    Raises:
        ValueError: if there is no such concept, for concepts without exemplars, and more than 16 of one.
    """
    check_places("k", torch.tensor([k], device="cpu"), concepts.concepts, "the concepts")
    kept = concepts.exemplars
    if kept is None or kept.places > 16:
        raise ValueError(
            f"`concepts` must keep from 1 to 16 exemplars each, of which all divisions are weighed; got {kept}"
        )
    loc, owner = kept.loc[k][kept.filled[k]].unique(dim=0, return_inverse=True)
    part = torch.zeros_like(kept.filled[k])
    if len(loc) < 2:
        return -math.inf, part
    variance = torch.stack([kept.variance[k][kept.filled[k]][owner == i][0] for i in range(len(loc))])
    codes = torch.arange(1, 2 ** (len(loc) - 1), device=loc.device)
    second = (codes.unsqueeze(1) >> torch.arange(len(loc), device=loc.device)) & 1  # the last is always of the first
    prior = concepts.emptied(1).posterior

    def evidence(weights: Tensor) -> Tensor:
        taken = _observed(prior, loc.double(), variance.double(), weights.double())
        return taken.log_normalizer() - prior.log_normalizer()

    each = evidence(second) + evidence(1 - second)
    factor = each.logsumexp(0) - math.log(len(codes)) - evidence(torch.ones_like(second[:1]))[0]
    part[kept.filled[k]] = second[each.argmax()].bool()[owner]
    return factor.item(), part


@checked
def split(concepts: ConceptMemory, k: int, second: Bool[Tensor, " place"]) -> ConceptMemory:
    """Returns a store in which an empty concept has the exemplars of concept ``k`` that ``second`` marks, and each of
    the two holds what its exemplars say, counted as the episodes that they stand for.

    Raises:
        ValueError: if there is no such concept, none is empty, or nothing is left on one side.
    """
    check_places("k", torch.tensor([k], device="cpu"), concepts.concepts, "the concepts")
    kept, empty = concepts.exemplars, (concepts.counts == 0).nonzero().flatten()
    if kept is None or not len(empty):
        raise ValueError("`concepts` must have an empty concept for the second part, and exemplars; merge two first")
    if len(second) != kept.places:
        raise ValueError(f"`second` must mark the {kept.places} places of a concept; got {len(second)}")
    sides = [kept.filled[k] & ~second, kept.filled[k] & second]
    if not all(bool(side.any()) for side in sides):
        raise ValueError("`second` must leave an exemplar on each side; got all on one")
    natural, counts, prior = concepts.posterior.natural(), concepts.counts.clone(), concepts.emptied(1).posterior
    whole = counts[k].clone()
    for place, side in zip((k, int(empty[0])), sides, strict=True):
        share = whole * side.sum() / kept.filled[k].sum()
        weights = (share / side.sum()).double().expand(1, int(side.sum()))
        held = _observed(prior, kept.loc[k][side].double(), kept.variance[k][side].double(), weights)
        natural[:, place], counts[place] = held.natural()[:, 0], share
    return _changed(concepts, natural, counts, kept.split(k, int(empty[0]), second))


def _observed(prior: NormalGamma, loc: Tensor, variance: Tensor, weights: Tensor) -> NormalGamma:
    """What is known after weighted observations, ``[division, episode]`` of them: natural parameters add up."""
    statistics = torch.stack([torch.ones_like(loc), loc, torch.ones_like(loc), loc.square() + variance])
    return NormalGamma.of_natural(prior.natural() + weights @ statistics)


def _changed(concepts: ConceptMemory, natural: Tensor, counts: Tensor, kept: Exemplars | None) -> ConceptMemory:
    posterior = NormalGamma.of_natural(natural)
    return replace(
        concepts, **{n: t.to(concepts.loc) for n, t in posterior._asdict().items()}, counts=counts, exemplars=kept
    )


@checked
@dataclass(frozen=True, repr=False)
class Reorganisation(Record):
    """Which concepts became one, and which became two.

    Attributes:
        merged: pairs ``(kept, emptied, nats)`` with the log Bayes factor of being one.
        split: ``(concept, second part, nats)`` with that of being two.
    """

    merged: list[tuple[int, int, float]]
    split: list[tuple[int, int, float]]

    def _shown(self) -> tuple[str, Rows, Sequence[str]]:
        rows = [(f"concepts {a} and {b}", f"are one, by {nats:.1f} nats") for a, b, nats in self.merged]
        rows += [(f"concept {k}", f"is two, {k} and {new}, by {nats:.1f} nats") for k, new, nats in self.split]
        return f"Reorganisation: {len(self.merged)} merged, {len(self.split)} split", rows, ()

    def to_dict(self) -> dict[str, Any]:
        """Gives the record as plain numbers."""
        return {"merged": [list(row) for row in self.merged], "split": [list(row) for row in self.split]}


@checked
@torch.no_grad()
def reorganise(concepts: ConceptMemory, *, threshold: float = 3.0) -> tuple[ConceptMemory, Reorganisation]:
    """Merges the pair most likely one, as long as its log Bayes factor exceeds ``threshold``, and then splits concepts
    that are likelier two, while there is room.

    Args:
        threshold: nats; 3 asks for odds of 20 to 1.

    Concepts without exemplars are not split. Cost: O(concepts^2 x dim) a merge, O(2^exemplars x dim) a concept.
    """
    merged: list[tuple[int, int, float]] = []
    while True:
        found = merge_evidence(concepts)
        nats, at = found.flatten().max(0)
        if not nats > threshold:
            break
        a, b = sorted(divmod(int(at), concepts.concepts), key=lambda k: -float(concepts.counts[k]))
        concepts = merge(concepts, a, b)
        merged.append((a, b, nats.item()))
    parted: list[tuple[int, int, float]] = []
    if concepts.exemplars is None:
        return concepts, Reorganisation(merged, parted)
    for k in concepts.counts.argsort(descending=True).tolist():
        empty = (concepts.counts == 0).nonzero().flatten()
        if not len(empty) or concepts.counts[k] == 0:
            break
        gain, second = split_evidence(concepts, k)
        if gain > threshold:
            concepts = split(concepts, k, second)
            parted.append((k, int(empty[0]), gain))
    return concepts, Reorganisation(merged, parted)
