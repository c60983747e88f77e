"""Whether the probabilities of an address are right."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from pyro_memory.diagnostics.axes import BLUE, GREY, Axes, axes_or_new
from pyro_memory.diagnostics.tables import Record, Rows, percent
from pyro_memory.gate import checked

BINS = 10


@checked
@dataclass(frozen=True, repr=False)
class Reliability(Record):
    r"""How often slots of some predicted probability were the true one.

    Pairs of a lookup and a slot are put in ten bins by the slot's predicted probability; n counts lookups, b bins.

    .. math::
        \mathrm{error} = \frac{1}{2N} \sum_b \Big| \sum_n 1[a_n \in b] - q_n(b) \Big|

    is the share of the probability that lies in wrong bins: for two slots, the expected calibration error.

    Attributes:
        hits: ``[cluster, bin]``, in how many lookups the true slot was in this bin.
        predicted: ``[cluster, bin]``, in how many it was to be expected: the probability of all slots in the bin.
        pairs: ``[cluster, bin]``, how many slots were in this bin.
        variance: ``[cluster, bin]``, of the hits, were predictions right.

    References: On Calibration of Modern Neural Networks (Guo et al., 2017), https://arxiv.org/abs/1706.04599
    """

    hits: Float[Tensor, "cluster bin"]
    predicted: Float[Tensor, "cluster bin"]
    pairs: Float[Tensor, "cluster bin"]
    variance: Float[Tensor, "cluster bin"]

    @property
    def lookups(self) -> int:
        """N."""
        return round(self.hits.sum().item())

    @property
    def curve(self) -> Float[Tensor, "three bin"]:
        """Mean prediction, frequency and the frequency's standard error (over clusters); NaN for an empty bin."""
        pairs, off = self.pairs.sum(0), self.hits - self.predicted
        # Of the difference to the prediction: the prediction itself is no noise.
        se = (off - off.mean(0)).square().sum(0).mul(len(off) / max(len(off) - 1, 1)).sqrt()
        return torch.stack([self.predicted.sum(0), self.hits.sum(0), se]) / pairs

    @property
    def error(self) -> tuple[float, float]:
        """The expected calibration error and its standard error, shares of the probability."""
        off = self.hits - self.predicted
        each = 0.5 * (off * off.sum(0).sign()).sum(-1)
        se = each.std().item() * math.sqrt(len(each)) if len(each) > 1 else math.nan
        return each.sum().item() / self.lookups, se / self.lookups

    @property
    def noise(self) -> float:
        """The error that right predictions are expected to have of so many independent lookups."""
        return 0.5 * math.sqrt(2 / math.pi) * self.variance.sum(0).sqrt().sum().item() / self.lookups

    def _shown(self) -> tuple[str, Rows, Sequence[str]]:
        error = f"calibration error {percent(*self.error)} of the probability, {100 * self.noise:.1f}% by noise alone"
        return f"{error}, {self.lookups} lookups", (), ()

    def to_dict(self) -> dict[str, Any]:
        """Gives the summary as plain numbers."""
        error, se = self.error
        curve = dict(zip(("predicted", "frequency", "frequency_se"), self.curve.tolist(), strict=True))
        pairs = self.pairs.sum(0).tolist()
        return {"error": error, "error_se": se, "noise": self.noise, "lookups": self.lookups, "pairs": pairs, **curve}

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draws how often slots were true over their predicted probability, with two standard errors."""
        ax = axes_or_new(ax)
        predicted, frequency, se = self.curve.numpy(force=True)
        ax.plot([0, 1], [0, 1], color=GREY, linewidth=0.8)
        ax.errorbar(predicted, frequency, 2 * se, color=BLUE, marker="o", capsize=3)
        ax.set(xlabel="predicted probability of a slot", ylabel="how often it was the true one")
        return ax


def binned(probs: Float[Tensor, "lookup slot"], truth: Tensor) -> Float[Tensor, "four lookup bin"]:
    """Hits, predictions, pairs and variance of each lookup."""
    place = (probs * BINS).long().clamp(max=BINS - 1)
    predicted, pairs = (
        torch.zeros(len(probs), BINS, dtype=torch.double, device=probs.device).scatter_add_(1, place, each.double())
        for each in (probs, probs > 0)
    )
    hits = torch.nn.functional.one_hot(place.gather(1, truth.long().unsqueeze(1)).squeeze(1), BINS).double()
    return torch.stack([hits, predicted, pairs, predicted * (1 - predicted).clamp(min=0)])
