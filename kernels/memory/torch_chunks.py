"""The walk over the chunks: writes one after the other, reads a group at a time, and the way back, by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from pyro_memory.kernels.dispatch import backward_in_own_precision
from pyro_memory.kernels.memory import torch_inner as inner
from pyro_memory.kernels.memory.torch_coefficients import Coefficients
from pyro_memory.kernels.memory.torch_inner import Memory, Read, Written

GROUP_BYTES = 2**20  # of a group of chunks whose reads are one product, tokens inside the memory; weights 8 times that


@dataclass(frozen=True)
class Plan:
    """What a walk needs to know beside its tensors: what is kept for the way back, and whether the last state is."""

    memory: Memory
    depth: int
    rests: int  # layers whose decay leads elsewhere than to zero: all or none
    checkpoint_chunks: int | None
    keep: bool
    state: bool

    def groups(self, k: Tensor, states: Sequence[Tensor]) -> list[range]:
        """Chunks that are read together: few enough to fit a cache, or those between checkpoints."""
        chunks, size = len(k), self.checkpoint_chunks
        if size is None:
            inside = k[0, ..., 0].nbytes * max(s.shape[-1] for s in states)
            size = max(1, min(GROUP_BYTES // inside, 8 * GROUP_BYTES // sum(s.nbytes for s in states)))
        return [range(start, min(start + size, chunks)) for start in range(0, chunks, size)]

    def split(self, flat: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Coefficients]]:
        """Weights then momenta of all layers, what decay leads to, and the layers' coefficients."""
        start, size = 2 * self.depth, len(Coefficients._fields)
        states, rest, flat = list(flat[:start]), list(flat[start : start + self.rests]), flat[start + self.rests :]
        return states, rest, [Coefficients(*flat[i * size : (i + 1) * size]) for i in range(self.depth)]


class Chunks(torch.autograd.Function):
    @staticmethod
    def forward(ctx, plan, q, k, v, norm, *flat):
        states, rest, layers = plan.split(flat)
        groups = plan.groups(k, states)
        kept_all = plan.keep and plan.checkpoint_chunks is None
        alone = len(k) == 1  # then nothing is copied
        if alone:
            buffers: list[Any] = [[s, s.new_empty(s.shape)] for s in states]
        else:
            buffers = [s.new_empty((len(k) if kept_all else len(groups[0])) + 1, *s.shape) for s in states]
            for buffer, state in zip(buffers, states, strict=True):
                buffer[0] = state
        starts = [s.new_empty(len(groups), *s.shape) for s in states] if plan.keep and not kept_all else []
        y, reads = torch.empty_like(v), []
        for i, group in enumerate(groups):
            here = _Group(plan, group, layers, norm, rest)
            for start, buffer in zip(starts, buffers, strict=bool(starts)):
                start[i] = buffer[0]
            more = plan.state or group.stop < len(k)  # nobody asks for the last state
            window = [b[group.start if kept_all else 0 :][: len(group) + more] for b in buffers]
            h, D = here.write(window, k, v)
            r = here.read(window, q, h, D)
            y[here.chunks] = inner.read_out(plan.memory, r.z[-1].view_as(y[here.chunks]), norm)
            if kept_all:
                reads.append(r)
            elif more:
                for buffer in buffers:
                    buffer[0] = buffer[len(group)]
        if plan.keep:
            ctx.plan, ctx.reads = plan, reads
            kept = [s.unsqueeze(0) for s in states] if alone else buffers
            ctx.save_for_backward(q, k, v, norm, *(starts or kept), *flat)
        after = [b[len(k) if kept_all else 0] for b in buffers if plan.state]
        return y, *(after if alone else map(torch.clone, after))

    @staticmethod
    @torch.autograd.function.once_differentiable
    @backward_in_own_precision
    def backward(ctx, dy, *dstates):
        plan = ctx.plan
        q, k, v, norm, *saved = ctx.saved_tensors
        kept, flat = saved[: 2 * plan.depth], saved[2 * plan.depth :]
        states, rest, layers = plan.split(flat)
        dstates = [g.clone() for g in dstates] or [torch.zeros_like(s) for s in states]
        dq, dk, dv = (torch.empty_like(x) for x in (q, k, v))
        dnorm = None if norm is None else torch.zeros_like(norm)
        drest = [torch.zeros_like(r) for r in rest]
        dlayers = [Coefficients(*(torch.empty_like(x) for x in layer)) for layer in layers]
        groups = plan.groups(k, states)
        for i, group in reversed(list(enumerate(groups))):
            here = _Group(plan, group, layers, norm, rest)
            if ctx.reads:
                window = [s[group.start : group.stop] for s in kept]
                r = ctx.reads[i]
            else:
                window = [s.new_empty(len(group), *s.shape[1:]) for s in kept]
                for buffer, store in zip(window, kept, strict=True):
                    buffer[0] = store[i]
                h, D = here.write(window, k, v)
                r = here.read(window, q, h, D)
            dnorm = here.backward(window, k, v, r, dy, dstates, dlayers, (dq, dk, dv), dnorm, drest)
        return None, dq, dk, dv, dnorm, *dstates, *drest, *(g for layer in dlayers for g in layer)


class _Group:
    """A run of chunks: written one after the other, read together."""

    def __init__(
        self, plan: Plan, group: range, layers: list[Coefficients], norm: Tensor | None, rest: list[Tensor]
    ) -> None:
        self.memory, self.depth, self.norm, self.rest = plan.memory, plan.depth, norm, rest
        self.rests = [r.repeat(len(group), 1, 1) for r in rest]
        self.chunks = slice(group.start, group.stop)
        self.layers = [c.take(self.chunks) for c in layers]
        self.flat = [Coefficients(*(x.flatten(0, 1) for x in c)) for c in self.layers]

    def write(self, window: list[Tensor], k: Tensor, v: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Fills ``window``, which starts with the state before the group, with the states after its chunks.

        It has a place for each chunk, and one more where the last state is wanted. Gives what each layer took, h, and
        what went back, D.
        """
        depth, tokens = self.depth, []
        steps = zip(k[self.chunks], v[self.chunks], *(c.each() for c in self.layers), strict=True)
        for c, (keys, values, *layers) in enumerate(steps):
            state = [w[c] for w in window]
            w = inner.write(self.memory, inner.moved(state[:depth], self.rest), keys, values, self.norm)
            tokens.append((w.h[1:], w.D))
            if c + 1 < len(window[0]):
                after = [w[c + 1] for w in window]
                for i in range(depth):
                    inner.advance(state[i], state[depth + i], w.h[i], w.D[i], layers[i], after[i], after[depth + i])
        h, D = zip(*tokens, strict=True)
        h, D = ([torch.cat(x) for x in zip(*kind, strict=True)] for kind in (h, D))
        return [k[self.chunks].flatten(0, 1), *h], D

    def starts(self, window: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Weights and momenta at the start of every chunk."""
        size = len(self.layers[0].beta)
        flat = [w[0] if size == 1 else w[:size].flatten(0, 1) for w in window]
        return flat[: self.depth], flat[self.depth :]

    def read(self, window: list[Tensor], q: Tensor, h: list[Tensor], D: list[Tensor]) -> Read:
        weights, momenta = self.starts(window)
        return inner.read(self.memory, weights, momenta, q[self.chunks].flatten(0, 1), h, D, self.flat, self.rests)

    def backward(
        self, window: list[Tensor], k: Tensor, v: Tensor, r: Read, dy: Tensor, dstates: list[Tensor],
        dlayers: list[Coefficients], out: tuple[Tensor, ...], dnorm: Tensor | None, drest: list[Tensor],
    ) -> Tensor | None:  # fmt: skip
        """Turns ``dstates``, gradients of the state after the group, into those before it; fills the others in."""
        depth, chunks, memory = self.depth, self.chunks, self.memory
        size, rows = len(self.layers[0].beta), k.shape[1]
        dq, dk, dv = (x[chunks] for x in out)
        dlayers = [c.take(chunks) for c in dlayers]
        weights, momenta = self.starts(window)
        norm = None if self.norm is None else self.norm.repeat(size, 1, 1)
        at = inner.moved(weights, self.rests)
        w = inner.write(memory, at, k[chunks].flatten(0, 1), v[chunks].flatten(0, 1), norm, keep=True)
        flat = [Coefficients(*(x.flatten(0, 1) for x in c)) for c in dlayers]
        back = inner.read_backward(
            memory, weights, momenta, norm, w.h, w.D, self.flat, self.rests, r, dy[chunks].flatten(0, 1), flat
        )
        dq.copy_(back.dx.view_as(dq))
        if dnorm is not None:
            dnorm = dnorm + back.dnorm.unflatten(0, (size, rows)).sum(0)
        w, back = (tree_map_only(Tensor, lambda x: x.split(rows), x) for x in (w, back))
        every, devery = (list(zip(*(x.each() for x in layers), strict=True)) for layers in (self.layers, dlayers))
        for c in reversed(range(size)):
            state, here, dhere = [s[c] for s in window], every[c], devery[c]
            written = _at(w, c)
            dh, dD = [x[c] for x in back.dh], [x[c] for x in back.dD]
            for i in range(depth):
                gW, gS = dstates[i], dstates[depth + i]
                inner.advance_backward(
                    state[i], state[depth + i], written.h[i], written.D[i], here[i], dhere[i], gW, gS, dh[i], dD[i]
                )
                for g, (a, b) in ((gW, back.for_W[i]), (gS, back.for_S[i])):
                    g.baddbmm_(a[c].mT, b[c])
            at, through = inner.moved(state[:depth], self.rest), dstates
            if drest:  # what goes through the weights that the gradient is taken at is a gradient of both
                through = [torch.zeros_like(r) for r in drest]
            dk[c], dv[c], more = inner.write_backward(memory, at, self.norm, written, dh, dD, through)
            for i in range(len(drest)):
                dstates[i] += through[i]
                drest[i] += through[i] + back.drest[i][c]
            if dnorm is not None:
                dnorm += more
        for layer in dlayers:
            layer.end_G.neg_(), layer.end_P.neg_()
        return dnorm


def _at(w: Written, c: int) -> Written:
    """One chunk's part of what was split."""
    pick = [[x[c] for x in xs] for xs in w[:4]]
    return Written(*pick, *(None if x is None else x[c] for x in w[4:]))
