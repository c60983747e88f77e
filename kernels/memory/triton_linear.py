"""The linear memory, M(x) = x W or x + LN(x W): a program is a head of a sequence and walks its chunks.

W and S stay in the program's registers, forward and backward; letters as in ``torch_form``.
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
    column_sums,
    loss_gradient,
    loss_gradient_backward,
    read_norm_backward,
    residual_norm,
)
from pyro_memory.kernels.memory.triton_loads import (
    NUMBERS,
    load_matrix,
    load_norm_gradients,
    load_tokens,
    row_of_program,
    store_matrix,
    store_norm_gradients,
    store_tokens,
    tokens_of_chunk,
)
from pyro_memory.kernels.triton_parts import dot


@triton.jit(do_not_specialize=NUMBERS)
def linear_forward(
    p_q, p_k, p_v, p_G, p_rows, p_norm, p_lengths, p_y, p_state, p_kept,
    T, heads, first, last, every, kept_stride, wave,
    DI: tl.constexpr, DO: tl.constexpr, BI: tl.constexpr, BO: tl.constexpr, C: tl.constexpr, BC: tl.constexpr,
    NORM: tl.constexpr, LENGTHS: tl.constexpr, READS: tl.constexpr, KEEP: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Writes y, and the state ``[2, DI, DO]`` in place; keeps that before every n-th chunk from ``first``."""
    i_r, i_h, length = row_of_program(p_lengths, heads, T, LENGTHS)
    dtype: tl.constexpr = p_state.dtype.element_ty
    low: tl.constexpr = tl.bfloat16 if PRECISION == "bf16" else dtype
    o_i, o_o = tl.arange(0, BI), tl.arange(0, BO)
    N: tl.constexpr = DI * DO
    p_q, p_k, p_v, p_y = p_q + i_r * T * DI, p_k + i_r * T * DI, p_v + i_r * T * DO, p_y + i_r * T * DO
    p_G, p_rows = p_G + i_r * (last - first) * BC * BC, p_rows + i_r * (last - first) * ROWS * BC
    p_state, p_kept = p_state + i_r * 2 * N, p_kept + i_r * kept_stride
    b_W = load_matrix(p_state, o_i, o_o, DI, DO, dtype)
    b_S = load_matrix(p_state + N, o_i, o_o, DI, DO, dtype)

    for i_c in range(first, last):
        o_t, inside, here = tokens_of_chunk(i_c, length, T, C, BC)
        if KEEP:
            i_kept = tl.cast((i_c - first) // every, tl.int64)
            rows = tl.where((i_c - first) % every == 0, DI, 0)  # no row of the other chunks is stored
            store_matrix(p_kept + i_kept * 2 * N, o_i, o_o, rows, DO, b_W)
            store_matrix(p_kept + i_kept * 2 * N + N, o_i, o_o, rows, DO, b_S)
        b_k = load_tokens(p_k, o_t, o_i, here, DI, low)  # [BC, BI]
        b_v = load_tokens(p_v, o_t, o_o, here, DO, low)  # [BC, BO]
        p_here = p_rows + (i_c - first) * ROWS * BC
        b_low_W = b_W.to(low)
        b_D = loss_gradient(dot(b_k, b_low_W, PRECISION), b_k, b_v, p_norm, i_h, o_o, DO, NORM)
        if READS:
            b_q = load_tokens(p_q, o_t, o_i, here, DI, low)
            b_GA = load_G(p_G + (i_c - first) * BC * BC, BC) * dot(b_q, tl.trans(b_k), PRECISION)
            b_beta, b_f = load_reads(p_here, BC)
            b_y = b_beta * dot(b_q, b_low_W, PRECISION) + b_f * dot(b_q, b_S, PRECISION) - dot(b_GA, b_D, PRECISION)
            if NORM:
                b_y = residual_norm(b_q, b_y, p_norm, i_h, o_o, DO)
            store_tokens(p_y, o_t, o_o, inside, DO, tl.where(here[:, None], b_y, 0.0))
        beta, f, m, b_end_G, b_end_P = load_end(p_here, BC)
        b_kT = tl.trans(b_k)
        b_W = beta * b_W + f * b_S - dot(b_kT, b_end_G * b_D, PRECISION)
        b_S = m * b_S - dot(b_kT, b_end_P * b_D, PRECISION)

    store_matrix(p_state, o_i, o_o, DI, DO, b_W)
    store_matrix(p_state + N, o_i, o_o, DI, DO, b_S)


@triton.jit(do_not_specialize=NUMBERS)
def linear_backward(
    p_dy, p_q, p_k, p_v, p_G, p_rows, p_norm, p_lengths, p_kept, p_dq, p_dk, p_dv, p_dweights, p_dnorm, p_dstate,
    T, heads, first, last, kept_stride, wave,
    DI: tl.constexpr, DO: tl.constexpr, BI: tl.constexpr, BO: tl.constexpr, C: tl.constexpr, BC: tl.constexpr,
    NORM: tl.constexpr, LENGTHS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Walks back; ``p_dstate`` holds the gradient of the state after the last chunk, then that of the first's."""
    i_r, i_h, length = row_of_program(p_lengths, heads, T, LENGTHS)
    dtype: tl.constexpr = p_dstate.dtype.element_ty
    low: tl.constexpr = tl.bfloat16 if PRECISION == "bf16" else dtype
    o_i, o_o = tl.arange(0, BI), tl.arange(0, BO)
    N: tl.constexpr = DI * DO
    p_q, p_k, p_dq, p_dk = p_q + i_r * T * DI, p_k + i_r * T * DI, p_dq + i_r * T * DI, p_dk + i_r * T * DI
    p_v, p_dy, p_dv = p_v + i_r * T * DO, p_dy + i_r * T * DO, p_dv + i_r * T * DO
    p_G, p_rows = p_G + i_r * (last - first) * BC * BC, p_rows + i_r * (last - first) * ROWS * BC
    p_dweights += i_r * (last - first) * (BC + ROWS) * BC
    p_kept, p_dstate = p_kept + i_r * kept_stride, p_dstate + i_r * 2 * N
    b_gW = load_matrix(p_dstate, o_i, o_o, DI, DO, dtype)
    b_gS = load_matrix(p_dstate + N, o_i, o_o, DI, DO, dtype)
    if NORM:
        b_dw, b_db = load_norm_gradients(p_dnorm, i_r, o_o, DO, dtype)

    for i_back in range(last - first):
        i_c = last - 1 - i_back
        o_t, inside, here = tokens_of_chunk(i_c, length, T, C, BC)
        i_kept = tl.cast(i_c - first, tl.int64)
        p_here, p_grads = p_rows + i_kept * ROWS * BC, p_dweights + i_kept * (BC + ROWS) * BC
        beta, f, m, b_end_G, b_end_P = load_end(p_here, BC)
        b_W = load_matrix(p_kept + i_kept * 2 * N, o_i, o_o, DI, DO, dtype)
        b_S = load_matrix(p_kept + i_kept * 2 * N + N, o_i, o_o, DI, DO, dtype)
        store_end_gradients(p_grads, tl.sum(b_gW * b_W), tl.sum(b_gW * b_S), tl.sum(b_gS * b_S), BC)
        b_W, b_S = b_W.to(low), b_S.to(low)

        # the keys' way in
        b_k = load_tokens(p_k, o_t, o_i, here, DI, low)
        b_v = load_tokens(p_v, o_t, o_o, here, DO, low)
        b_z = dot(b_k, b_W, PRECISION)
        b_D = loss_gradient(b_z, b_k, b_v, p_norm, i_h, o_o, DO, NORM)

        # the state after the chunk
        b_by_G, b_by_P = dot(b_k, b_gW, PRECISION), dot(b_k, b_gS, PRECISION)
        store_row_gradients(p_grads, -tl.sum(b_by_G * b_D, 1), -tl.sum(b_by_P * b_D, 1), BC)
        b_dD = -b_end_G * b_by_G - b_end_P * b_by_P
        b_dk = -dot(b_end_G * b_D, tl.trans(b_gW), PRECISION) - dot(b_end_P * b_D, tl.trans(b_gS), PRECISION)
        b_gS = m * b_gS + f * b_gW
        b_gW = beta * b_gW

        # the read
        b_q = load_tokens(p_q, o_t, o_i, here, DI, low)
        b_dy = load_tokens(p_dy, o_t, o_o, here, DO, low)
        b_beta, b_f = load_reads(p_here, BC)
        b_G = load_G(p_G + i_kept * BC * BC, BC)
        b_A = dot(b_q, tl.trans(b_k), PRECISION)
        b_dz = b_dy.to(dtype)
        if NORM:
            b_zq = b_beta * dot(b_q, b_W, PRECISION) + b_f * dot(b_q, b_S, PRECISION)
            b_zq -= dot(b_G * b_A, b_D, PRECISION)
            b_dz, b_dw = read_norm_backward(b_dz, b_dw, b_zq, p_norm, i_h, o_o, DO, PRECISION)
        b_dD -= dot(tl.trans(b_G * b_A), b_dz, PRECISION)
        b_dM = -dot(b_dz, tl.trans(b_D), PRECISION)
        store_G_gradient(p_grads, b_dM * b_A, BC)
        b_dA = (b_dM * b_G).to(low)
        b_dk += dot(tl.trans(b_dA), b_q, PRECISION)
        b_dq = dot(b_dA, b_k, PRECISION)
        b_by_W = dot(b_dz, tl.trans(b_W), PRECISION)
        b_dbeta = tl.sum(b_by_W * b_q, 1)
        b_dq += b_beta * b_by_W
        b_by_S = dot(b_dz, tl.trans(b_S), PRECISION)
        store_read_gradients(p_grads, b_dbeta, tl.sum(b_by_S * b_q, 1), BC)
        b_dq += b_f * b_by_S
        if NORM:
            b_dq += b_dy  # q stands beside LN
        store_tokens(p_dq, o_t, o_i, inside, DI, b_dq)
        b_qT = tl.trans(b_q)
        b_gS += dot(b_qT, b_f * b_dz, PRECISION)
        b_gW += dot(b_qT, b_beta * b_dz, PRECISION)

        # the gradient at the chunk's first weights
        if NORM:
            b_dz, b_dv, b_dw_here = loss_gradient_backward(b_dD, b_z, b_k, b_v, p_norm, i_h, o_o, DO)
            b_dw += column_sums(b_dw_here, PRECISION)
            b_db += column_sums(b_dy + b_dv, PRECISION)
            b_dk += b_dv  # k stands beside LN
        else:
            b_dz = 2 * b_dD
            b_dv = b_dz
        store_tokens(p_dv, o_t, o_o, inside, DO, -b_dv)
        store_tokens(p_dk, o_t, o_i, inside, DI, b_dk + dot(b_dz, tl.trans(b_W), PRECISION))
        b_gW += dot(tl.trans(b_k), b_dz, PRECISION)

    store_matrix(p_dstate, o_i, o_o, DI, DO, b_gW)
    store_matrix(p_dstate + N, o_i, o_o, DI, DO, b_gS)
    if NORM:
        store_norm_gradients(p_dnorm, i_r, o_o, DO, b_dw, b_db)
