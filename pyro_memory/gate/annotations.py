"""From an annotation to the check of an argument."""

from __future__ import annotations

import os
import types
import typing
from collections import abc
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyro_memory.gate.kinds import (
    ANYTHING,
    DEVICE,
    FLAG,
    INTEGER,
    NOTHING,
    NUMBER,
    PATH,
    Either,
    Instance,
    Kind,
    Mapped,
    Program,
    Several,
    one_of,
    subclass,
)
from pyro_memory.gate.tensors import TensorCheck

PLAIN: dict[Any, Any] = {
    int: INTEGER, float: NUMBER, bool: FLAG, type(None): NOTHING, None: NOTHING, Any: ANYTHING, object: ANYTHING,
    Tensor: TensorCheck("", None), torch.device: DEVICE, os.PathLike: PATH,
}  # fmt: skip
KINDS = {"Float": "float", "Int": "int", "Bool": "bool", "UInt8": "", "Num": "", "Shaped": ""}


class Shaped:
    """Stands in for jaxtyping's names where annotations are read, and takes more than one free dimension."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __getitem__(self, shaped: tuple[Any, str]) -> type:
        return type(self.name, (), {"dim_str": shaped[1]})


SHAPED = {name: Shaped(name) for name in KINDS}


def check_of(annotation: Any) -> Any:
    """Makes the check that an annotation asks for; what it does not know it lets pass."""
    if hasattr(annotation, "dim_str"):  # jaxtyping's: a kind and a shape
        return TensorCheck(KINDS.get(annotation.__name__.partition("[")[0], ""), tuple(annotation.dim_str.split()))
    origin, inner = typing.get_origin(annotation) or annotation, typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return _either(inner)
    if origin is typing.Literal:
        return one_of(inner)
    if origin is type:
        return subclass(inner[0] if inner and isinstance(inner[0], type) else object)
    if origin is tuple:
        kinds = set(inner) - {Ellipsis}
        count = None if Ellipsis in inner else len(inner)
        return Several(check_of(inner[0]) if len(kinds) == 1 else ANYTHING, count or None, tuple)
    if origin in (abc.Sequence, list):
        return Several(check_of(inner[0]) if inner else ANYTHING)
    if origin in (abc.Mapping, dict):
        return Mapped(check_of(inner[1]) if inner else ANYTHING)
    if origin in (abc.Callable, Callable):
        return Program()
    if isinstance(annotation, abc.Hashable) and annotation in PLAIN:
        return PLAIN[annotation]
    if isinstance(annotation, type) and issubclass(annotation, os.PathLike):
        return Kind(PATH.text, PATH.wants, lambda value: annotation(PATH.give(value)))
    known = isinstance(annotation, type) and not getattr(annotation, "_is_protocol", False)
    return Instance(annotation) if known else ANYTHING


def _either(inner: tuple[Any, ...]) -> Any:
    """A path and a device may be given as text: one kind, not two."""
    for wide in (os.PathLike, torch.device):
        if any(isinstance(kind, type) and issubclass(kind, wide) for kind in inner):
            inner = (wide, *(kind for kind in inner if kind is type(None)))
    return Either(tuple(check_of(kind) for kind in inner))
