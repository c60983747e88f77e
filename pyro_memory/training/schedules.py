"""Learning-rate schedules for ``fit``."""

from __future__ import annotations

import math
from collections.abc import Callable

from pyro_memory.gate import checked


@checked
def warm_cosine(steps: int, *, warm: int = 100, floor: float = 0.05) -> Callable[[int], float]:
    """Gives the factor on the learning rate for each step: a linear rise, then half a cosine down to ``floor``.

    Args:
        steps: of the whole run; later ones stay at ``floor``.
        warm: steps of the rise.
        floor: the last factor, in [0, 1].

    References: SGDR (Loshchilov & Hutter, 2017), https://arxiv.org/abs/1608.03983
    """
    if steps < 1 or warm < 0 or not 0 <= floor <= 1:
        raise ValueError(
            f"`steps` must be at least 1, `warm` not negative and `floor` in [0, 1]; got {steps}, {warm} and {floor}"
        )

    def factor(step: int) -> float:
        rise = min(1.0, (step + 1) / warm) if warm else 1.0
        return rise * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(step / steps, 1.0))))

    return factor
