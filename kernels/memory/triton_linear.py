"""The linear memory, M(x) = x W or x + LN(x W), forward: a walk over a row's chunks, and the reads, in it or after it.

W and S stay in the registers of the program that walks. Letters as in ``torch_form``, but D is a step down the loss.
"""

import triton
import triton.language as tl

from pyro_memory.kernels.memory.triton_gates import ROWS, load_end, load_G, load_reads
from pyro_memory.kernels.memory.triton_layers import descent, residual_norm
from pyro_memory.kernels.memory.triton_loads import (
    NUMBERS,
    chunk_of_program,
    load_matrix,
    load_tokens,
    row_of_program,
    store_matrix,
    store_tokens,
    tokens_of_chunk,
)
from pyro_memory.kernels.triton_parts import dot


@triton.jit
def _store_reads(
    p_y, b_q, b_k, b_D, b_W, b_S, p_G, p_rows, p_norm, i_h, o_t, o_o, inside, here, DO: tl.constexpr, BC: tl.constexpr,
    NORM: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """y, of z = diag(beta) Q W + diag(f) Q S + (G o Q K^T) D."""
    b_beta, b_f = load_reads(p_rows, BC)
    b_z = dot(b_beta * b_q, b_W, PRECISION)
    b_z = dot(b_f * b_q, b_S, PRECISION, b_z)
    b_z = dot(load_G(p_G, BC) * dot(b_q, tl.trans(b_k), PRECISION), b_D, PRECISION, b_z)
    if NORM:
        b_z = residual_norm(b_q, b_z, p_norm, i_h, o_o, DO)
    store_tokens(p_y, o_t, o_o, inside, DO, tl.where(here[:, None], b_z, 0.0))


@triton.jit(do_not_specialize=NUMBERS)
def linear_forward(
    p_q, p_k, p_v, p_G, p_rows, p_norm, p_lengths, p_y, p_state, p_kept, p_D,
    T, heads, first, last, kept_stride, wave,
    DI: tl.constexpr, DO: tl.constexpr, BI: tl.constexpr, BO: tl.constexpr, C: tl.constexpr, BC: tl.constexpr,
    NORM: tl.constexpr, LENGTHS: tl.constexpr, READS: tl.constexpr, KEEP: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Writes the state ``[2, DI, DO]`` in place, and y, or D where ``linear_read`` is to follow; may keep the state
    before every chunk."""
    i_r, i_h, length = row_of_program(p_lengths, heads, T, LENGTHS)
    dtype: tl.constexpr = p_state.dtype.element_ty
    low: tl.constexpr = tl.bfloat16 if PRECISION == "bf16" else dtype
    o_i, o_o = tl.arange(0, BI), tl.arange(0, BO)
    N: tl.constexpr = DI * DO
    p_k, p_v, p_state = p_k + i_r * T * DI, p_v + i_r * T * DO, p_state + i_r * 2 * N
    p_rows += i_r * (last - first) * ROWS * BC
    if READS:
        p_q, p_y, p_G = p_q + i_r * T * DI, p_y + i_r * T * DO, p_G + i_r * (last - first) * BC * BC
    else:
        p_D += i_r * (last - first) * C * DO
    if KEEP:
        p_kept += i_r * kept_stride
    b_W = load_matrix(p_state, o_i, o_o, DI, DO, dtype)
    b_S = load_matrix(p_state + N, o_i, o_o, DI, DO, dtype)

    for i_c in range(first, last):
        o_t, inside, here = tokens_of_chunk(i_c, length, T, C, BC)
        b_low_W = b_W.to(low)
        if KEEP:
            p_keep = p_kept + tl.cast(i_c - first, tl.int64) * 2 * N
            store_matrix(p_keep, o_i, o_o, DI, DO, b_low_W)
            store_matrix(p_keep + N, o_i, o_o, DI, DO, b_S)
        b_k = load_tokens(p_k, o_t, o_i, here, DI, low)  # [BC, BI]
        b_v = load_tokens(p_v, o_t, o_o, here, DO, low)  # [BC, BO]
        p_here = p_rows + (i_c - first) * ROWS * BC
        b_D = descent(dot(b_k, b_low_W, PRECISION), b_k, b_v, p_norm, i_h, o_o, DO, NORM)
        if READS:
            b_q = load_tokens(p_q, o_t, o_i, here, DI, low)
            _store_reads(
                p_y, b_q, b_k, b_D, b_low_W, b_S, p_G + (i_c - first) * BC * BC, p_here, p_norm, i_h, o_t, o_o, inside,
                here, DO, BC, NORM, PRECISION,
            )  # fmt: skip
        else:
            store_tokens(p_D, o_t - first * C, o_o, inside, DO, b_D)
        beta, f, m, b_end_G, b_end_P = load_end(p_here, BC)
        b_kT = tl.trans(b_k)
        b_W = dot(b_kT, b_end_G * b_D, PRECISION, beta * b_W + f * b_S)
        b_S = dot(b_kT, b_end_P * b_D, PRECISION, m * b_S)

    store_matrix(p_state, o_i, o_o, DI, DO, b_W)
    store_matrix(p_state + N, o_i, o_o, DI, DO, b_S)


@triton.jit(do_not_specialize=NUMBERS)
def linear_read(
    p_q, p_k, p_D, p_G, p_rows, p_norm, p_lengths, p_y, p_kept, T, heads, first, chunks, kept_stride, wave,
    DI: tl.constexpr, DO: tl.constexpr, BI: tl.constexpr, BO: tl.constexpr, C: tl.constexpr, BC: tl.constexpr,
    NORM: tl.constexpr, LENGTHS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Writes y of all chunks at once, from D and the states that the walk left."""
    i_p, i_c, i_r, i_h, length = chunk_of_program(p_lengths, heads, chunks, T, LENGTHS)
    low: tl.constexpr = tl.bfloat16 if PRECISION == "bf16" else p_rows.dtype.element_ty
    o_i, o_o = tl.arange(0, BI), tl.arange(0, BO)
    o_t, inside, here = tokens_of_chunk(first + i_c, length, T, C, BC)
    N: tl.constexpr = DI * DO
    p_kept += i_r * kept_stride + tl.cast(i_c, tl.int64) * 2 * N
    b_q = load_tokens(p_q + i_r * T * DI, o_t, o_i, here, DI, low)
    b_k = load_tokens(p_k + i_r * T * DI, o_t, o_i, here, DI, low)
    b_D = load_tokens(p_D + i_r * chunks * C * DO, o_t - first * C, o_o, here, DO, low)
    b_W = load_matrix(p_kept, o_i, o_o, DI, DO, low)
    b_S = load_matrix(p_kept + N, o_i, o_o, DI, DO, low)
    _store_reads(
        p_y + i_r * T * DO, b_q, b_k, b_D, b_W, b_S, p_G + i_p * BC * BC, p_rows + i_p * ROWS * BC, p_norm, i_h, o_t,
        o_o, inside, here, DO, BC, NORM, PRECISION,
    )  # fmt: skip
