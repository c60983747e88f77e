"""How a continuous latent was used."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pyro_memory.diagnostics.axes import BLUE, GREY, Axes, axes_or_new
from pyro_memory.diagnostics.sites import Site, site_kl
from pyro_memory.diagnostics.tables import Record, Rows, counted, number
from pyro_memory.gate import checked
from pyro_memory.inference import PARTICLES

ACTIVE_VARIANCE = ACTIVE_NATS = 0.01
ROWS = 4096  # draws that are compared with all data: more cost time, and bring few digits
ELEMENTS = 2**22  # numbers that a chunk of comparisons may hold


@checked
@dataclass(frozen=True, repr=False)
class LatentInformation(Record):
    r"""How a continuous latent z was used, over N cells: the data, or what the site's plates hold.

    The mean KL has two parts: the mutual information ``I(n; z) = E_n KL(q(z|x_n) || q(z))`` says how much z tells which
    of the N it belongs to, and the marginal KL ``KL(q(z) || p(z))`` how far the aggregate ``q(z) = 1/N sum_m q(z|x_m)``
    lies from the prior. Both are means over draws ``z ~ q(z|x_n)`` (up to 4096, spread over the data), q(z) in full:

    .. code-block:: text

        I(n; z)           ~  mean of log q(z|x_n) - log 1/N sum_m q(z|x_m)   (never above log N)
        KL(q(z) || p(z))  ~  mean of log 1/N sum_m q(z|x_m) - log p(z)

    They are unbiased for these N. As estimates for the population that the N come from, the mutual information is too
    low, the more so the nearer it comes to log N, and the marginal KL by the same amount too high.

    Attributes:
        dims: how many dimensions a cell has.
        data: N.
        unit: what each of them is.
        reason: why one q(z|x_n) for each n and one prior p(z) for all do not exist; then what follows is None, but for
            what the KL by dimension gives.
        kl_by_dimension: mean KL(q || p) of each dimension, nats; None where q or p is no product over dimensions.
        informative: whether that is above 0.01 nats.
        mean_variance: variance over data of the posterior mean, by dimension; None also where q gives no mean.
        active: the active units: whether that is above 0.01 (Burda et al., 2016).
        mutual_information, marginal_kl: nats per ``unit``, each with its standard error over data, what the draws add
            included, q(z) held fixed.

    References: Importance Weighted Autoencoders (Burda et al., 2016), https://arxiv.org/abs/1509.00519; ELBO surgery
    (Hoffman & Johnson, 2016), http://approximateinference.org/accepted/HoffmanJohnson2016.pdf
    """

    dims: int
    data: int
    unit: str = "datum"
    reason: str = ""
    kl_by_dimension: Float[Tensor, " dim"] | None = None
    informative: Bool[Tensor, " dim"] | None = None
    mean_variance: Float[Tensor, " dim"] | None = None
    active: Bool[Tensor, " dim"] | None = None
    mutual_information: float | None = None
    mutual_information_se: float | None = None
    marginal_kl: float | None = None
    marginal_kl_se: float | None = None

    def _shown(self) -> tuple[str, Rows, Sequence[str]]:
        first, *others = self.lines("site")
        return first, (), others

    def lines(self, name: str) -> list[str]:
        """Says it in words."""
        units = []
        if self.informative is not None:
            units.append(f"{int(self.informative.sum())} with KL > {ACTIVE_NATS} nats")
        if self.active is not None:
            units.append(f"{int(self.active.sum())} active (variance of the posterior mean > {ACTIVE_VARIANCE})")
        first = f"latent {name}: {self.dims} dimension{'s' * (self.dims != 1)}"
        first = f"{first}, {', '.join(units)}" if units else first
        if self.mutual_information is None:
            return [first, f"  mutual information and active units not defined: {self.reason}"]
        return [
            first,
            f"  mutual information {number(self.mutual_information)} nats/{self.unit}, se "
            f"{number(self.mutual_information_se)} (at most log N = {math.log(self.data):.3f}), marginal KL "
            f"{number(self.marginal_kl)}, se {number(self.marginal_kl_se)}, of N = {counted(self.data, self.unit)}",
        ]

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draws the KL of each dimension, the largest first; dimensions that are no active units are grey.

        Raises:
            ValueError: where there is no KL by dimension.
        """
        if self.kl_by_dimension is None:
            raise ValueError("there is no KL by dimension to draw: q or p is no product over dimensions")
        ax = axes_or_new(ax)
        order = self.kl_by_dimension.argsort(descending=True)
        active = self.informative if self.active is None else self.active
        colors = [BLUE if used else GREY for used in active[order].tolist()]
        ax.bar(range(self.dims), self.kl_by_dimension[order].numpy(force=True), color=colors)
        ax.axhline(0, color=GREY, linewidth=0.8)
        ax.set(xlabel="dimension, by KL", ylabel=f"KL(q || p), nats/{self.unit}")
        return ax


def is_continuous(site: Site) -> bool:
    """Whether a site's values are real numbers."""
    try:
        return not site["fn"].support.is_discrete
    except NotImplementedError:  # a distribution of a user's own need not say
        return bool(site["value"].is_floating_point())


def latent_information(q: Site, p: Site, plates: list[Any], unit: str) -> LatentInformation:
    """Describes the use of a continuous site, given the plates whose cells are its data."""
    layout = _Layout(q, plates)
    facts: dict[str, Any] = {
        "dims": math.prod(layout.of_values(q["value"]).shape[2:]), "data": math.prod(f.size for f in plates),
        "unit": unit,
    }  # fmt: skip
    kl = _kl_by_dimension(q, p, layout)
    if kl is not None:
        facts |= {"kl_by_dimension": kl, "informative": kl > ACTIVE_NATS}
    try:
        reason = _reason(q, p, layout)
        facts |= {} if reason else _split(q, p, layout)
    except (RuntimeError, ValueError, NotImplementedError) as error:
        reason = f"q or p has no density at the values of other data ({type(error).__name__})"
    if reason:
        return LatentInformation(**facts, reason=reason)
    variance = _mean_variance(q, layout)
    if variance is not None:
        facts |= {"mean_variance": variance, "active": variance > ACTIVE_VARIANCE}
    return LatentInformation(**facts)


class _Layout:
    """Where a site's tensors have the draws, its data, and all else, which are its dimensions."""

    def __init__(self, q: Site, plates: list[Any]) -> None:
        self.shape, self.event = q["fn"].batch_shape, q["fn"].event_shape
        self.draws = [f.dim for f in q["cond_indep_stack"] if f.name == PARTICLES]
        self.cells = [f.dim for f in plates]

    def of_values(self, values: Tensor) -> Tensor:
        """``[*batch, *event]`` as ``[draw, cell, *dimensions]``."""
        return self._sorted(values.expand(self.shape + self.event), len(self.event))

    def of_log_probs(self, log_probs: Tensor) -> Tensor:
        """``[*row, *batch]`` as ``[*row, draw, cell]``, plates inside a cell summed."""
        lead = log_probs.dim() - len(self.shape)
        out = self._sorted(log_probs, 0, lead)
        return out.flatten(lead + 2).sum(-1) if out.dim() > lead + 2 else out

    def _sorted(self, tensor: Tensor, trailing: int, lead: int = 0) -> Tensor:
        dims = [d - trailing for d in [*self.draws, *self.cells]]
        if not self.draws:
            tensor = tensor.unsqueeze(lead)
            dims.insert(0, lead)
        to = list(range(lead, lead + len(dims)))
        return tensor.movedim(dims, to).flatten(lead + 1, to[-1])

    def as_values(self, rows: Tensor) -> Tensor:
        """``[row, draw, *dimensions]`` as values that stand before all cells."""
        for dim in sorted(self.cells):
            rows = rows.unsqueeze(1 + len(self.shape) + dim)
        return rows


def _kl_by_dimension(q: Site, p: Site, layout: _Layout) -> Tensor | None:
    """The mean KL of each dimension, where both are products over dimensions."""
    factors = [_factor(s["fn"]) for s in (q, p)]
    if any(f.event_shape for f in factors):
        return None
    kl, _ = site_kl(q | {"fn": factors[0]}, p | {"fn": factors[1]})
    return layout.of_values(kl).mean((0, 1)).flatten()


def _factor(fn: Any) -> Any:
    """The distribution whose dimensions were declared to be one event."""
    while isinstance(fn, torch.distributions.Independent):
        fn = fn.base_dist
    return fn


def _reason(q: Site, p: Site, layout: _Layout) -> str:
    """Why q(z | x_n) or a prior p(z) that all data share does not exist, if so."""
    if math.prod(layout.shape[d] for d in layout.cells) < 2:
        return "it takes two data"
    if not layout.draws:
        return "it takes two draws, to see whether q depends on what was sampled before"
    if _masked(q) or _masked(p):
        return "the site is masked"
    probe = q["value"]
    for dim in [*layout.draws, *layout.cells]:
        probe = probe.narrow(dim - len(layout.event), 0, 1)
    probe = probe.expand_as(q["value"])
    log_q, log_p = (layout.of_log_probs(s["fn"].log_prob(probe)) for s in (q, p))
    if not _same(log_q, log_q[:1]):
        return "q depends on latents that are sampled before it"
    if not _same(log_p, log_p[:1]):
        return "its prior depends on latents that are sampled before it"
    return "" if _same(log_p, log_p[:, :1]) else "the data do not share one prior over it"


def _masked(site: Site) -> bool:
    masks, fn = [site["mask"]], site["fn"]
    while hasattr(fn, "base_dist"):
        masks.append(getattr(fn, "_mask", None))
        fn = fn.base_dist
    return any(isinstance(mask, Tensor) for mask in masks)


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether log densities differ by rounding only."""
    return torch.allclose(one, other.expand_as(one), rtol=1e-4, atol=1e-4)


def _split(q: Site, p: Site, layout: _Layout) -> dict[str, float]:
    """Estimates I(n; z) and KL(q(z) || p(z)).

    The draws of a cell differ in their first dimension only, so draw s of some cell is compared with all cells there:
    that takes as many densities as there are pairs, and no copy of q.
    """
    values = layout.of_values(q["value"])
    log_p = layout.of_log_probs(p["fn"].log_prob(q["value"])).double()
    draws, cells = log_p.shape
    # All pairs (draw, cell), or as many as fit, spread over the cells.
    count, draw = max(1, min(cells, ROWS // draws)), torch.arange(draws, device=log_p.device)
    cell = (torch.arange(count, device=log_p.device)[:, None] + draw * max(1, cells // draws)) % cells
    terms, size = log_p.new_empty(2, count, draws), max(1, ELEMENTS // values.numel())
    for part, found in zip(cell.split(size), terms.split(size, 1), strict=True):
        log_q = layout.of_log_probs(q["fn"].log_prob(layout.as_values(values[draw, part]))).double()
        mixture = log_q.logsumexp(-1) - math.log(cells)
        found[0] = log_q.gather(-1, part[..., None])[..., 0] - mixture
        found[1] = mixture - log_p[draw, part]
    (information, information_se), (marginal, marginal_se) = (_mean_and_error(t, cell, cells) for t in terms)
    return {
        "mutual_information": information, "mutual_information_se": information_se, "marginal_kl": marginal,
        "marginal_kl_se": marginal_se,
    }  # fmt: skip


def _mean_and_error(terms: Tensor, cell: Tensor, cells: int) -> tuple[float, float]:
    """The mean, and its standard error where the terms of one cell belong together."""
    mean = terms.mean()
    sums = terms.new_zeros(cells).index_add(0, cell.flatten(), (terms - mean).flatten())
    seen = cell.unique().numel()
    return mean.item(), (sums.square().sum() * seen / (seen - 1)).sqrt().item() / terms.numel()


def _mean_variance(q: Site, layout: _Layout) -> Tensor | None:
    """The variance over cells of q's mean, by dimension; None for a distribution that does not give its mean."""
    try:
        return layout.of_values(q["fn"].mean)[0].var(0).flatten()
    except NotImplementedError:
        return None
