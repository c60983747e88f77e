r"""What goes on inside an open chunk: gradients at the anchor, the weights that the chunk began with.

By autograd throughout, since few calls need it: a token, or the piece of a sequence that fills a chunk up.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyro_memory.kernels.dispatch import below_autograd, transforming
from pyro_memory.kernels.memory import torch_inner as inner
from pyro_memory.kernels.memory.definition import NORM_EPS, Layers
from pyro_memory.kernels.memory.torch_coefficients import Coefficients
from pyro_memory.kernels.memory.torch_form import Problem
from pyro_memory.kernels.memory.torch_inner import Memory


def anchored_form(
    q: Tensor, k: Tensor, v: Tensor, weights: Layers, momentum_state: Layers, lr: Layers, momentum: Layers,
    decay: Layers, *, anchor: Layers, lengths: Tensor | None = None, **options: Any,
) -> tuple[Tensor, Layers, Layers]:  # fmt: skip
    """Computes what ``token_rule`` does for tokens of one chunk, whose gradients are all taken at ``anchor``."""
    p = Problem.of(k, v, weights, momentum_state, lr, momentum, decay, lengths=lengths, **options)
    depth, chunk = len(weights), [c.take(0) for c in p.layers]
    w = inner.write(p.memory, [a.flatten(0, 1) for a in anchor], p.k[0], p.v[0], p.norm)
    r = inner.read(p.memory, p.states[:depth], p.states[depth:], p.cut.chunked(q)[0], w.h, w.D, chunk, p.rest)
    y = p.finished(inner.read_out(p.memory, r.z[-1], p.norm).unsqueeze(0), q, lengths)
    layers = zip(p.states[:depth], p.states[depth:], w.h, w.D, chunk, strict=True)
    written, moved = zip(*(_after(*layer) for layer in layers), strict=True)
    return y, *p.after([*written, *moved])


def _after(W: Tensor, S: Tensor, h: Tensor, D: Tensor, c: Coefficients) -> tuple[Tensor, Tensor]:
    return (
        W * c.end_beta + S * c.end_f - torch.bmm(h.mT, D * c.end_G),
        S * c.end_m - torch.bmm(h.mT, D * c.end_P),
    )


@below_autograd
def anchored_token(
    q: Tensor, k: Tensor, v: Tensor, weights: Layers, momentum_state: Layers, lr: Layers, momentum: Layers,
    decay: Layers, *, anchor: Layers, activation: str = "gelu", residual_norm: bool = False,
    norm_weight: Tensor | None = None, norm_bias: Tensor | None = None, norm_eps: float = NORM_EPS,
    rest: Layers | None = None, **_: Any,
) -> tuple[Tensor, Layers, Layers]:  # fmt: skip
    """Computes what ``token_rule`` does for one token: a gradient at the anchor, an update, a read.

    A token takes as long as its operations take to start: they are few, and none does what a broadcast can. To an
    activation rows are shown as columns: were they contiguous, torch would ask oneDNN for a GELU, which takes longer to
    start than all else to run.
    """
    memory = Memory(activation, residual_norm, norm_eps)
    lr, momentum, decay = ([g if g.dim() == 4 else g.unsqueeze(-1) for g in gate] for gate in (lr, momentum, decay))
    batch, heads = k.shape[:2]
    anchors = [a.flatten(0, 1) for a in anchor]
    h, columns = [k.flatten(0, 1)], []
    top = torch.bmm(h[0], anchors[0])
    for A in anchors[1:]:
        columns.append(top.squeeze(1).t())
        h.append(memory.act(columns[-1]).t().unsqueeze(1))
        top = torch.bmm(h[-1], A)
    top = top.view(v.shape)
    shift = scale = None
    if residual_norm:
        shift = None if norm_bias is None else norm_bias.unsqueeze(1)
        scale = v.new_ones(1) if norm_weight is None else norm_weight.unsqueeze(1)
        normed, mean, rstd = memory.norm(top)
        error = torch.addcmul(k - v if shift is None else k - v + shift, normed, scale)
        D = [inner.norm_backward(error * scale, top, mean, rstd).view(len(h[0]), -1, 1)]  # of half the loss
    else:
        D = [(top - v).view(len(h[0]), -1, 1)]
    for A in anchors[:0:-1]:
        D.append(memory.act_backward(torch.bmm(A, D[-1]).squeeze(2).t(), columns.pop()).t().unsqueeze(2))
    x, written, moved = q.flatten(0, 1), [], []
    mapped = transforming() or torch.compiler.is_compiling()  # vmap refuses what is in place, a compiler undoes it
    add_product = torch.addcmul if mapped else Tensor.addcmul_
    for layer, (W, S, eta, alpha) in enumerate(zip(weights, momentum_state, momentum, decay, strict=True)):
        d = lr[layer] * D.pop().view(batch, heads, 1, -1)
        S = add_product(eta * S, h[layer].view(batch, heads, -1, 1), d, value=-2)
        W = torch.addcmul(S, 1 - alpha, W)
        if rest is not None:
            W = torch.addcmul(W, alpha, rest[layer])
        if layer:
            x = memory.act(x.squeeze(1).t()).t().unsqueeze(1)
        x = torch.bmm(x, W.flatten(0, 1))
        written.append(W)
        moved.append(S)
    y = x.view(v.shape)
    if residual_norm:
        y = torch.addcmul(q if shift is None else q + shift, memory.norm(y)[0], scale)
    return y, tuple(written), tuple(moved)
