"""The backward pass of the linear memory in three: what the reads send back, a walk, what the keys send back.

Only the gradients of the state, gW and gS, and of D wait for what comes after a chunk. So the reads' way back is taken
for all chunks at once and leaves its part of both; the walk goes from the last chunk to the first with three products a
chunk, and keeps gW, gS after each chunk and the gradient at D; and the rest, again for all chunks, follows from these.
"""

import triton
import triton.language as tl

from pyro_memory.kernels.memory.triton_gates import (
    ROWS,
    load_end,
    load_G,
    load_reads,
    store_end_gradients,
    store_G_gradient,
    store_read_gradients,
    store_row_gradients,
)
from pyro_memory.kernels.memory.triton_layers import (
    descent_backward,
    load_descent,
    read_norm_backward,
    store_descent,
)
from pyro_memory.kernels.memory.triton_loads import (
    NUMBERS,
    add_norm_gradients,
    chunk_of_program,
    load_matrix,
    load_tokens,
    row_of_program,
    store_matrix,
    store_norm_gradients,
    store_tokens,
    tokens_of_chunk,
)
from pyro_memory.kernels.triton_parts import dot


@triton.jit(do_not_specialize=NUMBERS)
def linear_back_reads(
    p_dy, p_q, p_k, p_v, p_G, p_rows, p_norm, p_lengths, p_kept, p_dq, p_dk, p_dweights, p_dnorm,
    p_D, p_n, p_numbers, p_dD, p_dstates, T, heads, first, chunks, kept_stride, wave,
    DI: tl.constexpr, DO: tl.constexpr, BI: tl.constexpr, BO: tl.constexpr, C: tl.constexpr, BC: tl.constexpr,
    NORM: tl.constexpr, LENGTHS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Writes dq, the reads' part of dk, of the gradients at D and at the chunk's first state, of G, beta and f."""
    i_p, i_c, i_r, i_h, length = chunk_of_program(p_lengths, heads, chunks, T, LENGTHS)
    dtype: tl.constexpr = p_rows.dtype.element_ty
    low: tl.constexpr = tl.bfloat16 if PRECISION == "bf16" else dtype
    o_i, o_o = tl.arange(0, BI), tl.arange(0, BO)
    o_t, inside, here = tokens_of_chunk(first + i_c, length, T, C, BC)
    o_s = o_t - first * C  # where a token lies in what is kept of these chunks alone
    N: tl.constexpr = DI * DO
    i_s = i_r * chunks * C
    p_kept += i_r * kept_stride + tl.cast(i_c, tl.int64) * 2 * N
    p_dstates, p_rows, p_dweights = (
        p_dstates + i_p * 2 * N,
        p_rows + i_p * ROWS * BC,
        p_dweights + i_p * (BC + ROWS) * BC,
    )
    b_k = load_tokens(p_k + i_r * T * DI, o_t, o_i, here, DI, low)
    b_v = load_tokens(p_v + i_r * T * DO, o_t, o_o, here, DO, low)
    b_W = load_matrix(p_kept, o_i, o_o, DI, DO, low)
    b_D = store_descent(
        dot(b_k, b_W, PRECISION), b_k, b_v, p_norm, i_h, o_o, p_D + i_s * DO, p_n + i_s * DO, p_numbers + i_p * 2 * BC,
        o_s, inside, DO, NORM,
    )  # fmt: skip

    b_q = load_tokens(p_q + i_r * T * DI, o_t, o_i, here, DI, low)
    b_S = load_matrix(p_kept + N, o_i, o_o, DI, DO, low)
    b_beta, b_f = load_reads(p_rows, BC)
    b_G = load_G(p_G + i_p * BC * BC, BC)
    b_A = dot(b_q, tl.trans(b_k), PRECISION)
    b_dz = load_tokens(p_dy + i_r * T * DO, o_t, o_o, here, DO, dtype)
    b_dq = tl.zeros([BC, BI], dtype)
    if NORM:
        b_z = dot(b_beta * b_q, b_W, PRECISION)
        b_z = dot(b_f * b_q, b_S, PRECISION, b_z)
        b_z = dot(b_G * b_A, b_D, PRECISION, b_z)
        b_dq += b_dz  # q stands beside LN
        b_db = tl.sum(b_dz, 0)
        b_dz, b_dw = read_norm_backward(b_dz, b_z, p_norm, i_h, o_o, DO)
        store_norm_gradients(p_dnorm + i_p * 2 * DO, o_o, DO, b_dw, b_db)
    store_tokens(p_dD + i_s * DO, o_s, o_o, inside, DO, dot(tl.trans(b_G * b_A), b_dz, PRECISION))
    b_dM = dot(b_dz, tl.trans(b_D), PRECISION)
    store_G_gradient(p_dweights, b_dM * b_A, BC)
    b_dA = (b_dM * b_G).to(low)
    store_tokens(p_dk + i_r * T * DI, o_t, o_i, inside, DI, dot(tl.trans(b_dA), b_q, PRECISION))
    b_dq = dot(b_dA, b_k, PRECISION, b_dq)
    b_by_W, b_by_S = dot(b_dz, tl.trans(b_W), PRECISION), dot(b_dz, tl.trans(b_S), PRECISION)
    store_read_gradients(p_dweights, tl.sum(b_by_W * b_q, 1), tl.sum(b_by_S * b_q, 1), BC)
    store_tokens(p_dq + i_r * T * DI, o_t, o_i, inside, DI, b_dq + b_beta * b_by_W + b_f * b_by_S)
    b_qT = tl.trans(b_q)
    store_matrix(p_dstates, o_i, o_o, DI, DO, dot(b_qT, b_beta * b_dz, PRECISION))
    store_matrix(p_dstates + N, o_i, o_o, DI, DO, dot(b_qT, b_f * b_dz, PRECISION))


@triton.jit(do_not_specialize=NUMBERS)
def linear_back_walk(
    p_k, p_rows, p_norm, p_lengths, p_D, p_n, p_numbers, p_dD, p_dstates, p_after, p_dstate,
    T, heads, first, last, wave,
    DI: tl.constexpr, DO: tl.constexpr, BI: tl.constexpr, BO: tl.constexpr, C: tl.constexpr, BC: tl.constexpr,
    NORM: tl.constexpr, LENGTHS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Changes ``p_dstate`` from the gradient of the state after the last chunk to that of the first's, and ``p_dD``
    from the reads' part to the whole; ``p_after`` keeps the gradients of the state after each chunk."""
    i_r, i_h, length = row_of_program(p_lengths, heads, T, LENGTHS)
    dtype: tl.constexpr = p_rows.dtype.element_ty
    low: tl.constexpr = tl.bfloat16 if PRECISION == "bf16" else dtype
    o_i, o_o = tl.arange(0, BI), tl.arange(0, BO)
    N: tl.constexpr = DI * DO
    chunks = last - first
    i_s = i_r * chunks * C
    p_k, p_D, p_n, p_dD, p_dstate = (
        p_k + i_r * T * DI,
        p_D + i_s * DO,
        p_n + i_s * DO,
        p_dD + i_s * DO,
        p_dstate + i_r * 2 * N,
    )
    b_gW = load_matrix(p_dstate, o_i, o_o, DI, DO, dtype)
    b_gS = load_matrix(p_dstate + N, o_i, o_o, DI, DO, dtype)

    for i_back in range(chunks):
        i_c = chunks - 1 - i_back
        i_p = i_r * chunks + i_c
        o_t, inside, here = tokens_of_chunk(first + i_c, length, T, C, BC)
        o_s = o_t - first * C
        beta, f, m, b_end_G, b_end_P = load_end(p_rows + i_p * ROWS * BC, BC)
        b_low_W, b_low_S = b_gW.to(low), b_gS.to(low)
        store_matrix(p_after + i_p * 2 * N, o_i, o_o, DI, DO, b_low_W)
        store_matrix(p_after + i_p * 2 * N + N, o_i, o_o, DI, DO, b_low_S)
        b_k = load_tokens(p_k, o_t, o_i, here, DI, low)
        b_dD = load_tokens(p_dD, o_s, o_o, here, DO, dtype) + b_end_G * dot(b_k, b_low_W, PRECISION)
        b_dD += b_end_P * dot(b_k, b_low_S, PRECISION)
        store_tokens(p_dD, o_s, o_o, inside, DO, b_dD)
        b_D, b_n, b_rstd, b_along = load_descent(p_D, p_n, p_numbers + i_p * 2 * BC, o_s, o_o, here, DO, NORM, low)
        b_dz, _, _ = descent_backward(b_dD, b_D, b_n, b_rstd, b_along, p_norm, i_h, o_o, DO, NORM)
        b_gS = m * b_gS + f * b_gW + load_matrix(p_dstates + i_p * 2 * N + N, o_i, o_o, DI, DO, low)
        b_gW = beta * b_gW + load_matrix(p_dstates + i_p * 2 * N, o_i, o_o, DI, DO, low)
        b_gW = dot(tl.trans(b_k), b_dz, PRECISION, b_gW)

    store_matrix(p_dstate, o_i, o_o, DI, DO, b_gW)
    store_matrix(p_dstate + N, o_i, o_o, DI, DO, b_gS)


@triton.jit(do_not_specialize=NUMBERS)
def linear_back_keys(
    p_k, p_v, p_rows, p_norm, p_lengths, p_kept, p_D, p_n, p_numbers, p_dD, p_after, p_dk, p_dv, p_dweights, p_dnorm,
    T, heads, first, chunks, kept_stride, wave,
    DI: tl.constexpr, DO: tl.constexpr, BI: tl.constexpr, BO: tl.constexpr, C: tl.constexpr, BC: tl.constexpr,
    NORM: tl.constexpr, LENGTHS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Writes dv and the gradients of what makes a state of the one before; adds to dk and to those of the norm."""
    i_p, i_c, i_r, i_h, length = chunk_of_program(p_lengths, heads, chunks, T, LENGTHS)
    dtype: tl.constexpr = p_rows.dtype.element_ty
    low: tl.constexpr = tl.bfloat16 if PRECISION == "bf16" else dtype
    o_i, o_o = tl.arange(0, BI), tl.arange(0, BO)
    o_t, inside, here = tokens_of_chunk(first + i_c, length, T, C, BC)
    o_s = o_t - first * C
    N: tl.constexpr = DI * DO
    i_s = i_r * chunks * C
    p_kept += i_r * kept_stride + tl.cast(i_c, tl.int64) * 2 * N
    p_after, p_dweights = p_after + i_p * 2 * N, p_dweights + i_p * (BC + ROWS) * BC
    p_k, p_dk = p_k + i_r * T * DI, p_dk + i_r * T * DI
    p_v, p_dv = p_v + i_r * T * DO, p_dv + i_r * T * DO
    b_D, b_n, b_rstd, b_along = load_descent(
        p_D + i_s * DO, p_n + i_s * DO, p_numbers + i_p * 2 * BC, o_s, o_o, here, DO, NORM, low
    )
    b_dD = load_tokens(p_dD + i_s * DO, o_s, o_o, here, DO, dtype)
    b_k = load_tokens(p_k, o_t, o_i, here, DI, low)
    b_dz, b_dv, b_dg = descent_backward(b_dD, b_D, b_n, b_rstd, b_along, p_norm, i_h, o_o, DO, NORM)
    store_tokens(p_dv, o_t, o_o, inside, DO, b_dv)
    b_dk = load_tokens(p_dk, o_t, o_i, here, DI, dtype)
    if NORM:
        b_dk -= b_dv  # k stands beside LN
        b_v = load_tokens(p_v, o_t, o_o, here, DO, low)
        add_norm_gradients(p_dnorm + i_p * 2 * DO, p_norm, i_h, o_o, DO, b_k, b_v, b_n, b_dg, b_dv)

    _, _, _, b_end_G, b_end_P = load_end(p_rows + i_p * ROWS * BC, BC)
    b_W = load_matrix(p_kept, o_i, o_o, DI, DO, low)
    b_dk = dot(b_dz, tl.trans(b_W), PRECISION, b_dk)
    b_gW = load_matrix(p_after, o_i, o_o, DI, DO, low)
    b_dk = dot(b_end_G * b_D, tl.trans(b_gW), PRECISION, b_dk)
    b_dend_G = tl.sum(dot(b_k, b_gW, PRECISION) * b_D, 1)
    b_gS = load_matrix(p_after + N, o_i, o_o, DI, DO, low)
    b_dk = dot(b_end_P * b_D, tl.trans(b_gS), PRECISION, b_dk)
    store_tokens(p_dk, o_t, o_i, inside, DI, b_dk)
    store_row_gradients(p_dweights, b_dend_G, tl.sum(dot(b_k, b_gS, PRECISION) * b_D, 1), BC)
    b_S = load_matrix(p_kept + N, o_i, o_o, DI, DO, low).to(dtype)
    store_end_gradients(p_dweights, tl.sum(b_gW * b_W.to(dtype)), tl.sum(b_gW * b_S), tl.sum(b_gS * b_S), BC)
