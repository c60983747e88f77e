"""Examples that a concept keeps of what it took in: a weighted sample of fixed size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pyro_memory.gate import checked
from pyro_memory.stores.tensors import check_finite, saved


@checked
@dataclass(frozen=True, repr=False)
class Exemplars:
    r"""Holds a few images of each concept, drawn from all that it took in; a value, as all stores are.

    An image that came with responsibility q enters a race for a concept's E places, in the time

    .. math::
        t = -\log(u) / q, \quad u \sim U(0, 1)

    and the E fastest stay: a weighted sample without replacement, whatever the number of images that passed. An
    image's first place has probability q over the sum of all weights, as in the statistics that ``ConceptMemory``
    keeps of the same episodes; forgetting divides times by its rate, which is the same as weights that fade.

    Attributes:
        values: the images, ``[concept, place, *event]``.
        loc, variance: moments of the embedding of the episode that each came from, ``[concept, place, dim]``.
        times: t, ``[concept, place]``; 0 where a place is empty.

    Raises:
        ValueError: if shapes do not fit, or images or embeddings are not finite.

    References: Weighted random sampling with a reservoir (Efraimidis & Spirakis, 2006),
    https://doi.org/10.1016/j.ipl.2005.11.003
    """

    values: Float[Tensor, "concept place *event"]
    loc: Float[Tensor, "concept place dim"]
    variance: Float[Tensor, "concept place dim"]
    times: Float[Tensor, "concept place"]

    def __post_init__(self) -> None:
        lead = tuple(self.times.shape)
        fits = (
            tuple(self.values.shape[:2]) == tuple(self.loc.shape[:2]) == lead and self.loc.shape == self.variance.shape
        )
        if self.times.dim() != 2 or not fits:
            got = [list(t.shape) for t in self.to_tensors().values()]
            raise ValueError(
                "`values`, `loc`, `variance` and `times` must be [concept, place, *event], twice [concept, place, dim] "
                f"and [concept, place]; got {got}. Start from Exemplars.reserve"
            )
        for name in ("values", "loc", "variance"):
            check_finite(name, getattr(self, name), "concept", "Start from Exemplars.reserve")

    @classmethod
    def reserve(
        cls, concepts: int, places: int, event_shape: Sequence[int], dim: int, *, dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Exemplars:  # fmt: skip
        """Makes a store of empty places."""
        if min(concepts, places, dim) < 1:
            raise ValueError(f"`concepts`, `places` and `dim` must be at least 1; got {concepts}, {places}, {dim}")
        values = torch.zeros(concepts, places, *event_shape, dtype=dtype, device=device)
        nothing = values.new_zeros(concepts, places, dim)
        return cls(values, nothing, nothing, values.new_zeros(concepts, places))

    @property
    def places(self) -> int:
        """How many images a concept may keep."""
        return self.times.shape[1]

    @property
    def filled(self) -> Bool[Tensor, "concept place"]:
        """Which places hold an image; those of a concept are filled from the first on."""
        return self.times > 0

    def __repr__(self) -> str:
        concepts, places = self.times.shape
        return f"Exemplars({int(self.filled.sum())} of {concepts} x {places} images of {list(self.values.shape[2:])})"

    def prototypes(self) -> tuple[Float[Tensor, "concept *event"], Float[Tensor, "concept *event"]]:
        """Mean and standard deviation over the images that each concept keeps, pixel by pixel; zeros where it has none.

        An image competes with the responsibility that it came with, so that the mean is one over those.
        """
        there = self.filled.reshape(*self.filled.shape, *(1 for _ in self.values.shape[2:])).to(self.values)
        count = there.sum(1).clamp(min=1)
        mean = (self.values * there).sum(1) / count
        spread = ((self.values - mean.unsqueeze(1)).square() * there).sum(1) / count
        return mean, spread.sqrt()

    def take_in(
        self, items: Float[Tensor, "item *event"], loc: Float[Tensor, " dim"], variance: Float[Tensor, " dim"],
        shares: Float[Tensor, " concept"],
    ) -> Exemplars:  # fmt: skip
        """Returns a store for whose places the images of an episode competed, with the weights ``shares``.

        Shares below 1e-3 are passed over. Cost: O(concepts with a share x (places + items) x event).
        """
        rows = (shares >= 1e-3).nonzero().flatten()
        if not len(rows) or not len(items):
            return self
        chance = torch.rand(len(rows), len(items), dtype=self.times.dtype, device=self.times.device)
        times = -chance.clamp(min=torch.finfo(chance.dtype).tiny).log() / shares[rows].unsqueeze(-1)
        new = [items.detach(), loc.detach().expand(len(items), -1), variance.detach().expand(len(items), -1)]
        given = [t.to(self.values).expand(len(rows), *t.shape) for t in new]
        return self._competed(rows, [*given, times])

    def _competed(self, rows: Tensor, given: Sequence[Tensor]) -> Exemplars:
        """What is left where these concepts' places are competed for by further images, ``[row, item, ...]``."""
        own = [torch.cat([t[rows], g], 1) for t, g in zip(self._parts(), given, strict=True)]
        order = own[-1].masked_fill(own[-1] == 0, torch.inf).argsort(1)[:, : self.places]
        row = torch.arange(len(rows), device=rows.device).unsqueeze(-1)
        return Exemplars(*(t.index_copy(0, rows, g[row, order]) for t, g in zip(self._parts(), own, strict=True)))

    def merge(self, one: int, other: int) -> Exemplars:
        """Returns a store in which concept ``one`` has a sample of what both took in, and ``other`` nothing."""
        rows = torch.tensor([one], device=self.times.device)
        both = self._competed(rows, [t[other].unsqueeze(0) for t in self._parts()])
        times = both.times.clone()
        times[other] = 0
        return replace(both, times=times)

    def split(self, k: int, new: int, second: Bool[Tensor, " place"]) -> Exemplars:
        """Returns a store in which concept ``new`` has those of concept k that are marked, and k the others."""
        parts = [t.clone() for t in self._parts()]
        for place, side in ((new, second), (k, ~second)):
            times = self.times[k] * side
            order = times.masked_fill(times == 0, torch.inf).argsort()
            for part, own in zip(parts, (self.values[k], self.loc[k], self.variance[k], times), strict=True):
                part[place] = own[order]
        return Exemplars(*parts)

    def _parts(self) -> tuple[Tensor, ...]:
        return self.values, self.loc, self.variance, self.times

    def forget(self, rate: float) -> Exemplars:
        """Returns a store in which what was taken in counts ``rate`` times beside what comes."""
        return self if rate == 1 else replace(self, times=self.times / rate)

    def shuffle(self, seed: int = 0) -> Exemplars:
        """Returns a store in which each concept that keeps an image has those of another that does."""
        used = self.filled.any(-1).nonzero().squeeze(-1)
        order = used[torch.randperm(len(used), generator=torch.Generator("cpu").manual_seed(seed), device="cpu")]
        source = torch.arange(len(self.times), device=used.device)
        source[order] = order.roll(1)
        return Exemplars(*(t[source] for t in self._parts()))

    def to(self, *args: Any, **kwargs: Any) -> Exemplars:
        """Moves to a device, or casts to a floating dtype."""
        return Exemplars(*(t.to(*args, **kwargs) for t in self._parts()))

    def to_tensors(self) -> dict[str, Tensor]:
        """Gives the tensors that rebuild the store, for saving."""
        return dict(zip(("values", "loc", "variance", "times"), self._parts(), strict=True))

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Exemplars:
        """Rebuilds a store from ``to_tensors``; raises a ValueError if one is missing."""
        return cls(**saved(tensors, "values", "loc", "variance", "times"))
