"""The pieces of a chunk: its inner gradients, the state after it, its reads, and the backward pass of each.

Tensors are ``[row, C, dim]``, a row a head of a sequence, or a chunk of one. What is written down here is the
derivative of ``||M(k) - v||^2`` and of that derivative; letters as in ``torch_form``. A coefficient of a token scales
what the layer takes or what it gives, whichever is narrower.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_memory.kernels.memory.definition import ACTIVATIONS
from pyro_memory.kernels.memory.torch_coefficients import Coefficients

aten = torch.ops.aten


class Memory(NamedTuple):
    """What kind of MLP the memory is."""

    activation: str
    residual_norm: bool
    norm_eps: float

    def act(self, z: Tensor) -> Tensor:
        return ACTIVATIONS[self.activation](z)

    def act_backward(self, g: Tensor, z: Tensor) -> Tensor:
        """g act'(z)."""
        if self.activation == "gelu":
            return aten.gelu_backward.default(g, z)
        if not torch.is_grad_enabled():
            return aten.silu_backward(g, z)  # which autograd cannot go through
        s = z.sigmoid()
        return g * s * (1 + z * (1 - s))

    def act_curvature(self, z: Tensor) -> Tensor:
        """act''(z)."""
        if self.activation == "gelu":
            square = z * z
            return (2 - square).mul_(square.mul_(-0.5).exp_()).mul_(0.3989422804014327)
        s = z.sigmoid()
        return s * (1 - s) * (2 + z * (1 - 2 * s))

    def norm(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return torch.native_layer_norm(z, (z.shape[-1],), None, None, self.norm_eps)


class Written(NamedTuple):
    """A chunk's way through the memory and back: a list entry a layer."""

    h: list[Tensor]  # what a layer takes
    D: list[Tensor]  # the gradient at what it gives, z
    slope: list[Tensor]  # act'(z), and D's own derivative in z, of all layers but the last, for the way back
    bend: list[Tensor]
    z: Tensor  # of the last layer
    error: Tensor
    g: Tensor  # the gradient at LN's output before its weight
    normed: Tensor | None  # that output
    mean: Tensor | None
    rstd: Tensor | None


def moved(weights: Sequence[Tensor], rest: Sequence[Tensor]) -> Sequence[Tensor]:
    """The memory's weights, from how far they are from what decay leads to."""
    return [w + r for w, r in zip(weights, rest, strict=True)] if rest else weights


def write(
    memory: Memory, weights: Sequence[Tensor], k: Tensor, v: Tensor, norm: Tensor | None, *, keep: bool = False
) -> Written:
    """Computes the inner gradients of a chunk's tokens: that of a layer is ``h^T D`` token by token."""
    h, z = [k], []
    for layer, W in enumerate(weights):
        z.append(torch.bmm(h[-1], W))
        if layer + 1 < len(weights):
            h.append(memory.act(z[-1]))
    normed = mean = rstd = None
    if memory.residual_norm:
        normed, mean, rstd = memory.norm(z[-1])
        error = torch.addcmul(v, normed, norm, value=-1).neg_()
        g = error * (2 * norm)
        D = [norm_backward(g, z[-1], mean, rstd)]
    else:
        error = z[-1] - v
        g = 2 * error
        D = [g]
    slope, bend = list[Tensor](), list[Tensor]()
    for layer in range(len(weights) - 1, 0, -1):
        u, below = torch.bmm(D[0], weights[layer].mT), z[layer - 1]
        if keep:
            slope.insert(0, memory.act_backward(torch.ones_like(below), below))
            bend.insert(0, memory.act_curvature(below).mul_(u))
        D.insert(0, u.mul_(slope[0]) if keep else memory.act_backward(u, below))
    return Written(h, D, slope, bend, z[-1], error, g, normed, mean, rstd)


def advance(W: Tensor, S: Tensor, h: Tensor, D: Tensor, c: Coefficients, W_out: Tensor, S_out: Tensor) -> None:
    """Computes the weights and the momentum after a chunk."""
    torch.mul(S, c.end_m, out=S_out)
    torch.mul(W, c.end_beta, out=W_out)
    W_out.addcmul_(S, c.end_f)
    if _takes_less(h, D, c):
        S_out.baddbmm_((h * c.end_P).mT, D, alpha=-1)
        W_out.baddbmm_((h * c.end_G).mT, D, alpha=-1)
    else:
        S_out.baddbmm_(h.mT, D * c.end_P, alpha=-1)
        W_out.baddbmm_(h.mT, D * c.end_G, alpha=-1)


def advance_backward(
    W: Tensor, S: Tensor, h: Tensor, D: Tensor, c: Coefficients, out: Coefficients,
    gW: Tensor, gS: Tensor, dh: Tensor, dD: Tensor,
) -> None:  # fmt: skip
    """Goes back through ``advance``: turns gW and gS into gradients of W and S in place, and adds to dh and dD.

    Of end_G and end_P ``out`` gets the gradient times -1.
    """
    if _takes_less(h, D, c):
        by_G, by_P = torch.bmm(D, gW.mT), torch.bmm(D, gS.mT)
        _row_sum(by_G, h, out.end_G)
        _row_sum(by_P, h, out.end_P)
        dh.addcmul_(by_G, c.end_G, value=-1).addcmul_(by_P, c.end_P, value=-1)
        dD.baddbmm_(h * c.end_G, gW, alpha=-1).baddbmm_(h * c.end_P, gS, alpha=-1)
    else:
        by_G, by_P = torch.bmm(h, gW), torch.bmm(h, gS)
        _row_sum(by_G, D, out.end_G)
        _row_sum(by_P, D, out.end_P)
        dD.addcmul_(by_G, c.end_G, value=-1).addcmul_(by_P, c.end_P, value=-1)
        dh.baddbmm_(D * c.end_G, gW.mT, alpha=-1).baddbmm_(D * c.end_P, gS.mT, alpha=-1)
    over = (-2, -1) if c.end_beta.shape[-1] == 1 else -2
    torch.sum(gW * W, over, keepdim=True, out=out.end_beta)
    torch.sum(gW * S, over, keepdim=True, out=out.end_f)
    torch.sum(gS * S, (-2, -1), keepdim=True, out=out.end_m)
    gS.mul_(c.end_m).addcmul_(gW, c.end_f)
    gW.mul_(c.end_beta)


class Read(NamedTuple):
    """A read's way through the memory: a list entry a layer."""

    x: list[Tensor]
    z: list[Tensor]
    A: list[Tensor]  # x h^T
    mix: list[Tensor | None]  # G times A, where G is one for all channels
    xW: list[Tensor | None]  # x W and x S, where they are narrower than x
    xS: list[Tensor | None]


def read(
    memory: Memory, weights: Sequence[Tensor], momenta: Sequence[Tensor], q: Tensor,
    h: Sequence[Tensor], D: Sequence[Tensor], layers: Sequence[Coefficients], rest: Sequence[Tensor],
) -> Read:  # fmt: skip
    """Reads each token from the weights after its own write, up to z of the last layer."""
    r = Read([q], [], [], [], [], [])
    for layer, (W, S, c) in enumerate(zip(weights, momenta, layers, strict=True)):
        x = r.x[-1]
        A = torch.bmm(x, h[layer].mT)
        if _takes_less(x, D[layer], c):
            xW = xS = None
            z = torch.bmm(x * c.beta, W).baddbmm_(x * c.f, S)
        else:
            xW, xS = torch.bmm(x, W), torch.bmm(x, S)
            z = (xW * c.beta).addcmul_(xS, c.f)
        mix = c.G * A if c.G.dim() == 3 else None
        if mix is not None:
            z.baddbmm_(mix, D[layer], alpha=-1)
        else:
            z -= torch.einsum("rti,rtio,rio->rto", A, c.G, D[layer])
        if rest:
            z.baddbmm_(x, rest[layer])
        for kept, tensor in zip(r[1:], (z, A, mix, xW, xS), strict=True):
            kept.append(tensor)
        if layer + 1 < len(weights):
            r.x.append(memory.act(z))
    return r


def read_out(memory: Memory, z: Tensor, norm: Tensor | None) -> Tensor:
    """What a read gives, from z of the last layer (and without what the residual adds)."""
    return memory.norm(z)[0] * norm if memory.residual_norm else z


class ReadBackward(NamedTuple):
    """Gradients of reads, which the writes' backward pass goes on from; a list entry a layer."""

    dx: Tensor
    dh: list[Tensor]
    dD: list[Tensor]
    for_W: list[tuple[Tensor, Tensor]]  # a and b, of which the gradient in W is a^T b
    for_S: list[tuple[Tensor, Tensor]]
    drest: list[Tensor]
    dnorm: Tensor | None


def read_backward(
    memory: Memory, weights: Sequence[Tensor], momenta: Sequence[Tensor], norm: Tensor | None, h: Sequence[Tensor],
    D: Sequence[Tensor], layers: Sequence[Coefficients], rest: Sequence[Tensor], r: Read, dy: Tensor,
    out: Sequence[Coefficients],
) -> ReadBackward:  # fmt: skip
    """Goes back through ``read``; gradients of beta, f and G are written to ``out``."""
    dz, dnorm = dy, None
    if memory.residual_norm:
        normed, mean, rstd = memory.norm(r.z[-1])
        dnorm = (normed * dy).sum(-2, keepdim=True)
        dz = norm_backward(dy * norm, r.z[-1], mean, rstd)
    back = ReadBackward(dz, [], [], [], [], [], dnorm)
    for layer in reversed(range(len(weights))):
        c, x, W, S = layers[layer], r.x[layer], weights[layer], momenta[layer]
        dA, dD = _mix_backward(c.G, r.A[layer], r.mix[layer], D[layer], dz, out[layer].G)
        if r.xW[layer] is None:
            by_W, by_S = torch.bmm(dz, W.mT), torch.bmm(dz, S.mT)
            _row_sum(by_W, x, out[layer].beta)
            _row_sum(by_S, x, out[layer].f)
            dx = by_W.mul_(c.beta).addcmul_(by_S, c.f)
            pairs = (x * c.beta, dz), (x * c.f, dz)
        else:
            _row_sum(r.xW[layer], dz, out[layer].beta)
            _row_sum(r.xS[layer], dz, out[layer].f)
            pairs = (x, dz * c.beta), (x, dz * c.f)
            dx = torch.bmm(pairs[0][1], W.mT).baddbmm_(pairs[1][1], S.mT)
        dx.baddbmm_(dA, h[layer])
        if rest:
            dx.baddbmm_(dz, rest[layer].mT)
            back.drest.insert(0, torch.bmm(x.mT, dz))
        for kept, new in zip(back[1:5], (torch.bmm(dA.mT, x), dD, *pairs), strict=True):
            kept.insert(0, new)
        dz = memory.act_backward(dx, r.z[layer - 1]) if layer else dx
    return back._replace(dx=dz)


def write_backward(
    memory: Memory, weights: Sequence[Tensor], norm: Tensor | None, written: Written,
    dh: list[Tensor], dD: list[Tensor], gW: list[Tensor],
) -> tuple[Tensor, Tensor, Tensor | None]:  # fmt: skip
    """Goes back through ``write``, from gradients of h and D to those of k, v and norm; adds to those of W, gW."""
    h, D, slope, bend = written[:4]
    depth = len(weights)
    dz: list[Tensor] = []
    for layer in range(depth - 1):  # through what went back, from the keys' side to the loss
        du = dD[layer] * slope[layer]
        dz.append(dD[layer] * bend[layer])
        dD[layer + 1].baddbmm_(du, weights[layer + 1])
        gW[layer + 1].baddbmm_(du.mT, D[layer + 1])
    top, dv, dnorm = _loss_backward(memory, written, norm, dD[-1])
    dz.append(top)
    for layer in reversed(range(depth)):  # through the way in
        dh[layer].baddbmm_(dz[layer], weights[layer].mT)
        gW[layer].baddbmm_(h[layer].mT, dz[layer])
        if layer:
            dz[layer - 1].addcmul_(dh[layer], slope[layer - 1])
    return dh[0], dv, dnorm


def _loss_backward(
    memory: Memory, written: Written, norm: Tensor | None, dD: Tensor
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Goes back through ``D(z, v)`` at the last layer."""
    if not memory.residual_norm:
        return 2 * dD, -2 * dD, None
    z, normed, g, mean, rstd = written.z, written.normed, written.g, written.mean, written.rstd
    dg = norm_backward(dD, z, mean, rstd)  # D is linear in g by a symmetric matrix
    derror = dg * (2 * norm)
    dnorm = torch.addcmul(2 * written.error * dg, normed, derror).sum(-2, keepdim=True)
    along_g, along_D = (g * normed).mean(-1, keepdim=True), (dD * normed).mean(-1, keepdim=True)
    dnormed = torch.addcmul(derror * norm, rstd, torch.addcmul(dD * along_g, g, along_D), value=-1)
    dz = norm_backward(dnormed, z, mean, rstd)
    dz.addcmul_(normed, (dD * written.D[-1]).sum(-1, keepdim=True) * rstd, value=-1 / z.shape[-1])
    return dz, -derror, dnorm


def _mix_backward(G: Tensor, A: Tensor, mix: Tensor | None, D: Tensor, dz: Tensor, dG: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients in A and D of minus ``sum_i G_ti A_ti D_i``; that in G is written to ``dG``."""
    if mix is not None:
        by_mix = torch.baddbmm(mix, dz, D.mT, beta=0, alpha=-1)
        torch.mul(by_mix, A, out=dG)
        return by_mix.mul_(G), torch.baddbmm(D, mix.mT, dz, beta=0, alpha=-1)
    torch.mul((dz.unsqueeze(-2) * D.unsqueeze(-3)).neg_(), A.unsqueeze(-1), out=dG)
    dA = torch.einsum("rto,rtio,rio->rti", dz, G, D).neg_()
    return dA, torch.einsum("rti,rtio,rto->rio", A, G, dz).neg_()


def _takes_less(x: Tensor, z: Tensor, c: Coefficients) -> bool:
    return c.beta.shape[-1] == 1 and x.shape[-1] <= z.shape[-1]


def _row_sum(a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    """The gradient of a coefficient: a number a token, or one a channel."""
    if out.shape[-1] == 1:
        return torch.sum(a * b, -1, keepdim=True, out=out)
    return torch.mul(a, b, out=out)


def norm_backward(g: Tensor, z: Tensor, mean: Tensor, rstd: Tensor) -> Tensor:
    wanted = [True, False, False]
    return aten.native_layer_norm_backward.default(g, z, (z.shape[-1],), mean, rstd, None, None, wanted)[0]
