"""What a consolidation decided for each episode, and why."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from jaxtyping import Bool, Float, Int
from torch import Tensor

from pyro_memory.diagnostics import Axes, Record, Rows, axes_or_new
from pyro_memory.gate import checked

NAMED = 3  # likeliest concepts that a decision names


class Decision(NamedTuple):
    """Where an episode went, and what spoke for it.

    Attributes:
        slot: of the episodic store.
        outcome: "kept", "taken in" by a concept that was there, or "opened" a new one.
        concept: which; None where it was kept.
        probability: q of that outcome.
        age: in episodes.
        chance: the prior probability of conversion at that age; 1 for an episode that was asked for.
        evidence: nats of log-evidence beside that for keeping it, of the likeliest concepts and of "new".
    """

    slot: int
    outcome: str
    concept: int | None
    probability: float
    age: int
    chance: float
    evidence: dict[str, float]

    def __str__(self) -> str:
        by = " by" if self.outcome == "taken in" else ""
        what = self.outcome + ("" if self.concept is None else f"{by} concept {self.concept}")
        spoken = ", ".join(f"{name} {nats:+.1f}" for name, nats in self.evidence.items())
        return (
            f"slot {self.slot}, age {self.age}: {what} (q {self.probability:.2f}); chance of conversion beforehand "
            f"{self.chance:.2f}; nats beside keeping it: {spoken or 'none can take it'}"
        )


@checked
@dataclass(frozen=True, repr=False)
class Consolidation(Record):
    """What a consolidation did.

    Attributes:
        converted: which slots went to concepts; ``considered`` could have: filled and not replayed, or asked for.
        probabilities: q(r) of each slot over keep, concept 1..K, new, ``[slot, outcome]``, at its turn; of those that
            were converted by several hypotheses, their responsibilities once all were seen.
        evidence: log p(e | r) of each outcome at its turn, nats, minus infinity for an empty concept; "new" has what a
            merge costs where it needs one.
        chance: the prior probability of conversion of each slot, ``[slot]``.
        ages: of each slot, in episodes.
        went: the concept that each converted slot went to, most of it; -1 elsewhere.
        kl: KL(q(r) || p(r)) of each considered episode, nats: what looking at it said about its conversion.
        entropy: H(q(r)) of each considered episode, nats: the doubt that is left.
        opened, merged: how many concepts were opened, and how many pairs became one to make room.
        widths_before, widths_after: mean predictive deviation of each concept.
        moved: KL(store after || store before) of each concept, nats.
    """

    converted: Bool[Tensor, " slot"]
    considered: Bool[Tensor, " slot"]
    probabilities: Float[Tensor, "slot outcome"]
    evidence: Float[Tensor, "slot outcome"]
    chance: Float[Tensor, " slot"]
    ages: Int[Tensor, " slot"]
    went: Int[Tensor, " slot"]
    kl: Float[Tensor, " episode"]
    entropy: Float[Tensor, " episode"]
    opened: int
    merged: int
    widths_before: Float[Tensor, " concept"]
    widths_after: Float[Tensor, " concept"]
    moved: Float[Tensor, " concept"]

    @property
    def decisions(self) -> list[Decision]:
        """What was decided for each considered episode and why, by slot; printed, a line each."""
        return [self._decision(slot) for slot in self.considered.nonzero().flatten().tolist()]

    def _decision(self, slot: int) -> Decision:
        q, beside = self.probabilities[slot], self.evidence[slot] - self.evidence[slot, 0]
        concepts = beside[1:-1]
        named = [k for k in concepts.argsort(descending=True)[:NAMED].tolist() if math.isfinite(concepts[k])]
        spoken = {f"concept {k}": concepts[k].item() for k in named}
        if math.isfinite(beside[-1]):
            spoken["new"] = beside[-1].item()
        concept, age, chance = int(self.went[slot]), int(self.ages[slot]), self.chance[slot].item()
        if concept < 0:
            return Decision(slot, "kept", None, q[0].item(), age, chance, spoken)
        new = bool(q[-1] > q[1 + concept])
        probability = q[-1] if new else q[1 + concept]
        return Decision(slot, "opened" if new else "taken in", concept, probability.item(), age, chance, spoken)

    def _shown(self) -> tuple[str, Rows, Sequence[str]]:
        considered, converted = int(self.considered.sum()), int(self.converted.sum())
        if not considered:
            return "Consolidation of 0 episodes: nothing to convert, both stores are as they were", (), ()
        before, after = self.widths_before.mean(), self.widths_after.mean()
        rows = [
            ("KL(q(r) || p(r))", f"{self.kl.mean():.3f} nats an episode"),
            ("entropy of q(r)", f"{self.entropy.mean():.3f} nats an episode"),
            ("concepts opened", f"{self.opened}, {self.merged} pairs merged for room"),
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
            "merged": self.merged,
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
