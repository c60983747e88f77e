"""What a read of a large memory by content computes, from the whole matrix of scores: the specification."""

import math
from typing import NamedTuple

import torch
from torch import Tensor


class AddressRead(NamedTuple):
    """What one pass over the slots gives, for each of B queries; a part that was not asked for is None.

    Attributes:
        logsumexp: ``log sum_a exp <q, k_a>``, ``[B]``.
        entropy: of the address ``p_a = softmax_a <q, k_a>``, nats, ``[B]``.
        kl: ``KL(p || prior)``, nats, ``[B]``.
        read: the soft read ``sum_a p_a v_a``, ``[B, value]``.
        samples: addresses drawn from p, ``[sample, B]``.
        maxima: their Gumbel-perturbed log weights, ``logsumexp + Gumbel noise``, ``[sample, B]``: of several shards,
            the one with the largest maximum holds the sample of all.
        best: the slots of highest score, best first, ``[B, nearest]``.
        best_scores: their scores, ``[B, nearest]``.
    """

    logsumexp: Tensor
    entropy: Tensor
    kl: Tensor
    read: Tensor | None
    samples: Tensor | None
    maxima: Tensor | None
    best: Tensor | None
    best_scores: Tensor | None


def dense_address(
    query: Tensor,
    key: Tensor,
    *,
    value: Tensor | None = None,
    log_prior: Tensor | None = None,
    mask: Tensor | None = None,
    nearest: int = 0,
) -> AddressRead:
    """Computes what ``fused_address`` does, but for its samples: draws from the p written here."""
    filled = torch.arange(len(key), device=key.device) if mask is None else mask.nonzero().squeeze(-1)
    scores = query @ key[filled].mT  # [B, filled slots]
    log_p = scores.log_softmax(-1)
    p = log_p.exp()
    log_prior = -math.log(len(filled)) if log_prior is None else log_prior[filled]
    read = None if value is None else p @ value[filled]
    best = best_scores = None
    if nearest:
        best_scores, best = scores.topk(nearest)
        best = filled[best]
    entropy, kl = -(p * log_p).sum(-1), (p * (log_p - log_prior)).sum(-1)
    return AddressRead(scores.logsumexp(-1), entropy, kl, read, None, None, best, best_scores)
