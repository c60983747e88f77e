"""From what JSON holds of how a pair was built to the pair."""

from __future__ import annotations

import inspect
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import count
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from pyro_memory.building.names import constructor_of, function_of
from pyro_memory.gate import NAMES

# What an argument may be beside what JSON has words for.
KINDS = (
    "build", "class", "dict", "dtype", "function", "parameter", "part", "partial", "shared", "size", "tensor", "tuple",
)  # fmt: skip
_again = count(2)


def make(build: Mapping[str, Any], tensors: Mapping[str, Tensor], own: Mapping[str, type]) -> nn.ModuleDict:
    """Builds a pair; its weights are those that constructors draw.

    Random streams stay as they are.

    Raises:
        ValueError: for a class that no room exports and the caller did not hand in.
        LookupError, AttributeError, TypeError: for what is no build.
    """
    with untouched():
        maker = _Maker(build.get("shared", {}), tensors, own)
        pair = nn.ModuleDict({"model": maker.built(build["model"])})
        maker.model = pair["model"]
        guide = build["guide"]
        pair["guide"] = maker.value(guide) if isinstance(guide, Mapping) else maker.built(guide)
    for path, value in build.get("set", {}).items():
        place, _, name = path.rpartition(".")
        _set(pair.get_submodule(place), name, value)
    return pair


class _Maker:
    def __init__(self, shared: Mapping[str, Any], tensors: Mapping[str, Tensor], own: Mapping[str, type]) -> None:
        self.specs, self.tensors, self.own = dict(shared), tensors, own
        self.shared: dict[str, nn.Module] = {}
        self.model: nn.Module | None = None

    def built(self, spec: Any) -> Any:
        call, arguments = constructor_of(spec[0], self.own), dict(spec[1])
        if "named" in arguments:
            return call(OrderedDict(self.value(arguments["named"])))
        first = [self.value(item) for item in arguments.pop("*", ())]
        return call(*first, **{name: self.value(item) for name, item in arguments.items()})

    def value(self, told: Any) -> Any:
        if isinstance(told, list):
            return [self.value(item) for item in told]
        kind = next(iter(told)) if isinstance(told, Mapping) and len(told) == 1 else None
        return getattr(self, f"_{kind}")(told[kind]) if kind in KINDS else told

    def _build(self, what: Any) -> Any:
        return self.built(what)

    def _partial(self, what: Any) -> Any:
        arguments = {name: self.value(item) for name, item in what[1].items()}
        return partial(constructor_of(what[0], self.own), *arguments.pop("*", ()), **arguments)

    def _shared(self, what: str) -> nn.Module:
        if what not in self.shared:
            self.shared[what] = self.built(self.specs.pop(what))  # out of reach, so that a circle ends in an error
        return self.shared[what]

    def _part(self, what: str) -> nn.Module:
        if self.model is None:
            raise LookupError("a part of the model is wanted before there is one")
        return self.model.get_submodule(what)

    def _class(self, what: str) -> Any:
        return constructor_of(what, self.own)

    def _function(self, what: str) -> Any:
        if (found := function_of(what)) is None:
            raise ValueError(f"`build` must name a function of torch.nn.functional; got {what!r}")
        return found

    def _tuple(self, what: Any) -> tuple[Any, ...]:
        return tuple(self.value(item) for item in what)

    def _dict(self, what: Any) -> dict[str, Any]:
        return {key: self.value(item) for key, item in what.items()}

    def _size(self, what: Any) -> torch.Size:
        return torch.Size(what)

    def _dtype(self, what: str) -> torch.dtype:
        found = getattr(torch, what)
        if not isinstance(found, torch.dtype):
            raise TypeError(f"{what!r} is no dtype")
        return found

    def _tensor(self, what: str) -> Tensor:
        return self.tensors[what].clone()

    def _parameter(self, what: str) -> Tensor:
        return nn.Parameter(self.tensors[what].clone())


def apart(pair: nn.ModuleDict) -> nn.ModuleDict:
    """Gives modules another name where one of this process has theirs, so that Pyro's parameter store keeps them apart.

    Where names of sample sites are made of it, as by ``PyroSample``, it stays: model and guide meet by these.
    """
    own = {id(module): module for module in pair.modules()}
    others = {module._pyro_name for key, module in [*NAMES.items()] if key not in own}
    stored = pyro.get_param_store().keys()
    for module in (NAMES[key] for key in own if key in NAMES):
        name = module._pyro_name
        if name not in others and not any(key.startswith((f"{name}.", f"{name}$$$")) for key in stored):
            continue
        if not any(vars(part).get("_pyro_samples") for part in module.modules()):
            free = next(new for i in _again if (new := f"{name}_{i}") not in others)
            module._pyro_set_supermodule(free, module._pyro_context)
        elif any(True for _ in module.parameters()):
            warnings.warn(
                f"`{name}` is the name of another module of this process, or of parameters in Pyro's store, and stays "
                "that of the loaded one, as its sample sites are called by it: the two would share parameters. Call "
                "pyro.clear_param_store() between the use of the one and of the other",
                stacklevel=2,
            )
    return pair


def _set(module: nn.Module, name: str, value: Any) -> None:
    """Gives a plain attribute its value, be it the class's; what is none, or of another kind than plain, stays."""
    if not name.startswith("_") and _plain(inspect.getattr_static(module, name, ...)) and _plain(value):
        setattr(module, name, value)


def _plain(value: Any) -> bool:
    return value is None or type(value) in (bool, int, float, str)


@contextmanager
def untouched() -> Iterator[None]:
    """Leaves the global random streams as they were."""
    state = pyro.util.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    try:
        yield
    finally:
        pyro.util.set_rng_state(state)
        for device, of_it in enumerate(cuda):
            torch.cuda.set_rng_state(of_it, device)
