"""What each lookup and each latent carried."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from pyro_memory.diagnostics.addresses import ADDRESSES, AddressInformation, address_information
from pyro_memory.diagnostics.axes import BLUE, GREY, ORANGE, Axes, axes_or_new
from pyro_memory.diagnostics.continuous import LatentInformation, is_continuous, latent_information
from pyro_memory.diagnostics.looks import Look, looks
from pyro_memory.diagnostics.sites import SiteInformation, base, cells, draws_se, frames, site_information, site_kl
from pyro_memory.diagnostics.tables import Record, Rows, number
from pyro_memory.gate import checked


@checked
@dataclass(frozen=True, repr=False)
class InformationGain(Record):
    """What each latent of a model was worth, in nats: KL(q || p) a site, and their sum.

    Attributes:
        sites: per latent site, in the guide's order.
        joint: KL of all latents together, nats for each datum (for the data set where a latent is global).
        addresses: per categorical site, how it was used.
        draws: how many draws of the ancestors were averaged.
        notes: what could not be given, and why.
        data: how many data there are: cells of the plates around all observations, of a subsample those chosen.
        latents: per continuous site that lies in a plate over data, how it was used: KL by dimension, active units,
            mutual information. None are where some latent is global, whose draws are measured one by one.
    """

    sites: dict[str, SiteInformation]
    joint: SiteInformation
    addresses: dict[str, AddressInformation]
    draws: int
    notes: tuple[str, ...] = field(default=())
    data: int = 1
    latents: dict[str, LatentInformation] = field(default_factory=dict)

    def __getitem__(self, site: str) -> SiteInformation:
        if site not in self.sites:
            known = ", ".join(map(repr, self.sites)) or "none"
            raise ValueError(f"`site` must be a latent site of the model, {known}; got {site!r}")
        return self.sites[site]

    def _shown(self) -> tuple[str, Rows, Sequence[str]]:
        rows = [("site", "nats", "se", "of draws", "per", "method")]
        for name, s in [*self.sites.items(), ("joint", self.joint)]:
            rows.append((name, number(s.mean), number(s.se), number(s.draws_se), s.unit, s.method))
        head = f"InformationGain of {self.data} data, {self.draws} draws of the ancestors"
        extra = [line for name, a in [*self.addresses.items(), *self.latents.items()] for line in a.lines(name)]
        return head, rows, [*extra, *(f"note: {note}" for note in self.notes)]

    def to_dict(self) -> dict[str, Any]:
        """Gives the summary as plain numbers."""
        sites = {
            name: {"mean": s.mean, "se": s.se, "draws_se": s.draws_se, "unit": s.unit, "method": s.method}
            for name, s in [*self.sites.items(), ("joint", self.joint)]
        }
        used = {
            kind: {name: _plain(use) for name, use in uses.items()}
            for kind, uses in (("addresses", self.addresses), ("latents", self.latents))
        }
        return {"sites": sites, **used, "draws": self.draws, "data": self.data, "notes": list(self.notes)}

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draws nats a site with two standard errors over data; a line marks an address's ceiling."""
        ax = axes_or_new(ax)
        known = {name: site for name, site in self.sites.items() if site.kl is not None}
        for i, (name, site) in enumerate(known.items()):
            error = 0.0 if math.isnan(site.se) else 2 * site.se
            ax.barh(i, site.mean, xerr=error, color=BLUE if name in self.addresses else GREY)
            if name in self.addresses:
                ceiling = self.addresses[name].ceiling
                ax.plot([ceiling, ceiling], [i - 0.4, i + 0.4], color=ORANGE)
                ax.annotate(f" ceiling {ceiling:.2f}", (ceiling, i - 0.25), va="center", color=ORANGE)
        labels = [f"{name}\n{site.mean:.2f} nats/{site.unit}" for name, site in known.items()]
        ax.set(yticks=range(len(labels)), yticklabels=labels, xlabel="KL(q || p), nats")
        ax.invert_yaxis()
        ax.margins(x=0.35 if self.addresses else 0.05)
        return ax


def _plain(use: AddressInformation | LatentInformation) -> dict[str, Any]:
    """A record's known facts as plain numbers."""
    known = {k: v.tolist() if isinstance(v, Tensor) else v for k, v in vars(use).items() if v is not None}
    return {k: v for k, v in known.items() if v != ""}


@checked
@torch.no_grad()
def information_gain(
    model: Callable,
    guide: Callable,
    *args: Any,
    draws: int = 10,
    max_plate_nesting: float = math.inf,
    **kwargs: Any,
) -> InformationGain:
    r"""Measures KL(q || p) of every latent site, in nats, for any model and guide.

    A site's KL is taken in closed form given its sampled ancestors where the two distributions have one, by
    enumeration where it is discrete, and otherwise as the mean of ``log q - log p`` over the draws. It is given
    where every parent of the site in the model precedes it in the guide; elsewhere only the joint is.

    Args:
        model, guide: any pair with the same latent sites; of Pyro's automatic guides, those with a site of its own
            for each latent, such as AutoNormal.
        *args, **kwargs: what both are called with.
        draws: of the latents; the standard error that comes from them is in the record.
        max_plate_nesting: how many plates the model nests; found by a trial run if not given.

    Draws come from torch's global random stream; parameters, gradients and modes stay as they are.

    Raises:
        ValueError: if a latent of the model is missing in the guide, or is a point there or drawn together with others,
            or the guide samples what the model does not.

    What a continuous latent tells of its datum is estimated from the same draws (see ``LatentInformation``); it takes
    two or more, and an aggregate over as many data as were given.

    Cost: ``draws`` passes of model and guide, and for each continuous site up to ``4096 N`` densities of q.

    References: ELBO surgery (Hoffman & Johnson, 2016),
    http://approximateinference.org/accepted/HoffmanJohnson2016.pdf
    """
    found = [_measured(one, args, kwargs) for one in looks(model, guide, args, kwargs, draws, max_plate_nesting)]
    return found[0] if len(found) == 1 else _averaged(found)


def _measured(found: Look, args: tuple, kwargs: dict) -> InformationGain:
    sites: dict[str, SiteInformation] = {}
    addresses: dict[str, AddressInformation] = {}
    latents: dict[str, LatentInformation] = {}
    for name in found.order:
        q, p, unit = found.guide_sites[name], found.model_sites[name], found.unit(frames(found.guide_sites[name]))
        if name in found.undefined:
            sites[name] = SiteInformation(None, unit, "joint only", math.nan)
            continue
        plates = [f for f in frames(q) if f in found.data_plates]
        kl, method = site_kl(q, p)
        sites[name] = site_information(kl, method, q, plates, unit)
        if isinstance(base(q["fn"]), ADDRESSES):
            lookups = math.prod(f.size for f in frames(q))
            addresses[name] = address_information(base(q["fn"]), base(p["fn"]), lookups, args, kwargs)
        elif plates and is_continuous(q):
            latents[name] = latent_information(q, p, plates, unit)
    notes = [
        f"site {n} has no KL of its own: a parent of it in the model follows it in the guide" for n in found.undefined
    ]
    return InformationGain(sites, _joint(sites, found), addresses, found.draws, tuple(notes), found.data, latents)


def _averaged(parts: list[InformationGain]) -> InformationGain:
    """The mean of what single draws of global latents gave."""

    def mean(rows: Sequence[SiteInformation]) -> SiteInformation:
        known = [r.kl for r in rows if r.kl is not None]
        if not known:
            return rows[0]
        kl = torch.stack(known)
        return replace(rows[0], kl=kl.mean(0), draws_se=draws_se(kl, 1.0))

    def used(rows: Sequence[AddressInformation]) -> AddressInformation:
        numbers = {f.name: [getattr(r, f.name) for r in rows] for f in fields(AddressInformation)}
        means = {
            name: sum(values) / len(values) for name, values in numbers.items()
            if isinstance(values[0], float) or (name == "usage" and values[0] is not None)
        }  # fmt: skip
        dead = None if rows[0].dead is None else torch.stack([r.dead for r in rows]).all(0)
        return replace(rows[0], **means, dead=dead)

    first = parts[0]
    return replace(
        first,
        sites={name: mean([p.sites[name] for p in parts]) for name in first.sites},
        joint=mean([p.joint for p in parts]),
        addresses={name: used([p.addresses[name] for p in parts]) for name in first.addresses},
        draws=len(parts),
        latents={},  # which take all draws at once
    )


def _joint(sites: dict[str, SiteInformation], found: Look) -> SiteInformation:
    """The KL of all latents: the sum of the sites', or by Monte Carlo where some site has none of its own."""
    per_datum = all(s.unit == "datum" for s in sites.values())
    unit = "datum" if per_datum else "data set"
    if not sites:
        return SiteInformation(None, unit, "no latents", math.nan)
    if not found.undefined:
        # Of a subsample, what it says of the data set counts full size over size.
        own = [[f for f in frames(found.guide_sites[name]) if f in found.data_plates] for name in sites]
        scales = [math.prod((f.full_size or f.size) / f.size for f in plates) for plates in own]
        kls = [s.kl if per_datum else (s.kl.sum() * k).reshape(1) for s, k in zip(sites.values(), scales, strict=True)]
        error = math.sqrt(sum(s.draws_se**2 for s in sites.values())) if per_datum else math.nan
        return SiteInformation(sum(kls), unit, "sum of sites", error)
    total: Any = 0.0
    for name in sites:
        q, p = found.guide_sites[name], found.model_sites[name]
        difference = q["fn"].log_prob(q["value"]) - p["fn"].log_prob(q["value"])
        draws, scale = cells(difference, q, found.data_plates if per_datum else [])
        total = total + draws * scale
    return SiteInformation(total.mean(0).flatten(), unit, "Monte Carlo", draws_se(total, 1.0))
