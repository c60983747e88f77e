"""Pairs of traces: all particles in one pass, or several passes that look at the same data."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import ELBO
from pyro.infer.enum import get_importance_trace
from pyro.poutine import Trace
from pyro.poutine.enum_messenger import EnumMessenger
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from pyro_memory.gate import checked
from pyro_memory.inference.enumerated import Marks, completed, left_to_the_model
from pyro_memory.inference.pairing import PARTICLES, Sites, frames_of, global_sites, stochastic_sites
from pyro_memory.inference.trial import ALL_AT_ONCE, check_nesting, first_pass, told_by_site

MOST_PLATES = 60  # PyTorch has 64 dimensions, and events and enumeration need some


@checked
class KeepFrozen(Messenger):
    """Keeps frozen parameters from Pyro's store, which would set ``requires_grad`` of those that a PyroModule owns."""

    def _pyro_param(self, msg: dict[str, Any]) -> None:
        initial = msg["args"][1] if len(msg["args"]) > 1 else None
        frozen = isinstance(initial, nn.Parameter) and not initial.requires_grad
        if frozen and msg["name"] not in pyro.get_param_store():
            msg["value"], msg["done"], msg["stop"] = initial, True, True


@checked
class SameData(Messenger):
    """Lets every pass of a program look at the data of the first one.

    What subsampling plates chose in the first pass they choose in all. What is observed must be what the first pass
    observed: weights of passes that saw other data cannot be added datum by datum, since a sum of the luckiest is no
    bound on the evidence of any.
    """

    def __init__(self) -> None:
        super().__init__()
        self.chosen: dict[str, Tensor] = {}
        self.observed: dict[str, Tensor] = {}
        self.different: dict[str, None] = {}

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if type(msg["fn"]).__name__ == "_Subsample" and msg["value"] is None and msg["name"] in self.chosen:
            msg["value"], msg["done"] = self.chosen[msg["name"]], True

    def _pyro_post_sample(self, msg: dict[str, Any]) -> None:
        name, value = msg["name"], msg["value"]
        if type(msg["fn"]).__name__ == "_Subsample":
            first = self.chosen.setdefault(name, value)
        elif msg["is_observed"] and isinstance(value, Tensor) and not msg["infer"].get("_deterministic"):
            particles = [f.dim for f in frames_of(msg) if f.name == PARTICLES]
            one = _of_one_particle(value, particles[0] - msg["fn"].event_dim if particles else 0)
            if one is None:
                self.different[name] = None
                return
            value = one
            first = self.observed.setdefault(name, value)
        else:
            return
        if value is not first and not torch.equal(value, first):
            self.different[name] = None

    def check(self, model: Callable, traces: tuple[Trace, Trace], args: tuple, kwargs: dict) -> None:
        """Raises a ValueError if passes observed different values that do not follow from their latents."""
        if not self.different:
            return
        # What is observed may be computed from latents, as residuals are; then it is the same given the same ones.
        sites = stochastic_sites(traces[0])
        latents = {n: s["value"] for n, s in sites.items() if not s["is_observed"]}
        particles = {f for s in sites.values() for f in frames_of(s) if f.name == PARTICLES}
        again = SameData()
        again.chosen = self.chosen
        program = poutine.condition(again(model), latents)
        for frame in particles:
            program = pyro.plate(PARTICLES, frame.size, dim=frame.dim)(program)
        with poutine.block(), KeepFrozen(), torch.random.fork_rng(), torch.no_grad():
            nodes = poutine.trace(program).get_trace(*args, **kwargs).nodes
        random = [n for n in self.different if n in nodes and not torch.equal(nodes[n]["value"], sites[n]["value"])]
        if random:
            raise ValueError(
                f"`model` must observe the same data at every call; the value of site `{random[0]}` is drawn anew in "
                "each pass, and weights of different data bound nothing. Draw it once, and give it as an argument"
            )
        self.different = {}


@checked
class OneDraw(Messenger):
    """Gives all particles of a guide one draw of its global latents, in the shape that a single particle has.

    Entered again, it gives the same draw: passes of one instance share it.
    """

    def __init__(self, sites: Sequence[str]) -> None:
        super().__init__()
        self.sites = frozenset(sites)
        self.values: dict[str, Tensor] = {}

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        name = msg["name"]
        if name not in self.sites or msg["done"]:
            return
        if name not in self.values:
            value, event = msg["fn"](*msg["args"], **msg["kwargs"]), msg["fn"].event_dim
            frames = frames_of(msg)
            for frame in frames:
                if frame.name == PARTICLES and value.dim() - event >= -frame.dim:
                    value = value.narrow(frame.dim - event, 0, 1)
            lead = max((-f.dim for f in frames if f.name != PARTICLES), default=0)
            self.values[name] = value.reshape(value.shape[value.dim() - event - lead :])
        msg["value"], msg["done"] = self.values[name], True


def _of_one_particle(value: Tensor, dim: int) -> Tensor | None:
    """The value that all particles have; None where they differ."""
    if not dim or value.dim() < -dim or value.shape[dim] == 1:
        return value
    first = value.narrow(dim, 0, 1)
    return first if torch.equal(first.expand_as(value), value) else None


def trial(model: Callable, guide: Callable, args: tuple, kwargs: dict) -> tuple[Sites, Sites]:
    """Checks a pair by a first pass that leaves everything as it was; gives the sites of model and guide."""
    with poutine.block(), KeepFrozen(), torch.random.fork_rng(), torch.no_grad():
        return first_pass(model, guide, args, kwargs, "args")


@checked
class Particles(ELBO):
    """Draws pairs of traces, all particles in one pass; base of objectives and estimators of this package.

    What the model marks for enumeration and the guide does not sample is enumerated.

    Args:
        num_particles: how many.
        exact: sites of the guide to enumerate, too.
        completes: whether what the model enumerates is drawn from its posterior given the guide's draws.
        max_plate_nesting: how many plates the model nests; found by a trial run if not given.
        vectorize_particles: False runs the particles one by one.
    """

    global_sites: tuple[str, ...] = ()  # those that all data share
    _enumerates: bool | None = None  # None until a pair was looked at
    _draw: OneDraw | None = None

    def __init__(
        self,
        num_particles: int = 1,
        *,
        exact: Sequence[str] = (),
        completes: bool = False,
        max_plate_nesting: float = math.inf,
        vectorize_particles: bool = True,
    ) -> None:
        super().__init__(num_particles, max_plate_nesting=max_plate_nesting, vectorize_particles=vectorize_particles)
        self.exact, self.completes = tuple(exact), completes

    def look(self, model: Callable, guide: Callable, args: tuple, kwargs: dict) -> None:
        """Finds out about a pair by one trial run that leaves the random stream as it was: the nesting of its plates,
        its global latents, whether anything is enumerated.

        Raises:
            ValueError: if the two do not belong together, or ``exact`` names what is no discrete latent of the guide.
        """
        if self._enumerates is not None:
            return
        given = self.max_plate_nesting - (self.vectorize_particles and self.num_particles > 1)
        if given != math.inf and given not in range(MOST_PLATES):
            raise ValueError(
                f"`max_plate_nesting` must be a whole number of plates below {MOST_PLATES}, or left out to be found; "
                f"got {given}"
            )
        of_model, of_guide = trial(model, guide, args, kwargs)
        sites = [*of_guide.values(), *of_model.values()]
        if self.max_plate_nesting == math.inf:
            nesting = max((-frame.dim for site in sites for frame in frames_of(site)), default=0)
            self.max_plate_nesting = nesting + (self.vectorize_particles and self.num_particles > 1)
        self.max_plate_nesting = int(self.max_plate_nesting)  # given as 1.0, say
        summed = left_to_the_model(of_model, of_guide)
        for name in set(self.exact).difference(summed):
            if name not in of_guide or not getattr(of_guide[name]["fn"], "has_enumerate_support", False):
                known = [n for n, s in of_guide.items() if getattr(s["fn"], "has_enumerate_support", False)]
                raise ValueError(
                    f"`exact` must name discrete latents that the guide samples and whose values can be listed, of "
                    f"{', '.join(known) or 'none'}; got {name!r}. An address can with ContentAddress(stream=False)"
                )
        observed = [s["name"] for s in sites if s["is_observed"]]
        self.global_sites = tuple(n for n in dict.fromkeys(global_sites(sites)) if n not in observed)
        for name in summed:
            if of_model[name]["infer"].get("num_samples"):
                raise ValueError(
                    f"site `{name}` is marked with `num_samples`, and a sum over samples is no sum over its values. "
                    "Take `num_samples` out of its mark, or let the guide sample it"
                )
        self._enumerates = bool(self.exact or summed)
        check_nesting(self, sites)

    def sized(self, num_particles: int) -> Particles:
        """Gives a sampler of so many particles that knows what this one found out."""
        other = Particles(num_particles, exact=self.exact, completes=self.completes)
        other.global_sites, other._enumerates = self.global_sites, self._enumerates
        own = self.vectorize_particles and self.num_particles > 1
        other.max_plate_nesting = self.max_plate_nesting - own + (num_particles > 1)
        return other

    def _get_trace(self, model: Callable, guide: Callable, args: tuple, kwargs: dict) -> tuple[Trace, Trace]:
        with KeepFrozen(), told_by_site():
            if self._enumerates:
                guide = EnumMessenger(-1 - int(self.max_plate_nesting))(Marks(self.exact)(guide))
                model = EnumMessenger()(model)
            guide = guide if self._draw is None else self._draw(guide)
            pair = get_importance_trace("flat", self.max_plate_nesting, model, guide, args, kwargs)
            return completed(model, pair, args, kwargs) if self.completes else pair

    def _get_traces(self, model: Callable, guide: Callable, args: tuple, kwargs: dict) -> Iterator[tuple[Trace, Trace]]:
        try:
            yield from super()._get_traces(model, guide, args, kwargs)
        except (ValueError, RuntimeError) as error:
            if re.search("shape|size|dim", str(error)):  # one particle may show it in words of the user's own plates
                of_model, of_guide = trial(model, guide, args, kwargs)
                check_nesting(self, [*of_guide.values(), *of_model.values()])
                if self.vectorize_particles and self.num_particles > 1:
                    error.add_note(f"It may be the particles. {ALL_AT_ONCE}")
            raise

    def traces(
        self,
        model: Callable,
        guide: Callable,
        args: tuple,
        kwargs: dict,
        same: SameData | None = None,
        draw: OneDraw | None = None,
    ) -> Iterator[tuple[Trace, Trace]]:
        """Yields one pair of traces with all particles in it, or a pair a particle where not vectorised.

        Args:
            same: of passes that came before, and whose data these look at too.
            draw: of the global latents, which all particles then share; each has its own without.

        Raises:
            ValueError: if passes, or particles of one, observe different data.
        """
        self.look(model, guide, args, kwargs)
        same = SameData() if same is None else same
        self._draw = draw
        try:
            for traces in self._get_traces(same(model), same(guide), args, kwargs):
                same.check(model, traces, args, kwargs)
                yield traces
        finally:
            self._draw = None  # its values hold a graph
