"""Random numbers that depend on a seed and an index only, so that batches come in any order and resume exactly.

They are drawn on the CPU and in single precision whatever torch's default device and dtype: the same bits everywhere.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


def generator_for(seed: int, *key: int) -> torch.Generator:
    """Gives a generator of its own to each key; neighbouring seeds and keys give unrelated streams."""
    mixed = seed
    for part in key:
        mixed = (mixed * 6364136223846793005 + part * 1442695040888963407 + 1) % (1 << 63)
    return torch.Generator("cpu").manual_seed(mixed ^ (mixed >> 31))


def below(high: int, generator: torch.Generator, *shape: int) -> Int[Tensor, "*shape"]:
    """Draws whole numbers from 0 to ``high - 1``."""
    return torch.randint(high, shape, generator=generator, device="cpu")


def order(count: int, generator: torch.Generator) -> Int[Tensor, " count"]:
    """Draws a permutation of 0 to ``count - 1``."""
    return torch.randperm(count, generator=generator, device="cpu")


def uniform(generator: torch.Generator, *shape: int) -> Float[Tensor, "*shape"]:
    """Draws numbers from 0 to 1."""
    return torch.rand(shape, generator=generator, device="cpu", dtype=torch.float32)
