"""Which argument of a call is the memory."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from pyro_memory.stores import ConceptMemory, EpisodicMemory, SlotMemory, StructuredMemory

STORES = (SlotMemory, ConceptMemory, EpisodicMemory, StructuredMemory)


@dataclass(frozen=True)
class Place:
    """An argument of a call: a position, or a name."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    key: int | str

    @property
    def value(self) -> Any:
        """What is given there; None where nothing is."""
        if isinstance(self.key, str):
            return self.kwargs.get(self.key)
        return self.args[self.key]

    def with_value(self, value: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of the call with another value there."""
        if isinstance(self.key, str):
            return self.args, {**self.kwargs, self.key: value}
        return (*self.args[: self.key], value, *self.args[self.key + 1 :]), self.kwargs


def find_memory(model: Callable, args: tuple, kwargs: dict, which: str | int | None) -> Place:
    """Finds the memory among the arguments, by name, by position, or because one of them alone is a store."""
    names = _parameters(model)
    if which is None:
        stores = [i for i, a in enumerate(args) if isinstance(a, STORES)]
        stores += [n for n, a in kwargs.items() if isinstance(a, STORES)]  # type: ignore[misc]
        if not stores and "memory" in names and getattr(model, "templates", None) is not None:
            which = "memory"  # what is read where nothing is given are the model's own
        elif len(stores) == 1:
            return Place(args, kwargs, stores[0])
        else:
            found = ", ".join(repr(names[i]) if isinstance(i, int) and i < len(names) else repr(i) for i in stores)
            stand = (
                f"{found} are stores"
                if stores
                else f"none of {', '.join(map(repr, names))} is a store, such as SlotMemory"
            )
            raise ValueError(f"`memory` must say which argument it is, by its name or position: {stand}")
    if isinstance(which, str):
        if which in names and names.index(which) < len(args):
            return Place(args, kwargs, names.index(which))
        if which in kwargs or which in names:
            return Place(args, kwargs, which)
    elif -len(args) <= which < len(args):
        return Place(args, kwargs, which % len(args))
    elif len(args) <= which < len(names):
        return Place(args, kwargs, names[which])
    raise ValueError(
        f"`memory` must be the name of an argument of the model, of {', '.join(names) or 'none'}, or a position below "
        f"{max(len(args), len(names))}; got {which!r}"
    )


def _parameters(program: Callable) -> list[str]:
    """The names of a program's positional parameters, in order."""
    try:
        signature = inspect.signature(program.forward if isinstance(program, nn.Module) else program)
    except (TypeError, ValueError):  # it does not tell
        return []
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [name for name, p in signature.parameters.items() if p.kind in kinds]
