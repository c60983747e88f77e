"""The tensors of a store: by name, as they are saved; finite; and in the dtype in which they are read."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from jaxtyping import Num
from torch import Tensor

from pyro_memory.gate import checked


def saved(tensors: Mapping[str, Tensor], *needed: str, also: Collection[str] = ()) -> dict[str, Tensor]:
    """Gives a copy of the mapping if it holds what ``to_tensors`` gave.

    Raises:
        ValueError: naming what is missing or too much.
    """
    missing, strange = sorted(set(needed) - set(tensors)), sorted(set(tensors) - {*needed, *also})
    if missing or strange:
        wrong = [f"{what}: {', '.join(names)}" for what, names in (("missing", missing), ("strange", strange)) if names]
        raise ValueError(f"`tensors` must be what `to_tensors` of the same class gave; {'; '.join(wrong)}")
    return dict(tensors)


def check_finite(name: str, tensor: Tensor, item: str, remedy: str) -> None:
    """Raises a ValueError that names the first row with NaN or infinity in it."""
    finite = torch.isfinite(tensor.detach())
    if not bool(finite.all()):
        place = (~finite).nonzero()[0].tolist()
        raise ValueError(f"`{name}` must be finite; got {tensor[tuple(place)].item()} in {item} {place[0]}. {remedy}")


@checked
def readable(contents: Num[Tensor, "..."]) -> Tensor:
    """Brings contents kept as integers or in half precision to the default dtype, in which networks read them."""
    return contents if contents.dtype in (torch.float32, torch.float64) else contents.to(torch.get_default_dtype())
