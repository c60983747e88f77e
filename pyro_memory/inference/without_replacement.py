"""Draws without replacement, and what each of them stands for."""

from __future__ import annotations

import torch
from torch import Tensor


def draw_distinct(probs: Tensor, count: int) -> Tensor:
    """Draws ``count`` values one after another without replacement, ``[count, *batch]``: the largest perturbed logits.

    Where fewer values have mass, values without any come last.

    References: Stochastic Beams and Where to Find Them (Kool et al., 2019), https://arxiv.org/abs/1903.06059
    """
    gumbel = -torch.empty_like(probs).exponential_().log()
    return (probs.log() + gumbel).topk(count, -1).indices.movedim(-1, 0)


def chances_of_order(mass: Tensor, outside: Tensor) -> tuple[Tensor, Tensor]:
    r"""Computes which value came first, given all that were drawn without replacement but not their order.

    With M(C) the mass that is left once those in C are drawn, and H(C) the probability to draw the rest of the sample S
    after them, over the product of the rest's masses,

    .. math::
        H(S) = 1, \quad H(C) = \frac{1}{M(C)} \sum_{s \in S \setminus C} H(C + s), \quad
        P(s \text{ first} | S) = \frac{H(s)}{\sum_t H(t)}, \quad
        P(t \text{ second} | S, s \text{ first}) = \frac{H(s + t)}{\sum_u H(s + u)}.

    In the terms of Kool et al. the first is p(s) R(S, s), the second p(t) R^{-s}(S, t) / (1 - p(s)).

    Args:
        mass: of each value in S, ``[m, *batch]``, not normalised; a value of no mass is not in S.
        outside: the mass of all other values, ``[*batch]``.

    Returns:
        ``[s, *batch]`` and ``[s, t, *batch]``; zero where there is no such value.

    Cost: O(m 2^m) a cell.

    References: Estimating Gradients for Discrete Random Variables by Sampling without Replacement (Kool et al., 2020),
    https://openreview.net/forum?id=rklEj2EFvB
    """
    m, kind = len(mass), mass.dtype
    total = mass.sum(0) + outside
    mass, outside = (t.double() / total.masked_fill(total == 0, 1).double() for t in (mass, outside))
    there = (mass > 0).double()
    h: dict[int, Tensor] = {}

    def ways(drawn: int) -> Tensor:
        """H once each other value has come next, ``[m, *batch]``."""
        none = torch.zeros_like(outside)
        return torch.stack([none if drawn >> s & 1 else there[s] * h[drawn | 1 << s] for s in range(m)])

    for drawn in reversed(range(2**m)):
        left = torch.tensor([not drawn >> s & 1 for s in range(m)], device=mass.device)
        whole = (there[left] == 0).all(0)
        rest = (mass[left].sum(0) + outside).masked_fill(whole, 1)
        h[drawn] = torch.where(whole, 1, ways(drawn).sum(0) / rest)

    def share(each: Tensor) -> Tensor:
        every = each.sum(0)
        return (each / every.masked_fill(every == 0, 1)).to(kind)

    return share(ways(0)), torch.stack([there[s].to(kind) * share(ways(1 << s)) for s in range(m)])
