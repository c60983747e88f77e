"""KL(q || p) of one latent site."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from jaxtyping import Float
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from pyro_memory.diagnostics.tables import Record, Rows, counted, number, standard_error
from pyro_memory.gate import checked
from pyro_memory.inference import PARTICLES

Site = dict[str, Any]


@checked
@dataclass(frozen=True, repr=False)
class SiteInformation(Record):
    """What one latent site carried.

    Attributes:
        kl: KL(q || p), nats, for each cell of ``unit``; None where no KL of this site alone is defined.
        unit: "datum", "data set", or the plates that the site lies in.
        method: "closed form", "enumerated" or "Monte Carlo".
        draws_se: standard error of the mean over the draws (of ancestors, or of the site itself); 0 where there is
            nothing random.
    """

    kl: Float[Tensor, " cell"] | None
    unit: str
    method: str
    draws_se: float

    @property
    def mean(self) -> float:
        """Mean KL, nats per ``unit``."""
        return math.nan if self.kl is None else self.kl.mean().item()

    @property
    def se(self) -> float:
        """Standard error of the mean over data."""
        return math.nan if self.kl is None else standard_error(self.kl)

    def _shown(self) -> tuple[str, Rows, Sequence[str]]:
        if self.kl is None:
            return f"SiteInformation: {self.method}", (), ()
        count = counted(len(self.kl), self.unit)
        said = f"{number(self.mean)} nats/{self.unit}, se {number(self.se)}, {count}, {self.method}"
        return f"SiteInformation: {said}", (), ()


def frames(site: Site) -> list[Any]:
    """The plates around a site, those of particles left out."""
    return sorted((f for f in site["cond_indep_stack"] if f.vectorized and f.name != PARTICLES), key=lambda f: f.dim)


def base(fn: dist.Distribution) -> Any:
    """The distribution under all wrappers."""
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return fn


def site_kl(q: Site, p: Site) -> tuple[Tensor, str]:
    """KL(q || p) for each draw of the ancestors, and how it was taken."""
    if _by_logits(q["fn"]) and _by_logits(p["fn"]):
        # torch calls it infinite where a probability of p underflows, whatever little q puts there.
        probs = q["fn"].probs
        return torch.where(probs > 0, probs * (q["fn"].logits - p["fn"].logits), 0.0).sum(-1), "closed form"
    try:
        return torch.distributions.kl_divergence(q["fn"], p["fn"]), "closed form"
    except NotImplementedError:
        pass
    fn = q["fn"]
    if getattr(fn, "has_enumerate_support", False) and not fn.event_dim:
        values = fn.enumerate_support(expand=True)
        log_q = fn.log_prob(values)
        term = log_q.exp() * (log_q - p["fn"].log_prob(values))
        return torch.where(log_q == -math.inf, 0.0, term).sum(0), "enumerated"
    return fn.log_prob(q["value"]) - p["fn"].log_prob(q["value"]), "Monte Carlo"


def _by_logits(fn: dist.Distribution) -> bool:
    return isinstance(fn, torch.distributions.Categorical) and fn._param is vars(fn).get("logits")


def site_information(kl: Tensor, method: str, site: Site, plates: list[Any], unit: str) -> SiteInformation:
    """The record of a site whose KL was taken for each draw."""
    draws, scale = cells(kl, site, plates)
    values = draws.mean(0).flatten() * scale
    return SiteInformation(values, unit, method, draws_se(draws, scale))


def cells(log_prob: Tensor, site: Site, plates: list[Any]) -> tuple[Tensor, float]:
    """Sums a site's values over plates inside a datum; gives ``[draw, *cells]`` and the scale of those plates."""
    inner = [f for f in frames(site) if f not in plates]
    particle = [f for f in site["cond_indep_stack"] if f.name == PARTICLES]
    kept = sorted([f.dim for f in particle + plates])
    value = scale_and_mask(log_prob, 1.0, site["mask"])
    for dim in range(-value.dim(), 0):
        if dim not in kept:
            value = value.sum(dim, keepdim=True)
    value = value.reshape([value.shape[d] for d in kept if -d <= value.dim()])
    scale = math.prod((f.full_size or f.size) / f.size for f in inner)
    return (value if particle else value.unsqueeze(0)), scale


def draws_se(draws: Tensor, scale: float) -> float:
    """The standard error of the mean over draws; 0 where all are equal."""
    if len(draws) < 2 or torch.equal(draws[:1].expand_as(draws), draws):
        return 0.0 if len(draws) > 1 else math.nan
    return (draws.reshape(len(draws), -1).mean(1).std() * scale / math.sqrt(len(draws))).item()
