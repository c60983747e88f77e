"""The tensors of a store: by name, as they are saved, and in the dtype in which they are read."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Num
from torch import Tensor

from pyro_memory.gate import checked


def named(tensors: Mapping[str, Tensor], *names: str, **others: None) -> dict[str, Tensor]:
    """Gives the tensors of a store by name; ``others`` may be missing.

    Raises:
        ValueError: if another is missing, or one is of another store.
    """
    wanted, missing = ", ".join(names), [name for name in names if name not in tensors]
    if missing or set(tensors) - {*names, *others}:
        raise ValueError(
            f"`tensors` must be what `to_tensors` of such a store gave, {wanted}; got {', '.join(tensors)}"
        )
    return dict(tensors)


@checked
def readable(contents: Num[Tensor, "..."]) -> Tensor:
    """Brings contents kept as integers or in half precision to the default dtype, in which networks read them."""
    return contents if contents.dtype in (torch.float32, torch.float64) else contents.to(torch.get_default_dtype())
