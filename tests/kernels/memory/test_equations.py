"""One chunk by the printed equations of Titans (Behrouz et al., 2025, https://arxiv.org/abs/2501.00663)."""

import torch
from torch.testing import assert_close

from pyro_memory.kernels import apply_memory, decay_scan, neural_memory

TIME, WIDTH, HIDDEN = 6, 3, 5


def draw(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def gate(size=1.0):
    return size * torch.rand(1, 1, TIME, dtype=torch.float64)


def chunk(weights, theta, eta, alpha, k, v):
    """One chunk of one head, whole; the weights and the momentum after it."""
    tokens = (x[None, None] for x in (k, k, v))
    _, after, momentum = neural_memory(*tokens, weights, theta, eta, alpha, chunk_size=TIME, backend="torch")
    return after, momentum


def gradients(weights, k, v):
    """Of each token's ``||M(k) - v||^2`` at the given weights: a row a token, for each layer."""
    weights = [w.clone().requires_grad_() for w in weights]
    losses = [(apply_memory(weights, k[None, None, t : t + 1]) - v[t]).square().sum() for t in range(TIME)]
    rows = zip(*(torch.autograd.grad(loss, weights) for loss in losses), strict=True)
    return [torch.stack(row)[:, 0, 0] for row in rows]


def test_without_momentum_a_chunk_of_a_deep_memory_is_equation_16():
    weights = draw(1, 1, WIDTH, HIDDEN), draw(1, 1, HIDDEN, WIDTH)
    k, v, theta, alpha = draw(TIME, WIDTH), draw(TIME, WIDTH), gate(0.1), gate(0.5)
    after, _ = chunk(weights, theta, torch.zeros_like(theta), alpha, k, v)
    beta = (1 - alpha).flatten().cumprod(0)
    for W, new, u in zip(weights, after, gradients(weights, k, v), strict=True):
        scale = (theta.flatten() * beta[-1] / beta)[:, None, None]
        assert_close(new[0, 0], beta[-1] * W[0, 0] - (scale * u).sum(0))


def test_the_gradients_of_a_chunk_of_a_linear_memory_are_equation_17():
    """With keys and values told apart, and the 2 that the loss without a half brings."""
    W, k, v, theta, alpha = draw(1, 1, WIDTH, WIDTH), draw(TIME, WIDTH), draw(TIME, WIDTH), gate(0.1), gate(0.5)
    (after,), _ = chunk((W,), theta, torch.zeros_like(theta), alpha, k, v)
    beta = (1 - alpha).flatten().cumprod(0)
    both = torch.diag(theta.flatten()) @ torch.diag(beta[-1] / beta)
    assert_close(after[0, 0], beta[-1] * W[0, 0] - 2 * k.T @ both @ (k @ W[0, 0] - v))


def test_a_chunk_s_momentum_is_the_scan_of_equation_18_and_its_weights_a_scan_of_that():
    weights = draw(1, 1, WIDTH, HIDDEN), draw(1, 1, HIDDEN, WIDTH)
    k, v, theta, eta, alpha = draw(TIME, WIDTH), draw(TIME, WIDTH), gate(0.1), gate(), gate(0.5)
    after, momentum = chunk(weights, theta, eta, alpha, k, v)
    for W, new, S, u in zip(weights, after, momentum, gradients(weights, k, v), strict=True):
        s = decay_scan(-theta[0, 0, :, None] * u.flatten(1), eta[0, 0, :, None])
        w = decay_scan(s, 1 - alpha[0, 0, :, None], W.flatten())
        assert_close(S.flatten(), s[-1])
        assert_close(new.flatten(), w[-1])


def test_forgetting_by_channel_is_a_diagonal_matrix_on_what_a_layer_gives():
    W, k, alpha = draw(1, 1, WIDTH, HIDDEN), draw(TIME, WIDTH), torch.rand(1, 1, TIME, HIDDEN, dtype=torch.float64)
    (after,), _ = chunk((W,), torch.zeros_like(gate()), torch.zeros_like(gate()), alpha, k, draw(TIME, HIDDEN))
    for diagonal in (1 - alpha[0, 0]).unbind(0):
        W = W @ torch.diag(diagonal)
    assert_close(after, W)
