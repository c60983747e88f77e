"""The pieces of a chunk: its inner gradients, the state after it, its reads, and the backward pass of each.

Tensors are ``[row, C, dim]`` for one chunk, or ``[chunk, row, C, dim]`` for several, a row a head of a sequence. What
is written down here is the derivative of ``||M(k) - v||^2`` and of that derivative; letters as in ``chunked``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_memory.kernels.coefficients import Coefficients
from pyro_memory.kernels.reference import ACTIVATIONS, NORM_EPS

aten = torch.ops.aten


class Memory(NamedTuple):
    """What kind of MLP the memory is."""

    activation: str
    residual_norm: bool

    def act(self, z: Tensor) -> Tensor:
        return ACTIVATIONS[self.activation](z)

    def act_backward(self, g: Tensor, z: Tensor) -> Tensor:
        """g act'(z)."""
        return aten.gelu_backward(g, z) if self.activation == "gelu" else aten.silu_backward(g, z)

    def act_curvature(self, z: Tensor) -> Tensor:
        """act''(z)."""
        if self.activation == "gelu":
            square = z * z
            return (2 - square).mul_(square.mul_(-0.5).exp_()).mul_(0.3989422804014327)
        s = z.sigmoid()
        return s * (1 - s) * (2 + z * (1 - 2 * s))


class Written(NamedTuple):
    """A chunk's way through the memory and back: a list entry a layer."""

    z: list[Tensor]  # what a layer gives
    h: list[Tensor]  # what it takes
    u: list[Tensor]  # the gradient at what the activation gives; None at the last layer
    D: list[Tensor]  # the gradient at z
    normed: Tensor | None  # LN without its weight
    error: Tensor
    g: Tensor  # the gradient at ``normed``
    mean: Tensor | None
    rstd: Tensor | None

    def take(self, c: int) -> Written:
        def pick(x):
            return None if x is None else [pick(y) for y in x] if isinstance(x, list) else x[c]

        return Written(*(pick(x) for x in self))


def write(memory: Memory, weights: Sequence[Tensor], k: Tensor, v: Tensor, norm: Tensor | None) -> Written:
    """Computes the inner gradients of a chunk's tokens: that of a layer is ``h^T D`` token by token."""
    h, z = [k], []
    for layer, w in enumerate(weights):
        z.append(torch.matmul(h[-1], w))
        if layer + 1 < len(weights):
            h.append(memory.act(z[-1]))
    normed = mean = rstd = None
    if memory.residual_norm:
        normed, mean, rstd = _norm(z[-1])
        error = torch.addcmul(v, normed, norm, value=-1).neg_()
        g = error * (2 * norm)
        D = [_norm_backward(g, z[-1], mean, rstd)]
    else:
        error = z[-1] - v
        g = 2 * error
        D = [g]
    u: list[Tensor | None] = [None]
    for layer in reversed(range(1, len(weights))):
        u.insert(0, torch.matmul(D[0], weights[layer].mT))
        D.insert(0, memory.act_backward(u[0], z[layer - 1]))
    return Written(z, h, u, D, normed, error, g, mean, rstd)


def advance(W: Tensor, S: Tensor, h: Tensor, D: Tensor, c: Coefficients, W_out: Tensor, S_out: Tensor) -> None:
    """Computes the weights and the momentum after a chunk."""
    torch.mul(S, c.end_m, out=S_out)
    S_out.baddbmm_(h.mT, D * c.end_P, alpha=-1)
    torch.mul(W, c.end_beta, out=W_out)
    W_out.addcmul_(S, c.end_f)
    W_out.baddbmm_(h.mT, D * c.end_G, alpha=-1)


class Read(NamedTuple):
    """A read's way through the memory: a list entry a layer."""

    x: list[Tensor]
    z: list[Tensor]
    A: list[Tensor]  # x h^T
    y: Tensor


def read(
    memory: Memory, weights: list[Tensor], momenta: list[Tensor], q: Tensor, norm: Tensor | None,
    h: list[Tensor], D: list[Tensor], layers: list[Coefficients],
) -> Read:  # fmt: skip
    """Reads each token from the weights after its own write."""
    x, z, A = [q], [], []
    for layer, (W, S, c) in enumerate(zip(weights, momenta, layers, strict=True)):
        A.append(torch.matmul(x[-1], h[layer].mT))
        out = torch.matmul(x[-1], W).mul_(c.beta)
        out.addcmul_(torch.matmul(x[-1], S), c.f)
        out -= _mix(c.G, A[-1], D[layer])
        z.append(out)
        if layer + 1 < len(weights):
            x.append(memory.act(out))
    y = _norm(z[-1])[0] * norm if memory.residual_norm else z[-1]
    return Read(x, z, A, y)


class ReadBackward(NamedTuple):
    """Gradients of a group's reads, which the writes' backward pass goes on from; a list entry a layer."""

    dx: Tensor
    dh: list[Tensor]
    dD: list[Tensor]
    dW: list[Tensor]
    dS: list[Tensor]
    dnorm: Tensor | None

    def take(self, c: int) -> ReadBackward:
        return ReadBackward(*([y[c] for y in x] if isinstance(x, list) else None for x in self))


def read_backward(
    memory: Memory, weights: list[Tensor], momenta: list[Tensor], norm: Tensor | None, h: list[Tensor],
    D: list[Tensor], layers: list[Coefficients], read: Read, dy: Tensor, out: list[Coefficients],
) -> ReadBackward:  # fmt: skip
    """Goes back through ``read``; gradients of beta, f and G are written to ``out``."""
    depth = len(weights)
    dh, dD, dW, dS = ([None] * depth for _ in range(4))
    dz, dnorm = dy, None
    if memory.residual_norm:
        normed, mean, rstd = _norm(read.z[-1])
        dnorm = (normed * dy).sum(-2, keepdim=True)
        dz = _norm_backward(dy * norm, read.z[-1], mean, rstd)
    for layer in reversed(range(depth)):
        c, x, W, S = layers[layer], read.x[layer], weights[layer], momenta[layer]
        dA, dD[layer] = _mix_backward(c.G, read.A[layer], D[layer], dz, out[layer].G)
        dh[layer] = torch.matmul(dA.mT, x)
        kept, carried = dz * c.beta, dz * c.f
        dW[layer], dS[layer] = torch.matmul(x.mT, kept), torch.matmul(x.mT, carried)
        if c.beta.shape[-1] == 1:
            by_W, by_S = torch.matmul(dz, W.mT), torch.matmul(dz, S.mT)
            torch.sum(by_W * x, -1, keepdim=True, out=out[layer].beta)
            torch.sum(by_S * x, -1, keepdim=True, out=out[layer].f)
            dx = by_W.mul_(c.beta).addcmul_(by_S, c.f)
        else:
            torch.mul(torch.matmul(x, W), dz, out=out[layer].beta)
            torch.mul(torch.matmul(x, S), dz, out=out[layer].f)
            dx = torch.matmul(kept, W.mT) + torch.matmul(carried, S.mT)
        dx += torch.matmul(dA, h[layer])
        if layer:
            dz = memory.act_backward(dx, read.z[layer - 1])
    return ReadBackward(dx, dh, dD, dW, dS, dnorm)


class ChunkBackward(NamedTuple):
    dk: Tensor
    dv: Tensor
    dnorm: Tensor | None


def chunk_backward(
    memory: Memory, weights: list[Tensor], momenta: list[Tensor], norm: Tensor | None, written: Written,
    layers: list[Coefficients], out: list[Coefficients], dstates: list[Tensor], back: ReadBackward,
) -> ChunkBackward:  # fmt: skip
    """Goes back through a chunk's writes.

    ``dstates`` holds the gradients of the state after the chunk and is changed to those of the state before it;
    gradients of the end coefficients are written to ``out``.
    """
    depth = len(weights)
    dh, dD = back.dh, back.dD
    for layer in range(depth):
        _advance_backward(
            weights[layer], momenta[layer], written.h[layer], written.D[layer], layers[layer], out[layer],
            dstates, layer, dh[layer], dD[layer], back,
        )  # fmt: skip
    dW = dstates[:depth]
    z, u, D, h = written.z, written.u, written.D, written.h
    dz: list[Tensor | None] = [None] * depth
    for layer in range(depth - 1):  # through what went back, from the keys' side to the loss
        du = memory.act_backward(dD[layer], z[layer])
        dz[layer] = memory.act_curvature(z[layer]).mul_(u[layer]).mul_(dD[layer])
        dD[layer + 1].baddbmm_(du, weights[layer + 1])
        dW[layer + 1].baddbmm_(du.mT, D[layer + 1])
    dz[-1], dv, dnorm = _loss_backward(memory, written, norm, dD[-1])
    for layer in reversed(range(depth)):  # through the way in
        dh[layer].baddbmm_(dz[layer], weights[layer].mT)
        dW[layer].baddbmm_(h[layer].mT, dz[layer])
        if layer:
            dz[layer - 1] += memory.act_backward(dh[layer], z[layer - 1])
    return ChunkBackward(dh[0], dv, dnorm)


def _loss_backward(
    memory: Memory, written: Written, norm: Tensor | None, dD: Tensor
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Goes back through ``D(z, v)`` at the last layer."""
    if not memory.residual_norm:
        return 2 * dD, -2 * dD, None
    z, normed, g, rstd = written.z[-1], written.normed, written.g, written.rstd
    width = z.shape[-1]
    dg = _norm_backward(dD, z, written.mean, rstd)  # D is linear in g by a symmetric matrix
    derror = dg * (2 * norm)
    dnorm = torch.addcmul(2 * written.error * dg, normed, derror).sum(-2, keepdim=True)
    along_g, along_D = (g * normed).mean(-1, keepdim=True), (dD * normed).mean(-1, keepdim=True)
    dnormed = torch.addcmul(derror * norm, rstd, torch.addcmul(dD * along_g, g, along_D), value=-1)
    dz = _norm_backward(dnormed, z, written.mean, rstd)
    dz.addcmul_(normed, (dD * written.D[-1]).sum(-1, keepdim=True) * rstd, value=-1 / width)
    return dz, -derror, dnorm


def _advance_backward(
    W: Tensor, S: Tensor, h: Tensor, D: Tensor, c: Coefficients, out: Coefficients,
    dstates: list[Tensor], layer: int, dh: Tensor, dD: Tensor, back: ReadBackward,
) -> None:  # fmt: skip
    """Goes back through ``advance``; adds to dh and dD, and joins the reads' gradients of W and S to ``dstates``."""
    depth = len(dstates) // 2
    gW, gS = dstates[layer], dstates[depth + layer]
    by_G, by_P = torch.matmul(h, gW), torch.matmul(h, gS)
    torch.sum(by_P * D, -1, keepdim=True, out=out.end_P).neg_()
    torch.mul(by_G, D, out=out.end_G).neg_() if c.end_G.shape[-1] > 1 else torch.sum(
        by_G * D, -1, keepdim=True, out=out.end_G
    ).neg_()
    dD.addcmul_(by_G, c.end_G, value=-1).addcmul_(by_P, c.end_P, value=-1)
    dh.baddbmm_(D * c.end_G, gW.mT, alpha=-1).baddbmm_(D * c.end_P, gS.mT, alpha=-1)
    dims = (-2, -1) if c.end_beta.shape[-1] == 1 else -2
    torch.sum(gW * W, dims, keepdim=True, out=out.end_beta)
    torch.sum(gW * S, dims, keepdim=True, out=out.end_f)
    torch.sum(gS * S, (-2, -1), keepdim=True, out=out.end_m)
    dstates[depth + layer] = (gS * c.end_m).addcmul_(gW, c.end_f).add_(back.dS[layer])
    dstates[layer] = (gW * c.end_beta).add_(back.dW[layer])


def _mix(G: Tensor, A: Tensor, D: Tensor) -> Tensor:
    """sum_i G_ti A_ti D_i."""
    if G.dim() == A.dim():
        return torch.matmul(G * A, D)
    return torch.einsum("...ti,...tio,...io->...to", A, G, D)


def _mix_backward(G: Tensor, A: Tensor, D: Tensor, dz: Tensor, dG: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of minus ``_mix`` in A and D; that in G is written to ``dG``."""
    if G.dim() == A.dim():
        by_mix = torch.matmul(dz, D.mT).neg_()
        torch.mul(by_mix, A, out=dG)
        return by_mix.mul_(G), torch.matmul((G * A).mT, dz).neg_()
    torch.mul((dz.unsqueeze(-2) * D.unsqueeze(-3)).neg_(), A.unsqueeze(-1), out=dG)
    dA = torch.einsum("...to,...tio,...io->...ti", dz, G, D).neg_()
    return dA, torch.einsum("...ti,...tio,...to->...io", A, G, dz).neg_()


def _norm(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return aten.native_layer_norm(z, z.shape[-1:], None, None, NORM_EPS)


def _norm_backward(g: Tensor, z: Tensor, mean: Tensor, rstd: Tensor) -> Tensor:
    return aten.native_layer_norm_backward(g, z, z.shape[-1:], mean, rstd, None, None, [True, False, False])[0]
