"""What the neural memory's kernels compute alike: activations, the normalisation, the loss, and their derivatives.

D is the step that a token asks of a layer's output: minus the gradient of its loss there, so that no sum needs a sign.
"""

import triton
import triton.language as tl

from pyro_memory.kernels.memory import definition
from pyro_memory.kernels.memory.triton_loads import load_norm, load_tokens, store_tokens

NORM_EPS = tl.constexpr(definition.NORM_EPS)


@triton.jit
def normal_cdf(b_z, ACTIVATION: tl.constexpr):
    """Phi(z); "gelu3" by one approximate tanh, right to 3e-4, for products in bfloat16.

    The polynomial is the one of its form that is nearest to Phi, within 2e-5. The interpreter has no such instruction.
    """
    if ACTIVATION == "gelu3" or ACTIVATION == "gelu3_interpreted":
        b_2 = tl.minimum(b_z * b_z, 36.0)
        b_x = b_z * (0.797717834 + b_2 * (0.036798256 - b_2 * 0.000315807))
        if ACTIVATION == "gelu3":
            b_t = tl.inline_asm_elementwise(
                "tanh.approx.f32 $0, $1;", "=f,f", [b_x], dtype=tl.float32, is_pure=True, pack=1
            )
        else:
            b_t = 2 * tl.sigmoid(2 * b_x) - 1
        b_p = 0.5 + 0.5 * b_t
    else:
        b_p = 0.5 * (1 + tl.erf(b_z * 0.7071067811865476))
    return b_p


@triton.jit
def normal_density(b_z):
    return tl.exp2(b_z * b_z * -0.7213475204444817) * 0.3989422804014327


@triton.jit
def act(b_z, ACTIVATION: tl.constexpr):
    return b_z * (tl.sigmoid(b_z) if ACTIVATION == "silu" else normal_cdf(b_z, ACTIVATION))


@triton.jit
def act_and_slope(b_z, ACTIVATION: tl.constexpr):
    if ACTIVATION == "silu":
        b_p = tl.sigmoid(b_z)
        b_s = b_p * (1 + b_z * (1 - b_p))
    else:
        b_p = normal_cdf(b_z, ACTIVATION)
        b_s = b_p + b_z * normal_density(b_z)
    return b_z * b_p, b_s


@triton.jit
def act_curvature(b_z, ACTIVATION: tl.constexpr):
    if ACTIVATION == "silu":
        b_p = tl.sigmoid(b_z)
        b_c = b_p * (1 - b_p) * (2 + b_z * (1 - 2 * b_p))
    else:
        b_c = (2 - b_z * b_z) * normal_density(b_z)
    return b_c


@triton.jit
def norm(b_z, o_d, D: tl.constexpr):
    """LN without its weight, and 1 / standard deviation."""
    b_mean = tl.sum(b_z, 1) / D
    b_c = tl.where(o_d[None, :] < D, b_z - b_mean[:, None], 0.0)
    b_rstd = 1 / tl.sqrt(tl.sum(b_c * b_c, 1) / D + NORM_EPS)
    return b_c * b_rstd[:, None], b_rstd


@triton.jit
def through_norm(b_g, b_n, b_rstd, b_mean, b_along, o_d, D: tl.constexpr):
    """A gradient at LN's output, at its input, given the means of g and of g n over a token's dimensions."""
    b_dz = b_rstd[:, None] * (b_g - b_mean[:, None] - b_n * b_along[:, None])
    return tl.where(o_d[None, :] < D, b_dz, 0.0)


@triton.jit
def norm_backward(b_g, b_n, b_rstd, o_d, D: tl.constexpr):
    return through_norm(b_g, b_n, b_rstd, tl.sum(b_g, 1) / D, tl.sum(b_g * b_n, 1) / D, o_d, D)


@triton.jit
def residual_norm(b_x, b_z, p_norm, i_h, o_d, D: tl.constexpr):
    """x + LN(z), with the weight and bias of head i_h."""
    b_w, b_b = load_norm(p_norm, i_h, o_d, D, b_z.dtype)
    b_n, _ = norm(b_z, o_d, D)
    return b_x + b_n * b_w[None, :] + b_b[None, :]


@triton.jit
def read_norm_backward(b_dy, b_z, p_norm, i_h, o_d, D: tl.constexpr):
    """Goes back through ``residual_norm``: gradients at z, and of LN's weight ``[D]``."""
    b_w, _ = load_norm(p_norm, i_h, o_d, D, b_z.dtype)
    b_n, b_rstd = norm(b_z, o_d, D)
    return norm_backward(b_dy * b_w[None, :], b_n, b_rstd, o_d, D), tl.sum(b_dy * b_n, 0)


@triton.jit
def _descent_under_norm(b_z, b_k, b_v, p_norm, i_h, o_d, D: tl.constexpr):
    """D, n = LN(z), 1 / standard deviation, and the mean of g n, where g is minus the gradient at n."""
    b_w, b_b = load_norm(p_norm, i_h, o_d, D, b_z.dtype)
    b_n, b_rstd = norm(b_z, o_d, D)
    b_g = 2 * (b_v - b_k - b_n * b_w[None, :] - b_b[None, :]) * b_w[None, :]
    b_along = tl.sum(b_g * b_n, 1) / D
    return through_norm(b_g, b_n, b_rstd, tl.sum(b_g, 1) / D, b_along, o_d, D), b_n, b_rstd, b_along


@triton.jit
def descent(b_z, b_k, b_v, p_norm, i_h, o_d, D: tl.constexpr, NORM: tl.constexpr):
    """D: minus the gradient of ||M(k) - v||^2 at what the last layer gives, z.

    A token that is not there has a D too, of LN(0) and the norm's bias: k = 0 and its columns of G and P, zero since
    theta is 0 there, keep it from every sum.
    """
    if NORM:
        b_D, _, _, _ = _descent_under_norm(b_z, b_k, b_v, p_norm, i_h, o_d, D)
    else:
        b_D = 2 * (b_v - b_z)
    return b_D


@triton.jit
def store_descent(
    b_z, b_k, b_v, p_norm, i_h, o_d, p_D, p_n, p_numbers, o_t, inside, D: tl.constexpr, NORM: tl.constexpr
):  # fmt: skip
    """The same; leaves what ``load_descent`` takes: D and, with LN, n and two numbers a token."""
    if NORM:
        b_D, b_n, b_rstd, b_along = _descent_under_norm(b_z, b_k, b_v, p_norm, i_h, o_d, D)
        store_tokens(p_n, o_t, o_d, inside, D, b_n)
        o_c, BC = tl.arange(0, o_t.shape[0]), o_t.shape[0]
        tl.store(p_numbers + o_c, b_rstd)
        tl.store(p_numbers + BC + o_c, b_rstd * b_along)
    else:
        b_D = 2 * (b_v - b_z)
    store_tokens(p_D, o_t, o_d, inside, D, b_D)
    return b_D


@triton.jit
def load_descent(p_D, p_n, p_numbers, o_t, o_d, here, D: tl.constexpr, NORM: tl.constexpr, dtype: tl.constexpr):
    """D, n, 1 / standard deviation and that times the mean of g n; of these D alone means anything without LN."""
    b_D = load_tokens(p_D, o_t, o_d, here, D, dtype)
    if NORM:
        b_n = load_tokens(p_n, o_t, o_d, here, D, dtype)
        o_c, BC = tl.arange(0, o_t.shape[0]), o_t.shape[0]
        b_rstd, b_along = tl.load(p_numbers + o_c), tl.load(p_numbers + BC + o_c)
    else:
        b_n, b_rstd, b_along = b_D, 0.0, 0.0
    return b_D, b_n, b_rstd, b_along


@triton.jit
def descent_backward(b_dD, b_D, b_n, b_rstd, b_along, p_norm, i_h, o_d, D: tl.constexpr, NORM: tl.constexpr):
    """From the gradient at D to that at z, at v, which is the opposite of k's and the bias's, and at g.

    D is linear in g by a symmetric matrix, which gives dg; g itself, within dn, gives D once more, so it need not be
    known; 1 / standard deviation owes <dD, D> to D.
    """
    if NORM:
        b_w, _ = load_norm(p_norm, i_h, o_d, D, b_dD.dtype)
        b_along_dD = tl.sum(b_dD * b_n, 1) / D
        b_dg = through_norm(b_dD, b_n, b_rstd, tl.sum(b_dD, 1) / D, b_along_dD, o_d, D)
        b_dv = 2 * b_dg * b_w[None, :]
        b_dz = norm_backward(-b_dv * b_w[None, :] - b_along[:, None] * b_dD, b_n, b_rstd, o_d, D)
        b_by_rstd = tl.sum(b_dD * b_D, 1) / D
        b_dz -= b_rstd[:, None] * (b_D * b_along_dD[:, None] + b_n * b_by_rstd[:, None])
    else:
        b_dz, b_dv, b_dg = -2 * b_dD, 2 * b_dD, b_dD
    return b_dz, b_dv, b_dg
