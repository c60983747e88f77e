"""One token: the rule itself, a gradient at the anchor's weights, read after write. A program is a head of a sequence.

Every tensor is read where it lies, in its own dtype: W, S and the anchor of each layer ``[batch, head, in, out]``, a
gate of a layer ``[batch, head]`` in any strides, the norm's weight and bias a row a head. Without a position a chunk
starts here, so that the weights are the anchor and no anchor comes out. No product is worth a matrix unit here, the
state's way from memory and back is what costs; sums are in its dtype.
"""

import triton
import triton.language as tl

from pyro_memory.kernels.memory.triton_layers import act, act_and_slope, descent, norm, norm_backward
from pyro_memory.kernels.memory.triton_loads import load_matrix, load_tokens, store_matrix, store_tokens

# Nothing is compiled anew for values of the former, nor for where the latter start: gates are views of what made them.
NUMBERS = (
    "heads", "chunk_size", "theta_b", "theta_h", "eta_b", "eta_h", "alpha_b", "alpha_h", "scale_h", "shift_h", "wave",
)  # fmt: skip
ANYWHERE = ("p_theta", "p_theta2", "p_eta", "p_eta2", "p_alpha", "p_alpha2", "p_scale", "p_shift")


@triton.jit
def _load_token(p_q, p_k, p_v, i_r, DI: tl.constexpr, DO: tl.constexpr, BI: tl.constexpr, BO: tl.constexpr, dtype):
    """q, k ``[1, BI]`` and v ``[1, BO]``."""
    o_1, o_i, o_o = tl.arange(0, 1), tl.arange(0, BI), tl.arange(0, BO)
    b_q = load_tokens(p_q + i_r * DI, o_1, o_i, o_1 == 0, DI, dtype)
    b_k = load_tokens(p_k + i_r * DI, o_1, o_i, o_1 == 0, DI, dtype)
    return b_q, b_k, load_tokens(p_v + i_r * DO, o_1, o_o, o_1 == 0, DO, dtype)


@triton.jit
def _load_norm(p_scale, p_shift, at_scale, at_shift, o_o, DO: tl.constexpr, dtype: tl.constexpr):
    """LN's weight and bias ``[1, BO]``, one and zero where they are not given."""
    b_scale = tl.full([1, o_o.shape[0]], 1.0, dtype)
    b_shift = tl.zeros([1, o_o.shape[0]], dtype)
    if p_scale is not None:
        b_scale = tl.load(p_scale + at_scale + o_o, mask=o_o < DO, other=0).to(dtype)[None, :]
    if p_shift is not None:
        b_shift = tl.load(p_shift + at_shift + o_o, mask=o_o < DO, other=0).to(dtype)[None, :]
    return b_scale, b_shift


@triton.jit
def _through(b_x, b_W):
    """x W for one token: ``[1, BI]`` and ``[BI, BO]`` to ``[1, BO]``."""
    return tl.sum(tl.trans(b_x) * b_W, 0)[None, :]


@triton.jit
def _descent(b_z, b_k, b_v, b_scale, b_shift, o_o, DO: tl.constexpr, NORM: tl.constexpr):
    """D: ``descent`` at what the last layer gives, z; through LN where there is one, whose output M adds to k."""
    if NORM:
        b_n, b_rstd = norm(b_z, o_o, DO)
        b_z, b_v = b_n * b_scale + b_shift, b_v - b_k
    b_D = descent(b_z, b_k, b_v, None, 0, o_o, DO, False)
    if NORM:
        b_D = norm_backward(b_D * b_scale, b_n, b_rstd, o_o, DO)
    return b_D


@triton.jit
def _advance(p_theta, p_eta, p_alpha, b_h, b_D, b_W, b_S):
    """W and S after a token that steps by h^T D."""
    dtype: tl.constexpr = b_W.dtype
    theta, eta, alpha = tl.load(p_theta).to(dtype), tl.load(p_eta).to(dtype), tl.load(p_alpha).to(dtype)
    b_S = eta * b_S + theta * (tl.trans(b_h) * b_D)
    return (1 - alpha) * b_W + b_S, b_S


@triton.jit
def _store_read(p_y, i_r, b_q, b_z, b_scale, b_shift, DO: tl.constexpr, BO: tl.constexpr, NORM: tl.constexpr):
    o_1, o_o = tl.arange(0, 1), tl.arange(0, BO)
    if NORM:
        b_n, _ = norm(b_z, o_o, DO)
        b_z = b_q + b_n * b_scale + b_shift
    store_tokens(p_y + i_r * DO, o_1, o_o, o_1 == 0, DO, b_z)


@triton.jit
def _go_on(p_position, p_position_after, i_b, i_h, chunk_size):
    """Whether the sequence's chunk begins with this token, and whether it ends; stores the position after it, once."""
    position = tl.load(p_position + i_b)
    after = (position + 1) % chunk_size
    tl.store(p_position_after + i_b, after, mask=i_h == 0)
    return position == 0, after == 0


@triton.jit(do_not_specialize=NUMBERS, do_not_specialize_on_alignment=ANYWHERE)
def linear_decode(
    p_q, p_k, p_v, p_W, p_S, p_A, p_theta, p_eta, p_alpha, p_position, p_scale, p_shift,
    p_y, p_W_after, p_S_after, p_A_after, p_position_after, heads, chunk_size,
    theta_b, theta_h, eta_b, eta_h, alpha_b, alpha_h, scale_h, shift_h, wave,
    DI: tl.constexpr, DO: tl.constexpr, BI: tl.constexpr, BO: tl.constexpr, NORM: tl.constexpr,
):  # fmt: skip
    i_r = tl.program_id(0).to(tl.int64)
    i_b, i_h = i_r // heads, i_r % heads
    dtype: tl.constexpr = p_W_after.dtype.element_ty
    o_i, o_o = tl.arange(0, BI), tl.arange(0, BO)
    at = i_r * DI * DO
    theta, eta, alpha = i_b * theta_b + i_h * theta_h, i_b * eta_b + i_h * eta_h, i_b * alpha_b + i_h * alpha_h
    b_q, b_k, b_v = _load_token(p_q, p_k, p_v, i_r, DI, DO, BI, BO, dtype)
    b_scale, b_shift = _load_norm(p_scale, p_shift, i_h * scale_h, i_h * shift_h, o_o, DO, dtype)
    if p_position is None:
        p_A = p_W
    else:
        begins, ends = _go_on(p_position, p_position_after, i_b, i_h, chunk_size)
        p_A = tl.where(begins, p_W, p_A)
    b_A = load_matrix(p_A + at, o_i, o_o, DI, DO, dtype)
    b_W = load_matrix(p_W + at, o_i, o_o, DI, DO, dtype)
    b_S = load_matrix(p_S + at, o_i, o_o, DI, DO, dtype)
    if p_position is not None:
        store_matrix(p_A_after + at, o_i, o_o, tl.where(ends, 0, DI), DO, b_A)
    b_D = _descent(_through(b_k, b_A), b_k, b_v, b_scale, b_shift, o_o, DO, NORM)
    b_W, b_S = _advance(p_theta + theta, p_eta + eta, p_alpha + alpha, b_k, b_D, b_W, b_S)
    store_matrix(p_W_after + at, o_i, o_o, DI, DO, b_W)
    store_matrix(p_S_after + at, o_i, o_o, DI, DO, b_S)
    if p_position is not None:
        store_matrix(p_A_after + at, o_i, o_o, tl.where(ends, DI, 0), DO, b_W)
    _store_read(p_y, i_r, b_q, _through(b_q, b_W), b_scale, b_shift, DO, BO, NORM)


@triton.jit(do_not_specialize=NUMBERS, do_not_specialize_on_alignment=ANYWHERE)
def deep_decode(
    p_q, p_k, p_v, p_W, p_W2, p_S, p_S2, p_A, p_A2, p_theta, p_theta2, p_eta, p_eta2, p_alpha, p_alpha2, p_position,
    p_scale, p_shift, p_y, p_W_after, p_W2_after, p_S_after, p_S2_after, p_A_after, p_A2_after, p_position_after,
    heads, chunk_size, theta_b, theta_h, eta_b, eta_h, alpha_b, alpha_h, scale_h, shift_h, wave,
    DI: tl.constexpr, DH: tl.constexpr, DO: tl.constexpr, BI: tl.constexpr, BH: tl.constexpr, BO: tl.constexpr,
    ACTIVATION: tl.constexpr, NORM: tl.constexpr,
):  # fmt: skip
    i_r = tl.program_id(0).to(tl.int64)
    i_b, i_h = i_r // heads, i_r % heads
    dtype: tl.constexpr = p_W_after.dtype.element_ty
    o_i, o_o = tl.arange(0, BI), tl.arange(0, BO)
    at, at2 = i_r * DI * DH, i_r * DH * DO
    theta, eta, alpha = i_b * theta_b + i_h * theta_h, i_b * eta_b + i_h * eta_h, i_b * alpha_b + i_h * alpha_h
    b_q, b_k, b_v = _load_token(p_q, p_k, p_v, i_r, DI, DO, BI, BO, dtype)
    b_scale, b_shift = _load_norm(p_scale, p_shift, i_h * scale_h, i_h * shift_h, o_o, DO, dtype)
    if p_position is None:
        p_A, p_A2 = p_W, p_W2
    else:
        begins, ends = _go_on(p_position, p_position_after, i_b, i_h, chunk_size)
        p_A, p_A2 = tl.where(begins, p_W, p_A), tl.where(begins, p_W2, p_A2)
    b_z2 = tl.zeros([1, BO], dtype)
    for i_h1 in range((DH + BH - 1) // BH):
        o_h = i_h1 * BH + tl.arange(0, BH)
        b_A1 = load_matrix(p_A + at, o_i, o_h, DI, DH, dtype)
        b_A2 = load_matrix(p_A2 + at2, o_h, o_o, DH, DO, dtype)
        b_z2 += _through(act(_through(b_k, b_A1), ACTIVATION), b_A2)
        if p_position is not None:
            store_matrix(p_A_after + at, o_i, o_h, tl.where(ends, 0, DI), DH, b_A1)
            store_matrix(p_A2_after + at2, o_h, o_o, tl.where(ends, 0, DH), DO, b_A2)
    b_D2 = _descent(b_z2, b_k, b_v, b_scale, b_shift, o_o, DO, NORM)
    b_y = tl.zeros([1, BO], dtype)
    for i_h2 in range((DH + BH - 1) // BH):  # A first: after W and S the compiler gives it a layout of its own
        o_h = i_h2 * BH + tl.arange(0, BH)
        b_A1 = load_matrix(p_A + at, o_i, o_h, DI, DH, dtype)
        b_A2 = load_matrix(p_A2 + at2, o_h, o_o, DH, DO, dtype)
        b_W1 = load_matrix(p_W + at, o_i, o_h, DI, DH, dtype)
        b_W2 = load_matrix(p_W2 + at2, o_h, o_o, DH, DO, dtype)
        b_S1 = load_matrix(p_S + at, o_i, o_h, DI, DH, dtype)
        b_S2 = load_matrix(p_S2 + at2, o_h, o_o, DH, DO, dtype)
        b_h, b_slope = act_and_slope(_through(b_k, b_A1), ACTIVATION)
        b_D1 = tl.trans(tl.sum(b_D2 * b_A2, 1)[:, None]) * b_slope
        b_W1, b_S1 = _advance(p_theta + theta, p_eta + eta, p_alpha + alpha, b_k, b_D1, b_W1, b_S1)
        b_W2, b_S2 = _advance(p_theta2 + theta, p_eta2 + eta, p_alpha2 + alpha, b_h, b_D2, b_W2, b_S2)
        store_matrix(p_W_after + at, o_i, o_h, DI, DH, b_W1)
        store_matrix(p_W2_after + at2, o_h, o_o, DH, DO, b_W2)
        store_matrix(p_S_after + at, o_i, o_h, DI, DH, b_S1)
        store_matrix(p_S2_after + at2, o_h, o_o, DH, DO, b_S2)
        if p_position is not None:
            store_matrix(p_A_after + at, o_i, o_h, tl.where(ends, DI, 0), DH, b_W1)
            store_matrix(p_A2_after + at2, o_h, o_o, tl.where(ends, DH, 0), DO, b_W2)
        b_y += _through(act(_through(b_q, b_W1), ACTIVATION), b_W2)
    _store_read(p_y, i_r, b_q, b_y, b_scale, b_shift, DO, BO, NORM)
