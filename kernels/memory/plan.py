"""In which form the Triton kernels run a call of the neural memory; nothing here imports triton.

*fused*: one launch walks the chunks of a row (a head of a sequence) and reads on its way: least bytes, for many rows.
*split*: a walk that keeps the state before every chunk, and a launch that reads from all chunks at once. The walk is
shorter, and so is the wait of a GPU that few rows do not fill; programs of a row share its hidden units. The backward
pass is always split, in three: the reads' way back, a walk, the keys' way back.

The table follows a simulation of the machine code (docs/kernels.md); no GPU has measured it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from pyro_memory.gate import checked
from pyro_memory.kernels.dispatch import interpreting

# Up to so many programs of a walk, for each multiprocessor, reads leave the walk.
SPLIT = {"linear": 0.5, "two layers": 1.5, "two layers, shared": 6}
UNITS_BYTES = 2**16  # W and S of the hidden units that a program of a walk has in its registers
WINDOW_BYTES = 2**30  # what launches may leave to one another
KEPT_BYTES, KEPT_TO_TOKENS = 2**29, 4  # all states are kept in as many bytes, or as many times those of q, k, v and y
MULTIPROCESSORS = 132  # of an H100, where there is no GPU to ask


@dataclass(frozen=True)
class Plan:
    """How a call runs: its form, the hidden units of a program of a walk, the programs of a row, after how many chunks
    a state is kept for the backward pass (0: none is), and the most chunks of a launch forward and backward."""

    form: str
    rows: int
    units: int
    shards: int
    every: int
    window: int
    back: int

    def __str__(self) -> str:
        walk = f"a walk of {self.rows * self.shards} programs"
        if self.shards > 1:
            walk += f", {self.shards} a row with {self.units} hidden units each"
        text = (
            f"fused: {self.rows} programs walk and read" if self.form == "fused" else f"split: {walk}, then all reads"
        )
        if self.every:
            kept = "every chunk's state kept" if self.every == 1 else f"the state of every {self.every} chunks kept"
            text += f"; {kept}; backward: {walk}, between two launches of up to {self.back} chunks"
        return text


def planned(
    rows: int, time: int, widths: Sequence[int], chunk_size: int, operand: int, state: int, *, learns: bool,
    checkpoint_chunks: int | None = None, multiprocessors: int = MULTIPROCESSORS, at_once: int = MULTIPROCESSORS,
) -> Plan:  # fmt: skip
    """Plans ``rows`` of ``time`` tokens; ``operand`` and ``state`` are the bytes of a product's operand and a sum.

    Programs that wait for one another must all run: ``at_once`` says how many do.
    """
    widest, chunks, deep = max(widths[0], widths[-1]), max(1, -(-time // chunk_size)), len(widths) == 3
    hidden = widths[1] if deep else 0
    units = min(padded(hidden), max(16, UNITS_BYTES // (4 * padded(widest) * state)), 128) if deep else 0
    while hidden > units * at_once:
        units *= 2
    shards = -(-hidden // units) if deep else 1
    kind = ("two layers, shared" if shards > 1 else "two layers") if deep else "linear"
    form = "split" if rows * shards <= SPLIT[kind] * multiprocessors else "fused"
    every = (checkpoint_chunks or kept_every(rows, time, widths, chunk_size, operand, state)) if learns else 0

    size, block = state_size(widths), padded(chunk_size)
    weights = (len(widths) - 1) * block * (operand * block + 6 * state)  # bytes of G and its rows
    walked = operand * chunk_size * widths[-1] + (0 if every == 1 else operand * size) if form == "split" else 0
    tokens = chunk_size * ((5 * hidden + 4 * widths[-1]) if deep else 3 * widths[-1])
    sent = operand * (2 * size + tokens) + (len(widths) - 1) * state * block * (block + 6)
    window, back = (_within(rows * (weights + left), chunks) for left in (walked, sent))
    return Plan(form, rows, units, shards, every, window, back)


def kept_every(rows: int, time: int, widths: Sequence[int], chunk_size: int, operand: int, state: int) -> int:
    """1 where states in the operands' precision are few bytes, or few beside the tokens; else so many that they are."""
    size, tokens = state_size(widths), chunk_size * 2 * (widths[0] + widths[-1])
    if size <= KEPT_TO_TOKENS * tokens or rows * -(-time // chunk_size) * size * operand <= KEPT_BYTES:
        return 1
    return -(-size * state // (KEPT_TO_TOKENS * tokens * operand))


def state_size(widths: Sequence[int]) -> int:
    """Numbers of W and S of a row."""
    return 2 * sum(a * b for a, b in pairwise(widths))


def _within(bytes_a_chunk: int, chunks: int) -> int:
    return max(1, min(chunks, WINDOW_BYTES // max(1, bytes_a_chunk)))


def padded(width: int) -> int:
    """The power of two, at least 16, that a block of it has."""
    return max(16, 1 << (width - 1).bit_length())


def multiprocessors(tensor: Tensor) -> int:
    return torch.cuda.get_device_properties(tensor.device).multi_processor_count if tensor.is_cuda else MULTIPROCESSORS


def at_once(tensor: Tensor) -> int:
    """How many programs run at the same time, at least; the interpreter runs one after the other."""
    return 1 if interpreting() and not tensor.is_cuda else multiprocessors(tensor)


def operand_bytes(tokens: torch.dtype, state: torch.dtype) -> int:
    """Of a product's operand: bfloat16 tokens are multiplied as they are, all else in the state's dtype."""
    return 2 if tokens == torch.bfloat16 and state != torch.float64 else state.itemsize


@checked
def how_triton(
    q: Tensor,
    v: Tensor,
    weights: Sequence[Tensor],
    *,
    chunk_size: int,
    gradients: bool = True,
    checkpoint_chunks: int | None = None,
) -> str:
    """Says in which form the Triton kernels run these arguments of ``neural_memory``, ``why_not_triton`` permitting.

    Few rows (batch x heads) are split: a walk over the chunks whose programs share a row's hidden units, then a launch
    that reads from all chunks at once. Many are fused: one program a row walks and reads. The choice follows a
    simulation of the machine code for an H100, no measurement. It looks at shapes, dtypes and the GPU of ``q`` alone;
    on a CPU it tells what 132 multiprocessors would do.

    Args:
        q, v, weights, chunk_size, checkpoint_chunks: as ``neural_memory`` takes them.
        gradients: whether a backward pass is to follow.

    Raises:
        ValueError: for shapes, depths and numbers that no call could have.
    """
    if q.dim() != 4 or v.dim() != 4:
        raise ValueError(f"`q` and `v` must be [batch, head, time, dim]; got {list(q.shape)} and {list(v.shape)}")
    if len(weights) not in (1, 2):
        raise ValueError(f"`weights` must hold 1 or 2 layers, what the kernels take; got {len(weights)}")
    for name, number in (("chunk_size", chunk_size), ("checkpoint_chunks", checkpoint_chunks)):
        if number is not None and number < 1:
            raise ValueError(f"`{name}` must be at least 1; got {number}")
    widths = [q.shape[-1], *(w.shape[-1] for w in weights)]
    state = torch.promote_types(weights[0].dtype, torch.float32)
    plan = planned(
        q.shape[0] * q.shape[1], q.shape[2], widths, min(chunk_size, padded(q.shape[2])),
        operand_bytes(torch.promote_types(q.dtype, v.dtype), state), state.itemsize, learns=gradients,
        checkpoint_chunks=checkpoint_chunks, multiprocessors=multiprocessors(q), at_once=at_once(q),
    )  # fmt: skip
    return str(plan)
