"""Ranges, which annotations do not say: a function asks for them itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_memory.gate.tensors import readable_now


def check_least(least: float, **values: Any) -> None:
    """Raises a ValueError unless each number, and each of a sequence's, is ``least`` or more; None is passed over."""
    for name, value in values.items():
        items = value if isinstance(value, Sequence) else [value]
        if any(item is not None and not item >= least for item in items):
            each = "each of them " if isinstance(value, Sequence) else ""
            raise ValueError(f"`{name}` must be {each}at least {least}; got {value}")


def check_image_shape(shape: Sequence[int]) -> None:
    """Raises a ValueError unless ``shape`` is that of an image."""
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"`shape` must be (channels, height, width), each at least 1; got {tuple(shape)}")


def check_places(name: str, a: Tensor, count: int, what: str) -> None:
    """Raises a ValueError unless all addresses lie in 0 to ``count - 1``; looks on a CPU only, not in a compiler."""
    if not torch.compiler.is_compiling() and readable_now(a):
        low, high = (end.item() for end in a.aminmax())
        if low < 0 or high >= count:
            raise ValueError(f"`{name}` must be from 0 to {count - 1}, {what}; got {low if low < 0 else high}")
