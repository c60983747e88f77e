"""What the Triton kernels share: places, loads, products, activations, the normalisation and the loss.

Names: p_ a pointer, o_ offsets, i_ an index, b_ a block; capital letters are the paper's matrices. Blocks are padded to
powers of two: what is loaded past the end is zero, and stays zero.
"""

import triton
import triton.language as tl

NORM_EPS = tl.constexpr(1e-5)
# Arguments for whose values nothing is compiled anew: without this, those of 1 and multiples of 16 would be. No kernel
# reads `wave`: it says how full the GPU is, for the autotuner to choose by.
NUMBERS = ("T", "heads", "first", "last", "every", "chunks", "layers", "wave")
FUSED = {"enable_fp_fusion": True}  # a product and a sum are one operation, whatever Triton's default is


@triton.jit
def place(i, j, width):
    """Where [i, j] lies in rows of ``width`` numbers, of which there may be more than 2^31."""
    return tl.cast(i, tl.int64) * width + j


@triton.jit
def round_tf32(b_x):
    """To the nearest number of tf32's 10 digits: a GPU's product drops the others, so that all errors go one way."""
    b_r = ((b_x.to(tl.int32, bitcast=True) + 0x1000) & ~0x1FFF).to(tl.float32, bitcast=True)
    return tl.where(b_x == b_x, b_r, b_x)  # a NaN of ones alone would carry over to a zero


@triton.jit
def dot(b_x, b_y, PRECISION: tl.constexpr):
    if PRECISION == "bf16":
        b_z = tl.dot(b_x.to(tl.bfloat16), b_y.to(tl.bfloat16))
    elif PRECISION == "rounded":  # the same where products in bfloat16 do not work: in the interpreter
        b_x, b_y = b_x.to(tl.bfloat16).to(tl.float32), b_y.to(tl.bfloat16).to(tl.float32)
        b_z = tl.dot(b_x, b_y, input_precision="ieee")
    elif PRECISION == "tf32":
        b_z = tl.dot(round_tf32(b_x), round_tf32(b_y), input_precision="tf32")
    else:
        b_z = tl.dot(b_x, b_y, input_precision=PRECISION)
    return b_z


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
def load_tokens(p, o_t, o_d, here, D: tl.constexpr, dtype: tl.constexpr):
    """[BC, BD], zero for tokens that are not here."""
    mask = here[:, None] & (o_d[None, :] < D)
    return tl.load(p + o_t[:, None] * D + o_d[None, :], mask=mask, other=0).to(dtype)


@triton.jit
def store_tokens(p, o_t, o_d, here, D: tl.constexpr, b_x):
    mask = here[:, None] & (o_d[None, :] < D)
    tl.store(p + o_t[:, None] * D + o_d[None, :], b_x.to(p.dtype.element_ty), mask=mask)


@triton.jit
def normal_cdf(b_z, ACTIVATION: tl.constexpr):
    """Phi(z); "gelu7" with seven digits, from the exponential that the density needs anyway.

    Formula 7.1.26 of the Handbook of Mathematical Functions (Abramowitz and Stegun, 1964) for the error function.
    """
    if ACTIVATION == "gelu7":
        b_t = 1 / (1 + 0.23164189 * tl.abs(b_z))
        b_tail = 0.7107068705 + b_t * (-0.7265760135 + b_t * 0.5307027145)
        b_tail = b_t * (0.127414796 + b_t * (-0.142248368 + b_t * b_tail)) * normal_exp(b_z)
        b_p = tl.where(b_z > 0, 1 - b_tail, b_tail)
    else:
        b_p = 0.5 * (1 + tl.erf(b_z * 0.7071067811865476))
    return b_p


@triton.jit
def normal_exp(b_z):
    return tl.exp2(b_z * b_z * -0.7213475204444817)


@triton.jit
def act(b_z, ACTIVATION: tl.constexpr):
    return b_z * (tl.sigmoid(b_z) if ACTIVATION == "silu" else normal_cdf(b_z, ACTIVATION))


@triton.jit
def act_slope(b_z, ACTIVATION: tl.constexpr):
    if ACTIVATION == "silu":
        b_p = tl.sigmoid(b_z)
        b_s = b_p * (1 + b_z * (1 - b_p))
    else:
        b_s = normal_cdf(b_z, ACTIVATION) + b_z * normal_exp(b_z) * 0.3989422804014327
    return b_s


@triton.jit
def act_curvature(b_z, ACTIVATION: tl.constexpr):
    if ACTIVATION == "silu":
        b_p = tl.sigmoid(b_z)
        b_c = b_p * (1 - b_p) * (2 + b_z * (1 - 2 * b_p))
    else:
        b_c = (2 - b_z * b_z) * normal_exp(b_z) * 0.3989422804014327
    return b_c


@triton.jit
def norm(b_z, o_d, D: tl.constexpr):
    """LN without its weight, and 1 / standard deviation."""
    b_mean = tl.sum(b_z, 1) / D
    b_c = tl.where(o_d[None, :] < D, b_z - b_mean[:, None], 0.0)
    b_rstd = 1 / tl.sqrt(tl.sum(b_c * b_c, 1) / D + NORM_EPS)
    return b_c * b_rstd[:, None], b_rstd


@triton.jit
def norm_backward(b_g, b_n, b_rstd, o_d, D: tl.constexpr):
    b_mean = tl.sum(b_g, 1) / D
    b_along = tl.sum(b_g * b_n, 1) / D
    b_dz = b_rstd[:, None] * (b_g - b_mean[:, None] - b_n * b_along[:, None])
    return tl.where(o_d[None, :] < D, b_dz, 0.0)


@triton.jit
def load_norm(p_norm, i_h, o_d, D: tl.constexpr, dtype: tl.constexpr):
    """Weight and bias of head i_h, from ``[head, 2, D]``."""
    p = p_norm + i_h * 2 * D + o_d
    b_w = tl.load(p, mask=o_d < D, other=0).to(dtype)
    return b_w, tl.load(p + D, mask=o_d < D, other=0).to(dtype)


@triton.jit
def column_sums(b_x, PRECISION: tl.constexpr):
    """[BD, 16] with the sums of ``[BC, BD]`` in each column: a product, which costs less than adding across threads."""
    return dot(tl.trans(b_x), tl.full([b_x.shape[0], 16], 1.0, b_x.dtype), PRECISION)


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


@triton.jit
def loss_gradient(b_z, b_k, b_v, p_norm, i_h, o_d, D: tl.constexpr, NORM: tl.constexpr):
    """D: the gradient of ||M(k) - v||^2 at what the last layer gives, z.

    A token that is not there has a D too, of LN(0) and the norm's bias: k = 0 and its columns of G and P, zero since
    theta is 0 there, keep it from every sum.
    """
    if NORM:
        b_w, b_b = load_norm(p_norm, i_h, o_d, D, b_z.dtype)
        b_n, b_rstd = norm(b_z, o_d, D)
        b_error = b_k + b_n * b_w[None, :] + b_b[None, :] - b_v
        b_D = norm_backward(2 * b_error * b_w[None, :], b_n, b_rstd, o_d, D)
    else:
        b_D = 2 * (b_z - b_v)
    return b_D


@triton.jit
def loss_gradient_backward(b_dD, b_z, b_k, b_v, p_norm, i_h, o_d, D: tl.constexpr):
    """Goes back through ``loss_gradient`` with LN: gradients in z, k (its opposite: v, itself: the bias) and weight."""
    b_w, b_b = load_norm(p_norm, i_h, o_d, D, b_z.dtype)
    b_n, b_rstd = norm(b_z, o_d, D)
    b_error = b_k + b_n * b_w[None, :] + b_b[None, :] - b_v
    b_g = 2 * b_error * b_w[None, :]
    mean_g, mean_dD = tl.sum(b_g, 1) / D, tl.sum(b_dD, 1) / D
    along_g, along_dD = tl.sum(b_g * b_n, 1) / D, tl.sum(b_dD * b_n, 1) / D
    b_by_rstd = (tl.sum(b_dD * b_g, 1) / D - mean_dD * mean_g - along_dD * along_g) * b_rstd * b_rstd
    b_dg = norm_backward(b_dD, b_n, b_rstd, o_d, D)  # D is linear in g by a symmetric matrix
    b_derror = 2 * b_dg * b_w[None, :]
    b_dw = 2 * b_error * b_dg + b_n * b_derror
    b_dn = b_derror * b_w[None, :] - b_rstd[:, None] * (b_dD * along_g[:, None] + b_g * along_dD[:, None])
    b_dz = norm_backward(b_dn, b_n, b_rstd, o_d, D) - b_n * b_by_rstd[:, None]
    return b_dz, b_derror, b_dw
