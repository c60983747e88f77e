"""What an argument may be, one class a kind: ``wants`` says whether a value is of it, a call gives it or refuses it."""

from __future__ import annotations

import math
import os
from collections import abc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_memory.gate.tensors import Call, TensorCheck
from pyro_memory.gate.texts import article, remedy, told


@dataclass(frozen=True)
class Kind:
    """Is any kind that one question tells; ``give`` makes of a value what the function takes."""

    text: str
    wants: Callable[[Any], bool]
    give: Callable[[Any], Any] = lambda value: value

    def __str__(self) -> str:
        return self.text

    def __call__(self, name: str, value: Any, call: Call) -> Any:
        if not self.wants(value):
            raise TypeError(f"`{name}` must be {self}; got {told(value)}")
        try:
            return self.give(value)
        except (ValueError, RuntimeError, OverflowError) as error:
            raise ValueError(f"`{name}` must be {self}; got {told(value)}") from error


def _single(value: Any, *kinds: type) -> bool:
    """Whether a value is one number: Python's, numpy's, or a tensor without dimensions."""
    if isinstance(value, (Tensor, np.ndarray)) and value.ndim == 0:
        if isinstance(value, Tensor) and value.requires_grad:
            return False  # a number has no gradient
        value = value.item()
    return isinstance(value, kinds) and not isinstance(value, (bool, np.bool_))


def _integer(value: Any) -> int:
    number = int(value)
    if not -(2**63) <= number < 2**63:  # torch holds no others
        raise ValueError
    return number


def _number(value: Any) -> float:
    if math.isnan(value):
        raise ValueError
    return _integer(value) if _single(value, int, np.integer) else float(value)


def _path(value: Any) -> Any:
    if not os.fspath(value):
        raise ValueError
    return value


def _device(value: Any) -> Any:
    torch.device(value)
    return value


ANYTHING = Kind("anything", lambda value: True)
NOTHING = Kind("None", lambda value: value is None)
INTEGER = Kind("an integer", lambda value: _single(value, int, np.integer), _integer)
NUMBER = Kind("a number", lambda value: _single(value, int, float, np.number), _number)
FLAG = Kind("True or False", lambda value: isinstance(value, (bool, np.bool_)), bool)
PATH = Kind("a path of a file or folder", lambda value: isinstance(value, (str, os.PathLike)), _path)
DEVICE = Kind('a device, such as "cpu" or "cuda"', lambda value: isinstance(value, (str, torch.device)), _device)


def one_of(words: tuple[Any, ...]) -> Kind:
    """A choice among words."""

    def give(value: str) -> str:
        if value not in words:
            raise ValueError
        return value

    return Kind("one of " + ", ".join(map(repr, words)), lambda value: isinstance(value, str), give)


def subclass(kind: type) -> Kind:
    """A class, or a function that builds as one."""

    def wants(value: Any) -> bool:
        return issubclass(value, kind) if isinstance(value, type) else callable(value) and not isinstance(value, kind)

    return Kind(f"a class of {kind.__name__}, not yet built", wants)


@dataclass(frozen=True)
class Instance:
    """An instance of a class."""

    kind: type

    def __str__(self) -> str:
        return article(self.kind.__name__)

    def wants(self, value: Any) -> bool:
        return isinstance(value, self.kind)

    def __call__(self, name: str, value: Any, call: Call) -> Any:
        if not self.wants(value):
            raise TypeError(f"`{name}` must be {self}; got {told(value)}{remedy(self.kind, value)}")
        call.check_held(name, value)
        return value


class Program:
    """Something to call; where it is a model or a guide, not the class of one."""

    def __str__(self) -> str:
        return "a function or a module"

    def wants(self, value: Any) -> bool:
        return callable(value)

    def __call__(self, name: str, value: Any, call: Call) -> Any:
        unbuilt = isinstance(value, type) and name in ("model", "guide")
        if unbuilt or not callable(value):
            hint = f". Build one: {value.__name__}(...)" if unbuilt else ""
            raise TypeError(f"`{name}` must be {self}; got {told(value)}{hint}")
        return value


@dataclass(frozen=True)
class Several:
    """A sequence, each of its items checked, ``count`` of them unless that is None, made a tuple if it must."""

    item: Any
    count: int | None = None
    into: type | None = None

    def __str__(self) -> str:
        number = "" if self.count is None else f" of {self.count}"
        return f"a sequence{number}" + ("" if self.item is ANYTHING else f", each {self.item}")

    def wants(self, value: Any) -> bool:
        row = isinstance(value, (np.ndarray, Tensor)) and value.ndim == 1 and self.item in (INTEGER, NUMBER)
        return row or (isinstance(value, abc.Sequence) and not isinstance(value, (str, bytes)))

    def __call__(self, name: str, value: Any, call: Call) -> Any:
        if not self.wants(value):
            hint = f". Put it into one: {name}=(..., )" if self.item.wants(value) and value is not None else ""
            raise TypeError(f"`{name}` must be {self}; got {told(value)}{hint}")
        if self.count is not None and len(value) != self.count:
            raise ValueError(f"`{name}` must be {self}; got {told(value)}")
        if isinstance(value, (np.ndarray, Tensor)):
            value = value.tolist()
        if self.item is ANYTHING and (self.into is None or isinstance(value, self.into)):
            return value
        items = [self.item(f"{name}[{i}]", item, call.copy()) for i, item in enumerate(value)]  # each of its own size
        same = all(new is old for new, old in zip(items, value, strict=True))
        if same and (self.into is None or isinstance(value, self.into)):
            return value
        return items if isinstance(value, list) and self.into is None else tuple(items)


@dataclass(frozen=True)
class Mapped:
    """A mapping, each of its values checked."""

    item: Any

    def __str__(self) -> str:
        return "a mapping, such as a dict"

    def wants(self, value: Any) -> bool:
        return isinstance(value, abc.Mapping)

    def __call__(self, name: str, value: Any, call: Call) -> Any:
        if not self.wants(value):
            raise TypeError(f"`{name}` must be {self}; got {told(value)}")
        items = {key: self.item(f'{name}["{key}"]', item, Call()) for key, item in value.items()}
        return value if all(items[key] is value[key] for key in items) else items


@dataclass(frozen=True)
class Either:
    """One of several kinds: the first that takes the value."""

    kinds: tuple[Any, ...]

    def __str__(self) -> str:
        return " or ".join(map(str, self.kinds))

    def wants(self, value: Any) -> bool:
        return any(kind.wants(value) for kind in self.kinds)

    def __call__(self, name: str, value: Any, call: Call) -> Any:
        real = [kind for kind in self.kinds if kind is not NOTHING]
        if value is None and len(real) < len(self.kinds):
            return None
        if len(real) == 1:
            return real[0](name, value, call)
        fitting = [kind for kind in real if kind.wants(value)]
        if isinstance(value, (list, tuple)) and value and isinstance(value[0], Tensor):
            fitting.sort(key=lambda kind: not isinstance(kind, Several))  # tensors in a row are no lists of numbers
        if not fitting:
            raise TypeError(f"`{name}` must be {self}; got {told(value)}")
        tensors = sum(isinstance(kind, TensorCheck) for kind in real)
        for kind in fitting:
            attempt = call.copy()
            try:
                given = kind(name, value, attempt)
            except (TypeError, ValueError) as error:
                if len(fitting) == 1 and (tensors < 2 or "must be finite" in str(error)):
                    raise
            else:
                call.sizes, call.first = attempt.sizes, attempt.first
                return given
        raise ValueError(f"`{name}` must be {self}; got {told(value)}")
