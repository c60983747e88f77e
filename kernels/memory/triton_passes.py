"""The launches of a pass of the neural memory, window by window, in the form that ``plan`` chose."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_memory.kernels.memory.triton_deep import deep_forward
from pyro_memory.kernels.memory.triton_deep_back import deep_back_keys, deep_back_walk
from pyro_memory.kernels.memory.triton_deep_back_reads import deep_back_reads
from pyro_memory.kernels.memory.triton_deep_walk import deep_read, deep_walk
from pyro_memory.kernels.memory.triton_gates import ROWS, gates_backward, gates_forward
from pyro_memory.kernels.memory.triton_launch import Call, Launcher
from pyro_memory.kernels.memory.triton_linear import linear_forward, linear_read
from pyro_memory.kernels.memory.triton_linear_back import linear_back_keys, linear_back_reads, linear_back_walk


def windows(chunks: range, most: int) -> list[range]:
    """Cut into parts of one length, but for the last."""
    length = -(-len(chunks) // -(-len(chunks) // most)) if chunks else 1
    return [chunks[first : first + length] for first in range(0, len(chunks), length)]


def segments(call: Call) -> list[range]:
    """Chunks that follow a kept state up to the next; all, where every one's is kept or none."""
    every = call.plan.every
    return [call.chunks[i : i + every] for i in range(0, len(call.chunks), every)] if every > 1 else [call.chunks]


def forward(call: Call, state: Tensor, y: Tensor, kept: Tensor) -> None:
    """Writes y and kept, and ``state`` in place."""
    launcher = Launcher(call, state)
    for i, segment in enumerate(segments(call)):
        if call.plan.every > 1:
            kept[:, i] = state
        for chunks in windows(segment, call.plan.window):
            _forward(call, launcher, state, y, kept if call.plan.every == 1 else None, chunks)


def _forward(call: Call, launcher: Launcher, state: Tensor, y: Tensor, kept: Tensor | None, chunks: range) -> None:
    """Through some chunks."""
    weights = weigh(call, launcher, chunks)
    states = None if kept is None else kept[:, chunks.start : chunks.stop]
    if call.plan.form == "fused":
        args = (call.q, call.k, call.v, *weights, call.norm, call.lengths, y, state, states)
        at = call.numbers(chunks, state if states is None else states, walks=True)
        if call.deep:
            launcher(deep_forward, None, args, at, KEEP=states is not None)
        else:
            launcher(linear_forward, None, (*args, None), at, READS=True, KEEP=states is not None)
        return
    if states is None:
        states = launcher.low(len(call.k), len(chunks), state.shape[1])
    D = launcher.low(len(call.k), len(chunks) * call.chunk_size, call.widths[-1])
    walk(call, launcher, weights[1], state, states, D, chunks)
    args = (call.q, call.k, D, *weights, call.norm, call.lengths, y, states)
    launcher(deep_read if call.deep else linear_read, len(chunks), args, call.numbers(chunks, states, walks=False))


def backward(call: Call, dy: Tensor, kept: Tensor, grads: tuple[Tensor, ...]) -> None:
    """Writes ``grads``: of q, k, v and gates; adds to that of norm; changes that of the state in place."""
    launcher = Launcher(call, grads[-1])
    for i, segment in reversed(list(enumerate(segments(call)))):
        states = kept
        if call.plan.every > 1:  # those between two that were kept
            states = launcher.low(len(call.k), len(segment), kept.shape[2])
            state = kept[:, i].clone()
            for chunks in windows(segment, call.plan.window):
                D = launcher.low(len(call.k), len(chunks) * call.chunk_size, call.widths[-1])
                of_these = states[:, chunks.start - segment.start : chunks.stop - segment.start]
                walk(call, launcher, weigh(call, launcher, chunks)[1], state, of_these, D, chunks)
        for chunks in reversed(windows(segment, call.plan.back)):
            of_these = states[:, chunks.start - segment.start : chunks.stop - segment.start]
            _back(call, launcher, dy, of_these, grads, chunks)


def _back(
    call: Call, launcher: Launcher, dy: Tensor, states: Tensor, grads: tuple[Tensor, ...], chunks: range
) -> None:  # fmt: skip
    """Back through some chunks, given the states before each."""
    dq, dk, dv, dgates, dnorm, dstate = grads
    rows, n, layers, size = len(call.k), len(chunks), len(call.widths) - 1, launcher.options["BC"]
    tokens = n * call.chunk_size
    weights = weigh(call, launcher, chunks)
    dweights = dstate.new_empty(rows, n, layers, size + ROWS.value, size)
    dnorms = dstate.new_empty(rows, n, 2, call.widths[-1])
    D, normed, dD = (launcher.low(rows, tokens, call.widths[-1]) for _ in range(3))
    left = (D, normed, dstate.new_empty(rows, n, 2, size))
    dstates, after = (launcher.low(rows, n, dstate.shape[1]) for _ in range(2))
    by_unit = [launcher.low(rows, tokens, call.widths[1]) for _ in range(5)] if call.deep else []
    these, here = (call.norm, call.lengths), call.numbers(chunks, states, walks=False)
    along = call.numbers(chunks, states, walks=True)

    args = (dy, call.q, call.k, call.v, *weights, *these, states, dq, dk, dweights, dnorms, *left, dD, dstates)
    launcher(deep_back_reads if call.deep else linear_back_reads, n, (*args, *by_unit), here)
    if call.deep:
        whole = torch.empty_like(dD)
        args = (call.k, weights[1], *these, states, *left, dD, dstates, *by_unit, after, whole, dstate)
        launcher(deep_back_walk, None, (*args, *launcher.exchange()), along)
        args = (call.k, call.v, weights[1], *these, states, *left, whole, *by_unit[:3], after, dk, dv, dweights, dnorms)
        launcher(deep_back_keys, n, args, here)
    else:
        launcher(linear_back_walk, None, (call.k, weights[1], *these, *left, dD, dstates, after, dstate), along[:-1])
        args = (call.k, call.v, weights[1], *these, states, *left, dD, after, dk, dv, dweights, dnorms)
        launcher(linear_back_keys, n, args, here)
    if call.norm is not None:
        dnorm += dnorms.sum(1)
    args = (call.gates, call.lengths, *weights, dweights, dgates, call.k.shape[1], chunks.start, n, layers)
    launcher.gates(gates_backward, rows * n * layers, args)


def weigh(call: Call, launcher: Launcher, chunks: range) -> tuple[Tensor, Tensor]:
    """G, in the products' precision, and the rows beside it, of all layers of a range of chunks."""
    layers, size = len(call.widths) - 1, launcher.options["BC"]
    lead = len(call.k), len(chunks), layers
    exact = call.gates.new_empty(*lead, size, size, dtype=torch.bfloat16 if launcher.half else None)
    rows = call.gates.new_empty(*lead, ROWS.value, size)
    args = (call.gates, call.lengths, exact, rows, call.k.shape[1], chunks.start, len(chunks), layers)
    launcher.gates(gates_forward, len(call.k) * len(chunks) * layers, args)
    return exact, rows


def walk(
    call: Call, launcher: Launcher, rows: Tensor, state: Tensor, states: Tensor, D: Tensor, chunks: range
) -> None:  # fmt: skip
    """Changes ``state`` to that after the chunks; writes those before each of them, and D."""
    at = call.numbers(chunks, states, walks=True)
    if call.deep:
        args = (call.k, call.v, rows, call.norm, call.lengths, state, states, D, *launcher.exchange())
        launcher(deep_walk, None, args, at)
        return
    args = (call.q, call.k, call.v, None, rows, call.norm, call.lengths, None, state, states, D)
    launcher(linear_forward, None, args, at, READS=False, KEEP=True)
