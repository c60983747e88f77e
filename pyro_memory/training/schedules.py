"""Learning-rate schedules for ``fit``."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

from pyro_memory.gate import checked, told


@runtime_checkable
class Schedule(Protocol):
    """Gives the factor on the learning rate for a step, counted from 0."""

    def __call__(self, step: int, /) -> float: ...


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


def check_schedule(schedule: Any) -> None:
    """Refuses what is no function of the step."""
    if schedule is not None and (isinstance(schedule, type) or not callable(schedule)):
        raise TypeError(
            "`schedule` must be a function from the step to a factor on `learning_rate`, such as warm_cosine(steps) or "
            f"lambda step: 0.999**step, not a scheduler of torch or Pyro; got {told(schedule)}"
        )


def factor_at(schedule: Schedule | None, step: int) -> float:
    """The factor of a step.

    Raises:
        ValueError: unless it is finite and not negative.
    """
    factor = 1.0 if schedule is None else float(schedule(step))
    if not 0 <= factor < math.inf:
        raise ValueError(f"`schedule` must give finite factors that are not negative; got {factor} at step {step}")
    return factor
