"""Wrong arguments, made from right ones."""

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from pyro_memory import SlotMemory

NOT_HERE = object()  # where a wrong thing cannot be made of an argument
HUGE = (10**9, 2**70)


@dataclass(frozen=True)
class Wrong:
    """A way to go wrong: ``make(value, call, at)`` gives the argument in place of ``value``.

    ``at`` chooses a dimension, an item or another argument of the ``call``. ``fate`` says what must come of it: "same"
    result as from the value, "refused" for sure where the annotation names a kind, or "either".
    """

    name: str
    make: object
    fate: str = "either"


def plain(thing):
    return lambda value, call, at: thing() if callable(thing) else thing


def of(kind, make):
    def made(value, call, at):
        return make(value, at) if isinstance(value, kind) and not isinstance(value, bool) else NOT_HERE

    return made


def of_floats(make):
    return of(Tensor, lambda t, at: make(t, at) if t.is_floating_point() and t.numel() else NOT_HERE)


def of_integers(make):
    return of(Tensor, lambda t, at: make(t, at) if t.dtype == torch.long and t.numel() else NOT_HERE)


def of_dims(make):
    return of(Tensor, lambda t, at: make(t, at % t.dim()) if t.dim() else NOT_HERE)


def cast(dtype):
    return of(Tensor, lambda t, at: t.to(dtype) if t.dtype != dtype else NOT_HERE)


def filled(tensor, at, value):
    tensor = tensor.detach().clone(memory_format=torch.contiguous_format)
    tensor.view(-1)[at % tensor.numel()] = value
    return tensor


def strided(tensor, at):
    """The same numbers, lying apart."""
    if not tensor.dim():
        return NOT_HERE
    apart = tensor.new_zeros(*tensor.shape[:-1], 2 * tensor.shape[-1])[..., ::2]
    return apart.copy_(tensor.detach())


def nested(tensor, at):
    return tensor.tolist() if tensor.dim() and not tensor.requires_grad else NOT_HERE


def shorter(tensor, dim):
    return tensor.narrow(dim, 0, tensor.shape[dim] - 1) if tensor.shape[dim] > 1 else NOT_HERE


def other(value, call, at):
    """Another argument of the same call."""
    rest = [item for item in call.values() if item is not value]
    return rest[at % len(rest)] if rest else NOT_HERE


def inside(wrong):
    """The same, of one item of a sequence or a mapping, or of one tensor that a value carries."""

    def made(value, call, at):
        if isinstance(value, (tuple, list)) and len(value):
            place = at % len(value)
            item = wrong.make(value[place], {str(i): v for i, v in enumerate(value)}, at)
            return NOT_HERE if item is NOT_HERE else type(value)([*value[:place], item, *value[place + 1 :]])
        if isinstance(value, Mapping) and value:
            key = sorted(value)[at % len(value)]
            item = wrong.make(value[key], value, at)
            return NOT_HERE if item is NOT_HERE else {**value, key: item}
        return NOT_HERE

    return Wrong(f"{wrong.name} in an item", made)


def moved(target):
    """A memory or a state elsewhere, or of another dtype."""

    def made(value, call, at):
        stays = isinstance(value, (Tensor, nn.Module)) or not hasattr(value, "to") or isinstance(value, type)
        try:
            return NOT_HERE if stays else value.to(target)
        except (RuntimeError, ValueError):
            return NOT_HERE  # it cannot be there

    return made


def of_memories(make):
    return lambda value, call, at: make(value) if type(value) is SlotMemory else NOT_HERE


def fewer_features(memory):
    return SlotMemory(memory.values[..., 1:], memory.keys, memory.mask, batch_dim=memory.batch_dim)


def for_each_datum(memory):
    return SlotMemory(memory.values.unsqueeze(0).expand(3, *memory.values.shape), batch_dim=-1)


def of_records(wrong):
    """Of a frozen record, one tensor changed."""

    def made(value, call, at):
        if not is_dataclass(value) or isinstance(value, type):
            return NOT_HERE
        tensors = {f.name: getattr(value, f.name) for f in fields(value) if isinstance(getattr(value, f.name), Tensor)}
        if not tensors:
            return NOT_HERE
        name = sorted(tensors)[at % len(tensors)]
        changed = wrong.make(tensors[name], tensors, at)
        try:
            return NOT_HERE if changed is NOT_HERE else replace(value, **{name: changed})
        except (ValueError, TypeError):
            return NOT_HERE  # nobody can hold such a record

    return Wrong(f"{wrong.name} in a record", made)


SURE = [
    Wrong("a text", plain("nonsense"), "refused"),
    Wrong("bytes", plain(b"nonsense"), "refused"),
    Wrong("an object", plain(object), "refused"),
    Wrong("NaN inside", of_floats(lambda t, at: filled(t, at, math.nan)), "refused"),
    Wrong("meta device", of(Tensor, lambda t, at: t.to("meta")), "refused"),
    Wrong("complex", cast(torch.complex64), "refused"),
    Wrong("the class", lambda value, call, at: NOT_HERE if inspect.isroutine(value) else type(value), "refused"),
]
SAME = [
    Wrong("numpy", of(Tensor, lambda t, at: t.detach().numpy()), "same"),
    Wrong("apart", of(Tensor, strided), "same"),
    Wrong("numpy integer", of(int, lambda n, at: np.int64(n)), "same"),
    Wrong("numpy float", of(float, lambda n, at: np.float64(n)), "same"),
    Wrong("list of it", of(tuple, lambda t, at: list(t)), "same"),
    Wrong("text of a path", of(Path, lambda p, at: str(p)), "same"),
]
EITHER = [
    Wrong("None", plain(None)),
    Wrong("True", plain(True)),
    Wrong("0", plain(0)),
    Wrong("-1", plain(-1)),
    Wrong("10**9", plain(HUGE[0])),
    Wrong("2**70", plain(HUGE[1])),
    Wrong("0.5", plain(0.5)),
    Wrong("nan", plain(math.nan)),
    Wrong("inf", plain(math.inf)),
    Wrong("[]", plain(list)),
    Wrong("{}", plain(dict)),
    Wrong("a layer", lambda value, call, at: NOT_HERE if inspect.isroutine(value) else nn.Linear(2, 3)),
    Wrong("another memory", plain(lambda: SlotMemory(torch.ones(2, 3)))),
    Wrong("an empty memory", plain(lambda: SlotMemory.empty((3,)))),
    Wrong("another argument", other),
    Wrong("a missing path", plain(lambda: Path("missing", "file"))),
    Wrong("a folder", plain(lambda: Path("."))),
    Wrong("an empty path", plain("")),
    Wrong("lists", of(Tensor, nested)),
    Wrong("float64", cast(torch.float64)),
    Wrong("float16", cast(torch.float16)),
    Wrong("int64", cast(torch.long)),
    Wrong("uint8", cast(torch.uint8)),
    Wrong("bool", cast(torch.bool)),
    Wrong("a dimension more", of(Tensor, lambda t, at: t.unsqueeze(0))),
    Wrong("a dimension less", of_dims(lambda t, at: t.select(at, 0) if t.shape[at] else NOT_HERE)),
    Wrong("longer", of_dims(lambda t, at: torch.cat([t, t.narrow(at, 0, min(1, t.shape[at]))], at))),
    Wrong("shorter", of_dims(shorter)),
    Wrong("empty", of_dims(lambda t, at: t.narrow(at, 0, 0))),
    Wrong("inf inside", of_floats(lambda t, at: filled(t, at, math.inf))),
    Wrong("-1 inside", of_floats(lambda t, at: filled(t, at, -1.0))),
    Wrong("all zero", of_floats(lambda t, at: torch.zeros_like(t))),
    Wrong("gradient", of_floats(lambda t, at: t.detach().clone().requires_grad_())),
    Wrong("too high inside", of_integers(lambda t, at: filled(t, at, 1000))),
    Wrong("too low inside", of_integers(lambda t, at: filled(t, at, -1000))),
    Wrong("-1 among them", of_integers(lambda t, at: filled(t, at, -1))),
    Wrong("a parameter", of_floats(lambda t, at: nn.Parameter(t.detach().clone()))),
    Wrong("float of it", of(int, lambda n, at: float(n))),
    Wrong("one more", of((int, float), lambda n, at: n + 1)),
    Wrong("minus", of((int, float), lambda n, at: -n)),
    Wrong("one item more", of((tuple, list), lambda t, at: type(t)([*t, *t[:1]]))),
    Wrong("one item less", of((tuple, list), lambda t, at: t[1:])),
    Wrong("upper case", of(str, lambda s, at: s.upper())),
]  # fmt: skip
TENSORS = {"NaN inside", "meta device", "float64", "shorter", "longer", "a dimension less", "empty", "int64"}
INNER = [inside(w) for w in [*SURE, *EITHER] if w.name in TENSORS | {"None", "0", "-1", "a text", "an object"}]
CARRIED = [
    Wrong("moved to meta", moved("meta")),
    Wrong("moved to float64", moved(torch.float64)),
    Wrong("items of another shape", of_memories(fewer_features)),
    Wrong("no slots", of_memories(lambda m: SlotMemory.empty(m.event_shape))),
    Wrong("nothing in it", of_memories(lambda m: SlotMemory.reserve(2, m.event_shape))),
    Wrong("a memory a datum", of_memories(for_each_datum)),
]
RECORDS = [of_records(w) for w in [*SURE, *EITHER] if w.name in TENSORS]
WRONGS = {w.name: w for w in [*SURE, *SAME, *EITHER, *INNER, *CARRIED, *RECORDS]}
