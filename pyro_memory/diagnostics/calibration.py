"""Whether a guide's uncertainty is that of the model, on data that the model draws."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from pyro_memory.diagnostics.addresses import ADDRESSES
from pyro_memory.diagnostics.axes import GREY, Axes, axes_or_new
from pyro_memory.diagnostics.reliability import Reliability, binned
from pyro_memory.diagnostics.simulation import TRIES, Draws, Simulator, Sites, run
from pyro_memory.diagnostics.sites import Site, base, frames
from pyro_memory.diagnostics.tables import Record, Rows, number
from pyro_memory.diagnostics.uniformity import GRID, SiteCalibration, uniform_band
from pyro_memory.distributions import STREAM_ABOVE
from pyro_memory.gate import check_least, checked
from pyro_memory.inference import KeepFrozen, check_sites, first_pass

LEVEL = 0.05  # how often a calibrated guide leaves a band


@checked
@dataclass(frozen=True, repr=False)
class Calibration(Record):
    """Whether the posterior draws of a guide are as far from the truth as they say.

    Attributes:
        sites: per latent site, the ranks of its true values among the draws.
        simulations: how many data sets were drawn from the model.
        draws: how many draws of the guide each truth was ranked among.
    """

    sites: dict[str, SiteCalibration]
    simulations: int
    draws: int

    def __getitem__(self, site: str) -> SiteCalibration:
        if site not in self.sites:
            known = ", ".join(map(repr, self.sites)) or "none"
            raise ValueError(f"`site` must be a latent site of the model, {known}; got {site!r}")
        return self.sites[site]

    @property
    def calibrated(self) -> bool:
        """Whether nothing speaks against any site; of calibrated guides 1 in 20 is called another."""
        return all(site.calibrated for site in self.sites.values())

    def _shown(self) -> tuple[str, Rows, Sequence[str]]:
        rows = [("site", "ranks", "50% hold", "se", "90% hold", "se", "mean rank", "se")]
        for name, s in self.sites.items():
            numbers = [number(x) for pair in (s.coverage(0.5), s.coverage(0.9), s.mean_rank) for x in pair]
            rows.append((name, str(int((~s.ranks.isnan()).sum())), *numbers))
        said = [f"{name}: {site.verdict}" for name, site in self.sites.items()]
        said += [f"address {name}: {s.reliability}" for name, s in self.sites.items() if s.reliability is not None]
        return f"Calibration of {self.simulations} simulations, {self.draws} draws each", rows, said

    def to_dict(self) -> dict[str, Any]:
        """Gives the summary as plain numbers."""
        sites = {name: site.to_dict() for name, site in self.sites.items()}
        return {"simulations": self.simulations, "draws": self.draws, "calibrated": self.calibrated, "sites": sites}

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draws the distribution of ranks less the uniform one, a line a dimension, with the bands as a ground.

        Within the band is calibrated. Draws that spread too little give a line that rises first and then falls below
        zero, draws too wide the reverse; a line all below zero says that draws are too low, above too high.
        """
        ax = axes_or_new(ax)
        grid = torch.nn.functional.pad(GRID, (1, 0)).tolist() + [1.0]
        for i, (name, site) in enumerate(self.sites.items()):
            ends, lines = (torch.nn.functional.pad(t, (1, 1)).numpy(force=True) for t in (site.band, site.difference))
            ax.fill_between(grid, *ends, color=GREY, alpha=0.25, linewidth=0)
            labels = [f"{name}: {site.brief}", *["_nolegend_"] * (len(lines) - 1)]
            ax.plot(grid, lines.T, color=f"C{i}", linewidth=1.2, label=labels)
        ax.axhline(0, color=GREY, linewidth=0.8)
        ax.set(xlabel="rank of the truth among the draws", ylabel="share of lower ranks, less uniform")
        ax.legend(frameon=False)
        return ax


@checked
@torch.no_grad()
def calibrate(
    model: Callable,
    guide: Callable,
    *args: Any,
    simulations: int = 200,
    draws: int = 99,
    data: Mapping[str, str | int] | None = None,
    seed: int = 0,
    progress: bool = False,
    **kwargs: Any,
) -> Calibration:
    r"""Asks whether a guide's uncertainty is right, by data whose latents are known: those that the model draws.

    .. math::
        h, x \sim p(h, x), \qquad h_1, \dots, h_L \sim q(h | x), \qquad
        u = \frac{\#\{l: h_l < h\} + U\,(1 + \#\{l: h_l = h\})}{L + 1}

    where U is uniform. With the exact posterior as q the rank u of a truth is uniform, for discrete latents as well.
    Draws that spread too little leave truths at the ends, those that lie too low leave them above. Each dimension of
    each latent is ranked in each cell of its plates; addresses also get the reliability of their probabilities. What
    is right for the model's own data says nothing of data that the model does not explain; and the prior, too, has
    uniform ranks: that q has learned is ``information_gain``'s to say.

    Args:
        model, guide: any pair with the same latent sites, the guide an amortised one, which looks at the data.
        *args, **kwargs: what both are called with. What the data are does not matter, but for their shapes; all else,
            such as a memory, is what the model draws them with.
        simulations: S, how many data sets are drawn.
        draws: L.
        data: the argument, by name or position, that holds the data of each observed site; found where the site
            observes an argument as it is.
        seed: of all draws; torch's random stream is left alone.
        progress: shows a progress bar.

    Cells of the plates that hold every site of the model are independent, as simulations are, and standard errors
    count them so, which a guide that mixes data breaks, as batch normalisation in training does: evaluate in
    ``eval()``. Where a site lies outside a plate, what the plate holds depends on each other: its ranks are pooled, and
    the bands take them for a single one, so that they are wider than they need be; standard errors are not. Dimensions
    are looked at one by one. All bands together hold a calibrated guide in 95% of the cases.

    Raises:
        ValueError: if it is not known which argument is the data; for subsampled plates and factors; if the model uses
            its data other than by obs=, or the guide not at all, as automatic guides do not.

    Draws of the guide are made in one pass where this gives what one by one gives. Parameters, gradients and modes
    stay as they are.

    Cost: S passes of the model, S of the guide with L draws each; for an address O(L x lookups x slots) a simulation,
    and no reliability above 16,384 slots.

    References: Validating Bayesian Inference Algorithms with Simulation-Based Calibration (Talts et al., 2018),
    https://arxiv.org/abs/1804.06788; Graphical Test for Discrete Uniformity and its Applications in Goodness of Fit
    Evaluation and Multiple Sample Comparison (Säilynoja et al., 2022), https://arxiv.org/abs/2103.10522

    Example::

        calibration = calibrate(model, guide, x, memory)  # x gives shapes
        print(calibration["z"].verdict)  # too narrow: 90% intervals hold 61% (2) of the truths
    """
    check_least(1, simulations=simulations, draws=draws)
    with KeepFrozen(), torch.random.fork_rng():
        torch.manual_seed(seed)
        first_pass(model, guide, args, kwargs, "args")
        sites, of_guide = run(model, args, kwargs), run(guide, args, kwargs)
        check_sites(sites, of_guide)
        simulator = Simulator(model, sites, args, kwargs, data)
        nesting = max((-f.dim for s in [*sites.values(), *of_guide.values()] for f in frames(s)), default=0)
        sampler, columns, blind = Draws(guide, draws, nesting), _Columns(nesting), set(simulator.latents)
        for i in tqdm(range(simulations), desc="calibration", disable=not progress, leave=False):
            drawn, *call = simulator()
            if i == 0:
                simulator.check_model(drawn, *call)
            if i < TRIES and blind:
                blind &= simulator.blind(guide, *call)
            if blind and i == min(TRIES, simulations) - 1:
                raise ValueError(
                    f"`guide` must infer {', '.join(sorted(blind))} from the data that it is given; it draws the same "
                    "whatever they are, as a guide does that was fitted to one data set. Calibrate an amortised guide; "
                    "on your one data set, ask importance_bound how many particles are effective"
                )
            columns.add(simulator.latents, drawn, sampler(*call), draws)
    return Calibration(columns.sites(), simulations, draws)


class _Columns:
    """Ranks and what addresses predicted, by site and simulation."""

    def __init__(self, nesting: int) -> None:
        self.nesting = nesting
        self.ranks: dict[str, list[Tensor]] = {}
        self.lookups: dict[str, list[Tensor]] = {}

    def add(self, latents: Iterable[str], drawn: Sites, runs: list[Sites], draws: int) -> None:
        """Ranks the latents that were drawn among the draws of the guide."""
        outer = [f.dim for f in set.intersection(*(set(frames(site)) for site in drawn.values()))]
        for name in latents:
            site, event = drawn[name], drawn[name]["fn"].event_dim
            truth = self._laid_out(site["value"], event)[0]
            others = torch.cat([self._laid_out(r[name]["value"], event) for r in runs])
            if truth.isnan().any() or others.isnan().any():
                raise ValueError(f"site `{name}` must be a number in model and guide; got NaN. Look at its parameters")
            below, equal = ((t.expand(draws, *truth.shape)).sum(0) for t in (others < truth, others == truth))
            uniform = torch.rand(truth.shape, dtype=torch.double, device=truth.device)
            rank = (below + uniform * (1 + equal)) / (draws + 1)
            here = self._laid_out(_shown(site), 0)[0]
            self.ranks.setdefault(name, []).append(self._clusters(rank.where(here, math.nan), outer))
            fns = [base(r[name]["fn"]) for r in runs]
            if all(isinstance(fn, ADDRESSES) and _slots(fn) <= STREAM_ABOVE for fn in fns):
                probs = torch.cat([self._laid_out(_probs(fn), event + 1, keep=1) for fn in fns]).double().mean(0)
                probs = self._clusters(probs.expand(*truth.shape, -1), outer).flatten(1, 2)
                where = self._clusters(truth, outer).flatten(1)
                parts = binned(probs.flatten(0, 1), where.flatten()).reshape(4, *where.shape, -1)
                shown = self._clusters(here.expand(truth.shape), outer).flatten(1).unsqueeze(-1)
                self.lookups.setdefault(name, []).append((parts * shown).sum(2))

    def sites(self) -> dict[str, SiteCalibration]:
        """The record of each site that is not masked throughout."""
        ranks = {name: torch.cat(parts) for name, parts in self.ranks.items()}
        counts = {name: int((~r.isnan()).any(-1).any(-1).sum()) for name, r in ranks.items()}
        share = LEVEL / max(sum(r.shape[-1] for name, r in ranks.items() if counts[name]), 1)
        tables = {name: Reliability(*torch.cat(parts, 1)) for name, parts in self.lookups.items()}
        return {
            name: SiteCalibration(ranks[name], uniform_band(count, share), tables.get(name))
            for name, count in counts.items()
            if count
        }

    def _laid_out(self, value: Tensor, event_dim: int, keep: int = 0) -> Tensor:
        """``[draw, *plates, event, *kept]``, whatever plates the value lies in."""
        batch, event = value.shape[: value.dim() - event_dim], value.shape[value.dim() - event_dim :]
        kept = event[len(event) - keep :]
        lead = [1] * (self.nesting + 1 - len(batch))
        return value.reshape([*lead, *batch, math.prod(event[: len(event) - keep]), *kept])

    def _clusters(self, value: Tensor, outer: list[int]) -> Tensor:
        """``[cluster, cell, *rest]`` of ``[*plates, *rest]``."""
        first = sorted(self.nesting + dim for dim in outer)
        order = [*first, *(i for i in range(value.dim()) if i not in first)]
        rest = value.shape[self.nesting :]
        clusters = math.prod(value.shape[i] for i in first)
        return value.permute(order).reshape(clusters, -1, *rest).cpu()


def _shown(site: Site) -> Tensor:
    """Where the model does not mask a site."""
    shown, fn = torch.ones(site["fn"].batch_shape, dtype=torch.bool, device=site["value"].device), site["fn"]
    masks = [site["mask"]]
    while hasattr(fn, "base_dist"):
        masks.append(getattr(fn, "_mask", None))
        fn = fn.base_dist
    for mask in masks:
        shown = shown if mask is None else shown & mask
    return shown


def _slots(fn: Any) -> int:
    return fn.slots if hasattr(fn, "slots") else fn.probs.shape[-1]


def _probs(fn: Any) -> Tensor:
    return fn.probs if hasattr(fn, "probs") else fn.dense().probs
