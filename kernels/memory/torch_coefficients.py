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

from pyro_memory.kernels.dispatch import backward_in_own_precision


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
    parts = _Recursion.apply(*(g.flatten(0, 1) for g in (theta, eta, 1 - alpha)), last.flatten())
    if alpha.dim() == 3:
        beta, f, G, end_beta, end_G, end_P = parts
        parts = (beta.unsqueeze(-1), f.unsqueeze(-1), G, end_beta.unsqueeze(-1), end_G.unsqueeze(-1), end_P)
    beta, f, G, end_beta, end_G, end_P = (x.unflatten(0, lead) for x in parts)
    return Coefficients(
        beta, f, G, end_beta.unsqueeze(2), end_G[:, :, :1], end_G[:, :, 1:], end_P[:, :, :1, None],
        end_P[:, :, 1:, None],
    )  # fmt: skip


class _Recursion(torch.autograd.Function):
    """beta, f and G of every token, and beta, G and P after the last one, from theta, eta, a = 1 - alpha, ``[row, C]``.

    Column 0 of P and of the last G is the momentum of the start, as f is of the other G; a, beta, f and G may also be
    ``[..., width]``. Inside, rows come last, so that what a step multiplies lies side by side: ``[C, column, width,
    row]``.
    """

    @staticmethod
    def forward(ctx, theta: Tensor, eta: Tensor, a: Tensor, last: Tensor) -> tuple[Tensor, ...]:
        rows, chunk = theta.shape
        shape = (rows, chunk, chunk + 1, *a.shape[2:])
        theta, eta, a = (_rows_last(x).view(chunk, -1, rows) for x in (theta, eta, a))
        P = theta.new_zeros(chunk, chunk + 1, 1, rows)
        G = theta.new_zeros(chunk, chunk + 1, a.shape[1], rows)
        beta = a.clone()
        P[0, 0] = eta[0]
        for t in range(chunk):
            if t:
                torch.mul(P[t - 1, : t + 1], eta[t], out=P[t, : t + 1])
                torch.mul(G[t - 1, : t + 1], a[t], out=G[t, : t + 1])
                beta[t] *= beta[t - 1]
            P[t, t + 1] = theta[t]
            G[t, : t + 2] += P[t, : t + 2]
        ctx.save_for_backward(theta, eta, a, last, P, G, beta)
        row, at = torch.arange(rows, device=P.device), (last - 1).clamp(min=0)
        out_beta, out_G = (_rows_first(x).view(s) for x, s in ((beta, (rows, chunk, *shape[3:])), (G, shape)))
        end_beta, end_G, end_P = out_beta[row, at], out_G[row, at], P[at, :, 0, row]
        none = last == 0  # the state stays, W_0 = W and S_0 = S
        end_beta[none], end_G[none], end_P[none] = 1, 0, 0
        end_P[none, 0] = 1
        return out_beta, out_G[:, :, 0], out_G[:, :, 1:], end_beta, end_G, end_P

    @staticmethod
    @torch.autograd.function.once_differentiable
    @backward_in_own_precision
    def backward(ctx, dbeta: Tensor, df: Tensor, dG: Tensor, dend_beta: Tensor, dend_G: Tensor, dend_P: Tensor):
        theta, eta, a, last, P, G, beta = ctx.saved_tensors
        shape, ends = dbeta.shape, set((last - 1).tolist())
        dbeta, df, dG, *dends = map(_rows_last, (dbeta, df, dG, dend_beta, dend_G, dend_P))
        dbeta, df, dG = dbeta.view(a.shape), df.view(a.shape), dG.view(len(a), *a.shape)
        dends = [x.view(s.shape[1:]) for x, s in zip(dends, (beta, G, P), strict=True)]
        dtheta, deta, da = map(torch.empty_like, (theta, eta, a))
        to_beta, to_G, to_P = map(torch.zeros_like, dends)
        for t in reversed(range(len(a))):
            past, new = slice(0, t + 1), slice(0, t + 2)
            if t in ends:
                for to, dend in zip((to_beta, to_G, to_P), dends, strict=True):
                    to += dend.where(last == t + 1, 0)
            to_G[0] += df[t]
            to_G[1 : t + 2] += dG[t, : t + 1]
            to_P[new] += to_G[new].sum(1, keepdim=True) if to_G.shape[1] > 1 else to_G[new]
            to_beta += dbeta[t]
            dtheta[t] = to_P[t + 1]
            if t:
                torch.sum(to_P[past] * P[t - 1, past], 0, out=deta[t])
                torch.sum(to_G[past] * G[t - 1, past], 0, out=da[t]).addcmul_(to_beta, beta[t - 1])
            else:
                deta[0], da[0] = to_P[0], to_beta
            to_P[past] *= eta[t]
            to_G[past] *= a[t]
            to_beta *= a[t]
        return *(_rows_first(x).view(shape[:2]) for x in (dtheta, deta)), _rows_first(da).view(shape), None


def _rows_last(x: Tensor) -> Tensor:
    return x.reshape(len(x), -1).T.contiguous()


def _rows_first(x: Tensor) -> Tensor:
    return x.flatten(0, -2).T.contiguous()
