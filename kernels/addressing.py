"""Reading a large memory by content: one pass over the slots and never a [batch, slot] matrix.

This file holds the public function and its definition in PyTorch, which is also how it runs on a CPU.
"""

import importlib.util
import math
from typing import NamedTuple

import torch
from torch import Tensor

TILE = 2**18  # scores held at once: a megabyte of float32, which stays in the cache
WIDEST, MOST_SAMPLES = 128, 128  # columns that a block of the Triton kernels holds, and draws of a query
MOST_ROWS = 2**30  # queries, and slots: the Triton kernels count them in 32 bits


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


def fused_address(
    query: Tensor,
    key: Tensor,
    *,
    value: Tensor | None = None,
    log_prior: Tensor | None = None,
    mask: Tensor | None = None,
    samples: int = 0,
    nearest: int = 0,
    chunk_size: int | None = None,
    generator: torch.Generator | None = None,
    backend: str = "auto",
) -> AddressRead:
    r"""Streams over the slots once and keeps what a stochastic address needs.

    With scores :math:`s_a = \langle q, k_a \rangle` and :math:`p_a = e^{s_a} / \sum_b e^{s_b}` it gives the
    log-sum-exp, the entropy of p, its KL to a prior, the soft read, exact samples and the slots of highest score. The
    gradient flows to queries, keys, values and the log prior; each chunk's scores are computed again for it.

    Samples are Gumbel-max: the maximum of ``s_a + noise`` over a chunk is ``logsumexp(chunk) + noise`` and independent
    of where it lies, so noise is drawn once a chunk, and a slot only where a chunk beats those before it.

    Args:
        query: ``[B, dim]``.
        key: ``[slot, dim]``, of any floating dtype; a chunk at a time is brought to the query's (half precision is
            summed in float32). It may map a file that is larger than memory.
        value: ``[slot, value]``, for the soft read.
        log_prior: log probabilities ``[slot]`` for the KL; uniform over the slots that are not masked by default.
        mask: boolean ``[slot]``, False where a slot is empty and has probability zero.
        samples: addresses to draw for each query.
        nearest: how many slots of highest score to find for each query.
        chunk_size: slots of a chunk; by default as many as keep a chunk's scores in the cache. Ignored by "triton".
        generator: of the samples. "triton" waits for one on the GPU, to know its number; by default it uses the CPU's.
        backend: "torch", "triton" (CUDA; Linux; at most 2^30 rows, 128 columns, 128 samples), or "auto": Triton if it
            can.

    Raises:
        ValueError: if shapes do not fit one another, nothing is left to read, or ``nearest`` exceeds the filled slots.

    Cost: O(B x slots x dim) time; O(B x chunk) memory beside inputs and results; the backward pass the same again. With
    a mask the call waits for the GPU to count the filled slots, and in each chunk of "torch" and of ``nearest``.

    References: Online normalizer calculation for softmax (Milakov & Gimelshein, 2018),
    https://arxiv.org/abs/1805.02867; A* Sampling (Maddison et al., 2014), https://arxiv.org/abs/1411.0030
    """
    filled = _check(query, key, value, log_prior, mask, samples, nearest, chunk_size)
    if backend not in ("auto", "torch", "triton"):
        raise ValueError(f'`backend` must be "auto", "torch" or "triton"; got {backend!r}')
    rows, columns = max(len(query), len(key)), max(query.shape[-1], 0 if value is None else value.shape[-1])
    fits = columns <= WIDEST and samples <= MOST_SAMPLES and rows <= MOST_ROWS
    if backend == "auto":
        nvidia = query.is_cuda and torch.version.hip is None
        backend = "triton" if nvidia and fits and importlib.util.find_spec("triton") else "torch"
    if backend == "triton":
        if not fits:
            raise ValueError(
                f'for backend="triton" `query` and `key` must have at most {MOST_ROWS} rows, they and `value` at most '
                f"{WIDEST} columns, and `samples` be at most {MOST_SAMPLES}; got {rows} rows, {columns} columns and "
                f'{samples} samples. Use "auto" or "torch"'
            )
        from pyro_memory.kernels.addressing_triton import TritonAddress

        parts = TritonAddress.apply(query, key, value, log_prior, mask, filled, samples, generator)
    else:
        parts = _Streamed.apply(query, key, value, log_prior, mask, filled, samples, chunk_size, generator)
    lse, entropy, kl, read, drawn, maxima = parts
    best = _nearest(query, key, nearest, mask, chunk_size) if nearest else (None, None)
    return AddressRead(lse, entropy, kl, read, drawn, maxima, *best)


def nearest_slots(
    query: Tensor, key: Tensor, nearest: int, *, mask: Tensor | None = None, chunk_size: int | None = None
) -> tuple[Tensor, Tensor]:
    """Finds the slots of highest score by looking at every one: their addresses and scores, ``[B, nearest]``.

    Arguments, errors and costs are those of ``fused_address``; the gradient of the scores reaches queries and keys.
    """
    _check(query, key, None, None, mask, 0, nearest, chunk_size)
    return _nearest(query, key, nearest, mask, chunk_size)


def _nearest(
    query: Tensor, key: Tensor, nearest: int, mask: Tensor | None, chunk_size: int | None
) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        scores, best = query.new_empty(len(query), 0, dtype=_sums(query)), None
        for slots, k in _chunks(query, key, mask, chunk_size):
            top = (query.to(k.dtype) @ k.mT).topk(min(nearest, len(k)), dim=-1)
            best = slots[top.indices] if best is None else torch.cat([best, slots[top.indices]], -1)
            kept = torch.cat([scores, top.values], -1).topk(min(nearest, best.shape[-1]), dim=-1)
            scores, best = kept.values, best.gather(-1, kept.indices)
    if torch.is_grad_enabled() and (query.requires_grad or key.requires_grad):
        scores = (query.unsqueeze(-2) * key[best].to(query.dtype)).sum(-1)
    return best, scores


def _check(query, key, value, log_prior, mask, samples, nearest, chunk_size) -> int:
    """How many slots are filled; counted once, since a GPU is waited for."""
    if query.dim() != 2 or key.dim() != 2 or query.shape[-1] != key.shape[-1]:
        raise ValueError(
            f"`query` must be [batch, dim] and `key` [slot, dim] with one dim; got {list(query.shape)} and "
            f"{list(key.shape)}"
        )
    slots = len(key)
    wanted = {"value": (value, 2), "log_prior": (log_prior, 1), "mask": (mask, 1)}
    for name, (tensor, dims) in wanted.items():
        if tensor is not None and (tensor.dim() != dims or len(tensor) != slots):
            shape = "[slot, value]" if dims == 2 else "[slot]"
            raise ValueError(f"`{name}` must be {shape} with {slots} slots, as `key` has; got {list(tensor.shape)}")
    if mask is not None and mask.dtype != torch.bool:
        raise ValueError(f"`mask` must be boolean, True where a slot is filled; got {mask.dtype}: use `mask.bool()`")
    filled = slots if mask is None else int(mask.sum())
    if not filled:
        raise ValueError("`key` must hold at least one slot that is not masked; got none. Write items first")
    if samples < 0 or not 0 <= nearest <= filled:
        raise ValueError(
            f"`samples` must not be negative and `nearest` must lie between 0 and the {filled} filled slots; got "
            f"{samples} and {nearest}"
        )
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"`chunk_size` must be at least 1 slot; got {chunk_size}")
    return filled


def _sums(query: Tensor) -> torch.dtype:
    """The dtype of scores and sums."""
    return torch.float32 if query.dtype in (torch.float16, torch.bfloat16) else query.dtype


def _chunks(query: Tensor, key: Tensor, mask: Tensor | None, chunk_size: int | None):
    """Yields the filled slots' addresses and keys, a chunk at a time."""
    size = chunk_size or max(128, TILE // max(1, len(query)))
    for start in range(0, len(key), size):
        slots = torch.arange(start, min(start + size, len(key)), device=key.device)
        k = key[start : start + size]
        if mask is not None:
            filled = mask[start : start + size]
            slots, k = slots[filled], k[filled]
        if len(slots):
            yield slots, k.to(_sums(query))


class _Streamed(torch.autograd.Function):
    """The definition: sums over chunks relative to the largest score so far, rescaled when it grows."""

    @staticmethod
    def forward(ctx, query, key, value, log_prior, mask, filled, samples, chunk_size, generator):
        q = query.to(_sums(query))
        top = q.new_full((len(q),), torch.finfo(q.dtype).min)
        total, score, prior, outside = (torch.zeros_like(top) for _ in range(4))
        read = None if value is None else q.new_zeros(len(q), value.shape[-1])
        maxima = q.new_full((samples, len(q)), -math.inf) if samples else None
        drawn = torch.zeros(samples, len(q), dtype=torch.long, device=q.device) if samples else None
        for slots, k in _chunks(query, key, mask, chunk_size):
            s = q @ k.mT
            new = torch.maximum(top, s.amax(-1))
            s.sub_(new.unsqueeze(-1))
            w = s.exp()
            old = (top - new).exp()
            mass = w.sum(-1)
            score = old * (score + (top - new) * total) + torch.linalg.vecdot(w, s)
            total = old * total + mass
            if log_prior is not None:
                lp = log_prior[slots].to(q.dtype)
                prior = old * prior + w @ lp.clamp(min=torch.finfo(q.dtype).min).masked_fill(lp == -math.inf, 0)
                outside = old * outside + w @ (lp == -math.inf).to(q.dtype)
            if value is not None:
                read = old.unsqueeze(-1) * read + w @ value[slots].to(q.dtype)
            if samples:
                _draw(drawn, maxima, slots, w, mass.log() + new, generator)
            top = new
        lse, mean = total.log() + top, score / total
        entropy = total.log() - mean
        if log_prior is None:
            kl = math.log(filled) - entropy
        else:
            kl = torch.where(outside > 0, math.inf, -entropy - prior / total)
        read = None if value is None else read / total.unsqueeze(-1)
        ctx.save_for_backward(query, key, value, log_prior, mask, lse, entropy, kl, read)
        ctx.chunk_size, ctx.log_count = chunk_size, math.log(filled)
        if samples:
            ctx.mark_non_differentiable(drawn, maxima)
        return lse, entropy, kl, read, drawn, maxima

    @staticmethod
    def backward(ctx, g_lse, g_entropy, g_kl, g_read, *_):
        query, key, value, log_prior, mask, lse, entropy, kl, read = ctx.saved_tensors
        q = query.to(_sums(query))
        wanted = [
            None if t is None or not needed else torch.zeros_like(t, dtype=q.dtype)
            for t, needed in zip((query, key, value, log_prior), ctx.needs_input_grad[:4], strict=True)
        ]
        d_query, d_key, d_value, d_prior = wanted
        for slots, k in _chunks(query, key, mask, ctx.chunk_size):
            log_p = (q @ k.mT).sub_(lse.unsqueeze(-1))
            p = log_p.exp()
            # What a score's own probability is multiplied with in each result's derivative.
            slope = (g_lse - g_entropy * entropy - g_kl * kl).unsqueeze(-1) + (g_kl - g_entropy).unsqueeze(-1) * log_p
            if log_prior is None:
                slope = slope + (g_kl * ctx.log_count).unsqueeze(-1)
            else:
                slope = slope - g_kl.unsqueeze(-1) * log_prior[slots].to(q.dtype)
            if value is not None:
                slope = slope + g_read @ value[slots].to(q.dtype).mT - (g_read * read).sum(-1, keepdim=True)
            d_score = p * slope
            if d_query is not None:
                d_query += d_score @ k
            if d_key is not None:
                d_key[slots] = d_score.mT @ q
            if d_value is not None:
                d_value[slots] = p.mT @ g_read
            if d_prior is not None:
                d_prior[slots] = -(g_kl @ p)
        cast = [
            None if g is None else g.to(t.dtype) for g, t in zip(wanted, (query, key, value, log_prior), strict=True)
        ]
        return *cast, None, None, None, None, None


def _draw(drawn: Tensor, maxima: Tensor, slots: Tensor, weights: Tensor, lse: Tensor, generator) -> None:
    """Moves the samples that this chunk wins to one of its slots, by weight."""
    noise = torch.empty_like(maxima).exponential_(generator=generator).log_().neg_()
    won = lse + noise > maxima
    rows = won.any(0).nonzero().squeeze(-1)
    if not len(rows):
        return
    mass = weights[rows].cumsum(-1, dtype=torch.float64)
    total = mass[:, -1:]
    uniform = torch.rand(len(rows), len(drawn), dtype=torch.float64, device=mass.device, generator=generator)
    # Below the total even when the product rounds up: the slot found then has a positive weight.
    level = torch.minimum(uniform * total, torch.nextafter(total, torch.zeros_like(total)))
    found = slots[torch.searchsorted(mass, level, right=True)].mT
    drawn[:, rows] = torch.where(won[:, rows], found, drawn[:, rows])
    torch.maximum(maxima, lse + noise, out=maxima)
