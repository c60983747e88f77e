"""Random generators that depend on a seed and an index only, so that batches come in any order and resume exactly."""

from __future__ import annotations

import torch


def generator_for(seed: int, *key: int) -> torch.Generator:
    """Gives a generator of its own to each key; neighbouring seeds and keys give unrelated streams."""
    mixed = seed
    for part in key:
        mixed = (mixed * 6364136223846793005 + part * 1442695040888963407 + 1) % (1 << 63)
    return torch.Generator().manual_seed(mixed ^ (mixed >> 31))
