"""Where a program of the neural memory's kernels stands, and the blocks that it loads and stores.

Blocks are padded to powers of two: what is loaded past the end is zero, and stays zero.
"""

import triton
import triton.language as tl

# Arguments for whose values nothing is compiled anew: without this, those of 1 and multiples of 16 would be. No kernel
# reads `wave`: it says how full the GPU is, for the autotuner to choose by.
NUMBERS = ("T", "heads", "first", "last", "chunks", "layers", "wave")


@triton.jit
def row(i_r, p_lengths, heads, T, LENGTHS: tl.constexpr):
    """The head of a row, which is a head of a sequence, and how many tokens it has."""
    length = tl.load(p_lengths + i_r) if LENGTHS else T
    return i_r % heads, length


@triton.jit
def row_of_program(p_lengths, heads, T, LENGTHS: tl.constexpr):
    """A program's row, its head, and how many tokens it has, where a program walks over a row."""
    i_r = tl.program_id(0).to(tl.int64)
    i_h, length = row(i_r, p_lengths, heads, T, LENGTHS)
    return i_r, i_h, length


@triton.jit
def chunk_of_program(p_lengths, heads, chunks, T, LENGTHS: tl.constexpr):
    """The same where a program is a chunk of a row; and its number among all, and which chunk of the row it is."""
    i_p = tl.program_id(0)
    i_r = (i_p // chunks).to(tl.int64)
    i_h, length = row(i_r, p_lengths, heads, T, LENGTHS)
    return i_p.to(tl.int64), i_p % chunks, i_r, i_h, length


@triton.jit
def tokens_of_chunk(i_c, length, T, C: tl.constexpr, BC: tl.constexpr):
    """A chunk's tokens ``[BC]``, which of them are inside the tensors, and which of these the sequence has."""
    o_c = tl.arange(0, BC)
    o_t = i_c * C + o_c
    inside = (o_c < C) & (o_t < T)
    return o_t, inside, inside & (o_t < length)


@triton.jit
def load_matrix(p, o_r, o_c, R, W, dtype: tl.constexpr):
    """Rows o_r and columns o_c of a matrix ``[R, W]``; the cast follows the load, the interpreter needs it there."""
    inside = (o_r[:, None] < R) & (o_c[None, :] < W)
    return tl.load(p + o_r[:, None] * W + o_c[None, :], mask=inside, other=0).to(dtype)


@triton.jit
def store_matrix(p, o_r, o_c, R, W, b_x):
    inside = (o_r[:, None] < R) & (o_c[None, :] < W)
    tl.store(p + o_r[:, None] * W + o_c[None, :], b_x.to(p.dtype.element_ty), mask=inside)


@triton.jit
def load_layers(p, o_i, o_h, o_o, DI: tl.constexpr, DH: tl.constexpr, DO: tl.constexpr, dtype: tl.constexpr):
    """Hidden units o_h of the two layers of W or S, ``[BI, BH]`` and ``[BH, BO]``; the second lies behind the first."""
    b_1 = load_matrix(p, o_i, o_h, DI, DH, dtype)
    return b_1, load_matrix(p + DI * DH, o_h, o_o, DH, DO, dtype)


@triton.jit
def store_layers(p, o_i, o_h, o_o, b_1, b_2, DI: tl.constexpr, DH: tl.constexpr, DO: tl.constexpr):
    """The opposite of ``load_layers``."""
    store_matrix(p, o_i, o_h, DI, DH, b_1)
    store_matrix(p + DI * DH, o_h, o_o, DH, DO, b_2)


@triton.jit
def load_tokens(p, o_t, o_d, here, D: tl.constexpr, dtype: tl.constexpr):
    """[BC, BD], zero for tokens that are not here."""
    mask = here[:, None] & (o_d[None, :] < D)
    return tl.load(p + o_t[:, None] * D + o_d[None, :], mask=mask, other=0).to(dtype)


@triton.jit
def store_tokens(p, o_t, o_d, here, D: tl.constexpr, b_x):
    mask = here[:, None] & (o_d[None, :] < D)
    tl.store(p + o_t[:, None] * D + o_d[None, :], b_x.to(p.dtype.element_ty), mask=mask)


@triton.jit
def load_norm(p_norm, i_h, o_d, D: tl.constexpr, dtype: tl.constexpr):
    """Weight and bias of head i_h, from ``[head, 2, D]``."""
    p = p_norm + i_h * 2 * D + o_d
    b_w = tl.load(p, mask=o_d < D, other=0).to(dtype)
    return b_w, tl.load(p + D, mask=o_d < D, other=0).to(dtype)


@triton.jit
def store_norm_gradients(p_dnorm, o_d, D: tl.constexpr, b_dw, b_db):
    """A chunk's part of the gradients of LN's weight and bias, ``[2, D]``."""
    tl.store(p_dnorm + o_d, b_dw, mask=o_d < D)
    tl.store(p_dnorm + D + o_d, b_db, mask=o_d < D)


@triton.jit
def add_norm_gradients(p_dnorm, p_norm, i_h, o_d, D: tl.constexpr, b_k, b_v, b_n, b_dg, b_dv):
    """Adds what the loss sends back: by g = 2 e w and e = v - k - n w - b."""
    b_w, b_b = load_norm(p_norm, i_h, o_d, D, b_dg.dtype)
    b_error = b_v - b_k - b_n * b_w[None, :] - b_b[None, :]
    b_dw, b_db = load_norm(p_dnorm, 0, o_d, D, b_dg.dtype)
    store_norm_gradients(p_dnorm, o_d, D, b_dw + tl.sum(2 * b_error * b_dg - b_n * b_dv, 0), b_db - tl.sum(b_dv, 0))
