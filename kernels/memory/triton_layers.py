"""What the neural memory's kernels compute alike: activations, the normalisation, the loss, and their derivatives."""

import triton
import triton.language as tl

from pyro_memory.kernels.memory import definition
from pyro_memory.kernels.memory.triton_loads import load_norm
from pyro_memory.kernels.triton_parts import dot

NORM_EPS = tl.constexpr(definition.NORM_EPS)


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
def residual_norm(b_x, b_z, p_norm, i_h, o_d, D: tl.constexpr):
    """x + LN(z), with the weight and bias of head i_h."""
    b_w, b_b = load_norm(p_norm, i_h, o_d, D, b_z.dtype)
    b_n, _ = norm(b_z, o_d, D)
    return b_x + b_n * b_w[None, :] + b_b[None, :]


@triton.jit
def column_sums(b_x, PRECISION: tl.constexpr):
    """[BD, 16] with the sums of ``[BC, BD]`` in each column: a product, which costs less than adding across threads."""
    return dot(tl.trans(b_x), tl.full([b_x.shape[0], 16], 1.0, b_x.dtype), PRECISION)


@triton.jit
def read_norm_backward(b_dz, b_dw, b_z, p_norm, i_h, o_d, D: tl.constexpr, PRECISION: tl.constexpr):
    """Goes back through ``residual_norm`` to z; adds the gradient of LN's weight, as ``column_sums``."""
    b_w, _ = load_norm(p_norm, i_h, o_d, D, b_z.dtype)
    b_n, b_rstd = norm(b_z, o_d, D)
    b_dw += column_sums(b_dz * b_n, PRECISION)
    return norm_backward(b_dz * b_w[None, :], b_n, b_rstd, o_d, D), b_dw


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
