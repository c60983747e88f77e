"""The guide of a model without latents."""

from __future__ import annotations

from typing import Any

from pyro.nn import PyroModule

from pyro_memory.gate import checked
from pyro_memory.naming import unique_name


@checked
class EmptyGuide(PyroModule):
    """Samples nothing: with it and ``Trace_ELBO`` a model without latents is trained by maximum likelihood."""

    def __init__(self, *, name: str | None = None) -> None:
        super().__init__(name or unique_name(self))

    def forward(self, *args: Any, **kwargs: Any) -> None:
        pass
