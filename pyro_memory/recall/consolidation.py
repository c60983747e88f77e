"""Conversion between the stores: episodes become concepts by inference, concepts become episodes by sampling."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pyro_memory.diagnostics import Axes, Record, Rows, axes_or_new
from pyro_memory.distributions import expected_log_prob
from pyro_memory.gate import check_least, checked, told
from pyro_memory.stores import ConceptMemory, EpisodicMemory

BREADTH = 1.1  # how much wider than an empty concept's predictive the base measure of kept episodes is


@checked
def conversion_prior(
    concepts: ConceptMemory, ages: Int[Tensor, " episode"], timescale: float
) -> Float[Tensor, "episode outcome"]:
    r"""``log p(r)`` over the outcomes keep, concept 1..K, new: an older episode is likelier to be converted.

    .. math::
        p(keep) = 1 - h, \quad p(k) = h \pi_k, \quad p(new) = h \sum_{k empty} \pi_k, \quad h = 1 - e^{-age/timescale}

    An empty concept is only reached as "new", which opens it; without one "new" has probability zero.

    Raises:
        ValueError: if ``timescale`` is not positive (``math.inf`` converts nothing).
    """
    if not timescale > 0:
        raise ValueError(f"`timescale` must be positive, in episodes; got {timescale}")
    hazard = -torch.expm1(-ages.to(concepts.loc) / timescale).unsqueeze(-1)
    pi, empty = concepts.prior().probs, concepts.counts == 0
    return torch.cat([1 - hazard, hazard * pi.masked_fill(empty, 0.0), hazard * pi[empty].sum()], -1).log()


@checked
def conversion_scores(
    concepts: ConceptMemory, loc: Float[Tensor, "episode dim"], variance: Float[Tensor, "episode dim"]
) -> Float[Tensor, "episode outcome"]:
    """``E_{N(e; loc, diag variance)} log p(e | r)`` of each outcome, nats: the base measure of kept episodes, each
    concept's predictive, an empty concept's. Cost: O(episodes x concepts x dim)."""
    new = concepts.new_predictive()
    base = new.base_dist
    wide = type(base)(base.df, base.loc, BREADTH * base.scale).to_event(1)
    ends = [expected_log_prob(d, loc, variance).unsqueeze(-1) for d in (wide, new)]
    return torch.cat([ends[0], concepts.expected_log_predictive(loc, variance), ends[1]], -1)


@checked
def exact_posterior(
    concepts: ConceptMemory,
    loc: Float[Tensor, "episode dim"],
    variance: Float[Tensor, "episode dim"],
    ages: Int[Tensor, " episode"],
    timescale: float = 48.0,
) -> Float[Tensor, "episode outcome"]:
    """Probabilities of the outcomes keep, concept 1..K, new, given the episode: K + 2 densities each."""
    return (conversion_prior(concepts, ages, timescale) + conversion_scores(concepts, loc, variance)).softmax(-1)


@checked
@dataclass(frozen=True, repr=False)
class Consolidation(Record):
    """What a consolidation did.

    Attributes:
        converted: which slots went to concepts; ``considered`` could have: filled and not replayed.
        probabilities: q(r) of each slot over keep, concept 1..K, new, ``[slot, outcome]``, at its turn.
        kl: KL(q(r) || p(r)) of each considered episode, nats: what looking at it said about its conversion.
        entropy: H(q(r)) of each considered episode, nats: the doubt that is left.
        opened: how many empty concepts were opened.
        widths_before, widths_after: mean predictive deviation of each concept.
        moved: KL(store after || store before) of each concept, nats.
    """

    converted: Bool[Tensor, " slot"]
    considered: Bool[Tensor, " slot"]
    probabilities: Float[Tensor, "slot outcome"]
    kl: Float[Tensor, " episode"]
    entropy: Float[Tensor, " episode"]
    opened: int
    widths_before: Float[Tensor, " concept"]
    widths_after: Float[Tensor, " concept"]
    moved: Float[Tensor, " concept"]

    def _shown(self) -> tuple[str, Rows, Sequence[str]]:
        considered, converted = int(self.considered.sum()), int(self.converted.sum())
        if not considered:
            return "Consolidation of 0 episodes: nothing to convert, both stores are as they were", (), ()
        before, after = self.widths_before.mean(), self.widths_after.mean()
        rows = [
            ("KL(q(r) || p(r))", f"{self.kl.mean():.3f} nats an episode"),
            ("entropy of q(r)", f"{self.entropy.mean():.3f} nats an episode"),
            ("concepts opened", str(self.opened)),
            ("mean width", f"{before:.3f} before, {after:.3f} after, of the embedding"),
            ("the store moved", f"{self.moved.sum():.3f} nats, all concepts together"),
        ]
        head = f"Consolidation of {considered} episodes: {converted} converted, {considered - converted} kept"
        return head, rows, ()

    def to_dict(self) -> dict[str, Any]:
        """Gives the summary as plain numbers."""
        considered = int(self.considered.sum())
        mean = {
            "kl": self.kl,
            "entropy": self.entropy,
            "width_before": self.widths_before,
            "width_after": self.widths_after,
        }
        return {
            "considered": considered, "converted": int(self.converted.sum()), "opened": self.opened,
            **{name: values.mean().item() if len(values) else math.nan for name, values in mean.items()},
            "moved": self.moved.sum().item(),
        }  # fmt: skip

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draws q(r) of each considered episode as a row: keep, the concepts by use, new."""
        ax = axes_or_new(ax)
        rows = self.probabilities[self.considered]
        order = rows[:, 1:-1].sum(0).argsort(descending=True) + 1
        used = order[rows[:, order].sum(0) > 1e-3]
        shown = rows[:, [0, *used.tolist(), rows.shape[1] - 1]]
        ax.imshow(shown.numpy(force=True), cmap="Blues", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
        ax.set(xticks=range(shown.shape[1]), xlabel="outcome", ylabel="episode")
        ax.set_xticklabels(["keep", *(str(k - 1) for k in used.tolist()), "new"], rotation=90)
        return ax


@checked
@torch.no_grad()
def consolidate(
    concepts: ConceptMemory,
    episodes: EpisodicMemory,
    *,
    guide: Callable[..., Any] | None = None,
    timescale: float = 48.0,
    rule: str = "projected",
    forgetting: float = 1.0,
) -> tuple[ConceptMemory, EpisodicMemory, Consolidation]:
    r"""Converts episodes to concepts: each is kept, taken in by a concept, or opens a new one, by q(r).

    Episodes come in turn, the oldest first, and concepts move in between (assumed-density filtering), so that alike
    episodes may share a concept that the first of them opened. One is converted where ``q(keep) < 1/2``: then concepts
    take it in with ``q(r | converted)``, its slot is freed, and its doubt stays as doubt in them. One that stays is
    not taken in in part: it would count again next time. "new" opens the first empty concept, which takes in the
    episode with the probability of "new". Replayed episodes came from concepts and are passed over.

    Args:
        guide: a ``ConsolidationGuide``, or anything with ``probabilities(concepts, loc, variance, ages)``; by default
            the exact posterior.
        timescale: the age, in episodes, at which the prior chance of conversion is 1 - 1/e.
        rule, forgetting: see ``ConceptMemory.update`` and ``ConceptMemory.forget``; forgetting comes first.

    Where nothing can be converted both stores come back as they were, but for forgetting, and the record says so.
    Cost: O(episodes x concepts x dim).
    """
    considered = episodes.filled & ~episodes.replayed
    before = concepts
    concepts = concepts.forget(forgetting)
    converted = torch.zeros_like(considered)
    if guide is not None and not hasattr(guide, "probabilities"):
        raise TypeError(f"`guide` must have probabilities(concepts, loc, variance, ages); got {told(guide)}")
    rows = concepts.loc.new_zeros(episodes.slots, concepts.concepts + 2)
    kl, entropy, opened = [], [], 0
    order = [i for i in episodes.ages.argsort(descending=True).tolist() if considered[i]]
    for i in order:
        episode = episodes.loc[i : i + 1], episodes.variance[i : i + 1], episodes.ages[i : i + 1]
        log_p = conversion_prior(concepts, episode[2], timescale)[0]
        if guide is None:
            q = (log_p + conversion_scores(concepts, *episode[:2])[0]).softmax(-1)
        else:
            q = guide.probabilities(concepts, *episode)[0]
        rows[i] = q
        kl.append((torch.special.xlogy(q, q) - torch.where(q > 0, q * log_p, 0.0)).sum())
        entropy.append(-torch.special.xlogy(q, q).sum())
        if q[0] < 0.5:
            converted[i] = True
            concepts, new = _take_in(concepts, episode[0], episode[1], q, rule)
            opened += new
    record = Consolidation(
        converted, considered, rows, torch.stack(kl) if kl else rows.new_zeros(0),
        torch.stack(entropy) if entropy else rows.new_zeros(0), opened,
        before.widths(), concepts.widths(), concepts.kl_to(before),
    )  # fmt: skip
    left = episodes.free(converted)
    return concepts, left.replace_responsibilities(concepts.responsibilities(left.loc, left.variance)), record


def _take_in(
    concepts: ConceptMemory, loc: Tensor, variance: Tensor, q: Tensor, rule: str
) -> tuple[ConceptMemory, bool]:
    """Takes one converted episode in; says whether it opened a concept."""
    given = q[1:] / q[1:].sum()
    shares, new = given[:-1].clone(), given[-1]
    empty = (concepts.counts == 0).nonzero().flatten()
    # A concept is opened by an episode that more likely than not belongs to none of the others: a trace of doubt
    # at each conversion would otherwise use up the empty ones.
    opens = bool(len(empty)) and bool(new > 0.5 if rule != "hard" else new >= shares.max())
    if opens:
        shares[empty[0]] = new
    elif bool(shares.sum() > 0):
        shares = shares / shares.sum()
    return concepts.update(loc, variance, shares.unsqueeze(0), rule=rule), opens


@checked
@torch.no_grad()
def replay(
    concepts: ConceptMemory,
    episodes: EpisodicMemory,
    generate: Callable[[Float[Tensor, "episode dim"], int], Tensor],
    *,
    count: int | None = None,
    items: int | None = None,
) -> EpisodicMemory:
    """Refills free slots by episodes imagined from concepts, flagged as replayed.

    A concept comes to mind by its expected number of episodes, a content s is drawn from its predictive, and the
    episode's embedding is s with no doubt left (variance 1e-3): an imagined episode is known by its own content.

    Args:
        generate: ``generate(s, items)`` draws the images, ``[episode, item, *event]``, such as
            ``VSM.decode_concepts``.
        count: how many slots to refill; all free ones by default.
        items: images an episode; a slot's width by default.

    Raises:
        ValueError: if no concept holds anything yet, ``count`` is more than the free slots, or ``items`` is below 1.
    """
    check_least(1, items=items)
    free = int((~episodes.filled).sum())
    count = free if count is None else count
    if not 0 <= count <= free:
        raise ValueError(
            f"`count` must be at most the {free} free slots; got {count}. Consolidate first, or free slots"
        )
    if not bool((concepts.counts > 0).any()):
        raise ValueError("`concepts` must hold at least one episode to replay; all are empty. Consolidate first")
    if not count:
        return episodes
    k = torch.distributions.Categorical(probs=concepts.counts).sample((count,))
    s = concepts.predictive(k).sample()
    images = generate(s, items or episodes.items.shape[1])
    variance = torch.full_like(s, 1e-3)
    counts = torch.full((count,), images.shape[1], device=s.device)
    return episodes.write(s, variance, images, counts, concepts.responsibilities(s, variance), replayed=True)
