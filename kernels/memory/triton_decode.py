"""One token: the rule itself, a gradient at the anchor's weights, read after write. A program is a head of a sequence.

No product is worth a matrix unit here, the state's way from memory and back is what costs; sums are in its dtype.
"""

import triton
import triton.language as tl

from pyro_memory.kernels.memory.triton_layers import act, act_slope, loss_gradient, residual_norm
from pyro_memory.kernels.memory.triton_loads import (
    NUMBERS,
    load_layers,
    load_matrix,
    load_tokens,
    store_layers,
    store_matrix,
    store_tokens,
)


@triton.jit
def _load_token(p_q, p_k, p_v, i_r, DI: tl.constexpr, DO: tl.constexpr, BI: tl.constexpr, BO: tl.constexpr, dtype):
    """q, k ``[1, BI]`` and v ``[1, BO]``."""
    o_1, o_i, o_o = tl.arange(0, 1), tl.arange(0, BI), tl.arange(0, BO)
    b_q = load_tokens(p_q + i_r * DI, o_1, o_i, o_1 == 0, DI, dtype)
    b_k = load_tokens(p_k + i_r * DI, o_1, o_i, o_1 == 0, DI, dtype)
    return b_q, b_k, load_tokens(p_v + i_r * DO, o_1, o_o, o_1 == 0, DO, dtype)


@triton.jit
def _through(b_x, b_W):
    """x W for one token: ``[1, BI]`` and ``[BI, BO]`` to ``[1, BO]``."""
    return tl.sum(tl.trans(b_x) * b_W, 0)[None, :]


@triton.jit
def _advance(p_gates, b_h, b_D, b_W, b_S):
    """W and S after a token whose gradient is h^T D."""
    theta, eta, alpha = tl.load(p_gates), tl.load(p_gates + 1), tl.load(p_gates + 2)
    b_S = eta * b_S - theta * (tl.trans(b_h) * b_D)
    return (1 - alpha) * b_W + b_S, b_S


@triton.jit
def _store_read(p_y, p_norm, i_r, i_h, b_q, b_z, DO: tl.constexpr, BO: tl.constexpr, NORM: tl.constexpr):
    o_1, o_o = tl.arange(0, 1), tl.arange(0, BO)
    if NORM:
        b_z = residual_norm(b_q, b_z, p_norm, i_h, o_o, DO)
    store_tokens(p_y + i_r * DO, o_1, o_o, o_1 == 0, DO, b_z)


@triton.jit(do_not_specialize=NUMBERS)
def linear_decode(
    p_q, p_k, p_v, p_gates, p_norm, p_before, p_anchor, p_y, p_after, heads, wave,
    DI: tl.constexpr, DO: tl.constexpr, BI: tl.constexpr, BO: tl.constexpr, NORM: tl.constexpr,
):  # fmt: skip
    i_r = tl.program_id(0).to(tl.int64)
    i_h = i_r % heads
    dtype: tl.constexpr = p_after.dtype.element_ty
    o_i, o_o = tl.arange(0, BI), tl.arange(0, BO)
    N: tl.constexpr = DI * DO
    p_before, p_after = p_before + i_r * 2 * N, p_after + i_r * 2 * N
    b_q, b_k, b_v = _load_token(p_q, p_k, p_v, i_r, DI, DO, BI, BO, dtype)
    b_W = load_matrix(p_before, o_i, o_o, DI, DO, dtype)
    b_S = load_matrix(p_before + N, o_i, o_o, DI, DO, dtype)
    b_A = load_matrix(p_anchor + i_r * N, o_i, o_o, DI, DO, dtype)
    b_D = loss_gradient(_through(b_k, b_A), b_k, b_v, p_norm, i_h, o_o, DO, NORM)
    b_W, b_S = _advance(p_gates + i_r * 3, b_k, b_D, b_W, b_S)
    store_matrix(p_after, o_i, o_o, DI, DO, b_W)
    store_matrix(p_after + N, o_i, o_o, DI, DO, b_S)
    _store_read(p_y, p_norm, i_r, i_h, b_q, _through(b_q, b_W), DO, BO, NORM)


@triton.jit(do_not_specialize=NUMBERS)
def deep_decode(
    p_q, p_k, p_v, p_gates, p_norm, p_before, p_anchor, p_y, p_after, heads, wave,
    DI: tl.constexpr, DH: tl.constexpr, DO: tl.constexpr, BI: tl.constexpr, BH: tl.constexpr, BO: tl.constexpr,
    ACTIVATION: tl.constexpr, NORM: tl.constexpr,
):  # fmt: skip
    i_r = tl.program_id(0).to(tl.int64)
    i_h = i_r % heads
    dtype: tl.constexpr = p_after.dtype.element_ty
    o_i, o_o = tl.arange(0, BI), tl.arange(0, BO)
    N: tl.constexpr = DI * DH + DH * DO
    p_A, p_W, p_W_after = p_anchor + i_r * N, p_before + i_r * 2 * N, p_after + i_r * 2 * N
    p_S, p_S_after = p_W + N, p_W_after + N
    b_q, b_k, b_v = _load_token(p_q, p_k, p_v, i_r, DI, DO, BI, BO, dtype)
    b_z2 = tl.zeros([1, BO], dtype)
    for i_h1 in range((DH + BH - 1) // BH):
        o_h = i_h1 * BH + tl.arange(0, BH)
        b_A1, b_A2 = load_layers(p_A, o_i, o_h, o_o, DI, DH, DO, dtype)
        b_z2 += _through(act(_through(b_k, b_A1), ACTIVATION), b_A2)
    b_D2 = loss_gradient(b_z2, b_k, b_v, p_norm, i_h, o_o, DO, NORM)
    b_y = tl.zeros([1, BO], dtype)
    for i_h2 in range((DH + BH - 1) // BH):
        o_h = i_h2 * BH + tl.arange(0, BH)
        b_A1, b_A2 = load_layers(p_A, o_i, o_h, o_o, DI, DH, DO, dtype)
        b_W1, b_W2 = load_layers(p_W, o_i, o_h, o_o, DI, DH, DO, dtype)
        b_S1, b_S2 = load_layers(p_S, o_i, o_h, o_o, DI, DH, DO, dtype)
        b_z1 = _through(b_k, b_A1)
        b_D1 = tl.trans(tl.sum(b_D2 * b_A2, 1)[:, None]) * act_slope(b_z1, ACTIVATION)
        b_W1, b_S1 = _advance(p_gates + i_r * 6, b_k, b_D1, b_W1, b_S1)
        b_W2, b_S2 = _advance(p_gates + i_r * 6 + 3, act(b_z1, ACTIVATION), b_D2, b_W2, b_S2)
        store_layers(p_W_after, o_i, o_h, o_o, b_W1, b_W2, DI, DH, DO)
        store_layers(p_S_after, o_i, o_h, o_o, b_S1, b_S2, DI, DH, DO)
        b_y += _through(act(_through(b_q, b_W1), ACTIVATION), b_W2)
    _store_read(p_y, p_norm, i_r, i_h, b_q, b_y, DO, BO, NORM)
