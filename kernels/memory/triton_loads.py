"""Where a program of the neural memory's kernels stands, and the blocks that it loads and stores.

Blocks are padded to powers of two: what is loaded past the end is zero, and stays zero.
"""

import triton
import triton.language as tl

# Arguments for whose values nothing is compiled anew: without this, those of 1 and multiples of 16 would be. No kernel
# reads `wave`: it says how full the GPU is, for the autotuner to choose by.
NUMBERS = ("T", "heads", "first", "last", "every", "chunks", "layers", "wave")


@triton.jit
def row_of_program(p_lengths, heads, T, LENGTHS: tl.constexpr):
    """A program's row, which is a head of a sequence, its head, and how many tokens it has."""
    i_r = tl.program_id(0).to(tl.int64)
    length = tl.load(p_lengths + i_r) if LENGTHS else T
    return i_r, i_r % heads, length


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
def store_layers(p, o_i, o_h, o_o, b_1, b_2, DI: tl.constexpr, DH: tl.constexpr, DO: tl.constexpr, keeps=True):
    """The opposite of ``load_layers``; stores no row where it is not to keep them."""
    store_matrix(p, o_i, o_h, tl.where(keeps, DI, 0), DH, b_1)
    store_matrix(p + DI * DH, o_h, o_o, tl.where(keeps, DH, 0), DO, b_2)


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
def load_norm_gradients(p_dnorm, i_r, o_d, D: tl.constexpr, dtype: tl.constexpr):
    """Those of weight and bias as ``column_sums``."""
    b_dw, b_db = load_norm(p_dnorm, i_r, o_d, D, dtype)
    shape: tl.constexpr = [o_d.shape[0], 16]
    return tl.broadcast_to(b_dw[:, None], shape), tl.broadcast_to(b_db[:, None], shape)


@triton.jit
def store_norm_gradients(p_dnorm, i_r, o_d, D: tl.constexpr, b_dw, b_db):
    p = p_dnorm + i_r * 2 * D + o_d
    tl.store(p, tl.max(b_dw, 1), mask=o_d < D)
    tl.store(p + D, tl.max(b_db, 1), mask=o_d < D)
