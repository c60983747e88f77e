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
    ``[..., width]``. Inside, P and the G of each channel are one, ``[width + 1, token, column, row]``, rows last so
    that what a step multiplies lies side by side. Token 0 is the start, columns 0 and 1 its weights and its momentum:
    beta is what G makes of the former.
    """

    @staticmethod
    def forward(ctx, theta: Tensor, eta: Tensor, a: Tensor, last: Tensor) -> tuple[Tensor, ...]:
        rows, chunk = theta.shape
        gates = _rows_last(torch.cat([eta.unsqueeze(-1), a.view(rows, chunk, -1)], -1)).view(chunk, -1, 1, rows)
        Z = theta.new_zeros(gates.shape[1], chunk + 1, chunk + 2, rows)
        Z[0, 0, 1] = Z[1:, 0, 0] = 1
        Z[0, 1:, 2:].diagonal().copy_(theta)
        steps = Z.unbind(1)
        for t, gate in enumerate(gates):
            torch.mul(steps[t][:, : t + 2], gate, out=steps[t + 1][:, : t + 2])
            steps[t + 1][1:, : t + 3] += steps[t + 1][0, : t + 3]
        ctx.save_for_backward(gates, last, Z)
        ctx.shape = a.shape
        G = Z[1:, 1:].flatten(0, 2).T.contiguous().view(rows, -1, chunk, chunk + 2).movedim(1, -1)
        end = Z[:, last, :, torch.arange(rows, device=Z.device)]
        beta, f, G, end_beta, end_G = (
            x.squeeze(-1) if a.dim() == 2 else x
            for x in (G[:, :, 0], G[:, :, 1], G[:, :, 2:], end[:, 1:, 0], end[:, 1:, 1:].mT)
        )
        return beta, f, G, end_beta, end_G, end[:, 0, 1:]

    @staticmethod
    @torch.autograd.function.once_differentiable
    @backward_in_own_precision
    def backward(ctx, dbeta: Tensor, df: Tensor, dG: Tensor, dend_beta: Tensor, dend_G: Tensor, dend_P: Tensor):
        gates, last, Z = ctx.saved_tensors
        chunk, width, _, rows = gates.shape
        first = _rows_last(torch.stack([dbeta, df], -1)).view(chunk, width - 1, 2, rows)
        dG = _rows_last(dG.reshape(rows, chunk, chunk, -1).movedim(-1, 2)).view(chunk, width - 1, chunk, rows)
        dend = Z.new_zeros(rows, width, chunk + 2)
        dend[:, 0, 1:], dend[:, 1:, 0] = dend_P, dend_beta.view(rows, -1)
        dend[:, 1:, 1:] = dend_G.reshape(rows, chunk + 1, -1).mT
        dend, ends = _rows_last(dend).view(width, chunk + 2, rows), set(last.tolist())
        dtheta, dgates = Z.new_empty(chunk, rows), torch.empty_like(gates.squeeze(2))
        to, steps = torch.zeros_like(dend), Z.unbind(1)
        for t in reversed(range(chunk)):
            if t + 1 in ends:
                to += dend.where(last == t + 1, 0)
            to[1:, :2] += first[t]
            to[1:, 2 : t + 3] += dG[t, :, : t + 1]
            to[0, : t + 3] += to[1, : t + 3] if width == 2 else to[1:, : t + 3].sum(0)
            dtheta[t] = to[0, t + 2]
            past = to[:, : t + 2]
            torch.sum(past * steps[t][:, : t + 2], 1, out=dgates[t])
            past *= gates[t]
        dgates = dgates.permute(2, 0, 1)
        return dtheta.T, dgates[..., 0], dgates[..., 1:].reshape(ctx.shape), None


def _rows_last(x: Tensor) -> Tensor:
    return x.reshape(len(x), -1).T.contiguous()
