r"""The chunk form: the token rule with no per-token weights, for memories of any depth.

In a chunk all gradients are taken at its first weights, where the gradient of token i at a layer is the outer product
h_i^T D_i of what came in and what went back. So the read of token t at a layer, x_t W_t, is

    z_t = beta_t x_t W + f_t x_t S - sum_{i <= t} G_ti (x_t . h_i) D_i

which is attention with a lower triangular matrix G of decay, momentum and step (see ``coefficients``). Writes go chunk
by chunk; reads of a group of chunks are one product. The backward pass is written by hand: it computes activations
again from the weights at each chunk's start, the only large thing that is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_memory.kernels import inner
from pyro_memory.kernels.coefficients import Coefficients, coefficients
from pyro_memory.kernels.inner import Memory

GROUP_BYTES = 2**24  # weights of a group of chunks whose reads are one product


def chunk_form(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    weights: Sequence[Tensor],
    momentum_state: Sequence[Tensor],
    lr: Sequence[Tensor],
    momentum: Sequence[Tensor],
    decay: Sequence[Tensor],
    *,
    chunk_size: int,
    lengths: Tensor | None = None,
    checkpoint_chunks: int | None = None,
    activation: str = "gelu",
    residual_norm: bool = False,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
) -> tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Computes what ``token_rule`` does, in the same arguments."""
    batch, heads, time = k.shape[:3]
    rows, depth = batch * heads, len(weights)
    chunk_size = min(chunk_size, time)
    chunks = -(-time // chunk_size)
    cut = _Cut(batch, heads, time, chunks, chunk_size)
    if lengths is None:
        lengths = torch.full((batch,), time, device=k.device)
    last = lengths.repeat_interleave(heads) - torch.arange(chunks, device=k.device)[:, None] * chunk_size
    last = last.clamp(0, chunk_size)

    known: dict[tuple[int, ...], Coefficients] = {}
    for gates in zip(lr, momentum, decay, strict=True):
        key = tuple(id(g) for g in gates)
        if key not in known:
            known[key] = coefficients(*(cut.chunked(g) for g in gates), last)
    layers = [known[tuple(id(g) for g in gates)] for gates in zip(lr, momentum, decay, strict=True)]

    norm = None
    if residual_norm:
        norm = torch.ones_like(v[:1, 0, 0]) if norm_weight is None else norm_weight
        norm = norm.expand(batch, heads, -1).reshape(rows, 1, -1)
        bias = v.new_zeros(1) if norm_bias is None else norm_bias.unsqueeze(-2)
        v, lifted = v - k - bias, q + bias  # the loss of MLP alone, and what a read adds to it
    states = [s.reshape(rows, *s.shape[2:]) for s in (*weights, *momentum_state)]
    plan = _Plan(Memory(activation, residual_norm), depth, checkpoint_chunks, torch.is_grad_enabled())
    y, *states = _Chunks.apply(
        plan, cut.chunked(q), cut.chunked(k), cut.chunked(v), norm, *states, *(c for layer in layers for c in layer)
    )
    y = cut.joined(y)
    if residual_norm:
        y = y + lifted
    if bool((lengths < time).any()):
        y = y * (torch.arange(time, device=k.device) < lengths[:, None])[:, None, :, None]
    states = [s.reshape(batch, heads, *s.shape[1:]) for s in states]
    return y, tuple(states[:depth]), tuple(states[depth:])


@dataclass(frozen=True)
class _Cut:
    batch: int
    heads: int
    time: int
    chunks: int
    chunk_size: int

    def chunked(self, x: Tensor) -> Tensor:
        """From ``[batch, head, time, ...]`` to ``[chunk, row, C, ...]``, padded with zeros."""
        x = x.flatten(0, 1)
        padding = self.chunks * self.chunk_size - self.time
        if padding:
            x = torch.cat([x, x.new_zeros(x.shape[0], padding, *x.shape[2:])], 1)
        return x.unflatten(1, (self.chunks, self.chunk_size)).transpose(0, 1).contiguous()

    def joined(self, x: Tensor) -> Tensor:
        """Back to ``[batch, head, time, ...]``."""
        return x.transpose(0, 1).flatten(1, 2)[:, : self.time].unflatten(0, (self.batch, self.heads))


@dataclass(frozen=True)
class _Plan:
    memory: Memory
    depth: int
    checkpoint_chunks: int | None
    keep: bool

    def groups(self, chunks: int, states: Sequence[Tensor]) -> list[range]:
        """Chunks that are read together: few enough that their weights fit a cache, or those between checkpoints."""
        size = self.checkpoint_chunks
        if size is None:
            size = max(1, GROUP_BYTES // sum(s.nbytes for s in states))
        return [range(start, min(start + size, chunks)) for start in range(0, chunks, size)]

    def split(self, flat: Sequence[Tensor]) -> tuple[list[Tensor], list[Coefficients]]:
        """Weights then momenta of all layers, and their coefficients."""
        states, rest = list(flat[: 2 * self.depth]), flat[2 * self.depth :]
        size = len(Coefficients._fields)
        return states, [Coefficients(*rest[i * size : (i + 1) * size]) for i in range(self.depth)]


class _Chunks(torch.autograd.Function):
    @staticmethod
    def forward(ctx, plan, q, k, v, norm, *flat):
        states, layers = plan.split(flat)
        groups = plan.groups(len(k), states)
        kept_all = plan.keep and plan.checkpoint_chunks is None
        slots = len(k) if kept_all else len(groups[0])
        buffers = [s.new_empty(slots + 1, *s.shape) for s in states]
        for buffer, state in zip(buffers, states, strict=True):
            buffer[0] = state
        kept = buffers if kept_all else [s.new_empty(len(groups) * plan.keep, *s.shape) for s in states]
        y = torch.empty_like(v)
        for i, group in enumerate(groups):
            chunks = slice(group.start, group.stop)
            first = group.start if kept_all else 0
            window = [b[first : first + len(group) + 1] for b in buffers]
            if plan.keep and not kept_all:
                for store, buffer in zip(kept, buffers, strict=True):
                    store[i] = buffer[0]
            here = [c.take(chunks) for c in layers]
            written = _write(plan.memory, window, k[chunks], v[chunks], norm, here)
            y[chunks] = inner.read(plan.memory, *_halves(window), q[chunks], norm, *written, here).y
            if not kept_all:
                for buffer in buffers:
                    buffer[0] = buffer[len(group)]
        if plan.keep:
            ctx.plan = plan
            ctx.save_for_backward(q, k, v, norm, *kept, *flat)
        final = len(k) if kept_all else 0
        return y, *(b[final].clone() for b in buffers)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy, *dstates):
        plan = ctx.plan
        q, k, v, norm, *rest = ctx.saved_tensors
        kept, flat = rest[: 2 * plan.depth], rest[2 * plan.depth :]
        states, layers = plan.split(flat)
        dstates = [g.clone() for g in dstates]
        dq, dk, dv = (torch.empty_like(x) for x in (q, k, v))
        dnorm = None if norm is None else torch.zeros_like(norm)
        dlayers = [Coefficients(*(torch.empty_like(x) for x in layer)) for layer in layers]
        groups = plan.groups(len(k), states)
        for i, group in reversed(list(enumerate(groups))):
            chunks = slice(group.start, group.stop)
            here, dhere = [c.take(chunks) for c in layers], [c.take(chunks) for c in dlayers]
            if plan.checkpoint_chunks is None:
                window = [s[group.start : group.stop + 1] for s in kept]
            else:
                window = [s.new_empty(len(group) + 1, *s.shape[1:]) for s in kept]
                for buffer, store in zip(window, kept, strict=True):
                    buffer[0] = store[i]
                _write(plan.memory, window, k[chunks], v[chunks], norm, here, reads=False)
            weights, momenta = _halves(window)
            written = inner.write(plan.memory, weights, k[chunks], v[chunks], norm)
            read = inner.read(plan.memory, weights, momenta, q[chunks], norm, written.h, written.D, here)
            back = inner.read_backward(
                plan.memory, weights, momenta, norm, written.h, written.D, here, read, dy[chunks], dhere
            )
            dq[chunks] = back.dx
            if dnorm is not None:
                dnorm += back.dnorm.sum(0)
            for c in reversed(range(len(group))):
                grads = inner.chunk_backward(
                    plan.memory, [w[c] for w in weights], [s[c] for s in momenta], norm, written.take(c),
                    [x.take(c) for x in here], [x.take(c) for x in dhere], dstates, back.take(c),
                )  # fmt: skip
                dk[group.start + c], dv[group.start + c] = grads.dk, grads.dv
                if dnorm is not None:
                    dnorm += grads.dnorm
        return None, dq, dk, dv, dnorm, *dstates, *(g for layer in dlayers for g in layer)


def _halves(window: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Weights and momenta at the start of each chunk of a group."""
    depth = len(window) // 2
    starts = [w[:-1] for w in window]
    return starts[:depth], starts[depth:]


def _write(
    memory: Memory, window: list[Tensor], k: Tensor, v: Tensor, norm: Tensor | None, layers: list[Coefficients],
    reads: bool = True,
) -> tuple[list[Tensor], list[Tensor]] | None:  # fmt: skip
    """Fills ``window`` with the states after each chunk; gives each layer's inputs h and what went back, D."""
    depth = len(layers)
    kept = []
    for c in range(len(k)):
        ws = [w[c] for w in window[:depth]]
        tokens = inner.write(memory, ws, k[c], v[c], norm)
        for layer in range(depth):
            W, S = window[layer], window[depth + layer]
            inner.advance(W[c], S[c], tokens.h[layer], tokens.D[layer], layers[layer].take(c), W[c + 1], S[c + 1])
        kept.append(tokens)
    if not reads:
        return None
    return tuple([torch.stack([getattr(t, n)[layer] for t in kept]) for layer in range(depth)] for n in ("h", "D"))
