"""Data drawn from a model, in place of the arguments that held the data."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor, nn

from pyro_memory.diagnostics.sites import Site, frames
from pyro_memory.inference import PARTICLES, stochastic_sites, told_by_site

Sites = dict[str, Site]
Place = int | str  # of an argument: a position or a name
TRIES = 5  # data sets that a guide must draw the same for to be called blind
REMEDY = (
    'Give data={"site": "parameter"}, by name or position, or wrap model and guide in functions of what is observed'
)


def run(program: Callable, args: tuple, kwargs: dict) -> Sites:
    """The sample sites of one run."""
    with told_by_site():
        return stochastic_sites(poutine.trace(program).get_trace(*args, **kwargs))


class Simulator:
    """Draws latents and data from a model, and calls what shall see the data in place of those given.

    Args:
        sites: of a run of the model on the arguments.
        data: the argument that holds each observed site's data, where it is not to be found.
    """

    def __init__(
        self, model: Callable, sites: Sites, args: tuple, kwargs: dict, data: Mapping[str, Place] | None
    ) -> None:
        self.model, self._given = model, (args, kwargs)
        observed = {name: site for name, site in sites.items() if site["is_observed"]}
        self.latents = {name: site for name, site in sites.items() if not site["is_observed"]}
        _check_drawable(sites, observed)
        for kind, found in (("observe data", observed), ("have latents to calibrate", self.latents)):
            if not found:
                has = "observes nothing" if found is observed else "has none"
                raise ValueError(f"`model` must {kind}; it {has}. Give observed sites obs=, and the others none")
        unknown = [name for name in data or {} if name not in observed]
        if unknown:
            known = ", ".join(map(repr, observed))
            raise ValueError(f"`data` must name observed sites of the model, {known}; got {', '.join(unknown)}")
        given = {**dict(enumerate(args)), **kwargs}
        arrays = {place: value for place, value in given.items() if isinstance(value, (Tensor, np.ndarray))}
        self.tensors = {place: torch.as_tensor(value) for place, value in arrays.items()}
        self.places = {
            name: self._place(name, data[name]) if name in (data or {}) else self._found(name, site)
            for name, site in observed.items()
        }
        twice = [n for n, place in self.places.items() if list(self.places.values()).count(place) > 1]
        if twice:
            raise ValueError(
                f"`data` must give each observed site an argument of its own; {', '.join(twice)} share one"
            )

    def _found(self, name: str, site: Site) -> Place:
        """The argument that the site observes."""
        value = site["value"]
        equal = [p for p, tensor in self.tensors.items() if tensor is value] or [
            place
            for place, tensor in self.tensors.items()
            if tensor.numel() == value.numel() and bool((tensor.flatten() == value.flatten()).all())
        ]
        if len(equal) != 1:
            said = f"equals {len(equal)} of them" if equal else "is none of them"
            raise ValueError(
                f"`data` must tell which argument holds the data of site `{name}`; what it observes {said}. {REMEDY}"
            )
        return equal[0]

    def _place(self, name: str, wanted: Place) -> Place:
        """The argument that was named."""
        place: Place = wanted
        if isinstance(wanted, str) and wanted not in self._given[1]:
            program = self.model.forward if isinstance(self.model, nn.Module) else self.model
            names = list(inspect.signature(program).parameters)
            place = names.index(wanted) if wanted in names else wanted
        if place not in self.tensors:
            known = ", ".join(map(repr, self.tensors)) or "none"
            raise ValueError(f"`data` must give `{name}` an argument that is a tensor, {known}; got {wanted!r}")
        return place

    def __call__(self) -> tuple[Sites, tuple, dict]:
        """One draw: its sites, and the arguments with the drawn data in place of those given."""
        drawn = run(poutine.uncondition(self.model), *self._given)
        if set(drawn) != {*self.latents, *self.places}:
            raise ValueError(
                "`model` must have the same sites in every draw; got "
                f"{', '.join(sorted(set(drawn) ^ {*self.latents, *self.places}))} in some only"
            )
        args, kwargs = list(self._given[0]), dict(self._given[1])
        for name, place in self.places.items():
            value, old = drawn[name]["value"], self.tensors[place]
            if value.numel() != old.numel():
                raise ValueError(
                    f"`data` must give site `{name}` the argument that it observes; the site has shape "
                    f"{list(value.shape)}, argument {place!r} {list(old.shape)}. {REMEDY}"
                )
            holder: Any = args if isinstance(place, int) else kwargs
            holder[place] = value.reshape(old.shape).to(old.dtype)
        return drawn, tuple(args), kwargs

    def check_model(self, drawn: Sites, args: tuple, kwargs: dict) -> None:
        """Raises a ValueError if what the model draws depends on the data that it is given."""
        values = {name: site["value"] for name, site in drawn.items()}
        logs = [_log_probs(poutine.condition(self.model, values), *call) for call in self._calls(args, kwargs)]
        names = [name for name in logs[0] if not _same(logs[0][name], logs[1][name])]
        if names:
            raise ValueError(
                f"`model` must use its data by obs= alone; the distribution of `{names[0]}` changes with the argument "
                "that holds them, so that what is drawn is no draw of the model. Give what else it needs of them, such "
                "as a mask, as another argument"
            )

    def blind(self, guide: Callable, args: tuple, kwargs: dict) -> set[str]:
        """The latents that a guide draws the same on these data as on those given, other than from the prior."""
        one, other = (_traced(guide, *call) for call in self._calls(args, kwargs))
        same = set()
        for name in [n for n in one if n in self.latents]:
            if not _same(one[name]["value"], other[name]["value"]):
                continue
            if not _same(one[name]["unscaled_log_prob"], other[name]["unscaled_log_prob"]):
                break  # it looks, and what follows may look through it at what came out alike by chance
            same.add(name)
        if not same:
            return same
        prior = _log_probs(poutine.condition(self.model, {n: one[n]["value"] for n in self.latents}), *self._given)
        return {name for name in same if not _same(prior[name], one[name]["unscaled_log_prob"])}

    def _calls(self, args: tuple, kwargs: dict) -> list[tuple[tuple, dict]]:
        return [self._given, (args, kwargs)]


class Draws:
    """Draws from a guide: all in one pass, where this gives what one by one gives, and else one by one."""

    def __init__(self, guide: Callable, count: int, nesting: int) -> None:
        self.guide, self.count, self.dim = guide, count, -1 - nesting
        self.together: bool | None = None

    def __call__(self, args: tuple, kwargs: dict) -> list[Sites]:
        """Sites with a dimension of draws, which is that at ``dim`` of the batch, or a run a draw."""
        if self.together is None:
            self.together = self.count > 1 and self._agree(args, kwargs)
        if self.together:
            return [run(self._all(), args, kwargs)]
        return [run(self.guide, args, kwargs) for _ in range(self.count)]

    def _all(self) -> Callable:
        return pyro.plate(PARTICLES, self.count, dim=self.dim)(self.guide)

    def _agree(self, args: tuple, kwargs: dict) -> bool:
        """Whether the last draw of a pass has the log-probability that it has alone."""
        alone = run(self.guide, args, kwargs)
        try:
            together = _traced(self._all(), args, kwargs)
            values = {n: self._last(s, "value", alone[n]["value"].shape) for n, s in together.items()}
            again = _log_probs(poutine.condition(self.guide, values), args, kwargs)
            logs = {n: self._last(s, "unscaled_log_prob", again[n].shape) for n, s in together.items()}
        except (ValueError, RuntimeError, IndexError, KeyError):  # of a guide that is not made for a dimension in front
            return False
        return all(torch.allclose(logs[n], again[n], rtol=1e-3, atol=1e-3, equal_nan=True) for n in logs)

    def _last(self, site: Site, what: str, shape: torch.Size) -> Tensor:
        dim = self.dim - (site["fn"].event_dim if what == "value" else 0)
        return site[what].select(dim, -1).reshape(shape)


def _check_drawable(sites: Sites, observed: Sites) -> None:
    """Raises a ValueError for what cannot be drawn, or not as a whole."""
    for name, site in sites.items():
        part = [f for f in frames(site) if f.full_size not in (None, f.size)]
        if part:
            raise ValueError(
                f"plate `{part[0].name}` around site `{name}` must not be subsampled; it holds {part[0].size} of "
                f"{part[0].full_size}. Calibrate with all the data in it, or a model of fewer data"
            )
        if isinstance(site["fn"], dist.Unit) and name in observed:
            raise ValueError(
                f"site `{name}` must be drawable; it is a factor, and what a model draws does not follow a factor. "
                "Write it as the distribution of what is observed"
            )


def _traced(program: Callable, args: tuple, kwargs: dict) -> Sites:
    """Sites with log-probabilities; the random stream is as before."""
    with torch.random.fork_rng(), told_by_site():
        trace = poutine.trace(program).get_trace(*args, **kwargs)
        trace.compute_log_prob()
    return stochastic_sites(trace)


def _log_probs(program: Callable, args: tuple, kwargs: dict) -> dict[str, Tensor]:
    return {name: site["unscaled_log_prob"] for name, site in _traced(program, args, kwargs).items()}


def _same(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape:
        return False
    return torch.allclose(one.double(), other.double(), rtol=1e-5, atol=1e-6, equal_nan=True)
