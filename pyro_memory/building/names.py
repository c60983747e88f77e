"""Names of what a file may hold beside numbers: classes and functions, and nothing else that has a name.

A name is looked up among the classes of this package that its rooms export, those of ``torch.nn``, and those that the
caller hands in; no name is ever imported.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from pyro.nn import PyroModule
from torch import nn

from pyro_memory.gate import CLASSES, is_recorded, told

TORCH, FUNCTIONAL, OWN = "torch.nn.", "torch.nn.functional.", "own."
PYRO = "pyro.nn."  # before a class of torch.nn: Pyro's of the same, as PyroModule[nn.Linear]
PARTS = ("SlotIndex",)  # what is no module and is built all the same; stores are not: some make files


class NotRebuildable(ValueError):
    """Says why a pair cannot be built again from its record, and what to do."""


def own_classes(own: Iterable[type]) -> dict[str, type]:
    """A user's classes by name.

    Raises:
        ValueError: for what is not a class of modules.
    """
    for kind in own:
        if not isinstance(kind, type) or not issubclass(kind, nn.Module):
            raise ValueError(f"`own` must hold classes of torch.nn.Module; got {told(kind)}")
    return {kind.__name__: kind for kind in own}


def name_of(kind: type, own: dict[str, type]) -> str:
    """Names a class, and notes it among ``own`` if it is a user's.

    Raises:
        NotRebuildable: where no file can name it.
    """
    if CLASSES.get(kind.__name__) is kind and _buildable(kind):
        return kind.__name__
    if _of_torch(kind.__name__) is kind:
        return TORCH + kind.__name__
    base = kind.__mro__[:2][-1]
    if issubclass(kind, PyroModule) and _of_torch(base.__name__) is base and PyroModule[base] is kind:
        return PYRO + base.__name__
    if not (issubclass(kind, nn.Module) and is_recorded(kind)):
        raise NotRebuildable(
            f"{told(kind)} leaves no record of how it was built: put @pyro_memory.rebuildable above it"
        )
    if own.setdefault(kind.__name__, kind) is not kind:
        raise NotRebuildable(f"two of your classes are named {kind.__name__}: rename one")
    return OWN + kind.__name__


def constructor_of(name: str, own: Mapping[str, type]) -> Any:
    """Finds a class, or a class method of one of this package or the user's, by name.

    Raises:
        ValueError: if there is none.
    """
    prefix = next((p for p in (TORCH, PYRO, OWN) if name.startswith(p)), "")
    short, _, method = name.removeprefix(prefix).partition(".")
    found = own.get(short) if prefix == OWN else _of_torch(short) if prefix else CLASSES.get(short)
    if found is None and prefix == OWN:
        raise ValueError(f"`own` must hold the class {short}, of which the pair was built; give own=({short},)")
    if found is None or not (prefix or _buildable(found)):
        rooms = ", ".join(sorted({_room(kind) for kind in CLASSES.values() if _buildable(kind)}))
        raise ValueError(f"`build` must name a module of pyro_memory ({rooms}) or torch.nn; got {name!r}")
    if method and (prefix in (TORCH, PYRO) or method.startswith("_") or not _class_method(found, method)):
        raise ValueError(f"`build` must name a class, or a class method that makes one; got {name!r}")
    if prefix == PYRO:
        return PyroModule[found]
    return getattr(found, method) if method else found


def name_of_call(call: Any, own: dict[str, type]) -> str:
    """Names a class or a class method."""
    owner = getattr(call, "__self__", None)
    if inspect.ismethod(call) and isinstance(owner, type) and _class_method(owner, call.__name__):
        return f"{name_of(owner, own)}.{call.__name__}"
    if isinstance(call, type):
        return name_of(call, own)
    raise NotRebuildable(f"{told(call)} is no class or class method: give `functools.partial` of a class")


def name_of_function(value: Any) -> str | None:
    """Names a function of torch or torch.nn.functional."""
    short = getattr(value, "__name__", "")
    names = (f"torch.{short}", f"{FUNCTIONAL}{short}")
    return next((name for name in names if value is not None and function_of(name) is value), None)


def function_of(name: str) -> Any:
    """Finds a function on tensors by its name, or None."""
    short = name.removeprefix(FUNCTIONAL)
    if short != name:
        found = vars(nn.functional).get(short)
        known = inspect.isbuiltin(found) or getattr(found, "__module__", "").startswith("torch.nn.functional")
        return found if known and not short.startswith("_") and not isinstance(found, type) else None
    short = name.removeprefix("torch.")
    return getattr(torch, short) if short in ELEMENTWISE else None


# The functions of torch that work element by element: of its others, some reach files.
ELEMENTWISE = (
    "abs", "atan", "cos", "erf", "exp", "expm1", "log1p", "neg", "relu", "sigmoid", "sin", "sqrt", "square", "tanh",
)  # fmt: skip


def _of_torch(name: str) -> type | None:
    kind = getattr(nn, name, None)
    module = isinstance(kind, type) and issubclass(kind, nn.Module) and kind.__module__.startswith("torch.nn.modules.")
    return kind if module and kind is not nn.Module else None


def _room(kind: type) -> str:
    return kind.__module__.split(".")[1]


def _buildable(kind: type) -> bool:
    """Whether a class of this package may be built: a module that its room exports."""
    exported = kind.__name__ in getattr(sys.modules.get(f"pyro_memory.{_room(kind)}"), "__all__", ())
    return exported and (issubclass(kind, nn.Module) or kind.__name__ in PARTS)


def _class_method(kind: type, name: str) -> bool:
    """Whether it makes modules: one that a base without the decorator has may do anything, as read another file."""
    found = inspect.getattr_static(kind, name, None)
    return isinstance(found, classmethod) and is_recorded(found.__func__)
