"""The address in PyTorch: one pass over chunks of slots, and never a [batch, slot] matrix."""

import math

import torch
from torch import Tensor

from pyro_memory.kernels.dispatch import backward_in_own_precision

TILE = 2**18  # scores held at once: a megabyte of float32, which stays in the cache


def best_slots(
    query: Tensor, key: Tensor, nearest: int, mask: Tensor | None, chunk_size: int | None
) -> tuple[Tensor, Tensor]:
    """The slots of highest score and their scores, ``[B, nearest]``: the best of each chunk and of those before it."""
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


class StreamedAddress(torch.autograd.Function):
    """Sums over chunks relative to the largest score so far, rescaled when it grows."""

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
    @backward_in_own_precision
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
