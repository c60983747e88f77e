"""The records that estimators return: they print what a person needs and keep the values per datum."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def standard_error(values: Float[Tensor, " datum"]) -> float:
    """The standard error of the mean; NaN for fewer than two values."""
    return (values.std() / math.sqrt(len(values))).item() if len(values) > 1 else math.nan


def _number(value: float, digits: int = 3) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for first, *others in rows:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join(["  " + first.ljust(widths[0]), *cells]))
    return "\n".join(line.rstrip() for line in lines)


@dataclass(frozen=True, repr=False)
class BoundEstimate:
    """A lower bound on log p(x) for each datum, in nats.

    Attributes:
        bound: ``log 1/K sum_k w_k`` for each datum.
        effective_particles: the effective sample size ``(sum w)^2 / sum w^2`` for each datum.
        particles: K.
    """

    bound: Float[Tensor, " datum"]
    effective_particles: Float[Tensor, " datum"]
    particles: int

    @classmethod
    def cat(cls, parts: Sequence[BoundEstimate]) -> BoundEstimate:
        """Joins the estimates of several batches."""
        if len({p.particles for p in parts}) != 1:
            raise ValueError("`parts` must be one or more estimates with equal numbers of particles")
        return cls(
            torch.cat([p.bound for p in parts]),
            torch.cat([p.effective_particles for p in parts]),
            parts[0].particles,
        )

    @property
    def mean(self) -> float:
        """The mean bound, nats per datum."""
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
            ("", "nats/datum", "se"),
            ("log p(x) >=", _number(self.mean), _number(self.se)),
            ("noise of the particles", "", _number(self.monte_carlo_se)),
            ("fewer than 5 effective", str(self.low), share),
        ]
        return f"BoundEstimate of {len(self.bound)} data, {self.particles} particles each\n{_table(rows)}"

    def to_dict(self) -> dict[str, Any]:
        """Gives the summary as plain numbers."""
        return {
            "mean": self.mean, "se": self.se, "monte_carlo_se": self.monte_carlo_se, "data": len(self.bound),
            "particles": self.particles, "low_effective": self.low,
        }  # fmt: skip

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draws the bounds of the data as a histogram."""
        from pyro_memory.plotting import plot_bound

        return plot_bound(self, ax)


@dataclass(frozen=True)
class SiteInformation:
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


@dataclass(frozen=True)
class AddressInformation:
    """How an address was used.

    Attributes:
        slots: how many addresses there are, filled or not.
        ceiling: mean of ``-log min p(a)`` over filled slots, the most nats a lookup can be worth.
        effective_slots: mean of ``exp H(q(a|x))``.
        mutual_information, marginal_kl: the two parts of the mean KL, I(n; a) + KL(q(a) || p(a)) (Hoffman &
            Johnson, 2016, http://approximateinference.org/accepted/HoffmanJohnson2016.pdf); None with ``reason``.
        usage: the mean address distribution q(a), and ``dead``: filled slots with under 1% of their prior share.
        data: N; the mutual information cannot exceed log N either.
    """

    slots: int
    ceiling: float
    effective_slots: float
    data: int
    reason: str = ""
    mutual_information: float | None = None
    marginal_kl: float | None = None
    usage: Float[Tensor, " slot"] | None = None
    dead: Bool[Tensor, " slot"] | None = None

    def lines(self, name: str) -> list[str]:
        """Says it in words."""
        lines = [
            f"address {name}: {self.slots} slots, ceiling {self.ceiling:.3f} nats, "
            f"effective slots {self.effective_slots:.2f}"
        ]
        if self.usage is None:
            return [*lines, f"  mutual information and usage not defined: {self.reason}"]
        return [
            *lines,
            f"  mutual information {self.mutual_information:.3f} (at most log N = {math.log(self.data):.3f}, "
            f"N = {self.data}), marginal KL {self.marginal_kl:.3f}, dead slots {int(self.dead.sum())}",
        ]


@dataclass(frozen=True, repr=False)
class InformationGain:
    """What each latent of a model was worth, in nats: KL(q || p) a site, and their sum.

    Attributes:
        sites: per latent site, in the guide's order.
        joint: KL of all latents together, nats for each datum (for the data set where a latent is global).
        addresses: per categorical site, how it was used.
        draws: how many draws of the ancestors were averaged.
        notes: what could not be given, and why.
    """

    sites: dict[str, SiteInformation]
    joint: SiteInformation
    addresses: dict[str, AddressInformation]
    draws: int
    notes: tuple[str, ...] = field(default=())

    def __getitem__(self, site: str) -> SiteInformation:
        return self.sites[site]

    def __repr__(self) -> str:
        rows = [("site", "nats", "se", "of draws", "per", "method")]
        for name, s in [*self.sites.items(), ("joint", self.joint)]:
            rows.append((name, _number(s.mean), _number(s.se), _number(s.draws_se), s.unit, s.method))
        count = 0 if self.joint.kl is None else len(self.joint.kl)
        head = f"InformationGain of {count} data, {self.draws} draws of the ancestors"
        extra = [line for name, a in self.addresses.items() for line in a.lines(name)]
        return "\n".join([head, _table(rows), *extra, *(f"note: {note}" for note in self.notes)])

    def to_dict(self) -> dict[str, Any]:
        """Gives the summary as plain numbers."""
        sites = {
            name: {"mean": s.mean, "se": s.se, "draws_se": s.draws_se, "unit": s.unit, "method": s.method}
            for name, s in [*self.sites.items(), ("joint", self.joint)]
        }
        addresses = {
            name: {
                k: (v.tolist() if isinstance(v, Tensor) else v) for k, v in vars(a).items() if v is not None and v != ""
            }
            for name, a in self.addresses.items()
        }
        return {"sites": sites, "addresses": addresses, "draws": self.draws, "notes": list(self.notes)}

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draws a bar a site, with the ceiling of addresses."""
        from pyro_memory.plotting import plot_information

        return plot_information(self, ax)


@dataclass(frozen=True, repr=False)
class MemoryContribution:
    """What a memory was worth against others: the bound with it, and paired differences.

    Attributes:
        given: the bound with the memory as given.
        alternatives: the bound of the same data with each other memory.
    """

    given: BoundEstimate
    alternatives: dict[str, BoundEstimate]

    def gain(self, name: str) -> tuple[float, float]:
        """Mean and standard error of ``given - alternative``, nats per datum, paired by datum."""
        difference = self.given.bound - self.alternatives[name].bound
        return difference.mean().item(), standard_error(difference)

    def __repr__(self) -> str:
        rows = [
            ("memory", "log p(x) >=", "se", "lost", "se"),
            ("given", _number(self.given.mean), _number(self.given.se), "", ""),
        ]
        for name, other in self.alternatives.items():
            gain, se = self.gain(name)
            rows.append((name, _number(other.mean), _number(other.se), _number(gain), _number(se)))
        head = f"MemoryContribution, {len(self.given.bound)} data, {self.given.particles} particles, nats per datum"
        return f"{head}\n{_table(rows)}"

    def to_dict(self) -> dict[str, Any]:
        """Gives the summary as plain numbers."""
        out: dict[str, Any] = {"given": self.given.to_dict()}
        for name, other in self.alternatives.items():
            gain, se = self.gain(name)
            out[name] = {**other.to_dict(), "lost": gain, "lost_se": se}
        return out

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draws what each alternative loses, with two standard errors."""
        from pyro_memory.plotting import plot_contribution

        return plot_contribution(self, ax)


@dataclass(frozen=True, repr=False)
class TokenSurprise:
    """How surprising each element of sequences was: ``-log p(x_t | x_<t)``, in nats.

    Attributes:
        nats: ``[sequence, time]``.
        scored: which elements the model scored; the means are over these.
    """

    nats: Float[Tensor, "sequence time"]
    scored: Bool[Tensor, "sequence time"]

    @classmethod
    def cat(cls, parts: Sequence[TokenSurprise]) -> TokenSurprise:
        """Joins the surprise of several batches of one length."""
        return cls(torch.cat([p.nats for p in parts]), torch.cat([p.scored for p in parts]))

    @property
    def mean(self) -> float:
        """Nats per scored element."""
        return self.nats[self.scored].mean().item()

    @property
    def se(self) -> float:
        """The standard error of the mean, a ratio over sequences, which are what is independent."""
        counts = self.scored.sum(-1)
        share = (self.nats * self.scored).sum(-1) - self.mean * counts
        return standard_error(share / counts.double().mean())

    @property
    def bits(self) -> float:
        """Bits per scored element."""
        return self.mean / math.log(2)

    def __repr__(self) -> str:
        rows = [
            ("", "per element", "se"),
            ("nats", _number(self.mean), _number(self.se)),
            ("bits", _number(self.bits), _number(self.se / math.log(2))),
        ]
        return f"TokenSurprise of {int(self.scored.sum())} elements, {len(self.nats)} sequences\n{_table(rows)}"

    def to_dict(self) -> dict[str, Any]:
        """Gives the summary as plain numbers."""
        return {
            "nats": self.mean, "se": self.se, "bits": self.bits, "elements": int(self.scored.sum()),
            "sequences": len(self.nats),
        }  # fmt: skip

    def plot(self, ax: Axes | None = None, *, sequence: int = 0) -> Axes:
        """Draws the surprise of one sequence over time."""
        from pyro_memory.plotting import plot_surprise

        return plot_surprise(self, ax, sequence=sequence)
