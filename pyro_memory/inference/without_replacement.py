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
    m, kind, batch = len(mass), mass.dtype, mass.shape[1:]
    masses = torch.cat([mass, outside.unsqueeze(0)]).reshape(m + 1, -1).double()
    masses = masses / masses.sum(0).clamp(min=torch.finfo(torch.double).tiny)
    there, bit = masses[:m] > 0, 1 << torch.arange(m, device=mass.device)
    left = torch.arange(2**m, device=mass.device).unsqueeze(-1) & bit == 0  # of each C, one a row
    whole = ~(left.unsqueeze(-1) & there).any(1)
    rest = (left.double() @ masses[:m] + masses[m]).masked_fill(whole, 1)
    h = torch.ones_like(rest)

    def ways(c: Tensor) -> Tensor:
        """H once each other value has come next, ``[C, m, cell]``."""
        return h[c.unsqueeze(-1) | bit] * (left[c].unsqueeze(-1) & there)

    def share(each: Tensor) -> Tensor:
        every = each.sum(-2, keepdim=True)
        return (each / every.masked_fill(every == 0, 1)).to(kind).reshape(*each.shape[:-1], *batch)

    for size in range(1, m):
        c = (left.sum(-1) == size).nonzero().squeeze(-1)
        h[c] = torch.where(whole[c], 1, ways(c).sum(1) / rest[c])
    return share(ways(torch.zeros_like(bit[:1])))[0], share(ways(bit) * there.unsqueeze(1))
