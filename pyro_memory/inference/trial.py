"""A pair's first pass: whether arguments, sites and plates fit together, before anything is computed of them."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from pyro import poutine
from pyro.infer import ELBO, TraceEnum_ELBO
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from pyro_memory.gate import checked, told
from pyro_memory.inference.enumerated import left_to_the_model
from pyro_memory.inference.pairing import Sites, base, check_plates, check_sites, frames_of, stochastic_sites

OWN = __name__.partition(".")[0]
# Where Pyro refuses a site.
PLATES, ENUMERATION = "pyro.poutine.broadcast_messenger", "pyro.poutine.enum_messenger"
LOG_PROB = "pyro.poutine.trace_struct"
ALL_AT_ONCE = (
    "Where all particles run in one pass, they have a dimension in front: keep it in the model (x.flatten(-2) in place "
    "of x.view(len(x), -1)), or run them one by one: vectorize_particles=False of an objective, chunk_size=1 of a "
    "measurement"
)


@checked
def first_pass(
    model: Callable[..., Any], guide: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], given: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Runs guide and model once, and gives the sites of model and guide.

    Args:
        given: what an error calls the arguments.

    Raises:
        TypeError: if model or guide cannot be called with the arguments.
        ValueError: if a site does not fit its plates, or the sites of the two do not belong together.
    """
    check_call(model, guide, args, kwargs, given)
    with told_by_site():
        guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
        of_guide = stochastic_sites(guide_trace)
        with _Agreeing(of_guide):
            model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args, **kwargs)
    of_model = stochastic_sites(model_trace)
    sites = [*of_guide.values(), *of_model.values()]
    summed = left_to_the_model(of_model, of_guide)
    check_sites({n: s for n, s in of_model.items() if n not in summed}, of_guide)
    check_plates(sites)
    for site in sites:
        _check_counted_once(site)
    return of_model, of_guide


@checked
@contextmanager
def told_by_site() -> Iterator[None]:
    """Says what to do with a site that does not fit its plate or cannot be enumerated; Pyro gives numbers alone."""
    try:
        yield
    except (ValueError, NotImplementedError) as error:
        frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
        rooms = {frame.f_globals.get("__name__", ""): frame.f_locals for frame in frames}
        last = frames[-1].f_globals.get("__name__", "")
        if last.startswith(OWN):  # it has said so itself
            raise
        if last == PLATES:
            raise ValueError(_misplaced(rooms[PLATES]["msg"], rooms[PLATES]["f"])) from error
        if LOG_PROB in rooms and "site" in rooms[LOG_PROB]:
            raise ValueError(_improbable(rooms[LOG_PROB]["site"])) from error
        if isinstance(error, NotImplementedError) and ENUMERATION in rooms:
            site = rooms[ENUMERATION]["msg"]
            raise ValueError(
                f'site `{site["name"]}` is marked infer={{"enumerate": ...}}, and its {type(site["fn"]).__name__} has '
                "no list of values to sum over. Take the mark away, and let the guide sample it"
            ) from error
        raise


def _misplaced(site: dict[str, Any], plate: Any) -> str:
    batch, event = list(site["fn"].batch_shape), list(site["fn"].event_shape)
    said = f"site `{site['name']}` must fit the plates around it; it has batch shape {batch} and event shape {event}, "
    said += f'and plate "{plate.name}" wants {plate.size} at dim {plate.dim}. '
    left = [i for i, size in enumerate(batch[: plate.dim]) if size == plate.size]
    if left:
        parts = len(batch) + plate.dim - left[-1]
        return f"{said}Make the {parts} to the right parts of one event: .to_event({parts + len(event)})"
    if plate.size in event:
        return f"{said}Its event holds the plate; make the event smaller: {_to_event(event, plate.size)}"
    said += f'Make the plate as large as the data: pyro.plate("{plate.name}", len(x))'
    return said if batch[plate.dim] % plate.size else f"{said}. {ALL_AT_ONCE}"


def _to_event(event: list[int], size: int) -> str:
    return f".to_event({len(event) - 1 - event.index(size)})"


def _improbable(site: dict[str, Any]) -> str:
    fn, value = site["fn"], site["value"]
    known = isinstance(value, Tensor) and value.numel() and not value.is_complex()
    low_high = f" from {value.min().item():g} to {value.max().item():g}" if known else ""
    kind = base(fn)
    return (
        f"site `{site['name']}` has no log-probability at its value, {told(value)}{low_high}: its "
        f"{type(kind).__name__} has batch shape {list(fn.batch_shape)}, event shape {list(fn.event_shape)} and support "
        f"{kind.support}. Give it a value of that shape within the support, and plates of the size of the data"
    )


@checked
def check_call(
    model: Callable[..., Any], guide: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], given: str
) -> None:
    """Raises a TypeError unless model and guide can be called with the arguments, which its text calls ``given``."""
    for role, program in (("model", model), ("guide", guide)):
        _check_call(role, program, args, kwargs, given)


def _check_call(
    role: str, program: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], given: str
) -> None:
    try:
        signature = inspect.signature(program.forward if isinstance(program, nn.Module) else program)
    except (TypeError, ValueError):  # it does not tell
        return
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        bare = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
        called = signature.replace(parameters=bare, return_annotation=signature.empty)
        name = type(program).__name__ if isinstance(program, nn.Module) else getattr(program, "__name__", role)
        count = f"{len(args)} of them" + (f" and {', '.join(kwargs)}" if kwargs else "")
        raise TypeError(
            f"`{given}` must give the arguments of `model` and `guide`; the {role} is {name}{called}, and there are "
            f"{count} ({error})"
        ) from None


class _Agreeing(Messenger):
    """Raises a ValueError for a latent of other plates or another shape than the guide's, before it is used."""

    def __init__(self, of_guide: Sites) -> None:
        super().__init__()
        self.of_guide = of_guide

    def _pyro_post_sample(self, msg: dict[str, Any]) -> None:
        name, other = msg["name"], self.of_guide.get(msg["name"])
        if other is None or msg["is_observed"]:
            return
        named = {frame.dim: frame.name for frame in frames_of(msg)}
        for frame in frames_of(other):
            plate = named.get(frame.dim, frame.name)
            if plate != frame.name:
                raise ValueError(
                    f"site `{name}` lies in plate `{plate}` of the model and in a plate of another name, "
                    f"`{frame.name}`, of the guide: they must name the plate over data alike. Rename one of them: "
                    f'pyro.plate("{plate}", ...)'
                )
        events = [list(site["fn"].event_shape) for site in (msg, other)]
        if events[0] != events[1]:
            raise ValueError(
                f"site `{name}` must have one event shape in model and guide; got {events[0]} and {events[1]}. Give "
                "both the same sizes, such as `latent_dim`, and .to_event(n)"
            )


def _check_counted_once(site: dict[str, Any]) -> None:
    """Raises a ValueError for observed data that a plate repeats, since their event holds the plate's dimension."""
    value, event = site["value"], list(getattr(site["fn"], "event_shape", ()))
    for plate in frames_of(site) if site["is_observed"] else ():
        if plate.size > 1 and plate.size in event and -plate.dim > value.dim() - len(event):
            raise ValueError(
                f'site `{site["name"]}` must be one of the {plate.size} data in each cell of plate "{plate.name}"; its '
                f"event of shape {event} holds them all, which counts them {plate.size} times. Make the event smaller: "
                f"{_to_event(event, plate.size)}"
            )


@checked
def check_nesting(objective: ELBO, sites: list[dict[str, Any]]) -> None:
    """Raises a ValueError for an objective that was told of fewer plates than there are around the sites."""
    plates = max((frame for site in sites for frame in frames_of(site)), key=lambda f: -f.dim, default=None)
    own = objective.vectorize_particles and objective.num_particles > 1
    told_of = objective.max_plate_nesting - own
    sums = isinstance(objective, TraceEnum_ELBO) or getattr(objective, "_enumerates", False)
    if plates is not None and told_of < -plates.dim and (own or sums):
        raise ValueError(
            f'`max_plate_nesting` must be at least {-plates.dim}, where plate "{plates.name}" lies; got {told_of}. '
            "Leave it out to have it found"
        )
