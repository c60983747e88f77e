"""What concepts are like before anything is known of them: the weak prior, learned from classes at hand."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from pyro_memory.distributions import NormalGamma
from pyro_memory.gate import checked

SUREST = 100.0  # alpha at most: however alike classes are, a concept's own width is learned from some ten episodes


@checked
def fit_concept_prior(
    loc: Float[Tensor, "group episode dim"], variance: Float[Tensor, "group episode dim"]
) -> dict[str, float]:
    r"""Learns the prior of concepts from groups of episodes that belong together, by empirical Bayes.

    .. math::
        \max_{\kappa, \alpha, \beta} \sum_g \log p(e_{g1}, \dots, e_{gn} | \kappa, \alpha, \beta)

    with the evidence of a group in closed form. How far episodes of one class lie apart decides whether one that comes
    back joins its concept or opens another: a prior that is too narrow opens a concept an episode, one that is too wide
    has concepts that swallow their neighbours.

    Args:
        loc, variance: embeddings of episodes, such as ``Recall.embed`` gives, of several a class: for tasks with many
            classes, embed several supports of each.

    Returns:
        ``prior_kappa``, ``prior_alpha`` and ``prior_beta``, for ``ConceptMemory.reserve``; ``prior_loc`` stays 0.

    Raises:
        ValueError: for fewer than two groups or two episodes of one.

    Cost: some hundred evaluations of O(group x episode x dim).

    References: Murphy (2007), https://www.cs.ubc.ca/~murphyk/Papers/bayesGauss.pdf
    """
    if len(loc) < 2 or loc.shape[1] < 2:
        raise ValueError(f"`loc` must hold two groups of two episodes or more; got {list(loc.shape[:2])}")
    loc, variance = loc.detach().double(), variance.detach().double()
    spread = loc.var(1).mean().item() + variance.mean().item()
    raw = torch.tensor([math.log(spread), -2.0, math.log(spread)], dtype=torch.float64, requires_grad=True)
    count, total, square = loc.shape[1], loc.sum(1), (loc.square() + variance).sum(1)

    def prior() -> NormalGamma:
        kappa, beta = raw[0].exp(), raw[2].exp()
        alpha = 1 + (SUREST - 1) * raw[1].sigmoid()
        each = (torch.zeros_like(kappa), kappa, alpha, alpha * beta)
        return NormalGamma(*(t.expand(1, loc.shape[-1]) for t in each))

    def lost() -> Tensor:
        optimizer.zero_grad()
        start = prior()
        ones = torch.full_like(total, float(count))
        after = NormalGamma.of_natural(start.natural() + torch.stack([ones, total, ones, square]))
        loss = (start.log_normalizer() - after.log_normalizer()).mean() / loc.shape[-1]
        loss.backward()
        return loss

    optimizer = torch.optim.LBFGS([raw], max_iter=200, line_search_fn="strong_wolfe")
    with torch.enable_grad():
        optimizer.step(lost)
    _, kappa, alpha, beta = (t[0, 0].item() for t in prior())
    return {"prior_kappa": kappa, "prior_alpha": alpha, "prior_beta": beta}
