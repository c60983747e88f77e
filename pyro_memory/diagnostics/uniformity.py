"""Whether ranks are uniform, and what a person may conclude where they are not."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pyro_memory.diagnostics.axes import BLUE, GREY, Axes, axes_or_new
from pyro_memory.diagnostics.reliability import Reliability
from pyro_memory.diagnostics.tables import Record, Rows, clustered, percent
from pyro_memory.gate import checked

POINTS = 99
# Where the distribution of ranks is looked at.
GRID = torch.arange(1, POINTS + 1, dtype=torch.double, device="cpu") / (POINTS + 1)
# Standard errors that say what is wrong, once it is, and that all dimensions together raise an alarm with.
SEEN, ALARM = 2.0, 4.0


@checked
@dataclass(frozen=True, repr=False)
class SiteCalibration(Record):
    """Ranks of one site's true values among the guide's draws, and what they say.

    Attributes:
        ranks: ``[cluster, cell, dim]``, in [0, 1], ties broken at random; uniform for a calibrated guide. Clusters are
            independent, cells of one and dimensions are not. NaN where the model masks the site.
        band: ``[2, point]``, between which the difference of the ranks' distribution and the uniform one stays, at
            0.01 to 0.99 and in all dimensions and sites of a ``Calibration`` at once, in 95% of the cases.
        reliability: of an address, whether its probabilities are right.
    """

    ranks: Float[Tensor, "cluster cell dim"]
    band: Float[Tensor, "2 99"]
    reliability: Reliability | None = None

    @property
    def difference(self) -> Float[Tensor, "dim 99"]:
        """The ranks' empirical distribution less the uniform one, for each dimension at 0.01 to 0.99."""
        ranks = self.ranks.flatten(0, 1).mT
        ordered = ranks.nan_to_num(math.inf).sort(-1).values.contiguous()
        below = torch.searchsorted(ordered, GRID.repeat(len(ranks), 1), right=True)
        return below / (~ranks.isnan()).double().sum(-1, keepdim=True) - GRID

    @property
    def outside(self) -> Bool[Tensor, " dim"]:
        """Which dimensions leave the band."""
        return self._excess() > 1e-12

    def _excess(self) -> Tensor:
        difference = self.difference
        return torch.maximum(self.band[0] - difference, difference - self.band[1]).amax(-1)

    def coverage(self, share: float = 0.9) -> tuple[float, float]:
        """How many truths lie in the central interval that holds this share of the draws, and its standard error."""
        if not 0 < share < 1:
            raise ValueError(f"`share` must lie between 0 and 1, such as 0.9; got {share}")
        return clustered(_held(self.ranks, share))

    @property
    def mean_rank(self) -> tuple[float, float]:
        """The mean rank, a half if calibrated and more where draws are too low, and its standard error."""
        return clustered(self.ranks)

    @property
    def calibrated(self) -> bool:
        """Whether nothing speaks against it: no dimension outside the band, nor all of them together off."""
        return not self.outside.any() and max(map(abs, _departures(self.ranks))) < ALARM

    @property
    def verdict(self) -> str:
        """Says it in words."""
        dims = self.ranks.shape[-1]
        if self.calibrated:
            count = int((~self.ranks[..., 0].isnan()).sum())
            return f"calibrated within the noise of {count} ranks" + (f" in each of {dims} dimensions" * (dims > 1))
        among, worst = int(self.outside.sum()), int(self._excess().argmax())
        if said := _words(self.ranks):
            return said + f" ({among} of {dims} dimensions outside the band)" * (dims > 1)
        said = _words(self.ranks[..., worst : worst + 1]) or "not calibrated: ranks leave the band, of no simple shape"
        return said + f" (dimension {worst}; {among} of {dims} outside the band)" * (dims > 1)

    @property
    def brief(self) -> str:
        """Says it without numbers: "calibrated", "too narrow", "biased low and too wide"."""
        return "calibrated" if self.calibrated else " and ".join(v.split(":")[0] for v in self.verdict.split("; "))

    def _shown(self) -> tuple[str, Rows, Sequence[str]]:
        return f"SiteCalibration: {self.verdict}", (), [str(self.reliability)] if self.reliability else []

    def to_dict(self) -> dict[str, Any]:
        """Gives the summary as plain numbers."""
        numbers = {"coverage_50": self.coverage(0.5), "coverage_90": self.coverage(0.9), "mean_rank": self.mean_rank}
        return {
            "verdict": self.verdict, "calibrated": self.calibrated, "outside": self.outside.tolist(),
            **{name: value for name, (value, _) in numbers.items()},
            **{f"{name}_se": se for name, (_, se) in numbers.items()},
            "histogram": self._counts(20).tolist(), "ranks": int((~self.ranks.isnan()).sum()),
            "reliability": None if self.reliability is None else self.reliability.to_dict(),
        }  # fmt: skip

    def _counts(self, bins: int) -> Tensor:
        return torch.histc(self.ranks[~self.ranks.isnan()], bins, 0, 1)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draws the ranks of all dimensions as a histogram, with the noise of uniform ones as a ground.

        The noise is two standard errors of one rank a cluster: dimensions and cells together have less.
        """
        ax, bins = axes_or_new(ax), 20
        edges = [i / bins for i in range(bins + 1)]
        share, counts = 1 / bins, self._counts(bins)
        total, clusters = counts.sum().item(), int((~self.ranks[:, 0, 0].isnan()).sum())
        se = math.sqrt(share * (1 - share) / clusters)
        ax.axhspan(total * (share - 2 * se), total * (share + 2 * se), color=GREY, alpha=0.3, linewidth=0)
        ax.stairs(counts.numpy(force=True), edges, color=BLUE, fill=True, alpha=0.8)
        ax.axhline(total * share, color=GREY, linewidth=0.8)
        ax.set(xlabel="rank of the truth among the draws", ylabel="truths", title=self.brief)
        return ax


def _held(ranks: Tensor, share: float) -> Tensor:
    """1.0 where a central interval holds the truth, NaN where there is none."""
    return ((ranks - 0.5).abs() < share / 2).double().where(~ranks.isnan(), math.nan)


def _departures(ranks: Tensor) -> tuple[float, float]:
    """How many standard errors the truths lie above the draws, and spread wider than they do.

    By normal scores: of a normal posterior, where the truth lies in deviations of the draws.
    """
    scores = torch.special.ndtri(ranks)
    mean, se = clustered(scores)
    around = scores - scores.flatten(0, 1).nanmean(0)  # dimensions that are shifted apart are not spread
    spread, spread_se = clustered(around**2 - 1)
    return _deviations(mean, se, len(ranks)), _deviations(spread, spread_se, len(ranks))


def _deviations(mean: float, se: float, clusters: int) -> float:
    """A mean in standard errors, those of a normal: Student's t of few clusters is shrunk to it (Wallace, 1959)."""
    if not mean or math.isnan(se):
        return 0.0
    if clusters < 3 or not se:
        return math.copysign(math.inf if not se else 0.0, mean)
    return math.copysign(math.sqrt((clusters - 1) * math.log1p((mean / se) ** 2 / (clusters - 1))), mean)


def _words(ranks: Tensor) -> str:
    """How ranks depart from uniform ones: by the larger of shift and spread, the other too where it is clear.

    Empty where neither can be seen.
    """
    shift, spread = _departures(ranks)
    held, mean = clustered(_held(ranks, 0.9)), clustered(ranks)
    if (held[0] < 0.9) != (spread > 0):
        spread = 0.0  # truths far off to one side leave the intervals of draws that are wide enough
    largest = max(abs(shift), abs(spread))
    width = f"too {'narrow' if spread > 0 else 'wide'}: 90% intervals hold {percent(*held)} of the truths"
    bias = f"biased {'low' if shift > 0 else 'high'}: {percent(*mean)} of the draws lie below a truth, not half"
    said = sorted([(abs(spread), width), (abs(shift), bias)], reverse=True)
    kept = [text for size, text in said if size >= SEEN and (size == largest or size >= ALARM)]
    return "; ".join(kept)


@functools.lru_cache
def uniform_band(count: int, share: float) -> Float[Tensor, "2 99"]:
    """The band that the empirical distribution of so many uniform ranks leaves in ``share`` of the cases.

    Simulated: pointwise quantiles, the same at all points, so far out that the whole curve stays inside.

    References: Graphical Test for Discrete Uniformity and its Applications in Goodness of Fit Evaluation and Multiple
    Sample Comparison (Säilynoja et al., 2022), https://arxiv.org/abs/2103.10522
    """
    curves = min(max(4000, math.ceil(20 / share)), 100_000)
    generator = torch.Generator("cpu").manual_seed(0)
    left = torch.full((curves,), float(count), dtype=torch.double, device="cpu")
    tails: Tensor = torch.ones_like(left)
    ordered: list[Tensor] = []
    for i in range(POINTS):  # ranks that fall before each point, given those before the last one
        part = torch.full_like(left, 1 / (POINTS + 1 - i))
        left = left - torch.binomial(left, part, generator=generator)
        below = count - left
        ordered.append(below.sort().values)
        at_most = torch.searchsorted(ordered[-1], below, right=True)
        at_least = curves - torch.searchsorted(ordered[-1], below)
        tails = torch.minimum(tails, torch.minimum(at_most, at_least) / curves)
    least = tails.kthvalue(max(int(share * curves), 1)).values.item()
    place = math.ceil(curves * least) - 1
    ends = torch.stack([torch.stack([o[place], o[curves - 1 - place]]) for o in ordered], dim=1)
    return ends / count - GRID
