r"""The chunk form: the token rule with no per-token weights, for memories of any depth.

In a chunk all gradients are taken at its first weights, where the gradient of token i at a layer is the outer product
h_i^T D_i of what came in and what went back. So the read of token t at a layer, x_t W_t, is

    z_t = beta_t x_t W + f_t x_t S - sum_{i <= t} G_ti (x_t . h_i) D_i

which is attention with a lower triangular matrix G of decay, momentum and step (see ``torch_coefficients``). Writes go
chunk by chunk; reads of a group of chunks are one product. The backward pass is written by hand (``torch_chunks``). It
keeps the weights at each chunk's start and the reads, and computes the writes again; with ``checkpoint_chunks`` it
keeps every n-th chunk's weights alone, and computes all else again.

Where decay leads to weights R, all of this is said of W - R, but for x_t R, which each read adds, and the gradients,
which are taken at W.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_memory.kernels.dispatch import keep_freed_memory
from pyro_memory.kernels.memory import torch_inner as inner
from pyro_memory.kernels.memory.definition import NORM_EPS, Layers
from pyro_memory.kernels.memory.torch_chunks import Chunks, Plan
from pyro_memory.kernels.memory.torch_coefficients import Coefficients, coefficients
from pyro_memory.kernels.memory.torch_inner import Memory


def chunk_form(
    q: Tensor, k: Tensor, v: Tensor, weights: Layers, momentum_state: Layers, lr: Layers, momentum: Layers,
    decay: Layers, *, lengths: Tensor | None = None, checkpoint_chunks: int | None = None, return_state: bool = True,
    **options: Any,
) -> tuple[Tensor, Layers | None, Layers | None]:  # fmt: skip
    """Computes what ``token_rule`` does, in the same arguments."""
    if torch.is_grad_enabled() and k.is_cpu:
        keep_freed_memory()
    p = Problem.of(k, v, weights, momentum_state, lr, momentum, decay, lengths=lengths, **options)
    plan = Plan(p.memory, len(weights), len(p.rest), checkpoint_chunks, torch.is_grad_enabled(), return_state)
    y, *states = Chunks.apply(
        plan, p.cut.chunked(q), p.k, p.v, p.norm, *p.states, *p.rest, *(c for layer in p.layers for c in layer)
    )
    y = p.finished(y, q, lengths)
    return (y, *p.after(states)) if return_state else (y, None, None)


@torch.no_grad()
def chunk_surprise(
    k: Tensor, v: Tensor, weights: Layers, momentum_state: Layers, lr: Layers, momentum: Layers, decay: Layers,
    *, anchor: Layers | None = None, lengths: Tensor | None = None, **options: Any,
) -> tuple[Tensor, Layers, Layers]:  # fmt: skip
    """Gives each token's inner loss and the norm of its gradient, ``[batch, head, time, 2]``, and the last state.

    With an ``anchor`` the first chunk's gradients are taken there.
    """
    p = Problem.of(k, v, weights, momentum_state, lr, momentum, decay, lengths=lengths, **options)
    states, depth, out = p.states, len(weights), []
    points = inner.moved(states[:depth], p.rest) if anchor is None else [a.flatten(0, 1) for a in anchor]
    for keys, values, *layers in zip(p.k, p.v, *(c.each() for c in p.layers), strict=True):
        w = inner.write(p.memory, points, keys, values, p.norm)
        squares = sum(h.square().sum(-1) * D.square().sum(-1) for h, D in zip(w.h, w.D, strict=True))
        out.append(torch.stack([w.error.square().sum(-1), squares.sqrt()], -1))
        after = [torch.empty_like(s) for s in states]
        for i, c in enumerate(layers):
            inner.advance(states[i], states[depth + i], w.h[i], w.D[i], c, after[i], after[depth + i])
        states, points = after, inner.moved(after[:depth], p.rest)
    return p.cut.masked(p.cut.joined(torch.stack(out)), lengths), *p.after(states)


@dataclass(frozen=True)
class Problem:
    """A call's arguments in chunks: ``[chunk, row, C, ...]``, a row a head of a sequence."""

    cut: _Cut
    memory: Memory
    k: Tensor
    v: Tensor  # what the MLP alone should give
    states: list[Tensor]  # weights less what decay leads to, then momenta
    rest: list[Tensor]  # what decay leads to, where that is not zero
    layers: list[Coefficients]
    norm: Tensor | None
    bias: Tensor | None

    @classmethod
    def of(
        cls, k: Tensor, v: Tensor, weights: Layers, momentum_state: Layers, lr: Layers, momentum: Layers, decay: Layers,
        *, chunk_size: int, lengths: Tensor | None, activation: str = "gelu", residual_norm: bool = False,
        norm_weight: Tensor | None = None, norm_bias: Tensor | None = None, norm_eps: float = NORM_EPS,
        rest: Layers | None = None,
    ) -> Problem:  # fmt: skip
        cut = _Cut(*k.shape[:3], min(chunk_size, k.shape[2]))
        last = cut.last(torch.full((cut.batch,), cut.time, device=k.device) if lengths is None else lengths)
        gates = {tuple(map(id, layer)): layer for layer in zip(lr, momentum, decay, strict=True)}  # some may be shared
        if all(alpha.dim() == 3 for alpha in decay):  # all layers at once
            together = [torch.cat([cut.chunked(g) for g in kind]) for kind in zip(*gates.values(), strict=True)]
            found = coefficients(*together, last.repeat(len(gates), 1)).split(cut.chunks)
        else:
            found = [coefficients(*(cut.chunked(g) for g in layer), last) for layer in gates.values()]
        known = dict(zip(gates, found, strict=True))
        norm = bias = None
        if residual_norm:
            norm = torch.ones_like(v[:1, 0, 0]) if norm_weight is None else norm_weight
            norm = norm.expand(cut.batch, cut.heads, -1).flatten(0, 1).unsqueeze(1)
            bias = v.new_zeros(1) if norm_bias is None else norm_bias.unsqueeze(-2)
            v = v - k - bias
        rest = [] if rest is None else [r.flatten(0, 1) for r in rest]
        weights = [w.flatten(0, 1) for w in weights]
        if rest:
            weights = [w - r for w, r in zip(weights, rest, strict=True)]
        states = [*weights, *(s.flatten(0, 1) for s in momentum_state)]
        layers = [known[tuple(map(id, layer))] for layer in zip(lr, momentum, decay, strict=True)]
        memory = Memory(activation, residual_norm, norm_eps)
        return cls(cut, memory, cut.chunked(k), cut.chunked(v), states, rest, layers, norm, bias)

    def after(self, states: Sequence[Tensor]) -> tuple[Layers, Layers]:
        """The weights and momenta that a walk ended with, ``[batch, head, in, out]``."""
        depth, lead = len(self.layers), (self.cut.batch, self.cut.heads)
        weights = inner.moved(states[:depth], self.rest)
        return tuple(w.unflatten(0, lead) for w in weights), tuple(s.unflatten(0, lead) for s in states[depth:])

    def finished(self, y: Tensor, q: Tensor, lengths: Tensor | None) -> Tensor:
        """Reads of the MLP alone, in chunks, to those of the memory, ``[batch, head, time, out]``."""
        y = self.cut.joined(y)
        return self.cut.masked(y + (q + self.bias) if self.memory.residual_norm else y, lengths)


@dataclass(frozen=True)
class _Cut:
    batch: int
    heads: int
    time: int
    chunk_size: int

    @property
    def chunks(self) -> int:
        return -(-self.time // self.chunk_size)

    def chunked(self, x: Tensor) -> Tensor:
        """From ``[batch, head, time, ...]`` to ``[chunk, row, C, ...]``, padded with zeros."""
        x = x.flatten(0, 1)
        padding = self.chunks * self.chunk_size - self.time
        if padding:
            x = torch.cat([x, x.new_zeros(x.shape[0], padding, *x.shape[2:])], 1)
        return x.unflatten(1, (self.chunks, self.chunk_size)).transpose(0, 1).contiguous()

    def joined(self, x: Tensor) -> Tensor:
        """Back to ``[batch, head, time, dim]``."""
        return x.transpose(0, 1).flatten(1, 2)[:, : self.time].unflatten(0, (self.batch, self.heads))

    def last(self, lengths: Tensor) -> Tensor:
        """How many tokens of a chunk a sequence has, ``[chunk, row]``."""
        starts = torch.arange(self.chunks, device=lengths.device)[:, None] * self.chunk_size
        return (lengths.repeat_interleave(self.heads) - starts).clamp(0, self.chunk_size)

    def masked(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        """Zero past the lengths."""
        if lengths is None:
            return x
        past = torch.arange(self.time, device=lengths.device) >= lengths[:, None]
        return x.masked_fill(past[:, None, :, None], 0)
