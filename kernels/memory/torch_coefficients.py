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

AT_ONCE = 2**20  # numbers of G that fit a cache


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
    chunk, apart = theta.shape[2], alpha.dim() == 4
    kept = 1 - alpha if apart else 1 - alpha.unsqueeze(-1)
    rows = max(16, AT_ONCE // (chunk * kept[0, 0].numel()))
    groups = zip(*(x.flatten(0, 1).split(rows) for x in (theta, eta, kept, last)), strict=True)
    parts = map(torch.cat, zip(*(_Recursion.apply(*group) for group in groups), strict=True))
    beta, f, G, end_beta, end_G, end_P = (x.unflatten(0, theta.shape[:2]) for x in parts)
    return Coefficients(
        beta, f, G if apart else G.squeeze(-1), end_beta.unsqueeze(2), end_G[:, :, :1], end_G[:, :, 1:],
        end_P[:, :, :1, None], end_P[:, :, 1:, None],
    )  # fmt: skip


class _Recursion(torch.autograd.Function):
    """beta, f and G of every token, and beta, G and P after the last one, from theta, eta ``[row, C]``, 1 - alpha.

    What is of a channel, as 1 - alpha and all of beta, f and G, has a last dimension ``width``. Column 0 of P and of
    the last G is the momentum of the start, as f is of the other G. Inside, P is ``[token, column, row]`` and G
    ``[token, width, column, row]``, rows last so that what a step multiplies lies side by side. Token 0 is the start,
    columns 0 and 1 its weights and its momentum: beta is what G makes of the former.
    """

    @staticmethod
    def forward(ctx, theta: Tensor, eta: Tensor, a: Tensor, last: Tensor) -> tuple[Tensor, ...]:
        (rows, chunk), row = theta.shape, torch.arange(len(theta), device=theta.device)
        eta, a = eta.T.contiguous(), a.permute(1, 2, 0).unsqueeze(2).contiguous()
        P = theta.new_zeros(chunk + 1, chunk + 2, rows)
        G = theta.new_zeros(chunk + 1, a.shape[1], chunk + 2, rows)
        P[0, 1] = G[0, :, 0] = 1
        P[1:, 2:].diagonal().copy_(theta)
        for start, stop, columns in _blocks(chunk):
            p, g = P[start : stop + 1, :columns].unbind(), G[start : stop + 1, :, :columns].unbind()
            for t, (eta_t, a_t) in enumerate(zip(eta[start:stop], a[start:stop], strict=True)):
                p[t + 1].addcmul_(p[t], eta_t)
                torch.addcmul(p[t + 1], g[t], a_t, out=g[t + 1])
        ctx.save_for_backward(eta, a, last, P, G)
        every, end = G[1:].flatten(0, 2).T.contiguous().view(rows, chunk, -1, chunk + 2).mT, G[last, :, :, row].mT
        return every[:, :, 0], every[:, :, 1], every[:, :, 2:], end[:, 0], end[:, 1:], P[last, 1:, row]

    @staticmethod
    @torch.autograd.function.once_differentiable
    @backward_in_own_precision
    def backward(ctx, dbeta: Tensor, df: Tensor, dG: Tensor, dend_beta: Tensor, dend_G: Tensor, dend_P: Tensor):
        eta, a, last, P, G = ctx.saved_tensors
        row, ended, end = torch.arange(len(last), device=last.device), last > 0, (last - 1).clamp(min=0)
        grad, dP = torch.empty_like(G[1:]), torch.zeros_like(P[1:])  # from token 1 on
        grad[:, :, 0], grad[:, :, 1], grad[:, :, 2:] = (x.movedim((0, -1), (-1, 1)) for x in (dbeta, df, dG))
        dend_G = torch.cat([dend_beta.unsqueeze(1), dend_G], 1)
        grad[end, :, :, row] += dend_G.mT * ended.view(-1, 1, 1)
        dP[end, 1:, row] += dend_P * ended.view(-1, 1)
        da, deta = torch.empty_like(a), torch.empty_like(eta)
        for start, stop, columns in reversed(_blocks(len(eta))):
            here = slice(start, stop)
            _back(grad[start : stop + 1, :, :columns], a[start + 1 : stop + 1])
            torch.sum(grad[here, :, :columns] * G[here, :, :columns], 2, keepdim=True, out=da[here])
            dP[here, :columns] += grad[here, :, :columns].sum(1)
            _back(dP[start : stop + 1, :columns], eta[start + 1 : stop + 1])
            torch.sum(dP[here, :columns] * P[here, :columns], 1, out=deta[here])
        return dP[:, 2:].diagonal(), deta.T, da.squeeze(2).permute(2, 0, 1), None


def _blocks(chunk: int) -> list[tuple[int, int, int]]:
    """Tokens whose views are cut together, from one to another, and how many columns are not zero in them."""
    return [(start, stop := min(start + 16, chunk), stop + 2) for start in range(0, chunk, 16)]


def _back(grad: Tensor, gates: Tensor) -> None:
    """Adds to each token's gradient what its successor's gate lets through, from the last one down."""
    steps = grad.unbind()
    for t in reversed(range(len(gates))):
        steps[t].addcmul_(steps[t + 1], gates[t])
