"""How well a model explains data."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from pyro_memory.diagnostics.axes import BLUE, ORANGE, Axes, axes_or_new
from pyro_memory.diagnostics.tables import counted, number, standard_error, table
from pyro_memory.gate import checked
from pyro_memory.inference import Particles, SameData, check_call, weigh


@checked
@dataclass(frozen=True, repr=False)
class BoundEstimate:
    """A lower bound on log p(x) for each datum, in nats.

    Attributes:
        bound: ``log 1/K sum_k w_k`` for each datum.
        effective_particles: the effective sample size ``(sum w)^2 / sum w^2`` for each datum.
        particles: K.
        unit: what each of them is: "datum", "data set" for a model without a plate over data, or the plates that hold
            all sites, such as "task".
    """

    bound: Float[Tensor, " datum"]
    effective_particles: Float[Tensor, " datum"]
    particles: int
    unit: str = "datum"

    @classmethod
    def cat(cls, parts: Sequence[BoundEstimate]) -> BoundEstimate:
        """Joins the estimates of several batches."""
        if len({(p.particles, p.unit) for p in parts}) != 1:
            raise ValueError("`parts` must be one or more estimates with equal numbers of particles, of the same unit")
        return cls(
            torch.cat([p.bound for p in parts]),
            torch.cat([p.effective_particles for p in parts]),
            parts[0].particles,
            parts[0].unit,
        )

    @property
    def mean(self) -> float:
        """The mean bound, nats per ``unit``."""
        return self.bound.mean().item()

    @property
    def se(self) -> float:
        """The standard error of the mean over data."""
        return standard_error(self.bound)

    @property
    def monte_carlo_se(self) -> float:
        """What the particles' noise adds to the mean (delta method): unreliable where few particles count."""
        variance = 1 / self.effective_particles - 1 / self.particles
        return (variance.clamp(min=0).sum().sqrt() / len(self.bound)).item()

    @property
    def low(self) -> int:
        """How many data rest on fewer than five effective particles."""
        return int((self.effective_particles < 5).sum())

    def __repr__(self) -> str:
        share = f"{100 * self.low / len(self.bound):.1f}%"
        rows = [
            ("", f"nats/{self.unit}", "se"),
            ("log p(x) >=", number(self.mean), number(self.se)),
            ("noise of the particles", "", number(self.monte_carlo_se)),
            ("fewer than 5 effective", str(self.low), share),
        ]
        return f"BoundEstimate of {counted(len(self.bound), self.unit)}, {self.particles} particles each\n{table(rows)}"

    def to_dict(self) -> dict[str, Any]:
        """Gives the summary as plain numbers."""
        return {
            "mean": self.mean, "se": self.se, "monte_carlo_se": self.monte_carlo_se, "data": len(self.bound),
            "particles": self.particles, "low_effective": self.low, "unit": self.unit,
        }  # fmt: skip

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draws the bounds of the data as a histogram with their mean."""
        ax = axes_or_new(ax)
        ax.hist(self.bound.numpy(force=True), bins=40, color=BLUE)
        ax.axvline(self.mean, color=ORANGE, label=f"mean {self.mean:.2f} ± {self.se:.2f}")
        ax.set(xlabel=f"bound on log p(x), nats/{self.unit}", ylabel="count")
        ax.legend(frameon=False)
        return ax


@checked
@torch.no_grad()
def importance_bound(
    model: Callable,
    guide: Callable,
    *args: Any,
    particles: int = 1000,
    chunk_size: int = 50,
    max_plate_nesting: float = math.inf,
    progress: bool = False,
    **kwargs: Any,
) -> BoundEstimate:
    r"""Estimates ``E log 1/K sum_k p(x, h_k) / q(h_k | x) <= log p(x)`` for each datum.

    All particles look at the same data: a plate that subsamples chooses once, and the bound is of what it chose. Draws
    come from torch's global random stream; parameters, gradients and modes stay as they are. Evaluate dropout and the
    like in ``eval()``.

    Args:
        model, guide: any pair whose latents lie in the plate over data.
        *args, **kwargs: what both are called with.
        particles: K. The bound rises with K to log p(x).
        chunk_size: particles per pass; memory grows with it, not with K.
        max_plate_nesting: how many plates the model nests; found by a trial run if not given.
        progress: shows a progress bar.

    Raises:
        ValueError: for K < 1, a pair that has no per-datum weights (see ``weigh``), and a model whose observed values
            are drawn anew at each call.

    Cost: K passes of model and guide.

    References: Importance Weighted Autoencoders (Burda et al., 2016), https://arxiv.org/abs/1509.00519
    """
    options = {"particles": particles, "chunk_size": chunk_size, "max_plate_nesting": max_plate_nesting}
    return bound_of(model, guide, args, kwargs, SameData(), progress=progress, **options)


def bound_of(
    model: Callable,
    guide: Callable,
    args: tuple,
    kwargs: dict,
    same: SameData,
    *,
    particles: int,
    chunk_size: int,
    max_plate_nesting: float,
    progress: bool = False,
) -> BoundEstimate:
    """``importance_bound`` on the data of the passes that ``same`` has seen."""
    if particles < 1 or chunk_size < 1:
        raise ValueError(f"`particles` and `chunk_size` must be at least 1; got {particles} and {chunk_size}")
    check_call(model, guide, args, kwargs, "args")
    total = total_squared = None
    unit = ""
    sizes = [chunk_size] * (particles // chunk_size) + [particles % chunk_size] * (particles % chunk_size > 0)
    for size in tqdm(sizes, desc="bound", disable=not progress, leave=False):
        sampler = Particles(size, vectorize_particles=True, max_plate_nesting=max_plate_nesting)
        (traces,) = sampler.traces(model, guide, args, kwargs, same)
        max_plate_nesting = sampler.max_plate_nesting - (size > 1)
        weights = weigh(*traces)
        unit, log_weight = weights.unit, weights.log_weight.reshape(size, -1).double()
        part, part_squared = log_weight.logsumexp(0), (2 * log_weight).logsumexp(0)
        total = part if total is None else torch.logaddexp(total, part)
        total_squared = part_squared if total_squared is None else torch.logaddexp(total_squared, part_squared)
    return BoundEstimate(total - math.log(particles), (2 * total - total_squared).exp(), particles, unit)
