"""The memory of two layers, M(x) = act(x W1) W2 or x + LN(.), in one launch: a program walks a row's chunks and reads.

For many rows. Hidden units are worked on a tile at a time. Where one tile holds them all and the states fit, W1, S1, W2
and S2 stay in registers (RESIDENT); else each tile's part is read and written once a chunk in ``p_state``, which the L2
cache holds. Letters as in ``torch_form``, but D is a step down the loss; a 1 or 2 names the layer.
"""

import triton
import triton.language as tl

from pyro_memory.kernels.memory.triton_gates import ROWS, load_end, load_G, load_reads
from pyro_memory.kernels.memory.triton_layers import act, act_and_slope, descent, residual_norm
from pyro_memory.kernels.memory.triton_loads import (
    NUMBERS,
    load_layers,
    load_tokens,
    row_of_program,
    store_layers,
    store_tokens,
    tokens_of_chunk,
)
from pyro_memory.kernels.triton_parts import dot


@triton.jit(do_not_specialize=NUMBERS)
def deep_forward(
    p_q, p_k, p_v, p_G, p_rows, p_norm, p_lengths, p_y, p_state, p_kept,
    T, heads, first, last, kept_stride, wave,
    DI: tl.constexpr, DH: tl.constexpr, DO: tl.constexpr, BI: tl.constexpr, BH: tl.constexpr, BO: tl.constexpr,
    C: tl.constexpr, BC: tl.constexpr, ACTIVATION: tl.constexpr, NORM: tl.constexpr, LENGTHS: tl.constexpr,
    KEEP: tl.constexpr, RESIDENT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Writes y, and the state (W1, W2, S1, S2) in place; may keep that before every chunk."""
    i_r, i_h, length = row_of_program(p_lengths, heads, T, LENGTHS)
    dtype: tl.constexpr = p_state.dtype.element_ty
    low: tl.constexpr = tl.bfloat16 if PRECISION == "bf16" else dtype
    o_i, o_o = tl.arange(0, BI), tl.arange(0, BO)
    N: tl.constexpr = DI * DH + DH * DO
    p_q, p_k, p_v, p_y = p_q + i_r * T * DI, p_k + i_r * T * DI, p_v + i_r * T * DO, p_y + i_r * T * DO
    p_G, p_rows = p_G + i_r * (last - first) * 2 * BC * BC, p_rows + i_r * (last - first) * 2 * ROWS * BC
    p_state += i_r * 2 * N
    if KEEP:
        p_kept += i_r * kept_stride
    if RESIDENT:
        o_h = tl.arange(0, BH)
        b_W1, b_W2 = load_layers(p_state, o_i, o_h, o_o, DI, DH, DO, dtype)
        b_S1, b_S2 = load_layers(p_state + N, o_i, o_h, o_o, DI, DH, DO, dtype)

    for i_c in range(first, last):
        o_t, inside, here = tokens_of_chunk(i_c, length, T, C, BC)
        p_G1, p_rows1 = p_G + (i_c - first) * 2 * BC * BC, p_rows + (i_c - first) * 2 * ROWS * BC
        p_G2, p_rows2 = p_G1 + BC * BC, p_rows1 + ROWS * BC
        b_k = load_tokens(p_k, o_t, o_i, here, DI, low)  # [BC, BI]
        b_v = load_tokens(p_v, o_t, o_o, here, DO, low)  # [BC, BO]

        b_z2 = tl.zeros([BC, BO], dtype)
        for i_h1 in range((DH + BH - 1) // BH):
            if not RESIDENT:
                o_h = i_h1 * BH + tl.arange(0, BH)
                b_W1, b_W2 = load_layers(p_state, o_i, o_h, o_o, DI, DH, DO, dtype)
            b_z2 = dot(act(dot(b_k, b_W1, PRECISION), ACTIVATION), b_W2, PRECISION, b_z2)
        b_D2 = descent(b_z2, b_k, b_v, p_norm, i_h, o_o, DO, NORM)
        if not RESIDENT:
            tl.debug_barrier()  # before other threads write over what this loop read
        beta1, f1, m1, b_end_G1, b_end_P1 = load_end(p_rows1, BC)
        beta2, f2, m2, b_end_G2, b_end_P2 = load_end(p_rows2, BC)
        b_q = load_tokens(p_q, o_t, o_i, here, DI, low)
        b_beta1, b_f1 = load_reads(p_rows1, BC)
        b_beta2, b_f2 = load_reads(p_rows2, BC)
        b_qW, b_qS = (b_beta1 * b_q).to(low), (b_f1 * b_q).to(low)
        b_GA1 = (load_G(p_G1, BC) * dot(b_q, tl.trans(b_k), PRECISION)).to(low)
        b_A2 = tl.zeros([BC, BC], dtype)
        b_y = tl.zeros([BC, BO], dtype)
        for i_h2 in range((DH + BH - 1) // BH):
            if not RESIDENT:
                o_h = i_h2 * BH + tl.arange(0, BH)
                b_W1, b_W2 = load_layers(p_state, o_i, o_h, o_o, DI, DH, DO, dtype)
                b_S1, b_S2 = load_layers(p_state + N, o_i, o_h, o_o, DI, DH, DO, dtype)
            if KEEP:
                p_keep = p_kept + tl.cast(i_c - first, tl.int64) * 2 * N
                store_layers(p_keep, o_i, o_h, o_o, b_W1, b_W2, DI, DH, DO)
                store_layers(p_keep + N, o_i, o_h, o_o, b_S1, b_S2, DI, DH, DO)
            b_h, b_slope = act_and_slope(dot(b_k, b_W1, PRECISION), ACTIVATION)  # [BC, BH]
            b_D1 = dot(b_D2, tl.trans(b_W2), PRECISION) * b_slope
            b_x = dot(b_qS, b_S1, PRECISION, dot(b_qW, b_W1, PRECISION))
            b_x = act(dot(b_GA1, b_D1, PRECISION, b_x), ACTIVATION)
            b_y = dot(b_beta2 * b_x, b_W2, PRECISION, b_y)
            b_y = dot(b_f2 * b_x, b_S2, PRECISION, b_y)
            b_A2 = dot(b_x, tl.trans(b_h), PRECISION, b_A2)
            b_kT, b_hT = tl.trans(b_k), tl.trans(b_h)
            b_W1 = dot(b_kT, b_end_G1 * b_D1, PRECISION, beta1 * b_W1 + f1 * b_S1)
            b_S1 = dot(b_kT, b_end_P1 * b_D1, PRECISION, m1 * b_S1)
            b_W2 = dot(b_hT, b_end_G2 * b_D2, PRECISION, beta2 * b_W2 + f2 * b_S2)
            b_S2 = dot(b_hT, b_end_P2 * b_D2, PRECISION, m2 * b_S2)
            if not RESIDENT:
                store_layers(p_state, o_i, o_h, o_o, b_W1, b_W2, DI, DH, DO)
                store_layers(p_state + N, o_i, o_h, o_o, b_S1, b_S2, DI, DH, DO)
        if not RESIDENT:
            tl.debug_barrier()  # the next chunk's loads may fall to other threads; it also keeps loads from moving up
        b_y = dot(load_G(p_G2, BC) * b_A2, b_D2, PRECISION, b_y)
        if NORM:
            b_y = residual_norm(b_q, b_y, p_norm, i_h, o_o, DO)
        store_tokens(p_y, o_t, o_o, inside, DO, tl.where(here[:, None], b_y, 0.0))

    if RESIDENT:
        store_layers(p_state, o_i, o_h, o_o, b_W1, b_W2, DI, DH, DO)
        store_layers(p_state + N, o_i, o_h, o_o, b_S1, b_S2, DI, DH, DO)
