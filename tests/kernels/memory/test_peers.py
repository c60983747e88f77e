"""The linear memory at ``chunk_size=1`` beside two rules of linear attention, written out here as they are published.

Gated DeltaNet (Yang, Kautz, Hatamizadeh, 2025, https://arxiv.org/abs/2412.06464), state S, key k and value v as rows:

    S_t = a_t S_{t-1} + b_t k_t^T (v_t - k_t a_t S_{t-1})

Momentum DeltaNet (Huang et al., 2026, https://arxiv.org/abs/2605.05838), with the equations of
https://github.com/fla-org/flash-linear-attention/pull/1208, where p_t = a_t k_t by default and k_t is the choice:

    M_t = m_t M_{t-1} - e_t k_t^T (v_t - p_t S_{t-1})
    S_t = a_t S_{t-1} - b_t M_t

Both read q_t S_t after the write, q scaled by 1 / sqrt(width) unless they are told otherwise: here q is scaled already.
Ours, W_t = (1 - alpha_t) W_{t-1} + eta_t S_{t-1} - 2 theta_t k_t^T (k_t W_{t-1} - v_t), is given for them

    theirs                   alpha    theta        eta                  v        momentum
    gated                    1 - a    a b / 2      0                    v / a    0
    with momentum, p = k     1 - a    b e / 2      m_t b_t / b_{t-1}    v        -b_t M_t
    with momentum, p = a k   1 - a    a b e / 2    m_t b_t / b_{t-1}    v / a    -b_t M_t

The values are divided because our gradient is taken at weights that have not decayed yet, k W - v, and theirs where
they have, k a W - v. That needs a > 0. Theirs weighs its momentum by b on the way into S, ours has it weighed already:
that needs b > 0 (theirs goes on unseen where b is 0) and m_t b_t <= b_{t-1}, since eta is at most 1.
"""

import warnings

import pytest
import torch
from memory_calls import DEVICE, first_configuration, watched_memory  # noqa: F401
from torch.nn.functional import normalize
from torch.testing import assert_close

from pyro_memory.kernels import neural_memory

BATCH, HEADS, TIME, IN, OUT = 2, 2, 7, 5, 4


# --- theirs


def gated_delta_rule(q, k, v, S, a, b):
    y = []
    for q_t, k_t, v_t, a_t, b_t in by_token(q, k, v, a[..., None], b[..., None]):
        S = a_t * S
        S = S + b_t * k_t.mT @ (v_t - k_t @ S)
        y.append(q_t @ S)
    return torch.cat(y, 2), S


def momentum_delta_rule(q, k, v, S, a, b, M, m, e, *, after_decay):
    p, y = a[..., None] * k if after_decay else k, []
    for q_t, k_t, v_t, p_t, a_t, b_t, m_t, e_t in by_token(q, k, v, p, *(x[..., None] for x in (a, b, m, e))):
        M = m_t * M - e_t * k_t.mT @ (v_t - p_t @ S)
        S = a_t * S - b_t * M
        y.append(q_t @ S)
    return torch.cat(y, 2), S, M


def by_token(*tensors):
    return zip(*(x.split(1, 2) for x in tensors), strict=True)


# --- the same by ours


def gated_by_ours(q, k, v, S, a, b, *, chunk_size=1, **options):
    v = v / a[..., None]
    y, (W,), _ = neural_memory(q, k, v, (S,), a * b / 2, 0 * b, 1 - a, chunk_size=chunk_size, **options)
    return y, W


def momentum_by_ours(q, k, v, S, a, b, M, m, e, *, after_decay, chunk_size=1, **options):
    step = b * e
    if after_decay:
        step, v = a * step, v / a[..., None]
    before = torch.cat([b[:, :, :1], b[:, :, :-1]], 2)
    options |= {"chunk_size": chunk_size, "momentum_state": (-M * b[:, :, :1, None],)}
    y, (W,), (moved,) = neural_memory(q, k, v, (S,), step / 2, m * b / before, 1 - a, **options)
    return y, W, -moved / b[:, :, -1:, None]


# --- the tests


def drawn(*names):
    """Arguments of a rule: unit keys, and steps and forgetting that change much of the state at every token."""

    def gate(low, high):
        return low + (high - low) * torch.rand(BATCH, HEADS, TIME, dtype=torch.float64)

    def normal(*shape):
        return torch.randn(BATCH, HEADS, *shape, dtype=torch.float64)

    all_of_them = {
        "q": normal(TIME, IN), "k": normalize(normal(TIME, IN), dim=-1), "v": normal(TIME, OUT), "S": normal(IN, OUT),
        "a": gate(0.4, 0.95), "b": gate(0.5, 1), "M": normal(IN, OUT), "m": gate(0.2, 0.5), "e": gate(0.5, 1.5),
    }  # fmt: skip
    return [all_of_them[name].to(DEVICE).requires_grad_() for name in names]


def assert_same(ours, theirs, arguments, **options):
    """Outputs, states, and the gradients of a random sum of them in all that went in."""
    outputs = [rule(*arguments, **options) for rule, options in ((ours, options), (theirs, {}))]
    weights = [torch.randn_like(y) for y in outputs[0]]
    sums = (sum((y * w).sum() for y, w in zip(one, weights, strict=True)) for one in outputs)
    gradients = (torch.autograd.grad(total, arguments) for total in sums)
    for mine, other in (outputs, gradients):
        for actual, expected in zip(mine, other, strict=True):
            assert_close(actual, expected)


@pytest.mark.parametrize("backend", ["reference", "torch", "triton"])
def test_without_momentum_it_is_the_gated_delta_rule(backend):
    assert_same(gated_by_ours, gated_delta_rule, drawn(*"qkvSab"), backend=backend)


@pytest.mark.parametrize("after_decay", [False, True])
@pytest.mark.parametrize("backend", ["reference", "torch", "triton"])
def test_with_momentum_it_is_the_momentum_delta_rule(backend, after_decay):
    def ours(*arguments, **options):
        return momentum_by_ours(*arguments, after_decay=after_decay, **options)

    def theirs(*arguments):
        return momentum_delta_rule(*arguments, after_decay=after_decay)

    assert_same(ours, theirs, drawn(*"qkvSabMme"), backend=backend)


def test_momentum_that_starts_at_zero_and_is_forgotten_at_once_leaves_the_gated_rule():
    *arguments, b, M, e = drawn(*"qkvSabMe")
    once = torch.ones_like(b)
    y, S, _ = momentum_delta_rule(*arguments, once, 0 * M, 0 * b, e, after_decay=True)
    assert_close((y, S), gated_delta_rule(*arguments, e))


def test_a_gradient_frozen_over_a_chunk_is_another_rule():
    """It gives the same up to a chunk's first token: the later ones take their errors at weights of before it."""
    arguments = drawn(*"qkvSab")
    theirs, _ = gated_delta_rule(*arguments)
    ours, _ = gated_by_ours(*arguments, chunk_size=4)
    assert_close(ours[:, :, 0], theirs[:, :, 0])
    assert (ours - theirs)[:, :, 1:4].abs().mean() > 0.1


def by_package(module, name):
    """A rule of flash-linear-attention where it is installed; importing it warns of what it does not find."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return getattr(pytest.importorskip(module), name)


@pytest.mark.parametrize("rule", ["gated", "momentum"])
def test_where_it_is_installed_flash_linear_attention_says_the_same(rule):
    """Its definitions compute in float32, with time before heads, and take logarithms of what forgets."""

    def swapped(*tensors):
        return [x.detach().float().transpose(1, 2) for x in tensors]

    q, k, v, S, a, b, M, m, e = drawn(*"qkvSabMme")
    q_, k_, v_, a_, b_, m_, e_ = swapped(q, k, v, a, b, m, e)
    if rule == "gated":
        theirs = by_package("fla.ops.gated_delta_rule.naive", "naive_recurrent_gated_delta_rule")
        y, state = theirs(q_, k_, v_, b_, a_.log(), scale=1, initial_state=S.detach(), output_final_state=True)
        states, ours = [state], gated_by_ours(q, k, v, S, a, b)
    else:
        theirs = by_package("fla.ops.momentum_delta_rule.naive", "recurrent_momentum_delta_rule_ref")
        options = {"beta": b_, "eta": e_, "scale": 1, "initial_S": S, "initial_M": M, "output_final_state": True}
        y, states = theirs(q_, k_, v_, a_.log(), m_.log(), k_, **options)
        ours = momentum_by_ours(q, k, v, S, a, b, M, m, e, after_decay=False)
    for actual, expected in zip(ours, (y.transpose(1, 2), *states), strict=True):
        assert_close(actual.detach().float(), expected.detach().float(), rtol=1e-4, atol=1e-4)
