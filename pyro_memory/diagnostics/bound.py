"""How well a model explains data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from pyro.poutine import Trace
from torch import Tensor
from tqdm import tqdm

from pyro_memory.diagnostics.axes import BLUE, ORANGE, Axes, axes_or_new
from pyro_memory.diagnostics.tables import Record, Rows, counted, number, standard_error
from pyro_memory.gate import checked
from pyro_memory.inference import OneDraw, Particles, SameData, Weights, check_call, check_same_globals, weigh

LOW = 5  # effective particles below which an estimate is told to be a rough one


@checked
@dataclass(frozen=True, repr=False)
class BoundEstimate(Record):
    """A lower bound on log p(x) for each datum, in nats.

    Attributes:
        bound: ``log 1/K sum_k w_k`` for each datum.
        effective_particles: the effective sample size ``(sum w)^2 / sum w^2`` for each datum.
        particles: K.
        unit: what each of them is: "datum", "data set" for a model with global latents or without a plate over data, or
            the plates that hold all sites, such as "task".
        draws: of the global latents, each with K particles of the others; 0 without global latents.
        given_globals: with global latents, the bound of each datum given them, a mean over their draws.
    """

    bound: Float[Tensor, " datum"]
    effective_particles: Float[Tensor, " datum"]
    particles: int
    unit: str = "datum"
    draws: int = 0
    given_globals: BoundEstimate | None = None

    @classmethod
    def cat(cls, parts: Sequence[BoundEstimate]) -> BoundEstimate:
        """Joins the estimates of several batches."""
        if len({(p.particles, p.unit) for p in parts}) != 1:
            raise ValueError("`parts` must be one or more estimates with equal numbers of particles, of the same unit")
        if any(p.draws for p in parts):
            raise ValueError(
                "`parts` must be of models without global latents: batches of one data set share these, and their "
                "bounds do not add up. Call importance_bound on the whole data set"
            )
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
        draws = self.draws or self.particles
        if self.draws == 1:
            return math.nan
        variance = 1 / self.effective_particles - 1 / draws
        return (variance.clamp(min=0).sum().sqrt() / len(self.bound)).item()

    @property
    def exchangeable(self) -> BoundEstimate:
        """The estimate with exchangeable entries: of a data set with global latents, that of its data given them."""
        return self if self.given_globals is None else self.given_globals

    @property
    def low(self) -> int:
        """How many data rest on fewer than five effective particles."""
        return int((self.effective_particles < LOW).sum())

    def _shown(self) -> tuple[str, Rows, Sequence[str]]:
        share = f"{100 * self.low / len(self.bound):.1f}%"
        rows = [
            ("", f"nats/{self.unit}", "se"),
            ("log p(x) >=", number(self.mean), number(self.se)),
            ("noise of the draws" if self.draws else "noise of the particles", "", number(self.monte_carlo_se)),
        ]
        given = self.given_globals
        each = f"{counted(self.particles, 'particle')} each"
        if given is None:
            if self.particles >= LOW:  # fewer cannot be effective, and of sums alone one is enough
                rows.append((f"fewer than {LOW} effective", str(self.low), share))
            return f"BoundEstimate of {counted(len(self.bound), self.unit)}, {each}", rows, ()
        rows += [
            ("effective draws", number(self.effective_particles.item(), 1), ""),
            (f"given the globals, nats/{given.unit}", number(given.mean), number(given.se)),
        ]
        head = f"BoundEstimate of a data set of {counted(len(given.bound), given.unit)}"
        return f"{head}, {counted(self.draws, 'draw')} of the global latents, {each}", rows, ()

    def to_dict(self) -> dict[str, Any]:
        """Gives the summary as plain numbers."""
        nested = {} if self.given_globals is None else {"given_globals": self.given_globals.to_dict()}
        return {
            "mean": self.mean, "se": self.se, "monte_carlo_se": self.monte_carlo_se, "data": len(self.bound),
            "particles": self.particles, "low_effective": self.low, "unit": self.unit,
            "draws": self.draws, **nested,
        }  # fmt: skip

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draws the bounds of the data, given global latents where there are any, as a histogram with their mean."""
        ax, own = axes_or_new(ax), self.exchangeable
        ax.hist(own.bound.numpy(force=True), bins=40, color=BLUE)
        error = "" if math.isnan(own.se) else f" ± {own.se:.2f}"
        ax.axvline(own.mean, color=ORANGE, label=f"mean {own.mean:.2f}{error}")
        given = " given the global latents" if self.draws else ""
        ax.set(xlabel=f"bound on log p(x){given}, nats/{own.unit}", ylabel="count")
        ax.legend(frameon=False)
        return ax


@checked
@torch.no_grad()
def importance_bound(
    model: Callable,
    guide: Callable,
    *args: Any,
    particles: int = 1000,
    draws: int = 20,
    exact: Sequence[str] = (),
    chunk_size: int = 50,
    max_plate_nesting: float = math.inf,
    progress: bool = False,
    **kwargs: Any,
) -> BoundEstimate:
    r"""Estimates ``E log 1/K sum_k p(x, h_k) / q(h_k | x) <= log p(x)`` for each datum.

    What the model enumerates is summed, for each particle. With latents g outside the plates over data, which all data
    share, it is one bound of the data set, nested in two levels:

    .. math::
        E \log \frac1S \sum_s \frac{p(g_s)}{q(g_s)} \prod_n \frac1K \sum_k w_{nk}(g_s) \le \log p(X)

    Given g each factor is an unbiased estimate of p(x_n | g), and so is the mean of products of p(X): by Jensen's
    inequality its logarithm lies below log p(X) on average, for any S and K, and rises with both. A guide that draws
    all latents together, as AutoMultivariateNormal does, makes all of them global: it needs many draws, one particle.

    All particles look at the same data: a plate that subsamples chooses once, and the bound is of what it chose. Draws
    come from torch's global random stream; parameters, gradients and modes stay as they are. Evaluate dropout and the
    like in ``eval()``.

    Args:
        model, guide: any pair whose latents lie in the plate over data or outside of all plates.
        *args, **kwargs: what both are called with.
        particles: K. The bound rises with K to log p(x).
        draws: S, of the global latents, where there are any.
        exact: discrete sites that the guide samples and that are to be summed instead: given the other latents its
            estimate of p(x) then has no noise of these. It costs a pass of all values for each particle.
        chunk_size: particles per pass; memory grows with it, not with K.
        max_plate_nesting: how many plates the model nests; found by a trial run if not given.
        progress: shows a progress bar.

    Raises:
        ValueError: for K < 1, a pair that has no per-datum weights (see ``weigh``), a model whose observed values
            are drawn anew at each call, and several draws of global latents for a subsample, whose scale would stand
            inside the logarithm.

    Cost: K passes of model and guide, S times K with global latents.

    References: Importance Weighted Autoencoders (Burda et al., 2016), https://arxiv.org/abs/1509.00519
    """
    options = {
        "particles": particles, "draws": draws, "exact": tuple(exact), "chunk_size": chunk_size,
        "max_plate_nesting": max_plate_nesting, "progress": progress,
    }  # fmt: skip
    return bound_of(model, guide, args, kwargs, SameData(), **options)


def passes(
    model: Callable,
    guide: Callable,
    args: tuple,
    kwargs: dict,
    same: SameData,
    *,
    particles: int,
    draws: int,
    exact: tuple[str, ...],
    chunk_size: int,
    max_plate_nesting: float,
    progress: bool,
) -> Iterator[tuple[int, tuple[Trace, Trace], Weights]]:
    """Runs a pair for K particles, a chunk at a time, and for each draw of global latents where there are any.

    Yields:
        The draw's number, the traces of a chunk, their weights.
    """
    if min(particles, chunk_size, draws) < 1:
        raise ValueError(
            f"`particles`, `draws` and `chunk_size` must be at least 1; got {particles}, {draws} and {chunk_size}"
        )
    check_call(model, guide, args, kwargs, "args")
    sampler = Particles(exact=exact, max_plate_nesting=max_plate_nesting)
    sampler.look(model, guide, args, kwargs)
    sizes = [chunk_size] * (particles // chunk_size) + [particles % chunk_size] * (particles % chunk_size > 0)
    rounds = range(draws if sampler.global_sites else 1)
    with tqdm(total=len(rounds) * len(sizes), desc="particles", disable=not progress, leave=False) as bar:
        for i in rounds:
            draw = OneDraw(sampler.global_sites)
            for size in sizes:
                (traces,) = sampler.sized(size).traces(model, guide, args, kwargs, same, draw)
                yield i, traces, weigh(*traces)
                bar.update()


def bound_of(
    model: Callable, guide: Callable, args: tuple, kwargs: dict, same: SameData, *, particles: int, **options: Any
) -> BoundEstimate:
    """``importance_bound`` on the data of the passes that ``same`` has seen."""
    sums: list[_Sums] = []
    shared: list[Any] = []
    for i, _, weights in passes(model, guide, args, kwargs, same, particles=particles, **options):
        if i == len(sums):
            sums.append(_Sums())
            shared.append(weights.shared)
        check_same_globals(shared[i], weights.shared)
        sums[i].add(weights.log_weight.reshape(len(weights.log_weight), -1).double())
    local = [s.estimate(particles, weights.unit) for s in sums]
    if weights.shared is None:
        return local[0]
    if len(local) > 1 and bool((torch.as_tensor(weights.scale) != 1).any()):
        raise ValueError(
            f"`draws` must be 1 where data are subsampled, or scaled: of several draws of the global latents the scale "
            f"stands inside the logarithm, and the mean bounds nothing; got {len(local)}. Give it all data, or draws=1"
        )
    cells = weights.log_weight.shape[1:]
    over = _Sums()
    parts = zip(shared, local, strict=True)
    totals = [g.log_weight.double() + (weights.scale * e.bound.reshape(cells)).sum() for g, e in parts]
    over.add(torch.stack(totals).unsqueeze(-1))
    bound, effective = (torch.stack([getattr(e, n) for e in local]).mean(0) for n in ("bound", "effective_particles"))
    given = BoundEstimate(bound, effective, particles, weights.unit)
    nested = over.estimate(len(local), "data set")
    return BoundEstimate(nested.bound, nested.effective_particles, particles, "data set", len(local), given)


class _Sums:
    """The running sums of weights and of their squares, a column a datum."""

    def __init__(self) -> None:
        self.total = self.squared = torch.tensor(-math.inf, dtype=torch.float64)

    def add(self, log_weight: Float[Tensor, "particle datum"]) -> None:
        self.total = torch.logaddexp(self.total.to(log_weight), log_weight.logsumexp(0))
        self.squared = torch.logaddexp(self.squared.to(log_weight), (2 * log_weight).logsumexp(0))

    def estimate(self, particles: int, unit: str) -> BoundEstimate:
        effective = (2 * self.total - self.squared).exp()
        return BoundEstimate(self.total - math.log(particles), effective, particles, unit)
