"""The Triton kernels behind ``fused_address``: kernels, launcher, autograd.Function."""

import math

import torch
import triton
import triton.language as tl

from pyro_memory.kernels.address.triton_draw import draw
from pyro_memory.kernels.dispatch import backward_in_own_precision, float_precision, interpreting, on_device_of
from pyro_memory.kernels.triton_parts import FUSED, block, dot, place

LOWEST = tl.constexpr(-1.0e30)  # stands for minus infinity where a difference of two must stay a number
# For whose values nothing is compiled anew: it would be for 1 and for multiples of 16. Whether `dim` and `value_dim`
# are multiples decides how many bytes of a row are loaded at a time; `span` always is one.
NUMBERS = ("batch", "slots")
HALF = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


@triton.jit
def _load_rows(p, i, inside, o, width, dtype: tl.constexpr):
    """Rows i of ``width`` columns, zero where they are not inside; the cast follows the load."""
    mask = inside[:, None] & (o < width)[None, :]
    return tl.load(p + place(i[:, None], o[None, :], width), mask=mask, other=0.0).to(dtype)


@triton.jit
def _store_rows(p, i, inside, o, width, rows):
    tl.store(p + place(i[:, None], o[None, :], width), rows, mask=inside[:, None] & (o < width)[None, :])


@triton.jit
def _load_queries(
    p_query, p_g_read, i_b, batch, d, v, dim, value_dim, READ: tl.constexpr, SUM: tl.constexpr, KEY: tl.constexpr
):
    """A block of queries, [B, D], and the loss's derivative by what they read, [B, V]."""
    row = i_b < batch
    q = _load_rows(p_query, i_b, row, d, dim, KEY)
    g_read = tl.zeros([i_b.shape[0], v.shape[0]], SUM)
    if READ:
        g_read = _load_rows(p_g_read, i_b, row, v, value_dim, SUM)
    return q, g_read


@triton.jit
def _weigh(b_w, b_x, PRECISION: tl.constexpr):
    """b_w @ b_x. Two bfloat16 numbers hold 16 digits of a weight, and cost the products that tf32 takes for its 11."""
    if b_x.dtype == tl.bfloat16:
        b_high = b_w.to(tl.bfloat16)
        return tl.dot(b_high, b_x) + tl.dot((b_w - b_high.to(b_w.dtype)).to(tl.bfloat16), b_x)
    else:
        return dot(b_w, b_x.to(b_w.dtype), PRECISION)


@triton.jit
def _scores(q, p_key, p_mask, i_slot, d, slots, dim, MASKED: tl.constexpr, PRECISION: tl.constexpr):
    """The scores of one block of slots, [B, M]; LOWEST where there is no filled slot; and the keys, [M, D]."""
    inside = i_slot < slots
    k = _load_rows(p_key, i_slot, inside, d, dim, q.dtype)
    if MASKED:
        inside = inside & (tl.load(p_mask + i_slot, mask=inside, other=0) != 0)
    # Products of half precision are exact in float32.
    s = tl.dot(q, tl.trans(k)) if q.dtype.primitive_bitwidth == 16 else dot(q, tl.trans(k), PRECISION)
    return tl.where(inside[None, :], s, LOWEST), k, inside


@triton.jit
def _log_mass(mass, top):
    return tl.where(mass > 0, tl.log(tl.maximum(mass, 1.0e-37)) + top, float("-inf"))


@triton.jit(do_not_specialize=NUMBERS)
def _forward(
    p_query, p_key, p_value, p_prior, p_mask, p_sums, p_read, p_lse,
    batch, slots, dim, value_dim, span,
    B: tl.constexpr, M: tl.constexpr, D: tl.constexpr, V: tl.constexpr, DRAW: tl.constexpr,
    MASKED: tl.constexpr, PRIOR: tl.constexpr, READ: tl.constexpr, SUM: tl.constexpr, KEY: tl.constexpr,
    VALUE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One block of queries over one span of slots; sums are relative to the largest score of the span.

    For samples it leaves log-sum-exps, [splits + blocks, batch]: of the spans, then of their blocks of M slots.
    """
    i_span = tl.program_id(1)
    i_b = tl.program_id(0) * B + tl.arange(0, B)
    d, v = tl.arange(0, D), tl.arange(0, V)
    row = i_b < batch
    q = _load_rows(p_query, i_b, row, d, dim, KEY)
    top = tl.full([B], LOWEST, SUM)
    total, score, prior, outside = (tl.zeros([B], SUM), tl.zeros([B], SUM), tl.zeros([B], SUM), tl.zeros([B], SUM))
    read = tl.zeros([B, V], SUM)
    for start in range(i_span * span, tl.minimum((i_span + 1) * span, slots), M):
        i_slot = start + tl.arange(0, M)
        s, _, inside = _scores(q, p_key, p_mask, i_slot, d, slots, dim, MASKED, PRECISION)
        new = tl.maximum(top, tl.max(s, 1))
        w = tl.where(inside[None, :], tl.exp(s - new[:, None]), 0.0)
        old = tl.exp(top - new)
        mass = tl.sum(w, 1)
        score = old * (score + (top - new) * total) + tl.sum(w * tl.where(inside[None, :], s - new[:, None], 0.0), 1)
        total = old * total + mass
        if PRIOR:
            lp = tl.load(p_prior + i_slot, mask=inside, other=0.0).to(SUM)
            never = lp == float("-inf")
            prior = old * prior + tl.sum(w * tl.where(never, 0.0, lp)[None, :], 1)
            outside = old * outside + tl.sum(w * never.to(SUM)[None, :], 1)
        if READ:
            content = _load_rows(p_value, i_slot, inside, v, value_dim, VALUE)  # [M, V]
            read = old[:, None] * read + _weigh(w, content, PRECISION)
        if DRAW:
            tl.store(p_lse + place(tl.num_programs(1) + start // M, i_b, batch), _log_mass(mass, new), mask=row)
        top = new
    o_row = place(i_span, i_b, batch)
    p_row = p_sums + 5 * o_row
    tl.store(p_row, top, mask=row)
    tl.store(p_row + 1, total, mask=row)
    tl.store(p_row + 2, score, mask=row)
    tl.store(p_row + 3, prior, mask=row)
    tl.store(p_row + 4, outside, mask=row)
    if READ:
        _store_rows(p_read, o_row, row, v, value_dim, read)
    if DRAW:
        tl.store(p_lse + o_row, _log_mass(total, top), mask=row)


@triton.jit
def _slopes(
    q, g_read, i_b, i_slot, d, v, p_key, p_value, p_prior, p_mask, p_lse, p_constant, p_entropy_kl, p_kl,
    batch, slots, dim, value_dim,
    MASKED: tl.constexpr, PRIOR: tl.constexpr, READ: tl.constexpr, VALUE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Probabilities and the loss's derivative by the scores of one block, [B, M] each; and the keys, [M, D]."""
    row = i_b < batch
    s, k, inside = _scores(q, p_key, p_mask, i_slot, d, slots, dim, MASKED, PRECISION)
    live = row[:, None] & inside[None, :]
    log_p = tl.where(live, s - tl.load(p_lse + i_b, mask=row, other=0.0)[:, None], 0.0)
    p = tl.where(live, tl.exp(log_p), 0.0)
    slope = tl.load(p_constant + i_b, mask=row, other=0.0)[:, None]
    slope = slope + tl.load(p_entropy_kl + i_b, mask=row, other=0.0)[:, None] * log_p
    if PRIOR:
        lp = tl.load(p_prior + i_slot, mask=inside, other=0.0).to(g_read.dtype)
        slope = slope - tl.load(p_kl + i_b, mask=row, other=0.0)[:, None] * lp[None, :]
    if READ:
        content = _load_rows(p_value, i_slot, inside, v, value_dim, VALUE)  # [M, V]
        slope = slope + _weigh(g_read, tl.trans(content), PRECISION)
    return p, p * slope, k


@triton.jit(do_not_specialize=NUMBERS)
def _backward_query(
    p_query, p_key, p_value, p_prior, p_mask, p_lse, p_constant, p_entropy_kl, p_kl, p_g_read, p_d_query,
    batch, slots, dim, value_dim, span,
    B: tl.constexpr, M: tl.constexpr, D: tl.constexpr, V: tl.constexpr,
    MASKED: tl.constexpr, PRIOR: tl.constexpr, READ: tl.constexpr, SUM: tl.constexpr, KEY: tl.constexpr,
    VALUE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """What one span of slots adds to the gradient of one block of queries."""
    i_span = tl.program_id(1)
    i_b = tl.program_id(0) * B + tl.arange(0, B)
    d, v = tl.arange(0, D), tl.arange(0, V)
    q, g_read = _load_queries(p_query, p_g_read, i_b, batch, d, v, dim, value_dim, READ, SUM, KEY)
    d_query = tl.zeros([B, D], SUM)
    for start in range(i_span * span, tl.minimum((i_span + 1) * span, slots), M):
        _, d_score, k = _slopes(
            q, g_read, i_b, start + tl.arange(0, M), d, v, p_key, p_value, p_prior, p_mask, p_lse, p_constant,
            p_entropy_kl, p_kl, batch, slots, dim, value_dim, MASKED, PRIOR, READ, VALUE, PRECISION,
        )  # fmt: skip
        d_query += _weigh(d_score, k, PRECISION)
    o_row = place(i_span, i_b, batch)
    _store_rows(p_d_query, o_row, i_b < batch, d, dim, d_query)


@triton.jit(do_not_specialize=NUMBERS)
def _backward_slot(
    p_query, p_key, p_value, p_prior, p_mask, p_lse, p_constant, p_entropy_kl, p_kl, p_g_read,
    p_d_key, p_d_value, p_d_prior,
    batch, slots, dim, value_dim,
    B: tl.constexpr, M: tl.constexpr, D: tl.constexpr, V: tl.constexpr,
    MASKED: tl.constexpr, PRIOR: tl.constexpr, READ: tl.constexpr, SUM: tl.constexpr, KEY: tl.constexpr,
    VALUE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The gradient of one block of keys, values and log priors: over all queries."""
    i_slot = tl.program_id(0) * M + tl.arange(0, M)
    d, v = tl.arange(0, D), tl.arange(0, V)
    d_key, d_value, d_prior = tl.zeros([M, D], SUM), tl.zeros([M, V], SUM), tl.zeros([M], SUM)
    for start in range(0, batch, B):
        i_b = start + tl.arange(0, B)
        q, g_read = _load_queries(p_query, p_g_read, i_b, batch, d, v, dim, value_dim, READ, SUM, KEY)
        p, d_score, _ = _slopes(
            q, g_read, i_b, i_slot, d, v, p_key, p_value, p_prior, p_mask, p_lse, p_constant, p_entropy_kl, p_kl,
            batch, slots, dim, value_dim, MASKED, PRIOR, READ, VALUE, PRECISION,
        )  # fmt: skip
        d_key += _weigh(tl.trans(d_score), q, PRECISION)
        if READ:
            d_value += dot(tl.trans(p), g_read, PRECISION)
        if PRIOR:
            d_prior -= tl.sum(p * tl.load(p_kl + i_b, mask=i_b < batch, other=0.0)[:, None], 0)
    inside = i_slot < slots
    _store_rows(p_d_key, i_slot, inside, d, dim, d_key)
    if READ:
        _store_rows(p_d_value, i_slot, inside, v, value_dim, d_value)
    if PRIOR:
        tl.store(p_d_prior + i_slot, d_prior, mask=inside)


def _blocks(batch: int, dim: int, value_dim: int, dtype: torch.dtype, *, ahead: bool) -> dict[str, int]:
    """Block sizes: powers of two, at least the 16 that a product needs, within the 99 KB that smaller GPUs share;
    ``ahead``: of few queries, whose products take little, larger blocks of slots, loaded ahead of what is computed."""
    d, v = block(dim), block(value_dim)
    most = 2**14 // (max(d, v) * dtype.itemsize)  # rows of 16 KB of keys, and of values
    b = max(16, min(64, most, triton.next_power_of_2(batch)))
    ahead = ahead and b == 16
    m = min(128, 2 * most) if ahead else min(64, most)
    return {"B": b, "M": m, "D": d, "V": v, "num_stages": 2 if ahead or most > 64 else 1, **FUSED}


def _precision(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor | None, dtype: torch.dtype) -> dict:
    """The dtypes of sums and of what products take, and their precision where that is not half."""
    sums = tl.float64 if dtype == torch.float64 else tl.float32
    half = all(t.dtype in HALF for t in (query, key, value) if t is not None) and torch.version.hip is None
    own = HALF if not interpreting() else {}  # where there are none in bfloat16, those of tf32 stand for them
    keys = own.get(key.dtype, sums) if query.dtype == key.dtype else sums
    values = tl.bfloat16 if half and value is not None and own.get(value.dtype) == tl.bfloat16 else sums
    return {"SUM": sums, "KEY": keys, "VALUE": values, "PRECISION": "tf32" if half else float_precision(dtype)}


class TritonAddress(torch.autograd.Function):
    """The same results as the chunked form; slots are split over programs and the splits joined here."""

    @staticmethod
    def forward(ctx, query, key, value, log_prior, mask, filled, samples, generator):
        query, key = query.contiguous(), key.contiguous()
        value = None if value is None else value.contiguous()
        log_prior = None if log_prior is None else log_prior.contiguous()
        mask = None if mask is None else mask.contiguous().to(torch.int8)
        dtype = torch.float64 if query.dtype == torch.float64 else torch.float32
        (batch, dim), slots, value_dim = query.shape, len(key), 0 if value is None else value.shape[-1]
        blocks, ctx.blocks = (_blocks(batch, dim, value_dim, dtype, ahead=ahead) for ahead in (True, False))
        rows = max(1, triton.cdiv(batch, blocks["B"]))
        # About a thousand programs, each over whole blocks of slots.
        span = triton.cdiv(triton.cdiv(slots, max(1, 1024 // rows)), blocks["M"]) * blocks["M"]
        splits = triton.cdiv(slots, span)
        ctx.grid, ctx.span = (rows, splits), span
        sums = query.new_empty(splits, batch, 5, dtype=dtype)
        read = query.new_empty(splits, batch, value_dim, dtype=dtype)
        block_lse = query.new_empty(samples and splits + triton.cdiv(slots, blocks["M"]), batch, dtype=dtype)
        ctx.options = {"MASKED": mask is not None, "PRIOR": log_prior is not None, "READ": value is not None}
        ctx.options |= _precision(query, key, value, dtype)
        tensors = [query if t is None else t for t in (query, key, value, log_prior, mask)]  # a stand-in is never read
        with on_device_of(query):
            _forward[ctx.grid](
                *tensors, sums, read, block_lse, batch, slots, dim, value_dim, span,
                **blocks, **ctx.options, DRAW=samples > 0,
            )  # fmt: skip
        top, total, score, prior, outside = sums.unbind(-1)
        peak = top.amax(0)
        share = (top - peak).exp()
        score = (share * (score + (top - peak) * total)).sum(0)
        total, prior, outside = ((share * t).sum(0) for t in (total, prior, outside))
        lse, entropy = total.log() + peak, total.log() - score / total
        kl = math.log(filled) - entropy if log_prior is None else -entropy - prior / total
        kl = torch.where(outside > 0, math.inf, kl)
        read = None if value is None else (share.unsqueeze(-1) * read).sum(0) / total.unsqueeze(-1)
        ctx.save_for_backward(query, key, value, log_prior, mask, lse, entropy, kl, read)
        ctx.log_count = math.log(filled)
        if not samples:
            return lse, entropy, kl, read, None, None
        drawn, maxima = draw(query, key, mask, lse, block_lse, span, blocks["M"], samples, generator)
        ctx.mark_non_differentiable(drawn, maxima)
        return lse, entropy, kl, read, drawn, maxima

    @staticmethod
    @backward_in_own_precision
    def backward(ctx, g_lse, g_entropy, g_kl, g_read, *_):
        query, key, value, log_prior, mask, lse, entropy, kl, read = ctx.saved_tensors
        (batch, dim), slots, value_dim = query.shape, len(key), 0 if value is None else value.shape[-1]
        constant = g_lse - g_entropy * entropy - g_kl * kl
        if log_prior is None:
            constant = constant + g_kl * ctx.log_count
        if value is not None:
            constant = constant - (g_read * read).sum(-1)
            g_read = g_read.contiguous()
        shared = [query if t is None else t for t in (query, key, value, log_prior, mask)]
        shared += [lse, constant.contiguous(), (g_kl - g_entropy).contiguous(), g_kl.contiguous()]
        shared += [query if value is None else g_read]
        sizes = (batch, slots, dim, value_dim)
        d_query = d_key = d_value = d_prior = None
        if ctx.needs_input_grad[0]:
            d_query = lse.new_empty(ctx.grid[1], batch, dim)
            with on_device_of(query):
                _backward_query[ctx.grid](*shared, d_query, *sizes, ctx.span, **ctx.blocks, **ctx.options)
            d_query = d_query.sum(0).to(query.dtype)
        if any(ctx.needs_input_grad[1:4]):
            d_key = torch.empty_like(key)
            d_value, d_prior = (None if t is None else torch.empty_like(t) for t in (value, log_prior))
            grid = (triton.cdiv(slots, ctx.blocks["M"]),)
            outputs = [d_key if t is None else t for t in (d_key, d_value, d_prior)]
            with on_device_of(query):
                _backward_slot[grid](*shared, *outputs, *sizes, **ctx.blocks, **ctx.options)
        return d_query, d_key, d_value, d_prior, None, None, None, None
