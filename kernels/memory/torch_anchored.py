r"""What goes on inside an open chunk: gradients at the anchor, the weights that the chunk began with.

By autograd throughout, since few calls need it: a token, or the piece of a sequence that fills a chunk up.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

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


def anchored_token(
    q: Tensor, k: Tensor, v: Tensor, weights: Layers, momentum_state: Layers, lr: Layers, momentum: Layers,
    decay: Layers, *, anchor: Layers, activation: str = "gelu", residual_norm: bool = False,
    norm_weight: Tensor | None = None, norm_bias: Tensor | None = None, norm_eps: float = NORM_EPS,
    rest: Layers | None = None, **_: Any,
) -> tuple[Tensor, Layers, Layers]:  # fmt: skip
    """Computes what ``token_rule`` does for one token: a gradient at the anchor, an update, a read."""
    rows = len(k) * k.shape[1]
    memory, target, norm = Memory(activation, residual_norm, norm_eps), v, None
    if residual_norm:
        target = v - k if norm_bias is None else v - k - norm_bias.unsqueeze(1)
        norm = v.new_ones(1) if norm_weight is None else norm_weight.expand(*v.shape[:2], -1).reshape(rows, 1, -1)
    x = q.flatten(0, 1)
    w = inner.write(memory, [a.flatten(0, 1) for a in anchor], k.flatten(0, 1), target.flatten(0, 1), norm)
    written, moved = [], []
    layers = zip(w.h, w.D, weights, momentum_state, lr, momentum, decay, strict=True)
    for layer, (h, D, W, S, theta, eta, alpha) in enumerate(layers):
        # [batch, head, 1, 1 or out]: a number a head, or one an output channel
        theta, eta, alpha = theta.unsqueeze(-1), eta.unsqueeze(-1), alpha if alpha.dim() == 4 else alpha.unsqueeze(-1)
        S = torch.addcmul(eta * S, h.view(*S.shape[:3], 1), theta * D.view(*S.shape[:2], 1, -1), value=-1)
        W = torch.addcmul(S, 1 - alpha, W)
        W = W if rest is None else torch.addcmul(W, alpha, rest[layer])
        x = torch.bmm(memory.act(x) if layer else x, W.flatten(0, 1))
        written.append(W)
        moved.append(S)
    y = x.view(v.shape)
    if residual_norm:
        y = F.layer_norm(y, y.shape[-1:], eps=norm_eps)
        y = y if norm_weight is None else y * norm_weight.unsqueeze(1)
        y = q + (y if norm_bias is None else y + norm_bias.unsqueeze(1))
    return y, tuple(written), tuple(moved)
