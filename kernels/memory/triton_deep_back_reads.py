"""The backward pass of the memory of two layers, its first of three launches: what the reads send back.

All is computed again from the states that were kept, hidden units a tile at a time, in three passes over the tiles: for
D2, for what LN was given, and back through the reads.
"""

import triton
import triton.language as tl

from pyro_memory.kernels.memory.triton_gates import (
    ROWS,
    load_G,
    load_reads,
    store_G_gradient,
    store_read_gradients,
)
from pyro_memory.kernels.memory.triton_layers import (
    act,
    act_and_slope,
    act_curvature,
    read_norm_backward,
    store_descent,
)
from pyro_memory.kernels.memory.triton_loads import (
    NUMBERS,
    chunk_of_program,
    load_layers,
    load_tokens,
    store_layers,
    store_norm_gradients,
    store_tokens,
    tokens_of_chunk,
)
from pyro_memory.kernels.triton_parts import dot


@triton.jit(do_not_specialize=NUMBERS)
def deep_back_reads(
    p_dy, p_q, p_k, p_v, p_G, p_rows, p_norm, p_lengths, p_kept, p_dq, p_dk, p_dweights, p_dnorm,
    p_D, p_n, p_numbers, p_dD, p_dstates, p_h, p_slope, p_dz, p_dD1, p_dh,
    T, heads, first, chunks, kept_stride, wave,
    DI: tl.constexpr, DH: tl.constexpr, DO: tl.constexpr, BI: tl.constexpr, BH: tl.constexpr, BO: tl.constexpr,
    C: tl.constexpr, BC: tl.constexpr, ACTIVATION: tl.constexpr, NORM: tl.constexpr, LENGTHS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Writes dq, the reads' part of dk and of the gradients at D2, D1, h and the chunk's first state, of G, beta, f."""
    i_p, i_c, i_r, i_h, length = chunk_of_program(p_lengths, heads, chunks, T, LENGTHS)
    dtype: tl.constexpr = p_rows.dtype.element_ty
    low: tl.constexpr = tl.bfloat16 if PRECISION == "bf16" else dtype
    o_i, o_o = tl.arange(0, BI), tl.arange(0, BO)
    o_t, inside, here = tokens_of_chunk(first + i_c, length, T, C, BC)
    o_s = o_t - first * C  # where a token lies in what is kept of these chunks alone
    N: tl.constexpr = DI * DH + DH * DO
    i_s = i_r * chunks * C
    p_kept += i_r * kept_stride + tl.cast(i_c, tl.int64) * 2 * N
    p_dstates, p_G1, p_rows1 = p_dstates + i_p * 2 * N, p_G + i_p * 2 * BC * BC, p_rows + i_p * 2 * ROWS * BC
    p_G2, p_rows2 = p_G1 + BC * BC, p_rows1 + ROWS * BC
    p_dweights1 = p_dweights + i_p * 2 * (BC + ROWS) * BC
    p_dweights2 = p_dweights1 + (BC + ROWS) * BC
    p_h, p_slope, p_dz, p_dD1, p_dh = (
        p_h + i_s * DH,
        p_slope + i_s * DH,
        p_dz + i_s * DH,
        p_dD1 + i_s * DH,
        p_dh + i_s * DH,
    )

    # the keys' way in
    b_k = load_tokens(p_k + i_r * T * DI, o_t, o_i, here, DI, low)
    b_v = load_tokens(p_v + i_r * T * DO, o_t, o_o, here, DO, low)
    b_z2 = tl.zeros([BC, BO], dtype)
    for i_h1 in range((DH + BH - 1) // BH):
        o_h = i_h1 * BH + tl.arange(0, BH)
        b_W1, b_W2 = load_layers(p_kept, o_i, o_h, o_o, DI, DH, DO, low)
        b_z2 = dot(act(dot(b_k, b_W1, PRECISION), ACTIVATION), b_W2, PRECISION, b_z2)
    b_D2 = store_descent(
        b_z2,
        b_k,
        b_v,
        p_norm,
        i_h,
        o_o,
        p_D + i_s * DO,
        p_n + i_s * DO,
        p_numbers + i_p * 2 * BC,
        o_s,
        inside,
        DO,
        NORM,
    ).to(low)

    # the reads
    b_q = load_tokens(p_q + i_r * T * DI, o_t, o_i, here, DI, low)
    b_beta1, b_f1 = load_reads(p_rows1, BC)
    b_beta2, b_f2 = load_reads(p_rows2, BC)
    b_qW, b_qS = (b_beta1 * b_q).to(low), (b_f1 * b_q).to(low)
    b_A1 = dot(b_q, tl.trans(b_k), PRECISION)
    b_GA1 = (load_G(p_G1, BC) * b_A1).to(low)
    b_A2 = tl.zeros([BC, BC], dtype)
    b_zq2 = tl.zeros([BC, BO], dtype)
    for i_h2 in range((DH + BH - 1) // BH):
        o_h = i_h2 * BH + tl.arange(0, BH)
        b_W1, b_W2 = load_layers(p_kept, o_i, o_h, o_o, DI, DH, DO, low)
        b_S1, b_S2 = load_layers(p_kept + N, o_i, o_h, o_o, DI, DH, DO, low)
        b_hh, b_slope = act_and_slope(dot(b_k, b_W1, PRECISION), ACTIVATION)
        b_D1 = dot(b_D2, tl.trans(b_W2), PRECISION) * b_slope
        b_x = dot(b_qS, b_S1, PRECISION, dot(b_qW, b_W1, PRECISION))
        b_x = act(dot(b_GA1, b_D1, PRECISION, b_x), ACTIVATION)
        b_A2 = dot(b_x, tl.trans(b_hh), PRECISION, b_A2)
        if NORM:
            b_zq2 = dot(b_beta2 * b_x, b_W2, PRECISION, b_zq2)
            b_zq2 = dot(b_f2 * b_x, b_S2, PRECISION, b_zq2)
    b_G2 = load_G(p_G2, BC)
    b_GA2 = (b_G2 * b_A2).to(low)
    b_dz2 = load_tokens(p_dy + i_r * T * DO, o_t, o_o, here, DO, dtype)
    b_dq = tl.zeros([BC, BI], dtype)
    if NORM:
        b_dq += b_dz2  # q stands beside LN
        b_db = tl.sum(b_dz2, 0)
        b_dz2, b_dw = read_norm_backward(b_dz2, dot(b_GA2, b_D2, PRECISION, b_zq2), p_norm, i_h, o_o, DO)
        store_norm_gradients(p_dnorm + i_p * 2 * DO, o_o, DO, b_dw, b_db)
    b_dz2 = b_dz2.to(low)

    # back through the reads
    b_dM2 = dot(b_dz2, tl.trans(b_D2), PRECISION)
    store_G_gradient(p_dweights2, b_dM2 * b_A2, BC)
    b_dA2 = (b_dM2 * b_G2).to(low)
    store_tokens(p_dD + i_s * DO, o_s, o_o, inside, DO, dot(tl.trans(b_GA2), b_dz2, PRECISION))
    b_dM1 = tl.zeros([BC, BC], dtype)
    b_dbeta1, b_df1 = tl.zeros([BC], dtype), tl.zeros([BC], dtype)
    b_dbeta2, b_df2 = tl.zeros([BC], dtype), tl.zeros([BC], dtype)
    for i_h3 in range((DH + BH - 1) // BH):
        o_h = i_h3 * BH + tl.arange(0, BH)
        b_W1, b_W2 = load_layers(p_kept, o_i, o_h, o_o, DI, DH, DO, low)
        b_S1, b_S2 = load_layers(p_kept + N, o_i, o_h, o_o, DI, DH, DO, low)
        b_z1 = dot(b_k, b_W1, PRECISION)
        b_hh, b_slope = act_and_slope(b_z1, ACTIVATION)
        b_u = dot(b_D2, tl.trans(b_W2), PRECISION)
        b_D1 = (b_u * b_slope).to(low)
        b_hh = b_hh.to(low)
        store_tokens(p_h, o_s, o_h, inside, DH, b_hh)
        store_tokens(p_slope, o_s, o_h, inside, DH, b_slope)
        store_tokens(p_dz, o_s, o_h, inside, DH, b_u * act_curvature(b_z1, ACTIVATION))
        b_zq1 = dot(b_qS, b_S1, PRECISION, dot(b_qW, b_W1, PRECISION))
        b_x, b_x_slope = act_and_slope(dot(b_GA1, b_D1, PRECISION, b_zq1), ACTIVATION)

        b_by_W, b_by_S = dot(b_dz2, tl.trans(b_W2), PRECISION), dot(b_dz2, tl.trans(b_S2), PRECISION)
        b_dbeta2 += tl.sum(b_by_W * b_x, 1)
        b_df2 += tl.sum(b_by_S * b_x, 1)
        b_dx = dot(b_dA2, b_hh, PRECISION, b_beta2 * b_by_W + b_f2 * b_by_S)
        b_dz1 = (b_dx * b_x_slope).to(low)
        store_tokens(p_dh, o_s, o_h, inside, DH, dot(tl.trans(b_dA2), b_x, PRECISION))
        store_tokens(p_dD1, o_s, o_h, inside, DH, dot(tl.trans(b_GA1), b_dz1, PRECISION))
        b_dM1 = dot(b_dz1, tl.trans(b_D1), PRECISION, b_dM1)
        b_by_W, b_by_S = dot(b_dz1, tl.trans(b_W1), PRECISION), dot(b_dz1, tl.trans(b_S1), PRECISION)
        b_dbeta1 += tl.sum(b_by_W * b_q, 1)
        b_df1 += tl.sum(b_by_S * b_q, 1)
        b_dq += b_beta1 * b_by_W + b_f1 * b_by_S
        b_xT = tl.trans(b_x.to(low))
        b_dW1, b_dW2 = dot(tl.trans(b_qW), b_dz1, PRECISION), dot(b_xT, b_beta2 * b_dz2, PRECISION)
        store_layers(p_dstates, o_i, o_h, o_o, b_dW1, b_dW2, DI, DH, DO)
        b_dS1, b_dS2 = dot(tl.trans(b_qS), b_dz1, PRECISION), dot(b_xT, b_f2 * b_dz2, PRECISION)
        store_layers(p_dstates + N, o_i, o_h, o_o, b_dS1, b_dS2, DI, DH, DO)
    store_read_gradients(p_dweights2, b_dbeta2, b_df2, BC)
    store_read_gradients(p_dweights1, b_dbeta1, b_df1, BC)
    store_G_gradient(p_dweights1, b_dM1 * b_A1, BC)
    b_dA1 = (b_dM1 * load_G(p_G1, BC)).to(low)
    store_tokens(p_dq + i_r * T * DI, o_t, o_i, inside, DI, dot(b_dA1, b_k, PRECISION, b_dq))
    store_tokens(p_dk + i_r * T * DI, o_t, o_i, inside, DI, dot(tl.trans(b_dA1), b_q, PRECISION))
