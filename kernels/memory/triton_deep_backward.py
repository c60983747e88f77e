"""The backward pass of the memory of two layers: the same programs, chunks in reverse, hidden units tile by tile.

Per chunk, with everything computed again from its first weights and momenta: a pass over the tiles for what the keys
give, one for the reads, one back through the reads and the states after the chunk, and one back through the keys. The
last two stand apart because the gradient at D2, which the loss's backward pass needs, is a sum over all tiles. In
between each tile's gradients lie in ``p_scratch``; those of the state lie in ``p_dstate`` throughout.
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
    act,
    act_curvature,
    act_slope,
    column_sums,
    loss_gradient,
    loss_gradient_backward,
    read_norm_backward,
)
from pyro_memory.kernels.memory.triton_loads import (
    NUMBERS,
    load_layers,
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
def deep_backward(
    p_dy, p_q, p_k, p_v, p_G, p_rows, p_norm, p_lengths, p_kept, p_dq, p_dk, p_dv, p_dweights, p_dnorm, p_dstate,
    p_scratch,
    T, heads, first, last, kept_stride, wave,
    DI: tl.constexpr, DH: tl.constexpr, DO: tl.constexpr, BI: tl.constexpr, BH: tl.constexpr, BO: tl.constexpr,
    C: tl.constexpr, BC: tl.constexpr, ACTIVATION: tl.constexpr, NORM: tl.constexpr, LENGTHS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Walks back; ``p_dstate`` holds the gradient of the state after the last chunk, then that of the first's."""
    i_r, i_h, length = row_of_program(p_lengths, heads, T, LENGTHS)
    dtype: tl.constexpr = p_dstate.dtype.element_ty
    low: tl.constexpr = tl.bfloat16 if PRECISION == "bf16" else dtype
    o_c, o_i, o_o = tl.arange(0, BC), tl.arange(0, BI), tl.arange(0, BO)
    SECOND: tl.constexpr = DI * DH  # where W2 lies
    N: tl.constexpr = DI * DH + DH * DO
    p_q, p_k, p_dq, p_dk = p_q + i_r * T * DI, p_k + i_r * T * DI, p_dq + i_r * T * DI, p_dk + i_r * T * DI
    p_v, p_dy, p_dv = p_v + i_r * T * DO, p_dy + i_r * T * DO, p_dv + i_r * T * DO
    p_G, p_rows = p_G + i_r * (last - first) * 2 * BC * BC, p_rows + i_r * (last - first) * 2 * ROWS * BC
    p_dweights += i_r * (last - first) * 2 * (BC + ROWS) * BC
    p_kept, p_gW = p_kept + i_r * kept_stride, p_dstate + i_r * 2 * N
    p_gS = p_gW + N
    p_dh = p_scratch + i_r * 2 * BC * DH
    p_dz = p_dh + BC * DH
    if NORM:
        b_dw, b_db = load_norm_gradients(p_dnorm, i_r, o_o, DO, dtype)

    for i_back in range(last - first):
        i_c = last - 1 - i_back
        o_t, inside, here = tokens_of_chunk(i_c, length, T, C, BC)
        i_kept = tl.cast(i_c - first, tl.int64)
        p_W = p_kept + i_kept * 2 * N
        p_S = p_W + N
        p_G1, p_rows1 = p_G + i_kept * 2 * BC * BC, p_rows + i_kept * 2 * ROWS * BC
        p_G2, p_rows2 = p_G1 + BC * BC, p_rows1 + ROWS * BC
        p_grads1 = p_dweights + i_kept * 2 * (BC + ROWS) * BC
        p_grads2 = p_grads1 + (BC + ROWS) * BC

        # the keys' way in
        b_k = load_tokens(p_k, o_t, o_i, here, DI, low)  # [BC, BI]
        b_v = load_tokens(p_v, o_t, o_o, here, DO, low)  # [BC, BO]
        b_z2 = tl.zeros([BC, BO], dtype)
        for i_h1 in range((DH + BH - 1) // BH):
            o_h = i_h1 * BH + tl.arange(0, BH)
            b_W1, b_W2 = load_layers(p_W, o_i, o_h, o_o, DI, DH, DO, dtype)
            b_z2 += dot(act(dot(b_k, b_W1, PRECISION), ACTIVATION), b_W2, PRECISION)
        b_D2 = loss_gradient(b_z2, b_k, b_v, p_norm, i_h, o_o, DO, NORM)

        # the reads
        b_q = load_tokens(p_q, o_t, o_i, here, DI, low)
        b_beta1, b_f1 = load_reads(p_rows1, BC)
        b_beta2, b_f2 = load_reads(p_rows2, BC)
        b_A1 = dot(b_q, tl.trans(b_k), PRECISION)
        b_GA1 = (load_G(p_G1, BC) * b_A1).to(low)
        b_A2 = tl.zeros([BC, BC], dtype)
        b_zq2 = tl.zeros([BC, BO], dtype)
        for i_h2 in range((DH + BH - 1) // BH):
            o_h = i_h2 * BH + tl.arange(0, BH)
            b_W1, b_W2 = load_layers(p_W, o_i, o_h, o_o, DI, DH, DO, dtype)
            b_S1 = load_matrix(p_S, o_i, o_h, DI, DH, dtype)
            b_z1 = dot(b_k, b_W1, PRECISION)
            b_D1 = dot(b_D2, tl.trans(b_W2), PRECISION) * act_slope(b_z1, ACTIVATION)
            b_x = b_beta1 * dot(b_q, b_W1, PRECISION) + b_f1 * dot(b_q, b_S1, PRECISION)
            b_x = act(b_x - dot(b_GA1, b_D1, PRECISION), ACTIVATION)
            b_A2 += dot(b_x, tl.trans(act(b_z1, ACTIVATION)), PRECISION)
            if NORM:
                b_S2 = load_matrix(p_S + SECOND, o_h, o_o, DH, DO, dtype)
                b_zq2 += b_beta2 * dot(b_x, b_W2, PRECISION) + b_f2 * dot(b_x, b_S2, PRECISION)
        b_G2 = load_G(p_G2, BC)
        b_GA2 = (b_G2 * b_A2).to(low)
        b_dzq2 = load_tokens(p_dy, o_t, o_o, here, DO, dtype)
        if NORM:
            b_zq2 -= dot(b_GA2, b_D2, PRECISION)
            b_dzq2, b_dw = read_norm_backward(b_dzq2, b_dw, b_zq2, p_norm, i_h, o_o, DO, PRECISION)

        # back through the reads, and through the states after the chunk
        beta1, f1, m1, b_end_G1, b_end_P1 = load_end(p_rows1, BC)
        beta2, f2, m2, b_end_G2, b_end_P2 = load_end(p_rows2, BC)
        b_dM2 = -dot(b_dzq2, tl.trans(b_D2), PRECISION)
        b_dA2 = (b_dM2 * b_G2).to(low)
        b_dG2 = b_dM2 * b_A2
        b_dD2 = -dot(tl.trans(b_GA2), b_dzq2, PRECISION)
        b_dM1 = tl.zeros([BC, BC], dtype)
        b_dq, b_dk = tl.zeros([BC, BI], dtype), tl.zeros([BC, BI], dtype)
        b_dbeta1, b_df1 = tl.zeros([BC], dtype), tl.zeros([BC], dtype)
        b_dbeta2, b_df2 = tl.zeros([BC], dtype), tl.zeros([BC], dtype)
        b_dend_G1, b_dend_P1 = tl.zeros([BC], dtype), tl.zeros([BC], dtype)
        b_dend_G2, b_dend_P2 = tl.zeros([BC], dtype), tl.zeros([BC], dtype)
        b_dend1, b_dend2 = tl.zeros([BI], dtype), tl.zeros([BH], dtype)  # of beta, f and m: sums of the states' rows
        b_dend_f1, b_dend_f2 = tl.zeros([BI], dtype), tl.zeros([BH], dtype)
        b_dend_m1, b_dend_m2 = tl.zeros([BI], dtype), tl.zeros([BH], dtype)
        for i_h3 in range((DH + BH - 1) // BH):
            o_h = i_h3 * BH + tl.arange(0, BH)
            b_W1, b_W2 = load_layers(p_W, o_i, o_h, o_o, DI, DH, DO, dtype)
            b_S1, b_S2 = load_layers(p_S, o_i, o_h, o_o, DI, DH, DO, dtype)
            b_z1 = dot(b_k, b_W1, PRECISION)
            b_h = act(b_z1, ACTIVATION)
            b_slope = act_slope(b_z1, ACTIVATION)
            b_u = dot(b_D2, tl.trans(b_W2), PRECISION)
            b_D1 = b_u * b_slope
            b_zq1 = b_beta1 * dot(b_q, b_W1, PRECISION) + b_f1 * dot(b_q, b_S1, PRECISION)
            b_zq1 -= dot(b_GA1, b_D1, PRECISION)
            b_x = act(b_zq1, ACTIVATION)

            b_by_W = dot(b_dzq2, tl.trans(b_W2), PRECISION)
            b_by_S = dot(b_dzq2, tl.trans(b_S2), PRECISION)
            b_dbeta2 += tl.sum(b_by_W * b_x, 1)
            b_df2 += tl.sum(b_by_S * b_x, 1)
            b_dx = b_beta2 * b_by_W + b_f2 * b_by_S + dot(b_dA2, b_h, PRECISION)
            b_dh = dot(tl.trans(b_dA2), b_x, PRECISION)
            b_dz = b_dx * act_slope(b_zq1, ACTIVATION)
            b_dM1 -= dot(b_dz, tl.trans(b_D1), PRECISION)
            b_dD1 = -dot(tl.trans(b_GA1), b_dz, PRECISION)
            b_by_W, b_by_S = dot(b_dz, tl.trans(b_W1), PRECISION), dot(b_dz, tl.trans(b_S1), PRECISION)
            b_dbeta1 += tl.sum(b_by_W * b_q, 1)
            b_df1 += tl.sum(b_by_S * b_q, 1)
            b_dq += b_beta1 * b_by_W + b_f1 * b_by_S

            b_gW = load_matrix(p_gW, o_i, o_h, DI, DH, dtype)
            b_gS = load_matrix(p_gS, o_i, o_h, DI, DH, dtype)
            b_by_G, b_by_P = dot(b_k, b_gW, PRECISION), dot(b_k, b_gS, PRECISION)
            b_dend_G1 -= tl.sum(b_by_G * b_D1, 1)
            b_dend_P1 -= tl.sum(b_by_P * b_D1, 1)
            b_dD1 -= b_end_G1 * b_by_G + b_end_P1 * b_by_P
            b_dk -= dot(b_end_G1 * b_D1, tl.trans(b_gW), PRECISION)
            b_dk -= dot(b_end_P1 * b_D1, tl.trans(b_gS), PRECISION)
            b_dend1 += tl.sum(b_gW * b_W1, 1)
            b_dend_f1 += tl.sum(b_gW * b_S1, 1)
            b_dend_m1 += tl.sum(b_gS * b_S1, 1)
            b_qT = tl.trans(b_q)
            b_gS = m1 * b_gS + f1 * b_gW + dot(b_qT, b_f1 * b_dz, PRECISION)
            b_gW = beta1 * b_gW + dot(b_qT, b_beta1 * b_dz, PRECISION)
            store_matrix(p_gW, o_i, o_h, DI, DH, b_gW)
            store_matrix(p_gS, o_i, o_h, DI, DH, b_gS)

            b_gW = load_matrix(p_gW + SECOND, o_h, o_o, DH, DO, dtype)
            b_gS = load_matrix(p_gS + SECOND, o_h, o_o, DH, DO, dtype)
            b_by_G, b_by_P = dot(b_h, b_gW, PRECISION), dot(b_h, b_gS, PRECISION)
            b_dend_G2 -= tl.sum(b_by_G * b_D2, 1)
            b_dend_P2 -= tl.sum(b_by_P * b_D2, 1)
            b_dD2 -= b_end_G2 * b_by_G + b_end_P2 * b_by_P
            b_dh -= dot(b_end_G2 * b_D2, tl.trans(b_gW), PRECISION)
            b_dh -= dot(b_end_P2 * b_D2, tl.trans(b_gS), PRECISION)
            b_dend2 += tl.sum(b_gW * b_W2, 1)
            b_dend_f2 += tl.sum(b_gW * b_S2, 1)
            b_dend_m2 += tl.sum(b_gS * b_S2, 1)
            b_du = b_dD1 * b_slope
            b_dD2 += dot(b_du, b_W2, PRECISION)
            b_xT = tl.trans(b_x)
            b_gS = m2 * b_gS + f2 * b_gW + dot(b_xT, b_f2 * b_dzq2, PRECISION)
            b_gW = beta2 * b_gW + dot(b_xT, b_beta2 * b_dzq2, PRECISION)
            b_gW += dot(tl.trans(b_du), b_D2, PRECISION)
            store_matrix(p_gW + SECOND, o_h, o_o, DH, DO, b_gW)
            store_matrix(p_gS + SECOND, o_h, o_o, DH, DO, b_gS)
            store_matrix(p_dh, o_c, o_h, BC, DH, b_dh)
            store_matrix(p_dz, o_c, o_h, BC, DH, b_dD1 * b_u * act_curvature(b_z1, ACTIVATION))
        tl.debug_barrier()  # the loads below may fall to other threads
        b_dA1 = b_dM1 * load_G(p_G1, BC)
        b_dq += dot(b_dA1, b_k, PRECISION)
        if NORM:
            b_dq += load_tokens(p_dy, o_t, o_o, here, DO, dtype)  # q stands beside LN
        store_tokens(p_dq, o_t, o_i, inside, DI, b_dq)
        b_dk += dot(tl.trans(b_dA1), b_q, PRECISION)
        store_G_gradient(p_grads1, b_dM1 * b_A1, BC)
        store_read_gradients(p_grads1, b_dbeta1, b_df1, BC)
        store_row_gradients(p_grads1, b_dend_G1, b_dend_P1, BC)
        store_end_gradients(p_grads1, tl.sum(b_dend1), tl.sum(b_dend_f1), tl.sum(b_dend_m1), BC)
        store_G_gradient(p_grads2, b_dG2, BC)
        store_read_gradients(p_grads2, b_dbeta2, b_df2, BC)
        store_row_gradients(p_grads2, b_dend_G2, b_dend_P2, BC)
        store_end_gradients(p_grads2, tl.sum(b_dend2), tl.sum(b_dend_f2), tl.sum(b_dend_m2), BC)

        # back through the gradient at the chunk's first weights
        if NORM:
            b_dz2, b_dv, b_dw_here = loss_gradient_backward(b_dD2, b_z2, b_k, b_v, p_norm, i_h, o_o, DO)
            b_dw += column_sums(b_dw_here, PRECISION)
            b_db += column_sums(load_tokens(p_dy, o_t, o_o, here, DO, dtype) + b_dv, PRECISION)
            b_dk += b_dv  # k stands beside LN
        else:
            b_dz2 = 2 * b_dD2
            b_dv = b_dz2
        store_tokens(p_dv, o_t, o_o, inside, DO, -b_dv)
        for i_h4 in range((DH + BH - 1) // BH):
            o_h = i_h4 * BH + tl.arange(0, BH)
            b_W1, b_W2 = load_layers(p_W, o_i, o_h, o_o, DI, DH, DO, dtype)
            b_z1 = dot(b_k, b_W1, PRECISION)
            b_dh = load_matrix(p_dh, o_c, o_h, BC, DH, dtype) + dot(b_dz2, tl.trans(b_W2), PRECISION)
            b_dz1 = load_matrix(p_dz, o_c, o_h, BC, DH, dtype) + b_dh * act_slope(b_z1, ACTIVATION)
            b_dk += dot(b_dz1, tl.trans(b_W1), PRECISION)
            b_gW = load_matrix(p_gW, o_i, o_h, DI, DH, dtype)
            store_matrix(p_gW, o_i, o_h, DI, DH, b_gW + dot(tl.trans(b_k), b_dz1, PRECISION))
            b_gW = load_matrix(p_gW + SECOND, o_h, o_o, DH, DO, dtype)
            b_gW += dot(tl.trans(act(b_z1, ACTIVATION)), b_dz2, PRECISION)
            store_matrix(p_gW + SECOND, o_h, o_o, DH, DO, b_gW)
        tl.debug_barrier()
        store_tokens(p_dk, o_t, o_i, inside, DI, b_dk)

    if NORM:
        store_norm_gradients(p_dnorm, i_r, o_o, DO, b_dw, b_db)
