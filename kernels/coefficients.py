r"""What the gates of a chunk weigh: how much of each token's gradient stands in the weights after each later token.

Within a chunk the rule is linear in the weights and momentum it starts from and in the gradients u_i of its tokens,

    W_t = beta_t W + f_t S - sum_{i <= t} G_ti u_i          S_t = m_t S - sum_{i <= t} P_ti u_i

and the coefficients obey the rule itself: P_t = eta_t P_{t-1} + theta_t e_t and G_t = (1 - alpha_t) G_{t-1} + P_t. With
the momentum of the chunk's start as token 0 of theta 1, m and f are their first columns. The recursion multiplies and
adds numbers at least 0, so gates of 0 and 1 and long products are exact, which logarithms of 0 would not be.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor


class Coefficients(NamedTuple):
    """The weights of a layer's chunks: ``width`` is 1, or the layer's output channels where they decay apart."""

    beta: Tensor  # [chunk, row, C, width]
    f: Tensor  # [chunk, row, C, width]
    G: Tensor  # [chunk, row, C, C], or [chunk, row, C, C, width]
    # the same after the last token that a sequence has in the chunk: what makes the state of the next chunk
    end_beta: Tensor  # [chunk, row, 1, width]
    end_f: Tensor  # [chunk, row, 1, width]
    end_G: Tensor  # [chunk, row, C, width]
    end_m: Tensor  # [chunk, row, 1, 1]
    end_P: Tensor  # [chunk, row, C, 1]

    def take(self, chunks: int | slice) -> Coefficients:
        return Coefficients(*(x[chunks] for x in self))

    def split(self, chunks: int) -> list[Coefficients]:
        """Those of so many chunks after the other."""
        return list(map(Coefficients._make, zip(*(x.split(chunks) for x in self), strict=True)))

    def each(self) -> Iterator[Coefficients]:
        """Those of one chunk after the other."""
        return map(Coefficients._make, zip(*self, strict=True))


def coefficients(theta: Tensor, eta: Tensor, alpha: Tensor, last: Tensor) -> Coefficients:
    """Computes them from gates ``[chunk, row, C]`` (alpha also ``[..., width]``).

    ``last [chunk, row]`` counts a sequence's tokens in a chunk, 0 to C.
    """
    lead = theta.shape[:2]
    channels = alpha.dim() == 4
    flat = [g.flatten(0, 1) for g in (theta, eta, 1 - alpha)]
    P, G, beta = _Recursion.apply(*flat)
    row = torch.arange(len(P), device=P.device)
    last = last.flatten()
    before = (last == 0).view(-1, 1)  # no token: the state stays, W_0 = W and S_0 = S
    at = (last - 1).clamp(min=0)
    end_P, end_G, end_beta = P[row, at], G[row, at], beta[row, at]
    start = torch.zeros_like(end_P)
    start[:, 0] = 1
    end_P = torch.where(before, start, end_P)
    end_G = end_G.masked_fill(before.view(-1, *[1] * (end_G.dim() - 1)), 0)
    end_beta = end_beta.masked_fill(before if channels else before[:, 0], 1)
    if not channels:
        beta, end_beta, end_G = beta.unsqueeze(-1), end_beta.unsqueeze(-1), end_G.unsqueeze(-1)
    f = G[:, :, 0] if channels else G[:, :, :1]
    parts = (
        beta, f, G[:, :, 1:], end_beta.unsqueeze(1), end_G[:, :1], end_G[:, 1:], end_P[:, :1, None], end_P[:, 1:, None],
    )  # fmt: skip
    return Coefficients(*(part.reshape(*lead, *part.shape[1:]) for part in parts))


class _Recursion(torch.autograd.Function):
    """P and G of shape ``[row, C, 1 + C]`` (G also ``[..., width]``) and beta, from theta, eta and a = 1 - alpha."""

    @staticmethod
    def forward(ctx, theta: Tensor, eta: Tensor, a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        rows, chunk = theta.shape
        width = a.shape[2:]
        P = theta.new_zeros(rows, chunk, chunk + 1)
        G = theta.new_zeros(rows, chunk, chunk + 1, *width)
        beta = torch.empty_like(a)
        for t in range(chunk):
            past = slice(0, t + 1)  # token 0 is the momentum of the start
            keep, fade = eta[:, t, None], a[:, t, None]
            if t:
                torch.mul(P[:, t - 1, past], keep, out=P[:, t, past])
                torch.mul(G[:, t - 1, past], fade, out=G[:, t, past])
                torch.mul(beta[:, t - 1], a[:, t], out=beta[:, t])
            else:
                P[:, 0, :1] = keep
                beta[:, 0] = a[:, 0]
            P[:, t, t + 1] = theta[:, t]
            new = slice(0, t + 2)
            G[:, t, new] += P[:, t, new].unsqueeze(-1) if width else P[:, t, new]
        ctx.save_for_backward(theta, eta, a, P, G, beta)
        return P, G, beta

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dP: Tensor, dG: Tensor, dbeta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        theta, eta, a, P, G, beta = ctx.saved_tensors
        chunk, width = theta.shape[1], a.shape[2:]
        dtheta, deta, da = torch.empty_like(theta), torch.empty_like(eta), torch.empty_like(a)
        to_P, to_G, to_beta = torch.zeros_like(P[:, 0]), torch.zeros_like(G[:, 0]), torch.zeros_like(beta[:, 0])
        for t in reversed(range(chunk)):
            past, new = slice(0, t + 1), slice(0, t + 2)
            to_G[:, new] += dG[:, t, new]
            to_P[:, new] += dP[:, t, new]
            to_P[:, new] += to_G[:, new].sum(-1) if width else to_G[:, new]
            to_beta += dbeta[:, t]
            dtheta[:, t] = to_P[:, t + 1]
            before = P[:, t - 1, past] if t else torch.ones_like(theta[:, :1])
            deta[:, t] = (to_P[:, past] * before).sum(1)
            da[:, t] = to_beta * (beta[:, t - 1] if t else 1)
            if t:
                da[:, t] += (to_G[:, past] * G[:, t - 1, past]).sum(1)
            to_P[:, past] *= eta[:, t, None]
            to_G[:, past] *= a[:, t, None]
            to_beta *= a[:, t]
        return dtheta, deta, da
