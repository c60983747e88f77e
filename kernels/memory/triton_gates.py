"""What a chunk's gates weigh: a kernel before the walk over the chunks, and one after the walk back.

With P_ti = theta_i prod_{i < j <= t} eta_j and B_tk = prod_{k < j <= t} (1 - alpha_j), and G = B P, the states are

    W_t = beta_t W + f_t S - sum_i G_ti u_i        S_t = m_t S - sum_i P_ti u_i

A program is a chunk of a layer of a row (a head of a sequence), so that all chunks are weighed at once. It writes G
``[BC, BC]`` and ``ROWS`` rows of BC numbers: beta, f, m, the rows of G and P of the chunk's last token, which make the
state after it, and last that token's beta, f and m. In a chunk without tokens the state stays.

A product over a range of tokens is a power of two of a difference of running sums of logarithms, with zeros counted
apart, so that gates of 0 and 1 are exact. The sums are in float64 and subtracted in two parts: a difference of two long
sums would lose the digits that a running product keeps.
"""

import triton
import triton.language as tl

from pyro_memory.kernels.memory.triton_loads import NUMBERS
from pyro_memory.kernels.triton_parts import compose, dot

ROWS = tl.constexpr(6)


@triton.jit
def load_gates(p_gates, o_t, here, T):
    """theta, eta and 1 - alpha of a layer, from ``[3, T]``."""
    b_theta = tl.load(p_gates + o_t, mask=here, other=0)
    b_eta = tl.load(p_gates + T + o_t, mask=here, other=1)
    b_a = 1 - tl.load(p_gates + 2 * T + o_t, mask=here, other=0)
    return b_theta, b_eta, b_a


@triton.jit
def log_sums(b_g):
    """Log2 of each g that is not 0, the running sums of these, in float64, and running counts of zeros."""
    b_zero = b_g == 0
    b_log = tl.log2(tl.where(b_zero, 1.0, b_g).to(tl.float64))
    return b_log, tl.cumsum(b_log, 0), tl.cumsum(b_zero.to(tl.int32), 0)


@triton.jit
def range_products(b_sum_t, b_count_t, b_sum_i, b_count_i, BC: tl.constexpr, LAG: tl.constexpr, dtype: tl.constexpr):
    """[BC, BC]: prod_{i < j <= t - LAG} g_j where i <= t - LAG, else 0; with LAG 1 the sums of t stop before it."""
    o_c = tl.arange(0, BC)
    b_high_t, b_high_i = b_sum_t.to(dtype), b_sum_i.to(dtype)
    b_log = b_high_t[:, None] - b_high_i[None, :]
    if dtype != tl.float64:
        b_log += (b_sum_t - b_high_t).to(dtype)[:, None] - (b_sum_i - b_high_i).to(dtype)[None, :]
    kept = (o_c[:, None] >= o_c[None, :] + LAG) & (b_count_t[:, None] == b_count_i[None, :])
    return tl.exp2(tl.where(kept, b_log, float("-inf")))


@triton.jit
def _at(b_x, i):
    return tl.sum(tl.where(tl.arange(0, b_x.shape[0]) == i, b_x, 0), 0)


@triton.jit
def _until(b_sum, b_count, i_end, BC: tl.constexpr):
    """[BC]: prod_{i < j <= end} g_j, 0 past the end."""
    kept = (tl.arange(0, BC) <= i_end) & (b_count == _at(b_count, i_end))
    return tl.exp2(tl.where(kept, _at(b_sum, i_end) - b_sum, float("-inf")))


@triton.jit(do_not_specialize=NUMBERS)
def gates_forward(
    p_gates, p_lengths, p_G, p_rows, T, first, chunks, layers, wave,
    C: tl.constexpr, BC: tl.constexpr, LENGTHS: tl.constexpr, PRODUCT: tl.constexpr,
):  # fmt: skip
    i_p = tl.program_id(0).to(tl.int64)  # (row, chunk, layer)
    i_l, i_c, i_r = i_p % layers, (i_p // layers) % chunks, i_p // (layers * chunks)
    p_gates += (i_r * layers + i_l) * 3 * T
    p_G, p_rows = p_G + i_p * BC * BC, p_rows + i_p * ROWS * BC
    dtype: tl.constexpr = p_gates.dtype.element_ty
    o_c = tl.arange(0, BC)
    t = (first + i_c) * C
    length = tl.load(p_lengths + i_r) if LENGTHS else T
    here = (o_c < C) & (t + o_c < length)
    i_end = tl.minimum(C, length - t) - 1
    none = i_end < 0
    b_theta, b_eta, b_a = load_gates(p_gates, t + o_c, here, T)
    _, b_sum, b_count = log_sums(b_eta)
    b_E = range_products(b_sum, b_count, b_sum, b_count, BC, 0, dtype)
    b_m = tl.cumprod(b_eta, 0)
    b_end_P = b_theta * _until(b_sum, b_count, i_end, BC).to(dtype)
    _, b_sum, b_count = log_sums(b_a)
    b_B = range_products(b_sum, b_count, b_sum, b_count, BC, 0, dtype)
    b_G = dot(b_B, b_E * b_theta[None, :], PRODUCT)
    tl.store(p_G + o_c[:, None] * BC + o_c[None, :], b_G.to(p_G.dtype.element_ty))

    b_beta = tl.cumprod(b_a, 0)
    _, b_f = tl.associative_scan((b_a, b_m), 0, compose)  # f_t = a_t f_{t-1} + m_t
    b_eta_next = tl.load(p_gates + T + t + 1 + o_c, mask=(o_c < i_end), other=1)
    b_end_B = _until(b_sum, b_count, i_end, BC).to(dtype)
    _, b_end_G = tl.associative_scan((b_eta_next, b_end_B), 0, compose, reverse=True)
    tl.store(p_rows + o_c, b_beta)
    tl.store(p_rows + BC + o_c, b_f)
    tl.store(p_rows + 2 * BC + o_c, b_m)
    tl.store(p_rows + 3 * BC + o_c, b_theta * b_end_G)
    tl.store(p_rows + 4 * BC + o_c, b_end_P)
    tl.store(p_rows + 5 * BC, tl.where(none, 1.0, _at(b_beta, i_end)))
    tl.store(p_rows + 5 * BC + 1, _at(b_f, i_end))
    tl.store(p_rows + 5 * BC + 2, tl.where(none, 1.0, _at(b_m, i_end)))


@triton.jit
def load_end(p_rows, BC: tl.constexpr):
    """What makes the state after a chunk: beta, f and m, and the last rows of G and P as columns ``[BC, 1]``."""
    o_c = tl.arange(0, BC)
    b_end_G, b_end_P = tl.load(p_rows + 3 * BC + o_c), tl.load(p_rows + 4 * BC + o_c)
    p_rows += 5 * BC
    return tl.load(p_rows), tl.load(p_rows + 1), tl.load(p_rows + 2), b_end_G[:, None], b_end_P[:, None]


@triton.jit
def load_reads(p_rows, BC: tl.constexpr):
    """What reads take of the chunk's first state: beta and f as columns ``[BC, 1]``."""
    o_c = tl.arange(0, BC)
    return tl.load(p_rows + o_c)[:, None], tl.load(p_rows + BC + o_c)[:, None]


@triton.jit
def load_G(p_G, BC: tl.constexpr):
    o_c = tl.arange(0, BC)
    return tl.load(p_G + o_c[:, None] * BC + o_c[None, :])


# gradients of these lie alike: G, then ROWS rows, m's of which is empty: only the last token's m makes a state


@triton.jit
def store_G_gradient(p_grads, b_dG, BC: tl.constexpr):
    o_c = tl.arange(0, BC)
    tl.store(p_grads + o_c[:, None] * BC + o_c[None, :], b_dG)


@triton.jit
def store_read_gradients(p_grads, b_dbeta, b_df, BC: tl.constexpr):
    o_c = tl.arange(0, BC)
    p_grads += BC * BC
    tl.store(p_grads + o_c, b_dbeta)
    tl.store(p_grads + BC + o_c, b_df)


@triton.jit
def store_row_gradients(p_grads, b_end_G, b_end_P, BC: tl.constexpr):
    o_c = tl.arange(0, BC)
    tl.store(p_grads + (BC + 3) * BC + o_c, b_end_G)
    tl.store(p_grads + (BC + 4) * BC + o_c, b_end_P)


@triton.jit
def store_end_gradients(p_grads, beta, f, m, BC: tl.constexpr):
    p_grads += (BC + 5) * BC
    tl.store(p_grads, beta)
    tl.store(p_grads + 1, f)
    tl.store(p_grads + 2, m)


@triton.jit(do_not_specialize=NUMBERS)
def gates_backward(
    p_gates, p_lengths, p_G, p_rows, p_grads, p_dgates, T, first, chunks, layers, wave,
    C: tl.constexpr, BC: tl.constexpr, LENGTHS: tl.constexpr, PRODUCT: tl.constexpr,
):  # fmt: skip
    """From the gradients of what ``gates_forward`` gives to theta, eta and alpha."""
    i_p = tl.program_id(0).to(tl.int64)
    i_l, i_c, i_r = i_p % layers, (i_p // layers) % chunks, i_p // (layers * chunks)
    p_gates += (i_r * layers + i_l) * 3 * T
    p_dgates += (i_r * layers + i_l) * 3 * T
    p_G, p_rows, p_grads = p_G + i_p * BC * BC, p_rows + i_p * ROWS * BC, p_grads + i_p * (BC + ROWS) * BC
    p_drows = p_grads + BC * BC
    dtype: tl.constexpr = p_gates.dtype.element_ty
    o_c = tl.arange(0, BC)
    o_matrix = o_c[:, None] * BC + o_c[None, :]
    t = (first + i_c) * C
    length = tl.load(p_lengths + i_r) if LENGTHS else T
    inside = (o_c < C) & (t + o_c < T)
    b_theta, b_eta, b_a = load_gates(p_gates, t + o_c, inside & (t + o_c < length), T)
    lower, later = o_c[:, None] >= o_c[None, :], o_c > 0
    at_end = o_c == tl.minimum(C, length - t) - 1
    p_ends = p_drows + 5 * BC + 0 * o_c
    b_dbeta = tl.load(p_drows + o_c) + tl.load(p_ends, mask=at_end, other=0)
    b_df = tl.load(p_drows + BC + o_c) + tl.load(p_ends + 1, mask=at_end, other=0)
    b_dm = tl.load(p_ends + 2, mask=at_end, other=0)
    b_end_G, b_end_P = tl.load(p_drows + 3 * BC + o_c), tl.load(p_drows + 4 * BC + o_c)

    # through G = B P, beta and f
    _, b_sum, b_count = log_sums(b_a)
    b_B = range_products(b_sum, b_count, b_sum, b_count, BC, 0, dtype)
    b_dG = tl.load(p_grads + o_matrix) + tl.where(at_end[:, None], b_end_G[None, :], 0.0)
    b_to_G = tl.where(lower, dot(tl.trans(b_B), b_dG, PRODUCT), 0.0)
    b_to_beta = tl.sum(b_B * b_dbeta[:, None], 0)
    b_to_f = tl.sum(b_B * b_df[:, None], 0)
    b_G_before = tl.load(p_G + o_matrix - BC, mask=later[:, None], other=0).to(dtype)
    b_da = tl.sum(b_to_G * b_G_before, 1) + b_to_beta * tl.load(p_rows + o_c - 1, mask=later, other=1)
    b_da += b_to_f * tl.load(p_rows + BC + o_c - 1, mask=later, other=0)
    tl.store(p_dgates + 2 * T + t + o_c, -b_da, mask=inside)

    # through P and m
    b_log, b_sum, b_count = log_sums(b_eta)
    b_E = range_products(b_sum, b_count, b_sum, b_count, BC, 0, dtype)
    b_dP = b_to_G + tl.where(at_end[:, None], b_end_P[None, :], 0.0)
    b_to_P = tl.where(lower, dot(tl.trans(b_E), b_dP, PRODUCT), 0.0)
    tl.store(p_dgates + t + o_c, tl.sum(tl.where(o_c[:, None] == o_c[None, :], b_to_P, 0.0), 1), mask=inside)
    b_to_m = tl.sum(b_E * (b_dm + b_to_f)[:, None], 0)
    b_before = range_products(b_sum - b_log, b_count - (b_eta == 0).to(tl.int32), b_sum, b_count, BC, 1, dtype)
    b_deta = tl.sum(b_to_P * b_before * b_theta[None, :], 1)
    b_deta += b_to_m * tl.load(p_rows + 2 * BC + o_c - 1, mask=later, other=1)
    tl.store(p_dgates + T + t + o_c, b_deta, mask=inside)
