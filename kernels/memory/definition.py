"""What ``neural_memory`` computes, token by token, by autograd of the written loss: the specification."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor
from torch.nn import functional as F

from pyro_memory.gate import checked
from pyro_memory.kernels.dispatch import own_precision

ACTIVATIONS = {"gelu": F.gelu, "silu": F.silu}  # gelu is the exact one, x Phi(x), not the tanh approximation
NORM_EPS = 1e-5

Layers = tuple[Tensor, ...]


def check_activation(activation: str) -> None:
    """Raises a ValueError for another activation than those there are."""
    if activation not in ACTIVATIONS:
        raise ValueError(f'`activation` must be "gelu" or "silu"; got {activation!r}')


@checked
def apply_memory(
    weights: Sequence[Tensor],
    x: Tensor,
    *,
    activation: str = "gelu",
    residual_norm: bool = False,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    norm_eps: float = NORM_EPS,
) -> Tensor:
    """Computes ``M(x)``: an MLP, or ``x + LN(MLP(x))`` with ``residual_norm``; x is ``[batch, head, time, in]``.

    In the dtype of x; float16 and bfloat16 are computed in float32, as ``neural_memory`` does.
    """
    check_activation(activation)
    dtype = reduce(torch.promote_types, (t.dtype for t in (x, *weights)), torch.float32)
    with own_precision(x):
        z = x.to(dtype)
        for layer, w in enumerate(weights):
            z = (z if layer == 0 else ACTIVATIONS[activation](z)) @ w.to(dtype)
        if not residual_norm:
            return z.to(x.dtype)
        normed = F.layer_norm(z, z.shape[-1:], eps=norm_eps)
        if norm_weight is not None:
            normed = normed * norm_weight.unsqueeze(-2)
        if norm_bias is not None:
            normed = normed + norm_bias.unsqueeze(-2)
        return (x + normed).to(x.dtype)


def token_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    weights: Layers,
    momentum_state: Layers,
    lr: Layers,
    momentum: Layers,
    decay: Layers,
    *,
    chunk_size: int,
    anchor: Layers | None = None,
    position: Tensor | None = None,
    lengths: Tensor | None = None,
    rest: Layers | None = None,
    **memory: object,
) -> tuple[Tensor, Layers, Layers, Layers, Tensor]:
    """Writes and reads one token after the other; weights ``[batch, head, in, out]``, a gate for each layer.

    The gradient is that of ``||M(k) - v||^2`` at the anchor, the weights before the token's chunk, by autograd.
    Everything else is per token: momentum, step, decay, then the read.
    """
    outputs = []
    anchor = weights if anchor is None else anchor
    position = torch.zeros_like(k[:, 0, 0, 0], dtype=torch.long) if position is None else position
    for t in range(k.shape[2]):
        anchor = _at_start(position, weights, anchor)
        gradients = _loss_gradients(anchor, k[:, :, t : t + 1], v[:, :, t : t + 1], memory)
        moved = [
            _gate(eta, t) * s - _gate(theta, t) * g
            for eta, theta, s, g in zip(momentum, lr, momentum_state, gradients, strict=True)
        ]
        written = [(1 - _gate(alpha, t)) * w + s for alpha, w, s in zip(decay, weights, moved, strict=True)]
        if rest is not None:
            written = [w + _gate(alpha, t) * r for alpha, w, r in zip(decay, written, rest, strict=True)]
        y = apply_memory(written, q[:, :, t : t + 1], **memory)
        if lengths is not None:
            active = (t < lengths)[:, None, None, None]
            y = torch.where(active, y, 0)
            moved = [torch.where(active, new, old) for new, old in zip(moved, momentum_state, strict=True)]
            written = [torch.where(active, new, old) for new, old in zip(written, weights, strict=True)]
        outputs.append(y)
        weights, momentum_state = tuple(written), tuple(moved)
        position = (position + (1 if lengths is None else (t < lengths).long())) % chunk_size
    return torch.cat(outputs, 2), weights, momentum_state, _at_start(position, weights, anchor), position


def _at_start(position: Tensor, weights: Layers, anchor: Layers) -> Layers:
    """The weights where a chunk starts."""
    starts = (position == 0)[:, None, None, None]
    return tuple(torch.where(starts, w, a) for w, a in zip(weights, anchor, strict=True))


def _gate(gate: Tensor, t: int) -> Tensor:
    """The gate of one token, against weights ``[batch, head, in, out]``: a number a head, or one an output channel."""
    return gate[:, :, t, None, None] if gate.dim() == 3 else gate[:, :, t, None, :]


def _loss_gradients(weights: Layers, k: Tensor, v: Tensor, memory: dict[str, object]) -> tuple[Tensor, ...]:
    differentiable = torch.is_grad_enabled()
    with torch.enable_grad():
        if not differentiable:
            weights = tuple(w.detach() for w in weights)
        weights = tuple(w if w.requires_grad else w.requires_grad_() for w in weights)
        loss = (apply_memory(weights, k, **memory) - v).square().sum()
        return torch.autograd.grad(loss, weights, create_graph=differentiable)
