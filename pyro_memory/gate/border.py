"""The decorator that puts the gate before public functions, and how it knows a call from outside."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn

from pyro_memory.gate.annotations import SHAPED, check_of
from pyro_memory.gate.kinds import ANYTHING
from pyro_memory.gate.misfits import misfit
from pyro_memory.gate.recording import CLASSES, recorded
from pyro_memory.gate.tensors import Call, as_tensor

OWN = __name__.partition(".")[0]
# The frames of these stand between a call and its function: they hand arguments on and make none.
CARRIERS = (
    "torch.nn.modules", "torch.utils._contextlib", "pyro.nn.module", "dataclasses", "jaxtyping", "beartype",
    f"{OWN}.nets.plain", f"{OWN}.gate.recording",
)  # fmt: skip
Entry = TypeVar("Entry", bound=Callable[..., Any])


def checked(entry: Entry) -> Entry:
    """Puts the gate before a public function, or before the constructor and the public methods of a class.

    A call that comes from inside the package passes at once: the gate stands at its border. Constructors are looked at
    whoever calls, since options are handed on to them, but for those of values that each step makes of tensors. Nothing
    is looked at while torch compiles.

    What torch refuses inside, as sizes that do not fit together, becomes a ValueError that names the arguments.

    The constructors of modules also leave a record of how each was built, see ``recording``.

    Cost: some microseconds an argument, and one look at the values of floating-point tensors on a CPU.
    """
    if not isinstance(entry, type):
        return _guarded(entry)
    for name, member in list(vars(entry).items()):
        if name.startswith("_") and name not in ("__init__", "__getitem__", "__call__"):
            continue
        if isinstance(member, (classmethod, staticmethod)):
            setattr(entry, name, type(member)(_guarded(member.__func__)))
        elif inspect.isfunction(member):
            light = issubclass(entry, nn.Module) or "Tensor" not in str(inspect.signature(member))
            setattr(entry, name, _guarded(member, always=name == "__init__" and light))
    if entry.__module__.startswith(f"{OWN}."):
        CLASSES[entry.__name__] = entry
        if issubclass(entry, nn.Module):
            recorded(entry)
    return entry


def _guarded(function: Any, *, always: bool = False) -> Any:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling() or (not always and _inside(sys._getframe(1))):
            return function(*args, **kwargs)
        checks = _checks(function)
        admitted = _admitted(checks, args, kwargs)
        try:
            return function(*admitted, **kwargs)
        except (RuntimeError, IndexError, ValueError) as error:
            refused = misfit(error, function.__qualname__, list(zip(checks[0], args, strict=False)), kwargs)
            if refused is None:
                raise
            raise refused from error

    wrapper.__gate__ = True
    return wrapper


def _inside(frame: Any) -> bool:
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if not module.startswith(CARRIERS):
            return module.partition(".")[0] == OWN
        frame = frame.f_back
    return False


@functools.cache
def _checks(function: Any) -> tuple[list[tuple[str, Any]], dict[str, Any], bool]:
    """The checks of positional arguments in turn, those of all by name, "" for others, and whether the first is the
    instance."""
    bare = inspect.unwrap(function)
    places, named = [], {}
    for parameter in inspect.signature(bare).parameters.values():
        check = _check_of(parameter, bare)
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            places.append((parameter.name, check))
        if parameter.kind != parameter.VAR_POSITIONAL:
            named["" if parameter.kind == parameter.VAR_KEYWORD else parameter.name] = check
    method = bool(places) and places[0][0] == "self"
    return places, named, method


def _check_of(parameter: inspect.Parameter, function: Any) -> Any:
    annotation = parameter.annotation
    if isinstance(annotation, str):
        try:
            annotation = eval(annotation, function.__globals__, SHAPED)
        except NameError:  # imported for the type checker alone
            return ANYTHING
    return ANYTHING if annotation is inspect.Parameter.empty else check_of(annotation)


def _admitted(checks: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """The positional arguments as the function takes them; keyword arguments are replaced in place."""
    places, named, method = checks
    owner = args[0] if method and args else None
    ready = not isinstance(owner, nn.Module) or "_parameters" in owner.__dict__  # not in its constructor
    lengths = None
    if "lengths" in named:  # by place or by name
        lengths = ({name: value for (name, _), value in zip(places, args, strict=False)} | kwargs).get("lengths")
    call = Call(owner if ready else None, padded=lengths is not None)
    admitted = list(args)
    for i, (name, check) in enumerate(places[: len(args)]):
        if i or not method:
            admitted[i] = check(name, args[i], call)
    for i in range(len(places), len(args)):  # what a function hands on, as `*args` of a model
        admitted[i] = as_tensor(args[i])
    for name, value in kwargs.items():
        check = named.get(name) or named.get("")
        if check is not None:
            kwargs[name] = check(name, value if name in named else as_tensor(value), call)
    return admitted
