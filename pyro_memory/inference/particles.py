"""Pairs of traces: all particles in one pass, or several passes that look at the same data."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import ELBO
from pyro.infer.enum import get_importance_trace
from pyro.poutine import Trace
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from pyro_memory.gate import checked
from pyro_memory.inference.pairing import PARTICLES, frames_of, stochastic_sites
from pyro_memory.inference.trial import ALL_AT_ONCE, check_nesting, first_pass, told_by_site


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


def _of_one_particle(value: Tensor, dim: int) -> Tensor | None:
    """The value that all particles have; None where they differ."""
    if not dim or value.dim() < -dim or value.shape[dim] == 1:
        return value
    first = value.narrow(dim, 0, 1)
    return first if torch.equal(first.expand_as(value), value) else None


def trial(model: Callable, guide: Callable, args: tuple, kwargs: dict) -> list[dict[str, Any]]:
    """Checks a pair by a first pass that leaves everything as it was; gives the sites of both."""
    with poutine.block(), KeepFrozen(), torch.random.fork_rng(), torch.no_grad():
        return first_pass(model, guide, args, kwargs, "args")


@checked
class Particles(ELBO):
    """Draws pairs of traces, all particles in one pass; base of objectives and estimators of this package."""

    def _guess_max_plate_nesting(self, model: Callable, guide: Callable, args: tuple, kwargs: dict) -> None:
        """Finds the nesting by one trial run that leaves the random stream as it was."""
        sites = trial(model, guide, args, kwargs)
        nesting = max((-frame.dim for site in sites for frame in frames_of(site)), default=0)
        self.max_plate_nesting = nesting + (self.vectorize_particles and self.num_particles > 1)

    def _get_trace(self, model: Callable, guide: Callable, args: tuple, kwargs: dict) -> tuple[Trace, Trace]:
        with KeepFrozen(), told_by_site():
            return get_importance_trace("flat", self.max_plate_nesting, model, guide, args, kwargs)

    def _get_traces(self, model: Callable, guide: Callable, args: tuple, kwargs: dict) -> Iterator[tuple[Trace, Trace]]:
        try:
            yield from super()._get_traces(model, guide, args, kwargs)
        except (ValueError, RuntimeError) as error:
            if re.search("shape|size|dim", str(error)):  # one particle may show it in words of the user's own plates
                check_nesting(self, trial(model, guide, args, kwargs))
                if self.vectorize_particles and self.num_particles > 1:
                    error.add_note(f"One particle alone runs. {ALL_AT_ONCE}")
            raise

    def traces(
        self, model: Callable, guide: Callable, args: tuple, kwargs: dict, same: SameData | None = None
    ) -> Iterator[tuple[Trace, Trace]]:
        """Yields one pair of traces with all particles in it, or a pair a particle where not vectorised.

        Args:
            same: of passes that came before, and whose data these look at too.

        Raises:
            ValueError: if passes, or particles of one, observe different data.
        """
        same = SameData() if same is None else same
        for traces in self._get_traces(same(model), same(guide), args, kwargs):
            same.check(model, traces, args, kwargs)
            yield traces
