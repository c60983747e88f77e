"""How a module was built: each constructor leaves its name and its arguments on what it made; the outermost stays.

A record holds nothing big, and nothing that keeps a module from being copied or pickled: a part that the module itself
has is told by its place, a tensor is copied up to ``LARGEST`` bytes and told by its place above, and what cannot be
told is a text that says so.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any, TypeVar
from weakref import WeakValueDictionary

import numpy as np
import torch
from torch import Tensor, nn

from pyro_memory.gate.texts import told

PLACE = "_built_by"  # of the record, in the module's own dictionary
MARK = (
    "_is_rebuildable"  # of a class whose constructors are recorded, and of its class methods; a subclass needs its own
)
LARGEST = 2**20  # bytes
CLASSES: dict[str, type] = {}  # of this package
NAMES: MutableMapping[int, Any] = WeakValueDictionary()  # by `id`: the modules that have a name of Pyro's
PLAIN = (bool, int, float, str, type(None))
Class = TypeVar("Class", bound=type)


@dataclass(frozen=True)
class Construction:
    """A call that made a module: a class method, or the constructor itself, and its arguments."""

    method: str | None
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Held:
    """Stands for a part, a weight or an attribute that the module has."""

    path: str


@dataclass(frozen=True)
class Parts:
    """Stands for an object of this package that has its constructor's arguments as attributes."""

    kind: type
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Unknown:
    """Stands for what no file can hold."""

    what: str


def rebuildable(own: Class) -> Class:
    """Lets instances of a class of yours be built again from a file: a decorator.

    Each instance then knows the arguments of the constructor, or the class method, that made it. They may be what
    ``save`` can write: numbers, texts, tuples, lists and dicts of them, tensors, dtypes, classes, ``functools.partial``
    of a class, functions of ``torch.nn.functional``, modules of ``torch.nn``, of this package or so decorated, if they
    become parts of the instance. ``load`` takes the class by ``own=``.

    Raises:
        TypeError: for anything else than a class of modules.

    Example::

        @pyro_memory.rebuildable
        class Halves(nn.Module):
            def __init__(self, dim: int) -> None:
                super().__init__()
                self.map = nn.Linear(dim, dim // 2)
    """
    if not isinstance(own, type) or not issubclass(own, nn.Module):
        raise TypeError(f"`own` must be a class of torch.nn.Module; got {told(own)}. Decorate the class itself")
    recorded(own, inherited=True)
    return own


def recorded(kind: Any, *, inherited: bool = False) -> None:
    """Makes the constructors of a class leave a record, an inherited one too if asked."""
    setattr(kind, MARK, True)
    for name, member in list(vars(kind).items()):
        if isinstance(member, classmethod) and not name.startswith("_"):
            setattr(kind, name, classmethod(_recorded_method(member.__func__)))
    if inherited or "__init__" in vars(kind):
        kind.__init__ = _recorded_init(kind.__init__)


def is_recorded(kind: Any) -> bool:
    """Whether the constructors of this very class, or this very class method, leave a record."""
    return MARK in vars(kind)


def construction(module: nn.Module) -> Construction | None:
    """The record of a module."""
    made = module.__dict__.get(PLACE)
    return Construction(None, {}) if made is None and is_recorded(type(module)) else made


def _recorded_init(init: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(init)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        _record(self, None, init, args, kwargs)

    return wrapper


def _recorded_method(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def wrapper(cls: type, *args: Any, **kwargs: Any) -> Any:
        made = method(cls, *args, **kwargs)
        if type(made) is cls:
            _record(made, method.__name__, method, args, kwargs)
        return made

    setattr(wrapper, MARK, True)
    return wrapper


def _record(module: nn.Module, method: str | None, call: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if torch.compiler.is_compiling():
        return
    names, rest = _places(call)
    given = dict(zip(names, args, strict=False)) | kwargs
    if rest and len(args) > len(names):
        given["*"] = list(args[len(names) :])
    if module.__dict__.get("_pyro_name"):
        NAMES[id(module)] = module
    arguments = {name: _kept(value, module) for name, value in given.items()}
    module.__dict__[PLACE] = Construction(method, arguments)


@functools.cache
def _places(call: Any) -> tuple[list[str], bool]:
    """The names of positional arguments after the first, and whether more may follow."""
    parameters = list(inspect.signature(call).parameters.values())[1:]
    named = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return named, any(p.kind == p.VAR_POSITIONAL for p in parameters)


def _kept(value: Any, module: nn.Module) -> Any:
    """An argument as a record holds it."""
    kind = type(value)
    if kind in PLAIN or isinstance(value, (torch.dtype, torch.Size)):
        return value
    if isinstance(value, type):
        return value if _nameable(value) or is_recorded(value) else Unknown(told(value))
    if kind in (list, tuple):
        return kind(_kept(item, module) for item in value)
    if kind is dict and all(type(key) is str for key in value):
        return {key: _kept(item, module) for key, item in value.items()}
    if isinstance(value, np.generic):
        return _kept(value.item(), module)
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        return _kept(torch.from_numpy(value), module)
    if isinstance(value, Tensor):
        return _kept_tensor(value, module)
    if isinstance(value, nn.Module):
        place = next((path for path, part in module.named_modules() if part is value), None)
        return Held(place) if place else Unknown(f"{told(value)} that is no part of it")
    if kind is functools.partial:
        inner = _kept(value.args, module), _kept(value.keywords, module)
        return functools.partial(value.func, *inner[0], **inner[1]) if _nameable(value.func) else Unknown(told(value))
    if _nameable(value):
        return value
    attributes = _attributes(value)
    return Unknown(told(value)) if attributes is None else Parts(kind, attributes)


def _kept_tensor(tensor: Tensor, module: nn.Module) -> Any:
    if tensor.numel() * tensor.element_size() <= LARGEST and not tensor.is_meta:
        copy = tensor.detach().clone()
        return nn.Parameter(copy, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else copy
    weights = module.state_dict(keep_vars=True)
    held = [name for name, mine in weights.items() if mine is tensor or _equal(mine, tensor)]
    held += [name for name, mine in vars(module).items() if mine is tensor]
    return Held(held[0]) if held else Unknown(f"{told(tensor)}, too large, that is no weight of it")


def _equal(one: Tensor, other: Tensor) -> bool:
    like = one.shape == other.shape and one.dtype == other.dtype and one.device == other.device
    return like and torch.equal(one, other)


def _nameable(value: Any) -> bool:
    """Whether it is a function or class that a copy of the module finds by its name, or a class method of one."""
    owner = getattr(value, "__self__", None)
    if inspect.ismethod(value):
        return isinstance(owner, type)
    return callable(value) and "<" not in getattr(value, "__qualname__", "<")


def _attributes(value: Any) -> Mapping[str, Any] | None:
    """The arguments of a constructor of this package, where the instance has them all as plain attributes."""
    if CLASSES.get(type(value).__name__) is not type(value) or isinstance(value, nn.Module):
        return None
    names = inspect.signature(type(value)).parameters
    found = {name: vars(value)[name] for name in names if name in getattr(value, "__dict__", {})}
    return found if len(found) == len(names) and all(type(v) in PLAIN for v in found.values()) else None
