"""What a lookup found: the posterior over addresses."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from pyro.poutine import Trace
from torch import Tensor
from torch.distributions import Bernoulli, Categorical

from pyro_memory.diagnostics.addresses import ADDRESSES
from pyro_memory.diagnostics.axes import Axes, axes_or_new
from pyro_memory.diagnostics.bound import LOW, passes
from pyro_memory.diagnostics.sites import base, frames
from pyro_memory.diagnostics.tables import Record, Rows, counted, number
from pyro_memory.gate import checked
from pyro_memory.inference import (
    SameData,
    Weights,
    check_same_globals,
    posterior_of,
    stochastic_sites,
)


@checked
@dataclass(frozen=True, repr=False)
class PosteriorAddress(Record):
    """The posterior p(a | x) of a discrete latent, for each lookup.

    Attributes:
        probs: ``[*cells, value]``, cells being those of the plates around the site.
        se: the standard error of each, over particles (delta method); 0 where it was enumerated and nothing sampled.
        effective_particles: of each datum's weights, and of the global draws' where there are any, whichever is fewer.
        particles: how many were drawn.
        site: the latent's name.
        unit: what a cell is: "datum", or the plates.
        method: "enumerated" given each particle's other latents, or "importance weights" of the guide's draws.
    """

    probs: Float[Tensor, "*cells value"]
    se: Float[Tensor, "*cells value"]
    effective_particles: Float[Tensor, " datum"]
    particles: int
    site: str
    unit: str
    method: str

    @property
    def entropy(self) -> Float[Tensor, "*cells"]:
        """What is not known of each lookup, nats."""
        return -torch.special.xlogy(self.probs, self.probs).sum(-1)

    def _shown(self) -> tuple[str, Rows, Sequence[str]]:
        best, where = self.probs.reshape(-1, self.probs.shape[-1]).max(-1)
        errors = self.se.reshape(-1, self.se.shape[-1]).gather(-1, where.unsqueeze(-1))
        count, low = self.probs[..., 0].numel(), int((self.effective_particles < LOW).sum())
        rows = [
            ("", f"mean over {self.unit}s" if self.unit != "datum" else "mean over data", "se of particles"),
            ("probability of the likeliest value", number(best.mean().item()), number(errors.mean().item())),
            ("entropy, nats/lookup", number(self.entropy.mean().item()), ""),
        ]
        if self.particles >= LOW:
            share = f"{100 * low / len(self.effective_particles):.1f}%"
            rows.append((f"fewer than {LOW} effective particles", share, ""))
        head = f"PosteriorAddress of {self.site}: {counted(count, self.unit)}, {self.probs.shape[-1]} values"
        return f"{head}, {counted(self.particles, 'particle')} each, {self.method}", rows, ()

    def to_dict(self) -> dict[str, Any]:
        """Gives probabilities and errors as lists, with what they rest on."""
        return {
            "site": self.site, "unit": self.unit, "method": self.method, "particles": self.particles,
            "probs": self.probs.tolist(), "se": self.se.tolist(), "entropy": self.entropy.mean().item(),
            "low_effective": int((self.effective_particles < LOW).sum()),
        }  # fmt: skip

    def plot(self, ax: Axes | None = None, *, most: int = 60) -> Axes:
        """Draws the probabilities of the first lookups, a row each."""
        ax = axes_or_new(ax)
        rows = self.probs.reshape(-1, self.probs.shape[-1])[:most]
        image = ax.imshow(rows.numpy(force=True), aspect="auto", vmin=0, vmax=1, cmap="Blues", interpolation="nearest")
        ax.figure.colorbar(image, ax=ax, label=f"p({self.site} | x)")
        ax.set(xlabel=f"value of {self.site}", ylabel="lookup")
        return ax


@checked
@torch.no_grad()
def posterior_address(
    model: Callable,
    guide: Callable,
    *args: Any,
    site: str = "a",
    exact: bool = False,
    particles: int = 1000,
    draws: int = 20,
    chunk_size: int = 50,
    max_plate_nesting: float = math.inf,
    progress: bool = False,
    **kwargs: Any,
) -> PosteriorAddress:
    r"""Estimates p(a | x) of a discrete latent by self-normalised importance weights,

    .. math::
        p(a | x) \approx \frac{\sum_k w_k \, p(a | x, h_k)}{\sum_k w_k}

    where h_k are the other latents of particle k. If the model enumerates the site, or ``exact`` asks it of the
    guide's, p(a | x, h_k) is computed by enumeration; else it is 1 at the value that the guide drew.

    Args:
        model, guide: any pair.
        *args, **kwargs: what both are called with.
        site: the latent, Categorical or Bernoulli.
        exact: enumerates a site that the guide samples: a pass of all its values for each particle.
        particles, draws, chunk_size, max_plate_nesting, progress: as of ``importance_bound``. With global latents each
            of ``draws`` has its particles, and counts by its weight.

    Draws come from torch's global random stream; parameters, gradients and modes stay as they are.

    Raises:
        ValueError: if the pair has no such latent, and as of ``importance_bound``.

    Cost: as ``importance_bound``.
    """
    options = {
        "particles": particles, "draws": draws, "exact": (site,) if exact else (), "chunk_size": chunk_size,
        "max_plate_nesting": max_plate_nesting, "progress": progress,
    }  # fmt: skip
    found: list[_Weighted] = []
    shared: list[Any] = []
    for i, traces, weights in passes(model, guide, args, kwargs, SameData(), **options):
        if i == len(found):
            found.append(_Weighted())
            shared.append(weights.shared)
        check_same_globals(shared[i], weights.shared)
        said, values, cells = _answers(site, traces, weights)
        found[i].add(weights.log_weight.double(), said, values, cells)
    own = [0.0 if g is None else g.log_weight.double() for g in shared]
    over = [g + (s.total() - math.log(particles)).sum() for g, s in zip(own, found, strict=True)]
    share = torch.stack(over).softmax(0)
    means, errors = zip(*(sums.mean() for sums in found), strict=True)
    probs = sum(w * mean for w, mean in zip(share, means, strict=True))
    variance = sum(w**2 * (e**2 + (m - probs) ** 2) for w, m, e in zip(share, means, errors, strict=True))
    effective = torch.stack([sums.effective().flatten() for sums in found]).mean(0)
    if found[0].certain is not None:
        effective = 1 / share.square().sum().reshape(1)
    elif len(found) > 1:
        effective = effective.clamp(max=float(1 / share.square().sum()))
    node = traces[0].nodes[site]
    plates = tuple(f.name for f in frames(node))
    unit = "datum" if weights.unit == "datum" and plates == weights.plates else " x ".join(plates) or "data set"
    method = "enumerated" if said.is_floating_point() else "importance weights"
    return PosteriorAddress(probs, variance.sqrt(), effective, particles, site, unit, method)


def _answers(site: str, traces: tuple[Trace, Trace], weights: Weights) -> tuple[Tensor, int, list[int] | None]:
    """What each particle says of the site: probabilities, ``[particle, *cells, value]``, or its value,
    ``[particle, *cells]``; how many values there are; and the sizes of its plates, 1 for those inside a datum, None
    where all data share one value."""
    latents = [n for n, s in stochastic_sites(traces[0]).items() if not s["is_observed"]]
    if site not in latents:
        raise ValueError(f"`site` must be a latent site of the model, of {', '.join(latents) or 'none'}; got {site!r}")
    nodes: dict[str, Any] = traces[0].nodes
    node = nodes[site]
    sizes = [int(f.size) for f in frames(node)]
    cells = [int(f.size) if f.name in weights.plates else 1 for f in frames(node)]
    fn = posterior_of(site, *traces)
    if fn is not None:
        probs = fn.probs if isinstance(fn, Categorical) else torch.stack([1 - fn.probs, fn.probs], -1)
        return probs.double().reshape(-1, *sizes, probs.shape[-1]), probs.shape[-1], cells
    fn = base(node["fn"])
    if not isinstance(fn, (*ADDRESSES, Bernoulli)):
        raise ValueError(f"`site` must be Categorical or Bernoulli; {site} is {type(fn).__name__}")
    values = 2 if isinstance(fn, Bernoulli) else getattr(fn, "slots", None) or fn.probs.shape[-1]
    if weights.shared is not None and not set(weights.plates) & {f.name for f in frames(node)}:
        return node["value"].long().reshape(1, *sizes), int(values), None
    return node["value"].long().reshape(-1, *sizes), int(values), cells


LEAST = torch.finfo(torch.float64).min


class _Weighted:
    """Running sums of w f, of w^2 f and w^2 f^2, w relative to the largest weight of a datum so far."""

    def __init__(self) -> None:
        self.top = torch.tensor(-math.inf, dtype=torch.float64)
        self.sums: list[Tensor] = []
        self.certain: Tensor | None = None

    def add(self, log_weight: Tensor, said: Tensor, values: int, cells: list[int] | None) -> None:
        if cells is None:  # of a draw that all data share, its weight says all
            self.certain = torch.nn.functional.one_hot(said[0], values).double()
            said, cells = said.new_zeros(log_weight.shape), list(log_weight.shape[1:])
        top = torch.maximum(self.top.to(log_weight), log_weight.amax(0)).clamp(min=LEAST)  # all weights may be 0
        w, shrink = (log_weight - top).exp(), (self.top.to(log_weight) - top).exp()
        aligned = w.reshape(len(w), *cells)
        if said.is_floating_point():
            over = aligned.unsqueeze(-1)
            parts = [(over * said).sum(0), (over**2 * said).sum(0), (over * said).square().sum(0)]
        else:
            where = said.movedim(0, -1)
            spread = aligned.expand(said.shape).movedim(0, -1)
            empty = spread.new_zeros(*where.shape[:-1], values)
            once, twice = empty.scatter_add(-1, where, spread), empty.scatter_add(-1, where, spread**2)
            parts = [once, twice, twice]
        fresh = [w.sum(0), w.square().sum(0), *parts]
        if self.sums:
            small = shrink.reshape(*cells, 1)
            factors = [shrink, shrink**2, small, small**2, small**2]
            fresh = [new + f * old for new, f, old in zip(fresh, factors, self.sums, strict=True)]
        self.top, self.sums, self.cells = top, fresh, cells

    def total(self) -> Tensor:
        """The log of the sum of weights, a datum."""
        return self.top + self.sums[0].log()

    def effective(self) -> Tensor:
        return self.sums[0] ** 2 / self.sums[1]

    def mean(self) -> tuple[Tensor, Tensor]:
        """The self-normalised mean of f, and its standard error."""
        if self.certain is not None:
            return self.certain, torch.zeros_like(self.certain)
        w, w2 = (t.reshape(*self.cells, 1) for t in self.sums[:2])
        wf, w2f, w2f2 = self.sums[2:]
        mean = wf / w
        return mean, (w2f2 - 2 * mean * w2f + mean**2 * w2).clamp(min=0).sqrt() / w
