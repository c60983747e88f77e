"""Tensors: their kind, shape, device, dtype, and whether they are finite."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pyro_memory.gate.texts import told

KINDS = {"float": "floating-point", "int": "integer", "bool": "boolean"}
CASTS = {"float": "float()", "int": "long()", "bool": "bool()"}
OWNED = {"dim": "dim", "slot": "slots", "concept": "concepts"}  # sizes that an owner has as attributes


@dataclass
class Call:
    """What the arguments of one call have in common.

    Attributes:
        owner: the instance whose method is called, or None.
        padded: whether values may stand where none are read, so that they are not looked at.
        sizes: the size of each named dimension, and who had it first.
    """

    owner: Any = None
    padded: bool = False
    sizes: dict[str, tuple[Any, str]] = field(default_factory=dict)
    first: tuple[str, torch.device] | None = None

    def copy(self) -> Call:
        """For an attempt that may fail."""
        return Call(self.owner, self.padded, dict(self.sizes), self.first)

    def size_of(self, dim: str, size: Any, name: str) -> tuple[Any, str]:
        """The size that a dimension must have, and whose it is: a number's own, the owner's where it is one of its
        sizes, or that of the first argument that has it."""
        if dim not in self.sizes:
            own = getattr(self.owner, OWNED[dim], None) if dim in OWNED else None
            known = isinstance(own, int) and not isinstance(own, bool)
            theirs = (own, f", as the {type(self.owner).__name__} has") if known else (size, f", as `{name}` has")
            self.sizes[dim] = (int(dim), "") if dim.isdigit() else theirs
        return self.sizes[dim]

    @cached_property
    def like(self) -> Tensor | None:
        """A tensor of the owner, whose device, and in a module whose dtype, arguments have."""
        if isinstance(self.owner, nn.Module):
            held = chain(self.owner._parameters.values(), self.owner.parameters())  # its own are found quicker
            return next((t for t in held if t is not None and t.is_floating_point()), None)
        return held_by(self.owner)

    def check_held(self, name: str, value: Any) -> None:
        """Checks device and dtype of what a memory or a state holds, as those of a tensor."""
        held = None if isinstance(value, nn.Module) else held_by(value)
        if held is not None:
            kept_apart = getattr(value, "keys", None) is not None  # contents of another dtype may stand behind keys
            self.check_place(name, held, type(value).__name__, dtype=not kept_apart)

    def check_place(self, name: str, value: Tensor, what: str = "", *, dtype: bool = True) -> None:
        """Raises a ValueError unless a tensor, or what holds it, is where its owner and the other arguments are."""
        like = self.like
        whose, device = (self.first or (name, value.device)) if like is None else ("", like.device)
        self.first = self.first or (name, value.device)
        if device != value.device:
            owner = f"`{whose}`" if whose else f"the {type(self.owner).__name__}"
            said = f"a {what}, on {value.device}" if what else told(value)
            raise ValueError(
                f'`{name}` must be on the device of {owner}, {device}; got {said}. Move it: {name}.to("{device}")'
            )
        module = isinstance(self.owner, nn.Module) and like is not None and value.is_floating_point()
        if not dtype or (what and value.dtype.itemsize < 4):
            return  # a memory's half-precision contents are brought to the module's dtype where they are read
        if module and value.dtype != like.dtype and not torch.is_autocast_enabled(device.type):
            mine, given = (str(d).removeprefix("torch.") for d in (like.dtype, value.dtype))
            raise ValueError(
                f"`{name}` must have the dtype of the {type(self.owner).__name__}, {mine}; got {given}. Convert one of "
                f"them: {name}.to(torch.{mine}), or .to(torch.{given}) of the module"
            )


def as_tensor(value: Any) -> Any:
    """A numpy array, or a frame or series of pandas, as a tensor, floats in torch's default dtype; others as they are.

    Raises:
        ValueError: if it holds something else than numbers.
    """
    if not isinstance(value, np.ndarray) and not is_table(value):
        return value
    array = np.asarray(value)
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{told(value)} must hold numbers; numpy makes {array.dtype} of it. Choose or convert columns")
    tensor = torch.as_tensor(array.copy())
    return tensor.to(torch.get_default_dtype()) if tensor.is_floating_point() else tensor


def is_table(value: Any) -> bool:
    """Whether a value is one of pandas' frames, series or indices: pandas is not imported for the question."""
    return type(value).__module__.partition(".")[0] == "pandas" and hasattr(value, "to_numpy")


def held_by(value: Any, depth: int = 2) -> Tensor | None:
    """The first tensor that an object, or one that it holds, has as an attribute."""
    for item in getattr(value, "__dict__", {}).values():
        found = item if isinstance(item, Tensor) else held_by(item, depth - 1) if depth > 1 else None
        if found is not None:
            return found
    return None


def kind_of(dtype: torch.dtype) -> str:
    return "float" if dtype.is_floating_point else "bool" if dtype == torch.bool else "int"


@dataclass(frozen=True)
class TensorCheck:
    """An argument that is a tensor.

    Attributes:
        kind: "float", "int", "bool" or "" for any.
        dims: a name, a number or "*name" for each dimension; None for any shape.
    """

    kind: str
    dims: tuple[str, ...] | None

    def __str__(self) -> str:
        shape = "" if self.dims is None else f" [{', '.join(self.dims)}]"
        return f"a{' ' + KINDS[self.kind] if self.kind else ''} tensor{shape}".replace("a integer", "an integer")

    def wants(self, value: Any) -> bool:
        if isinstance(value, Tensor):
            return not self.kind or kind_of(value.dtype) == self.kind
        return (
            isinstance(value, np.ndarray) or is_table(value) or (isinstance(value, (list, tuple)) and _numbers(value))
        )

    def __call__(self, name: str, value: Any, call: Call) -> Tensor:
        like = call.like
        if not isinstance(value, Tensor):
            value = self._converted(name, value, like)
        self._check_kind(name, value)
        if self.kind == "int" and value.dtype != torch.long:
            value = value.long()  # shorter ones cannot index: bytes would be a mask
        if self.dims is not None:
            self._check_shape(name, value, call)
        call.check_place(name, value)
        self._check_values(name, value, call)
        return value

    def _converted(self, name: str, value: Any, like: Tensor | None) -> Tensor:
        scalar = self.dims is None or (len(self.dims) == 1 and self.dims[0][0] == "*")
        number = scalar and isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
        if not (self.wants(value) or number):
            raise TypeError(
                f"`{name}` must be {self}; got {told(value)}. Give a tensor, a numpy array or a list of numbers"
            )
        try:
            array = np.asarray(value)
            if array.dtype.kind not in "biuf":
                raise ValueError(f"numpy makes {array.dtype} of it")
            tensor = torch.as_tensor(array.copy(), device="cpu" if like is None else like.device)
        except (ValueError, TypeError, RuntimeError) as error:
            raise ValueError(f"`{name}` must be {self}, its rows of one length; got {told(value)}") from error
        if self.kind == "float" or (not self.kind and tensor.is_floating_point()):
            floats = like is not None and like.is_floating_point()
            return tensor.to(like.dtype if floats else torch.get_default_dtype())
        return tensor

    def _check_kind(self, name: str, value: Tensor) -> None:
        if value.layout != torch.strided:
            raise ValueError(f"`{name}` must be {self}, and dense; got {value.layout}. Convert it: {name}.to_dense()")
        if value.is_complex() or (self.kind and kind_of(value.dtype) != self.kind):
            cast = f". Convert it: {name}.{CASTS[self.kind]}" if self.kind and not value.is_complex() else ""
            raise ValueError(f"`{name}` must be {self}; got {told(value)}{cast}")

    def _check_shape(self, name: str, value: Tensor, call: Call) -> None:
        free, least = self._free
        if value.dim() < least or (not free and value.dim() > least):
            extra = least - value.dim() == 1 and not free
            hint = f". One dimension is missing: {name}[None] adds a first one" if extra else ""
            raise ValueError(f"`{name}` must be {self}; got {told(value)}{hint}")
        if len(free) > 1:
            return  # which dimensions are whose is for the function to say
        shape: list[Any] = list(value.shape)
        if free:
            at = free[0]
            shape[at : at + value.dim() - least] = [tuple(value.shape[at : at + value.dim() - least])]
        for dim, size in zip(self.dims, shape, strict=True):
            wanted, whose = call.size_of(dim, size, name)
            if size != wanted and dim not in ("...", "_"):
                shown = list(wanted) if isinstance(wanted, tuple) else wanted
                raise ValueError(f"`{name}` must be {self} with {dim} = {shown}{whose}; got {told(value)}")

    @cached_property
    def _free(self) -> tuple[list[int], int]:
        """Which dimensions stand for any number of them, and how many there are beside."""
        free = [i for i, dim in enumerate(self.dims or ()) if dim[0] in "*."]
        return free, len(self.dims or ()) - len(free)

    def _check_values(self, name: str, value: Tensor, call: Call) -> None:
        """On a CPU only: elsewhere every call would wait for the device."""
        looks = self.kind == "float" and self.dims is not None and not call.padded
        if not looks or not readable_now(value):
            return
        value = value.detach()
        if math.isfinite(value.sum().item()):  # as one that holds NaN or infinity is not
            return
        low, high = (end.item() for end in value.aminmax())  # a NaN anywhere is both
        logarithms = name.startswith(("log", "score"))  # of probabilities, which may be 0
        if low != low or ((low == -torch.inf or high == torch.inf) and not logarithms):
            place = (~torch.isfinite(value)).nonzero()[0].tolist()
            raise ValueError(
                f"`{name}` must be finite; got {value[tuple(place)].item()} at {place}. Clean the data before"
            )


def readable_now(value: Tensor) -> bool:
    """Whether a tensor's values can be looked at without waiting for a device or breaking a transform."""
    plain = type(value) in (Tensor, nn.Parameter) and not torch._C._functorch.is_functorch_wrapped_tensor(value)
    return plain and value.is_cpu and value.numel() > 0


def _numbers(value: Any) -> bool:
    """Whether a nest of lists holds numbers only, by its first items."""
    while isinstance(value, (list, tuple)):
        if not value:
            return True
        value = value[0]
    return isinstance(value, (int, float, np.number, np.bool_, np.ndarray, Tensor)) and not isinstance(value, str)
