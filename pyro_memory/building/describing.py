"""From a pair of modules to what JSON holds of how they were built."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pyro_memory.building.names import PYRO, TORCH, NotRebuildable, name_of, name_of_call, name_of_function
from pyro_memory.gate import Held, Parts, Unknown, construction, told

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
OF_PLACE = ("device", "dtype", "_weight", "_freeze")  # of torch's constructors: not of what was built


@dataclass
class Description:
    """How a pair was built: what JSON holds, the tensors among the arguments, the user's classes by name."""

    build: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    own: dict[str, type] = field(default_factory=dict)


def describe(model: nn.Module, guide: nn.Module) -> Description:
    """Tells how a pair was built, by the records that constructors left.

    Raises:
        NotRebuildable: where no file can tell.
    """
    writer = _Writer()
    first = writer.built("model", model)
    writer.parts = {id(part): path for path, part in reversed(list(model.named_modules()))}
    second = {"part": ""} if guide is model else writer.built("guide", guide)
    shared = {"shared": writer.shared} if writer.shared else {}
    writer.description.build = shared | {"model": first, "guide": second}
    return writer.description


class _Writer:
    def __init__(self) -> None:
        self.description = Description()
        self.shared: dict[str, Any] = {}
        self.parts: dict[int, str] = {}  # of the model, once it is described
        self._seen: dict[int, dict[str, Any]] = {}

    def built(self, where: str, module: nn.Module) -> list[Any]:
        """The constructor of a module and its arguments."""
        if hasattr(module, "_orig_mod"):
            raise NotRebuildable(
                f"`{where}` is what torch.compile made: save the module that it was given, or compile that in place, "
                "`module.compile()`"
            )
        own = self.description.own
        try:
            name = name_of(type(module), own)
        except NotRebuildable as error:
            raise NotRebuildable(f"`{where}`: {error}") from None
        if name.startswith((TORCH, PYRO)):
            return [name, self._of_torch(where, module)]
        made = construction(module)
        if made is None:
            raise NotRebuildable(
                f"`{where}`, {told(module)}, has no record of its constructor: it was unpickled from an older version, "
                "or built while torch compiled. Build it anew"
            )
        name = name if made.method is None else f"{name}.{made.method}"
        told_of = {k: self.argument(f"{k}` of `{where}", v, module) for k, v in made.arguments.items()}
        return [name, told_of]

    def part(self, where: str, module: nn.Module) -> dict[str, Any]:
        """A module among the arguments: built first, once for all that have it."""
        if (node := self._seen.get(id(module))) is not None:
            if "build" in node:
                name = next(n for n in _names(where) if n not in self.shared)
                self.shared[name] = node.pop("build")
                node["shared"] = name
            return dict(node)
        if id(module) in self.parts:
            return {"part": self.parts[id(module)]}
        node = self._seen[id(module)] = {"build": None}
        node["build"] = self.built(where, module)
        return node

    def argument(self, where: str, value: Any, owner: nn.Module) -> Any:
        """An argument as JSON holds it."""

        def inner(item: Any) -> Any:
            return self.argument(where, item, owner)

        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        if isinstance(value, Held):
            return self._held(where, value.path, owner)
        if isinstance(value, nn.Module):
            return self.part(where, value)
        if isinstance(value, Tensor):
            return self._tensor(value)
        if isinstance(value, torch.dtype):
            return {"dtype": str(value).removeprefix("torch.")}
        if isinstance(value, torch.Size):
            return {"size": list(value)}
        if isinstance(value, (list, tuple)):
            items = [inner(item) for item in value]
            return items if isinstance(value, list) else {"tuple": items}
        if isinstance(value, dict):
            return {"dict": {key: inner(item) for key, item in value.items()}}
        if isinstance(value, Parts):
            return {"build": [name_of(value.kind, self.description.own), value.arguments]}
        return {"function": name} if (name := name_of_function(value)) else self._class(where, value, inner)

    def _class(self, where: str, value: Any, inner: Any) -> Any:
        try:
            if isinstance(value, partial):
                keywords = {key: inner(item) for key, item in value.keywords.items()}
                first = {"*": [inner(item) for item in value.args]} if value.args else {}
                return {"partial": [name_of_call(value.func, self.description.own), first | keywords]}
            if not isinstance(value, Unknown):
                return {"class": name_of_call(value, self.description.own)}
        except NotRebuildable as error:
            raise NotRebuildable(f"`{where}`: {error}") from None
        raise NotRebuildable(
            f"`{where}` is {value.what}, which no file can tell: give what `save` can write (a class, a "
            "`functools.partial` of one, a module that becomes a part, a tensor, plain values)"
        )

    def _held(self, where: str, path: str, owner: nn.Module) -> Any:
        found = dict(owner.named_modules()).get(path, vars(owner).get(path, owner.state_dict().get(path)))
        if isinstance(found, nn.Module):
            return self.part(where, found)
        if isinstance(found, Tensor):
            return self._tensor(found)
        raise NotRebuildable(f"`{where}` was its part `{path}`, which is gone: build it anew with the part that it has")

    def _tensor(self, tensor: Tensor) -> dict[str, str]:
        key = f"build.{len(self.description.tensors)}"
        self.description.tensors[key] = tensor.detach()
        return {"parameter" if isinstance(tensor, nn.Parameter) else "tensor": key}

    def _of_torch(self, where: str, module: nn.Module) -> dict[str, Any]:
        """The arguments of a module of torch's, read off its attributes of the same names."""
        if isinstance(module, CONTAINERS):
            parts = {name: self.part(f"{where}.{name}", part) for name, part in module.named_children()}
            if isinstance(module, nn.ModuleList):
                return {"modules": [*parts.values()]}
            if isinstance(module, nn.ModuleDict):
                return {"modules": {"dict": parts}}
            numbered = list(parts) == [str(i) for i in range(len(parts))]
            return {"*": [*parts.values()]} if numbered else {"named": {"dict": parts}}
        given = {name: _attribute(module, name) for name in _parameters(type(module)) if hasattr(module, name)}
        usual = {name: p.default for name, p in _parameters(type(module)).items()}
        return {
            name: self.argument(f"{name}` of `{where}", value, module)
            for name, value in given.items()
            if not (type(value) is type(usual[name]) and value == usual[name])
        }


def _parameters(kind: Any) -> dict[str, inspect.Parameter]:
    """A constructor's arguments, those of its base's where it hands on all."""
    for base in kind.__mro__:
        parameters: Mapping[str, inspect.Parameter] = inspect.signature(base.__init__).parameters
        if not any(p.kind == p.VAR_POSITIONAL for p in parameters.values()) or base is nn.Module:
            break
    passed = {"self", "args", "kwargs", "mode", *OF_PLACE}  # the mode of an LSTM is its class
    return {name: p for name, p in parameters.items() if name not in passed}


def _attribute(module: nn.Module, name: str) -> Any:
    """An argument of a torch module: where it is a weight, whether there is one; where it is a part, its place."""
    value = getattr(module, name)
    if name == "bias" or (isinstance(value, Tensor) and name in module._parameters):
        return isinstance(value, Tensor) or bool(value)
    return value


def _names(where: str) -> Iterable[str]:
    name = where.partition("`")[0].rpartition(".")[2] or "part"
    yield name
    yield from (f"{name}_{i}" for i in range(2, 10**6))
