"""Pyro modules that are plain modules where Pyro is not at work."""

from __future__ import annotations

import copyreg
from typing import Any

import torch
from pyro.nn import PyroModule
from pyro.poutine.runtime import am_i_wrapped
from torch import nn


class PlainModule(PyroModule):
    """Outside of Pyro's handlers a plain ``nn.Module``: it keeps out of Pyro's parameter store, and compiles whole.

    Where a weight is random a call is Pyro's wherever it comes from, so that it sees one draw.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling() or not (am_i_wrapped() or self._pyro_context.active or self._is_random()):
            return nn.Module.__call__(self, *args, **kwargs)
        return super().__call__(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if not self.__dict__["_pyro_context"].active:  # what Pyro would look for, it does not have: the quick way
            for group in ("_parameters", "_modules", "_buffers"):
                if name in self.__dict__[group]:
                    return self.__dict__[group][name]
        return super().__getattr__(name)

    def _is_random(self) -> bool:
        todo: list[Any] = [self]  # quicker than modules()
        for module in todo:
            if module is not None:
                if module.__dict__.get("_pyro_samples"):
                    return True
                todo += module._modules.values()
        return False


class PlainLinear(PlainModule, PyroModule[nn.Linear]):
    """A linear map whose weight and bias may be made random."""

    def __reduce__(self) -> Any:
        return copyreg.__newobj__, (PlainLinear,), self.__getstate__()  # Pyro's would make a copy of its own class
