"""What latents cost and what they explain."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from pyro_memory.diagnostics.axes import GREY, Axes, axes_or_new
from pyro_memory.diagnostics.looks import Look, looks
from pyro_memory.diagnostics.sites import Site, cells, draws_se, frames, site_kl
from pyro_memory.diagnostics.tables import Record, Rows, counted, number, standard_error
from pyro_memory.gate import checked


class Estimate(NamedTuple):
    """A mean, nats; its standard error over data, and what the draws add to that."""

    mean: float
    se: float
    draws_se: float


@checked
@dataclass(frozen=True, repr=False)
class RateDistortion(Record):
    """Rate R, distortion D and ELBO = -(R + D) of a pair, in nats.

    Attributes:
        rates: KL(q || p) of all latents together, or log q - log p where it has no closed form given the ancestors.
        distortions: ``-log p(x | latents)``.
        unit: what each of them is: "datum", "data set" where no plate holds all sites, or the plates that do.
    """

    rates: Float[Tensor, "draw datum"]
    distortions: Float[Tensor, "draw datum"]
    unit: str = "datum"

    @property
    def rate(self) -> Estimate:
        """R, nats per ``unit``: ``mean``, ``se`` over data, ``draws_se`` over draws."""
        return _estimate(self.rates)

    @property
    def distortion(self) -> Estimate:
        """D, likewise."""
        return _estimate(self.distortions)

    @property
    def elbo(self) -> Estimate:
        """-(R + D), likewise; its errors are those of the sum, as both are of the same data and draws."""
        return _estimate(-(self.rates + self.distortions))

    def _shown(self) -> tuple[str, Rows, Sequence[str]]:
        rows = [("", f"nats/{self.unit}", "se", "of draws")]
        for name in ("rate", "distortion", "ELBO"):
            rows.append((name, *map(number, getattr(self, name.lower()))))
        draws, data = self.rates.shape
        return f"RateDistortion of {counted(data, self.unit)}, {draws} draws", rows, ()

    def to_dict(self) -> dict[str, Any]:
        """Gives the summary as plain numbers."""
        draws, data = self.rates.shape
        found = {name: getattr(self, name)._asdict() for name in ("rate", "distortion", "elbo")}
        return {**found, "data": data, "draws": draws, "unit": self.unit}

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draws the one point, see ``plot_rate_distortion``."""
        return plot_rate_distortion({"": self}, ax)


def _estimate(values: Tensor) -> Estimate:
    return Estimate(values.mean().item(), standard_error(values.mean(0)), draws_se(values, 1.0))


@checked
@torch.no_grad()
def rate_distortion(
    model: Callable,
    guide: Callable,
    *args: Any,
    draws: int = 10,
    max_plate_nesting: float = math.inf,
    **kwargs: Any,
) -> RateDistortion:
    r"""Measures what the latents of a pair cost and what they explain: the two parts of its ELBO, in nats.

    .. code-block:: text

        R = E KL(q(latents | x) || p(latents))     D = -E_q log p(x | latents)     ELBO = -(R + D)

    Pairs of one ELBO differ in how much of it the latents carry: R near 0 and D near the data's entropy is a model
    that ignores them. ``plot_rate_distortion`` lays several side by side.

    Args:
        model, guide: any pair that ``information_gain`` takes, and that observes data.
        *args, **kwargs: what both are called with.
        draws: of the latents.
        max_plate_nesting: how many plates the model nests; found by a trial run if not given.

    Both are of the same draws and data, so that the error of the ELBO is not the sum of theirs. Draws come from torch's
    global random stream; parameters, gradients and modes stay as they are.

    Raises:
        ValueError: as ``information_gain``, and for a model that observes nothing.

    Cost: ``draws`` passes of model and guide.

    References: Fixing a Broken ELBO (Alemi et al., 2018), https://arxiv.org/abs/1711.00464
    """
    parts = [_split(found) for found in looks(model, guide, args, kwargs, draws, max_plate_nesting)]
    rates, distortions = (torch.cat([getattr(p, name) for p in parts]) for name in ("rates", "distortions"))
    return RateDistortion(rates, distortions, parts[0].unit)


def _split(found: Look) -> RateDistortion:
    observed = [site for site in found.model_sites.values() if site["is_observed"]]
    if not observed:
        raise ValueError(
            "`model` must observe data, whose distortion is measured; it observes nothing. Give it its data by obs="
        )
    latents = [found.guide_sites[name] for name in found.order]
    plates = sorted(set.intersection(*(set(frames(s)) for s in [*observed, *latents])), key=lambda f: f.dim)
    distortions = sum(_by_datum(-site["unscaled_log_prob"], site, plates) for site in observed)
    rates = sum((_rate(name, found, plates) for name in found.order), torch.zeros_like(distortions))
    return RateDistortion(rates, distortions, found.unit(plates))


def _rate(name: str, found: Look, plates: list[Any]) -> Tensor:
    q, p = found.guide_sites[name], found.model_sites[name]
    # The KLs of sites given their ancestors add up only where each has one.
    kl = q["fn"].log_prob(q["value"]) - p["fn"].log_prob(q["value"]) if found.undefined else site_kl(q, p)[0]
    return _by_datum(kl, q, plates)


def _by_datum(values: Tensor, site: Site, plates: list[Any]) -> Tensor:
    """Sums a site's values over all but draws and the cells of plates; what a subsample says counts for the whole."""
    draws, scale = cells(values, site, plates)
    return draws.flatten(1) * scale if draws.dim() > 1 else draws.reshape(len(draws), 1) * scale


@checked
def plot_rate_distortion(estimates: Mapping[str, RateDistortion], ax: Axes | None = None) -> Axes:
    """Draws pairs in the plane of rate and distortion, with two standard errors over data and lines of equal ELBO.

    Errors over data are common to pairs that were measured on the same data: a paired comparison is sharper.

    Raises:
        ValueError: if there are none, or of different units.
    """
    if len({e.unit for e in estimates.values()}) != 1:
        raise ValueError("`estimates` must hold one or more records, of the same unit")
    ax = axes_or_new(ax)
    for name, one in estimates.items():
        (rate, rate_se, _), (distortion, se, _) = one.rate, one.distortion
        errors = [0.0 if math.isnan(e) else 2 * e for e in (rate_se, se)]
        label = f"{name}: ELBO {one.elbo.mean:.2f}".removeprefix(": ")
        ax.errorbar(rate, distortion, errors[1], errors[0], marker="o", capsize=3, label=label, zorder=3)
    unit = next(iter(estimates.values())).unit
    ax.set(xlabel=f"rate, nats/{unit}", ylabel=f"distortion, nats/{unit}", aspect="equal")
    _draw_levels(ax)
    ax.legend(edgecolor="none", framealpha=0.9)
    return ax


def _draw_levels(ax: Axes) -> None:
    """Draws lines of equal ELBO over a square of nats that holds what is drawn."""
    import numpy as np

    limits = [ax.get_xlim(), ax.get_ylim()]
    half = 0.6 * max(max(high - low for low, high in limits), 1.0)
    spans = [((low + high) / 2 - half, (low + high) / 2 + half) for low, high in limits]
    x, y = np.meshgrid(*(np.linspace(*span, 101) for span in spans))
    lines = ax.contour(x, y, -(x + y), levels=6, colors=GREY, linewidths=0.4, linestyles="solid", zorder=1)
    ax.set(xlim=spans[0], ylim=spans[1])
    ax.clabel(lines, fmt="ELBO %g", fontsize=8, colors=GREY)
