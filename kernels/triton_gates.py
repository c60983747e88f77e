"""What a chunk's gates weigh, inside the Triton kernels; see ``coefficients`` for the same in PyTorch.

With P_ti = theta_i prod_{i < j <= t} eta_j and B_tk = prod_{k < j <= t} (1 - alpha_j), and G = B P, the states are

    W_t = beta_t W + f_t S - sum_i G_ti u_i        S_t = m_t S - sum_i P_ti u_i

Products over ranges are running products of a matrix of ones below the range, so that gates of 0 and 1 are exact: a
difference of summed logarithms would be undefined at 0 and lose digits beside it. The row of a chunk's last token makes
the state after it; in a chunk without one (i_end < 0) the state stays.
"""

import triton
import triton.language as tl


@triton.jit
def load_gates(p_gates, o_t, here, T):
    """theta, eta and 1 - alpha of a layer, from ``[3, T]``."""
    b_theta = tl.load(p_gates + o_t, mask=here, other=0)
    b_eta = tl.load(p_gates + T + o_t, mask=here, other=1)
    b_a = 1 - tl.load(p_gates + 2 * T + o_t, mask=here, other=0)
    return b_theta, b_eta, b_a


@triton.jit
def range_products(b_g, BC: tl.constexpr, LAG: tl.constexpr):
    """[BC, BC]: prod_{i < j <= t - LAG} g_j where i <= t - LAG, else 0; with LAG 1, b_g holds g_{t-1} at t."""
    o_c = tl.arange(0, BC)
    b_factor = tl.where(o_c[:, None] > o_c[None, :] + LAG, b_g[:, None], 1.0)
    return tl.where(o_c[:, None] >= o_c[None, :] + LAG, tl.cumprod(b_factor, axis=0), 0.0)


@triton.jit
def _compose(b_a, b_x, b_a_next, b_x_next):
    return b_a * b_a_next, b_x * b_a_next + b_x_next


@triton.jit
def carry(b_g, b_X, BC: tl.constexpr, SCANS: tl.constexpr):
    """Y_t = g_t Y_{t-1} + X_t for the rows of ``[BC, BC]``: by a scan, or by the product of its range products."""
    if SCANS:
        _, b_Y = tl.associative_scan((tl.broadcast_to(b_g[:, None], [BC, BC]), b_X), 0, _compose)
    else:
        b_Y = tl.dot(range_products(b_g, BC, 0), b_X, input_precision="ieee")
    return b_Y


@triton.jit
def carry_back(b_g, b_g_next, b_X, BC: tl.constexpr, SCANS: tl.constexpr):
    """Y_t = X_t + g_{t+1} Y_{t+1}: the same, transposed."""
    if SCANS:
        b_next = tl.broadcast_to(b_g_next[:, None], [BC, BC])
        _, b_Y = tl.associative_scan((b_next, b_X), 0, _compose, reverse=True)
    else:
        b_Y = tl.dot(tl.trans(range_products(b_g, BC, 0)), b_X, input_precision="ieee")
    return b_Y


@triton.jit
def gate_weights(b_theta, b_eta, b_a, BC: tl.constexpr, SCANS: tl.constexpr):
    """beta, f and m ``[BC]``, P and G ``[BC, BC]``."""
    b_P = range_products(b_eta, BC, 0) * b_theta[None, :]
    b_m = tl.cumprod(b_eta, axis=0)
    b_f = tl.sum(range_products(b_a, BC, 0) * b_m[None, :], 1)
    return tl.cumprod(b_a, axis=0), b_f, b_m, b_P, carry(b_a, b_P, BC, SCANS)


@triton.jit
def end_weights(b_beta, b_f, b_m, b_P, b_G, i_end, BC: tl.constexpr):
    """Their rows of the chunk's last token: numbers beta, f and m, and P and G ``[BC, 1]``."""
    b_end = tl.arange(0, BC) == i_end
    beta = tl.where(i_end < 0, 1.0, tl.sum(tl.where(b_end, b_beta, 0.0), 0))
    m = tl.where(i_end < 0, 1.0, tl.sum(tl.where(b_end, b_m, 0.0), 0))
    f = tl.sum(tl.where(b_end, b_f, 0.0), 0)
    b_end_P = tl.sum(tl.where(b_end[:, None], b_P, 0.0), 0)
    b_end_G = tl.sum(tl.where(b_end[:, None], b_G, 0.0), 0)
    return beta, f, m, b_end_P[:, None], b_end_G[:, None]


@triton.jit
def keep_gate_gradients(
    p_gate, i_end, b_dbeta, b_df, b_dG, end_beta, end_f, end_m, b_end_G, b_end_P, BC: tl.constexpr
):  # fmt: skip
    """Stores the gradients of a chunk's weights, ``[BC + 4, BC]``; those of its end come apart, ``end_...``."""
    o_c = tl.arange(0, BC)
    b_end = o_c == i_end
    tl.store(p_gate + o_c, b_dbeta + tl.where(b_end, end_beta, 0.0))
    tl.store(p_gate + BC + o_c, b_df + tl.where(b_end, end_f, 0.0))
    tl.store(p_gate + 2 * BC + o_c, tl.where(b_end, end_m, 0.0))
    tl.store(p_gate + 3 * BC + o_c, b_end_P)
    b_dG += tl.where(b_end[:, None], b_end_G[None, :], 0.0)
    tl.store(p_gate + 4 * BC + o_c[:, None] * BC + o_c[None, :], b_dG)


@triton.jit
def gates_backward(
    p_gates, p_lengths, p_gate, p_dgates, T, first, chunks, layers,
    C: tl.constexpr, BC: tl.constexpr, LENGTHS: tl.constexpr, SCANS: tl.constexpr,
):  # fmt: skip
    """From what ``keep_gate_gradients`` stored to theta, eta and alpha: a program is a chunk of a layer of a row."""
    i_l, i_p = tl.program_id(0) % layers, tl.program_id(0) // layers
    i_r, i_c = (i_p // chunks).to(tl.int64), i_p % chunks
    p_gates += (i_r * layers + i_l) * 3 * T
    p_dgates += (i_r * layers + i_l) * 3 * T
    p_gate += ((i_r * chunks + i_c) * layers + i_l) * (BC + 4) * BC
    o_c = tl.arange(0, BC)
    t = (first + i_c) * C
    o_t = t + o_c
    length = tl.load(p_lengths + i_r) if LENGTHS else T
    inside = (o_c < C) & (o_t < T)
    here = inside & (o_t < length)
    i_end = tl.minimum(C, length - t) - 1
    b_dbeta, b_df = tl.load(p_gate + o_c), tl.load(p_gate + BC + o_c)
    b_dm, b_end_P = tl.load(p_gate + 2 * BC + o_c), tl.load(p_gate + 3 * BC + o_c)
    b_dG = tl.load(p_gate + 4 * BC + o_c[:, None] * BC + o_c[None, :])
    b_dP = tl.where((o_c == i_end)[:, None], b_end_P[None, :], 0.0)

    b_theta, b_eta, b_a = load_gates(p_gates, o_t, here, T)
    _, b_eta_before, b_a_before = load_gates(p_gates, o_t - 1, here & (o_c > 0), T)
    _, b_eta_next, b_a_next = load_gates(p_gates, o_t + 1, here & (o_c < i_end), T)
    b_B, b_E = range_products(b_a, BC, 0), range_products(b_eta, BC, 0)
    low = o_c[:, None] >= o_c[None, :]
    b_to_beta = tl.sum(b_B * b_dbeta[:, None], 0)
    b_to_f = tl.sum(b_B * b_df[:, None], 0)
    b_to_m = tl.sum(b_E * (b_dm + b_to_f)[:, None], 0)
    b_to_G = tl.where(low, carry_back(b_a, b_a_next, b_dG, BC, SCANS), 0.0)
    b_to_P = tl.where(low, carry_back(b_eta, b_eta_next, b_dP + b_to_G, BC, SCANS), 0.0)

    b_P_before = range_products(b_eta_before, BC, 1) * b_theta[None, :]
    b_G_before = carry(b_a_before, b_P_before, BC, SCANS)
    b_m_before = tl.cumprod(b_eta_before, axis=0)
    b_beta_before = tl.cumprod(b_a_before, axis=0)
    b_f_before = tl.sum(range_products(b_a_before, BC, 1) * tl.cumprod(b_eta, axis=0)[None, :], 1)

    b_dtheta = tl.sum(tl.where(o_c[:, None] == o_c[None, :], b_to_P, 0.0), 0)
    b_deta = tl.sum(b_to_P * b_P_before, 1) + b_to_m * b_m_before
    b_da = tl.sum(b_to_G * b_G_before, 1) + b_to_f * b_f_before + b_to_beta * b_beta_before
    tl.store(p_dgates + o_t, b_dtheta, mask=inside)
    tl.store(p_dgates + T + o_t, b_deta, mask=inside)
    tl.store(p_dgates + 2 * T + o_t, -b_da, mask=inside)
