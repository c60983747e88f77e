"""The memory of two layers, for few rows: hidden units shared among programs walk the chunks, and the reads come after.

A program has BH hidden units of a row, whose W1, S1, W2 and S2 stay in its registers. What the key gives the last layer
is a sum over all units of a row, so its SHARDS programs exchange their parts once a chunk, by way of the L2 cache. They
wait for one another there. That ends, since a program takes the next ticket as it starts: then at most one row has
programs that wait for one not yet started, and the others run to their end.
"""

import triton
import triton.language as tl

from pyro_memory.kernels.memory.triton_gates import ROWS, load_end, load_G, load_reads
from pyro_memory.kernels.memory.triton_layers import act, act_and_slope, descent, residual_norm
from pyro_memory.kernels.memory.triton_loads import (
    NUMBERS,
    chunk_of_program,
    load_layers,
    load_tokens,
    row,
    store_layers,
    store_tokens,
    tokens_of_chunk,
)
from pyro_memory.kernels.triton_parts import dot


@triton.jit
def take_ticket(p_tickets, SHARDS: tl.constexpr):
    """The program's row, and which of the row's programs it is; rows in the order in which programs start."""
    ticket = tl.program_id(0)
    if SHARDS > 1:
        ticket = tl.atomic_add(p_tickets, 1)
    return (ticket // SHARDS).to(tl.int64), ticket % SHARDS


@triton.jit
def place_of_exchange(p_tickets, p_parts, i_r, size, SHARDS: tl.constexpr):
    """Where a row's programs count their arrivals, and where their parts of ``size`` numbers lie."""
    if SHARDS > 1:
        p_tickets += 1 + i_r
        p_parts += i_r * 2 * SHARDS * size
    return p_tickets, p_parts


@triton.jit
def exchange(b_part, p_parts, p_arrived, i_shard, i_time, SHARDS: tl.constexpr):
    """The sum of the parts ``[BC, BD]`` of a row's programs, in one order for all, so that all have the same bits.

    Parts of even and odd times lie apart: who writes anew has seen that all have read the last but one. ``p_arrived``
    counts the programs that have come here.
    """
    if SHARDS == 1:
        b_sum = b_part
    else:
        BC: tl.constexpr = b_part.shape[0]
        BD: tl.constexpr = b_part.shape[1]
        o_part = tl.arange(0, BC)[:, None] * BD + tl.arange(0, BD)[None, :]
        p_here = p_parts + (i_time % 2) * SHARDS * BC * BD + o_part
        tl.store(p_here + i_shard * BC * BD, b_part.to(p_parts.dtype.element_ty))
        tl.debug_barrier()  # all threads' parts are there before one says so
        tl.atomic_add(p_arrived, 1, sem="release", scope="gpu")
        while tl.atomic_add(p_arrived, 0, sem="acquire", scope="gpu") < SHARDS * (i_time + 1):
            pass
        tl.debug_barrier()
        b_sum = tl.load(p_here, cache_modifier=".cg").to(b_part.dtype)  # not from a multiprocessor's own cache
        for i in tl.static_range(1, SHARDS):
            b_sum += tl.load(p_here + i * BC * BD, cache_modifier=".cg").to(b_part.dtype)
    return b_sum


@triton.jit(do_not_specialize=NUMBERS)
def deep_walk(
    p_k, p_v, p_rows, p_norm, p_lengths, p_state, p_kept, p_D, p_tickets, p_parts,
    T, heads, first, last, kept_stride, wave,
    DI: tl.constexpr, DH: tl.constexpr, DO: tl.constexpr, BI: tl.constexpr, BH: tl.constexpr, BO: tl.constexpr,
    C: tl.constexpr, BC: tl.constexpr, ACTIVATION: tl.constexpr, NORM: tl.constexpr, LENGTHS: tl.constexpr,
    SHARDS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Writes the state (W1, W2, S1, S2) in place, D at the last layer, and keeps the state before every chunk."""
    i_r, i_s = take_ticket(p_tickets, SHARDS)
    i_h, length = row(i_r, p_lengths, heads, T, LENGTHS)
    dtype: tl.constexpr = p_state.dtype.element_ty
    low: tl.constexpr = tl.bfloat16 if PRECISION == "bf16" else dtype
    o_i, o_o, o_h = tl.arange(0, BI), tl.arange(0, BO), i_s * BH + tl.arange(0, BH)
    N: tl.constexpr = DI * DH + DH * DO
    p_k, p_v, p_rows = p_k + i_r * T * DI, p_v + i_r * T * DO, p_rows + i_r * (last - first) * 2 * ROWS * BC
    p_state, p_kept, p_D = p_state + i_r * 2 * N, p_kept + i_r * kept_stride, p_D + i_r * (last - first) * C * DO
    p_arrived, p_parts = place_of_exchange(p_tickets, p_parts, i_r, BC * BO, SHARDS)
    b_W1, b_W2 = load_layers(p_state, o_i, o_h, o_o, DI, DH, DO, dtype)
    b_S1, b_S2 = load_layers(p_state + N, o_i, o_h, o_o, DI, DH, DO, dtype)

    for i_c in range(first, last):
        o_t, inside, here = tokens_of_chunk(i_c, length, T, C, BC)
        p_rows1 = p_rows + (i_c - first) * 2 * ROWS * BC
        p_keep = p_kept + tl.cast(i_c - first, tl.int64) * 2 * N
        b_low1, b_low2 = b_W1.to(low), b_W2.to(low)
        store_layers(p_keep, o_i, o_h, o_o, b_low1, b_low2, DI, DH, DO)
        store_layers(p_keep + N, o_i, o_h, o_o, b_S1, b_S2, DI, DH, DO)
        b_k = load_tokens(p_k, o_t, o_i, here, DI, low)  # [BC, BI]
        b_h, b_slope = act_and_slope(dot(b_k, b_low1, PRECISION), ACTIVATION)  # [BC, BH]
        b_h, b_slope = b_h.to(low), b_slope.to(low)
        b_z2 = exchange(dot(b_h, b_low2, PRECISION), p_parts, p_arrived, i_s, i_c - first, SHARDS)
        b_v = load_tokens(p_v, o_t, o_o, here, DO, low)  # [BC, BO]
        b_D2 = descent(b_z2, b_k, b_v, p_norm, i_h, o_o, DO, NORM)
        store_tokens(p_D, o_t - first * C, o_o, inside & (o_t < tl.where(i_s == 0, T, 0)), DO, b_D2)
        b_D1 = dot(b_D2, tl.trans(b_low2), PRECISION) * b_slope
        beta, f, m, b_end_G, b_end_P = load_end(p_rows1, BC)
        b_kT, b_hT = tl.trans(b_k), tl.trans(b_h)
        b_W1 = dot(b_kT, b_end_G * b_D1, PRECISION, beta * b_W1 + f * b_S1)
        b_S1 = dot(b_kT, b_end_P * b_D1, PRECISION, m * b_S1)
        beta, f, m, b_end_G, b_end_P = load_end(p_rows1 + ROWS * BC, BC)
        b_W2 = dot(b_hT, b_end_G * b_D2, PRECISION, beta * b_W2 + f * b_S2)
        b_S2 = dot(b_hT, b_end_P * b_D2, PRECISION, m * b_S2)

    store_layers(p_state, o_i, o_h, o_o, b_W1, b_W2, DI, DH, DO)
    store_layers(p_state + N, o_i, o_h, o_o, b_S1, b_S2, DI, DH, DO)


@triton.jit(do_not_specialize=NUMBERS)
def deep_read(
    p_q, p_k, p_D, p_G, p_rows, p_norm, p_lengths, p_y, p_kept, T, heads, first, chunks, kept_stride, wave,
    DI: tl.constexpr, DH: tl.constexpr, DO: tl.constexpr, BI: tl.constexpr, BH: tl.constexpr, BO: tl.constexpr,
    C: tl.constexpr, BC: tl.constexpr, ACTIVATION: tl.constexpr, NORM: tl.constexpr, LENGTHS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Writes y of all chunks at once, from D and the states that the walk left."""
    i_p, i_c, i_r, i_h, length = chunk_of_program(p_lengths, heads, chunks, T, LENGTHS)
    dtype: tl.constexpr = p_rows.dtype.element_ty
    low: tl.constexpr = tl.bfloat16 if PRECISION == "bf16" else dtype
    o_i, o_o = tl.arange(0, BI), tl.arange(0, BO)
    o_t, inside, here = tokens_of_chunk(first + i_c, length, T, C, BC)
    N: tl.constexpr = DI * DH + DH * DO
    p_G, p_rows = p_G + i_p * 2 * BC * BC, p_rows + i_p * 2 * ROWS * BC
    p_kept += i_r * kept_stride + tl.cast(i_c, tl.int64) * 2 * N
    b_k = load_tokens(p_k + i_r * T * DI, o_t, o_i, here, DI, low)
    b_q = load_tokens(p_q + i_r * T * DI, o_t, o_i, here, DI, low)
    b_D2 = load_tokens(p_D + i_r * chunks * C * DO, o_t - first * C, o_o, here, DO, low)
    b_beta1, b_f1 = load_reads(p_rows, BC)
    b_beta2, b_f2 = load_reads(p_rows + ROWS * BC, BC)
    b_qW, b_qS = (b_beta1 * b_q).to(low), (b_f1 * b_q).to(low)
    b_GA1 = (load_G(p_G, BC) * dot(b_q, tl.trans(b_k), PRECISION)).to(low)
    b_A2 = tl.zeros([BC, BC], dtype)
    b_y = tl.zeros([BC, BO], dtype)
    for i_h2 in range((DH + BH - 1) // BH):
        o_h = i_h2 * BH + tl.arange(0, BH)
        b_W1, b_W2 = load_layers(p_kept, o_i, o_h, o_o, DI, DH, DO, low)
        b_S1, b_S2 = load_layers(p_kept + N, o_i, o_h, o_o, DI, DH, DO, low)
        b_h, b_slope = act_and_slope(dot(b_k, b_W1, PRECISION), ACTIVATION)
        b_D1 = dot(b_D2, tl.trans(b_W2), PRECISION) * b_slope
        b_x = dot(b_qS, b_S1, PRECISION, dot(b_qW, b_W1, PRECISION))
        b_x = act(dot(b_GA1, b_D1, PRECISION, b_x), ACTIVATION)
        b_y = dot(b_beta2 * b_x, b_W2, PRECISION, b_y)
        b_y = dot(b_f2 * b_x, b_S2, PRECISION, b_y)
        b_A2 = dot(b_x, tl.trans(b_h), PRECISION, b_A2)
    b_y = dot(load_G(p_G + BC * BC, BC) * b_A2, b_D2, PRECISION, b_y)
    if NORM:
        b_y = residual_norm(b_q, b_y, p_norm, i_h, o_o, DO)
    store_tokens(p_y + i_r * T * DO, o_t, o_o, inside, DO, tl.where(here[:, None], b_y, 0.0))
