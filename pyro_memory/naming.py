"""Names that keep two instances of one class apart in Pyro's global parameter store, and how instances print."""

import inspect
from itertools import count
from typing import Any

from torch import Tensor

from pyro_memory.gate import told

_instances = count(1)


def unique_name(module: object) -> str:
    """Names a root module: its class and a number that no other module of this process has."""
    return f"{type(module).__name__}_{next(_instances)}"


def call_of(thing: object) -> str:
    """The call that made an instance, in one line: its first argument, and what differs from its default."""
    parameters = inspect.signature(type(thing)).parameters.values()
    given = {p.name: vars(thing)[p.name] for p in parameters if p.name in vars(thing)}
    usual = {p.name: p.default for p in parameters}
    shown = [n for i, n in enumerate(given) if i == 0 or not _same(given[n], usual[n])]
    text = f"{type(thing).__name__}({', '.join(f'{n}={_brief(given[n])}' for n in shown)})"
    return text if len(text) <= 120 else f"{text[:116]}...)"


def _same(value: Any, default: Any) -> bool:
    return value is default or (isinstance(value, (int, float, str, bool, tuple)) and value == default)


def _brief(value: Any) -> str:
    if isinstance(value, Tensor):
        return str(value.tolist()) if value.numel() <= 5 else told(value)
    text = "" if type(value).__repr__ is object.__repr__ else repr(value)
    return text if text and len(text) <= 60 and "\n" not in text else told(value)
