"""The backward pass of the memory of two layers, after the reads' way back: a walk, and what the keys send back.

The walk shares hidden units among programs as the walk forward does; what they exchange is the gradient at D2, which
the loss's way back needs whole. Five tensors by hidden unit come from the reads' way back: h, the activation's slope,
act''(z1) o D2 W2^T, in whose place the walk leaves the gradient at z1, and the reads' parts of those at D1 and h.
"""

import triton
import triton.language as tl

from pyro_memory.kernels.memory.triton_deep_walk import exchange, place_of_exchange, take_ticket
from pyro_memory.kernels.memory.triton_gates import ROWS, load_end, store_end_gradients, store_row_gradients
from pyro_memory.kernels.memory.triton_layers import descent_backward, load_descent
from pyro_memory.kernels.memory.triton_loads import (
    NUMBERS,
    add_norm_gradients,
    chunk_of_program,
    load_layers,
    load_matrix,
    load_tokens,
    row,
    store_layers,
    store_tokens,
    tokens_of_chunk,
)
from pyro_memory.kernels.triton_parts import dot


@triton.jit(do_not_specialize=NUMBERS)
def deep_back_walk(
    p_k, p_rows, p_norm, p_lengths, p_kept, p_D, p_n, p_numbers, p_dD, p_dstates, p_h, p_slope, p_dz, p_dD1, p_dh,
    p_after, p_dD_whole, p_dstate, p_tickets, p_parts, T, heads, first, last, kept_stride, wave,
    DI: tl.constexpr, DH: tl.constexpr, DO: tl.constexpr, BI: tl.constexpr, BH: tl.constexpr, BO: tl.constexpr,
    C: tl.constexpr, BC: tl.constexpr, NORM: tl.constexpr, LENGTHS: tl.constexpr, SHARDS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Changes ``p_dstate`` from the gradient of the state after the last chunk to that of the first's, and ``p_dz`` to
    the gradient at z1; keeps that of the state after each chunk, and that at D2."""
    i_r, i_s = take_ticket(p_tickets, SHARDS)
    i_h, length = row(i_r, p_lengths, heads, T, LENGTHS)
    dtype: tl.constexpr = p_rows.dtype.element_ty
    low: tl.constexpr = tl.bfloat16 if PRECISION == "bf16" else dtype
    o_i, o_o, o_h = tl.arange(0, BI), tl.arange(0, BO), i_s * BH + tl.arange(0, BH)
    N: tl.constexpr = DI * DH + DH * DO
    chunks = last - first
    i_d, i_w = i_r * chunks * C * DO, i_r * chunks * C * DH
    p_k, p_kept, p_dstate = p_k + i_r * T * DI, p_kept + i_r * kept_stride, p_dstate + i_r * 2 * N
    p_D, p_n, p_dD, p_dD_whole = p_D + i_d, p_n + i_d, p_dD + i_d, p_dD_whole + i_d
    p_h, p_slope, p_dz, p_dD1, p_dh = p_h + i_w, p_slope + i_w, p_dz + i_w, p_dD1 + i_w, p_dh + i_w
    p_arrived, p_parts = place_of_exchange(p_tickets, p_parts, i_r, BC * BO, SHARDS)
    b_gW1, b_gW2 = load_layers(p_dstate, o_i, o_h, o_o, DI, DH, DO, dtype)
    b_gS1, b_gS2 = load_layers(p_dstate + N, o_i, o_h, o_o, DI, DH, DO, dtype)

    for i_back in range(chunks):
        i_c = chunks - 1 - i_back
        i_p = i_r * chunks + i_c
        o_t, inside, here = tokens_of_chunk(first + i_c, length, T, C, BC)
        o_s = o_t - first * C
        p_rows1 = p_rows + i_p * 2 * ROWS * BC
        b_low_W1, b_low_S1, b_low_W2, b_low_S2 = b_gW1.to(low), b_gS1.to(low), b_gW2.to(low), b_gS2.to(low)
        store_layers(p_after + i_p * 2 * N, o_i, o_h, o_o, b_low_W1, b_low_W2, DI, DH, DO)
        store_layers(p_after + i_p * 2 * N + N, o_i, o_h, o_o, b_low_S1, b_low_S2, DI, DH, DO)
        b_k = load_tokens(p_k, o_t, o_i, here, DI, low)
        b_hh = load_tokens(p_h, o_s, o_h, here, DH, low)
        beta1, f1, m1, b_end_G, b_end_P = load_end(p_rows1, BC)
        b_dD1 = load_tokens(p_dD1, o_s, o_h, here, DH, dtype)
        b_dD1 += b_end_G * dot(b_k, b_low_W1, PRECISION) + b_end_P * dot(b_k, b_low_S1, PRECISION)
        b_slope = load_tokens(p_slope, o_s, o_h, here, DH, low)
        b_dz1 = b_dD1 * load_tokens(p_dz, o_s, o_h, here, DH, low)
        b_du = (b_dD1 * b_slope).to(low)

        beta2, f2, m2, b_end_G, b_end_P = load_end(p_rows1 + ROWS * BC, BC)
        b_W2 = load_matrix(p_kept + tl.cast(i_c, tl.int64) * 2 * N + DI * DH, o_h, o_o, DH, DO, low)
        b_part = b_end_G * dot(b_hh, b_low_W2, PRECISION) + b_end_P * dot(b_hh, b_low_S2, PRECISION)
        b_part = dot(b_du, b_W2, PRECISION, b_part)
        b_dD2 = exchange(b_part, p_parts, p_arrived, i_s, i_back, SHARDS)
        b_dD2 += load_tokens(p_dD, o_s, o_o, here, DO, low)
        store_tokens(p_dD_whole, o_s, o_o, inside & (o_t < tl.where(i_s == 0, T, 0)), DO, b_dD2)
        b_D2, b_n, b_rstd, b_along = load_descent(p_D, p_n, p_numbers + i_p * 2 * BC, o_s, o_o, here, DO, NORM, low)
        b_dh = load_tokens(p_dh, o_s, o_h, here, DH, dtype)
        b_dh = dot(b_end_G * b_D2, tl.trans(b_low_W2), PRECISION, b_dh)
        b_dh = dot(b_end_P * b_D2, tl.trans(b_low_S2), PRECISION, b_dh)
        b_dz2, _, _ = descent_backward(b_dD2, b_D2, b_n, b_rstd, b_along, p_norm, i_h, o_o, DO, NORM)
        b_dz2 = b_dz2.to(low)
        b_dh = dot(b_dz2, tl.trans(b_W2), PRECISION, b_dh)
        b_dz1 += b_dh * b_slope
        store_tokens(p_dz, o_s, o_h, inside, DH, b_dz1)

        b_dS1, b_dS2 = load_layers(p_dstates + i_p * 2 * N + N, o_i, o_h, o_o, DI, DH, DO, low)
        b_gS1 = m1 * b_gS1 + f1 * b_gW1 + b_dS1
        b_gS2 = m2 * b_gS2 + f2 * b_gW2 + b_dS2
        b_dW1, b_dW2 = load_layers(p_dstates + i_p * 2 * N, o_i, o_h, o_o, DI, DH, DO, low)
        b_gW1 = dot(tl.trans(b_k), b_dz1, PRECISION, beta1 * b_gW1 + b_dW1)
        b_gW2 = dot(tl.trans(b_du), b_D2, PRECISION, beta2 * b_gW2 + b_dW2)
        b_gW2 = dot(tl.trans(b_hh), b_dz2, PRECISION, b_gW2)

    store_layers(p_dstate, o_i, o_h, o_o, b_gW1, b_gW2, DI, DH, DO)
    store_layers(p_dstate + N, o_i, o_h, o_o, b_gS1, b_gS2, DI, DH, DO)


@triton.jit(do_not_specialize=NUMBERS)
def deep_back_keys(
    p_k, p_v, p_rows, p_norm, p_lengths, p_kept, p_D, p_n, p_numbers, p_dD, p_h, p_slope, p_dz, p_after,
    p_dk, p_dv, p_dweights, p_dnorm, T, heads, first, chunks, kept_stride, wave,
    DI: tl.constexpr, DH: tl.constexpr, DO: tl.constexpr, BI: tl.constexpr, BH: tl.constexpr, BO: tl.constexpr,
    C: tl.constexpr, BC: tl.constexpr, NORM: tl.constexpr, LENGTHS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Writes dv and the gradients of what makes a state of the one before; adds to dk and to those of the norm."""
    i_p, i_c, i_r, i_h, length = chunk_of_program(p_lengths, heads, chunks, T, LENGTHS)
    dtype: tl.constexpr = p_rows.dtype.element_ty
    low: tl.constexpr = tl.bfloat16 if PRECISION == "bf16" else dtype
    o_i, o_o = tl.arange(0, BI), tl.arange(0, BO)
    o_t, inside, here = tokens_of_chunk(first + i_c, length, T, C, BC)
    o_s = o_t - first * C
    N: tl.constexpr = DI * DH + DH * DO
    i_s = i_r * chunks * C
    p_kept, p_after = p_kept + i_r * kept_stride + tl.cast(i_c, tl.int64) * 2 * N, p_after + i_p * 2 * N
    p_rows1, p_dweights1 = p_rows + i_p * 2 * ROWS * BC, p_dweights + i_p * 2 * (BC + ROWS) * BC
    p_h, p_slope, p_dz = p_h + i_s * DH, p_slope + i_s * DH, p_dz + i_s * DH
    p_dk, p_dv = p_dk + i_r * T * DI, p_dv + i_r * T * DO
    b_D2, b_n, b_rstd, b_along = load_descent(
        p_D + i_s * DO, p_n + i_s * DO, p_numbers + i_p * 2 * BC, o_s, o_o, here, DO, NORM, low
    )
    b_dD2 = load_tokens(p_dD + i_s * DO, o_s, o_o, here, DO, dtype)
    b_k = load_tokens(p_k + i_r * T * DI, o_t, o_i, here, DI, low)
    _, b_dv, b_dg = descent_backward(b_dD2, b_D2, b_n, b_rstd, b_along, p_norm, i_h, o_o, DO, NORM)
    store_tokens(p_dv, o_t, o_o, inside, DO, b_dv)
    b_dk = load_tokens(p_dk, o_t, o_i, here, DI, dtype)
    if NORM:
        b_dk -= b_dv  # k stands beside LN
        b_v = load_tokens(p_v + i_r * T * DO, o_t, o_o, here, DO, low)
        add_norm_gradients(p_dnorm + i_p * 2 * DO, p_norm, i_h, o_o, DO, b_k, b_v, b_n, b_dg, b_dv)

    b_D2 = b_D2.to(low)
    _, _, _, b_end_G, b_end_P = load_end(p_rows1, BC)
    b_dend_G1, b_dend_P1 = tl.zeros([BC], dtype), tl.zeros([BC], dtype)
    b_dend_G2, b_dend_P2 = tl.zeros([BC], dtype), tl.zeros([BC], dtype)
    b_dend1, b_dend2 = tl.zeros([BI], dtype), tl.zeros([BH], dtype)  # of beta, f and m: sums of the states' rows
    b_dend_f1, b_dend_f2 = tl.zeros([BI], dtype), tl.zeros([BH], dtype)
    b_dend_m1, b_dend_m2 = tl.zeros([BI], dtype), tl.zeros([BH], dtype)
    for i_h2 in range((DH + BH - 1) // BH):
        o_h = i_h2 * BH + tl.arange(0, BH)
        b_W1, b_W2 = load_layers(p_kept, o_i, o_h, o_o, DI, DH, DO, low)
        b_S1, b_S2 = load_layers(p_kept + N, o_i, o_h, o_o, DI, DH, DO, low)
        b_hh = load_tokens(p_h, o_s, o_h, here, DH, low)
        b_D1 = dot(b_D2, tl.trans(b_W2), PRECISION) * load_tokens(p_slope, o_s, o_h, here, DH, low)
        b_dk = dot(load_tokens(p_dz, o_s, o_h, here, DH, low), tl.trans(b_W1), PRECISION, b_dk)
        b_gW1, b_gW2 = load_layers(p_after, o_i, o_h, o_o, DI, DH, DO, low)
        b_dk = dot(b_end_G * b_D1, tl.trans(b_gW1), PRECISION, b_dk)
        b_dend_G1 += tl.sum(dot(b_k, b_gW1, PRECISION) * b_D1, 1)
        b_dend_G2 += tl.sum(dot(b_hh, b_gW2, PRECISION) * b_D2, 1)
        b_dend1 += tl.sum(b_gW1 * b_W1.to(dtype), 1)
        b_dend2 += tl.sum(b_gW2 * b_W2.to(dtype), 1)
        b_dend_f1 += tl.sum(b_gW1 * b_S1.to(dtype), 1)
        b_dend_f2 += tl.sum(b_gW2 * b_S2.to(dtype), 1)
        b_gS1, b_gS2 = load_layers(p_after + N, o_i, o_h, o_o, DI, DH, DO, low)
        b_dk = dot(b_end_P * b_D1, tl.trans(b_gS1), PRECISION, b_dk)
        b_dend_P1 += tl.sum(dot(b_k, b_gS1, PRECISION) * b_D1, 1)
        b_dend_P2 += tl.sum(dot(b_hh, b_gS2, PRECISION) * b_D2, 1)
        b_dend_m1 += tl.sum(b_gS1 * b_S1.to(dtype), 1)
        b_dend_m2 += tl.sum(b_gS2 * b_S2.to(dtype), 1)
    store_tokens(p_dk, o_t, o_i, inside, DI, b_dk)
    store_row_gradients(p_dweights1, b_dend_G1, b_dend_P1, BC)
    store_row_gradients(p_dweights1 + (BC + ROWS) * BC, b_dend_G2, b_dend_P2, BC)
    store_end_gradients(p_dweights1, tl.sum(b_dend1), tl.sum(b_dend_f1), tl.sum(b_dend_m1), BC)
    store_end_gradients(p_dweights1 + (BC + ROWS) * BC, tl.sum(b_dend2), tl.sum(b_dend_f2), tl.sum(b_dend_m2), BC)
