"""Which backend runs a call of ``neural_memory``, and what its Triton kernels take; nothing here imports triton."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

from pyro_memory.gate import checked
from pyro_memory.kernels.dispatch import interpreting
from pyro_memory.kernels.memory.definition import NORM_EPS, Layers

MAX_WIDTH, MAX_HIDDEN, MAX_CHUNK = 128, 512, 64
# The longest chunk whose programs fit in shared memory: by layers and bytes of a product's operand, and by the width of
# keys and values up to 32, 64 or 128, on GPUs that give a program as much as SHARED_MEMORY says. See docs/kernels.md.
SHARED_MEMORY = (99, 163, 227)  # KB
LONGEST_CHUNK = {
    (1, 2): {128: (64, 64, 64)},
    (2, 2): {128: (64, 64, 64)},
    (1, 4): {64: (64, 64, 64), 128: (0, 64, 64)},
    (2, 4): {64: (64, 64, 64), 128: (32, 64, 64)},
    (1, 8): {32: (32, 64, 64), 64: (0, 32, 64), 128: (0, 0, 0)},
    (2, 8): {32: (16, 32, 64), 64: (0, 16, 64), 128: (0, 0, 32)},
}


@checked
def why_not_triton(
    q: Tensor,
    v: Tensor,
    weights: Sequence[Tensor],
    decay: Tensor | Sequence[Tensor],
    *,
    chunk_size: int,
    norm_eps: float = NORM_EPS,
    rest: Sequence[Tensor] | None = None,
) -> str | None:
    """Says why the Triton kernels do not take these arguments of ``neural_memory``; None where they do.

    They need an NVIDIA GPU of compute capability 8.0 or newer, a memory of one or two layers with at most 128 inputs
    and outputs and 512 hidden units, chunks of at most 64 tokens, a decay to zero that the channels of a layer share,
    and a ``norm_eps`` of 1e-5. In more bytes than bfloat16 long chunks of wide tokens do not fit (``LONGEST_CHUNK``).
    With ``TRITON_INTERPRET=1`` in the environment they run on a CPU, slowly, for tests.
    """
    return reason_against(q, v, weights, decay, chunk_size, norm_eps, rest)


def reason_against(
    q: Tensor, v: Tensor, weights: Sequence[Tensor], decay: Tensor | Sequence[Tensor], chunk_size: int,
    norm_eps: float, rest: Sequence[Tensor] | None,
) -> str | None:  # fmt: skip
    """``why_not_triton`` without its gate, which takes as long as all the rest of a token's choice."""
    if find_spec("triton") is None:
        return "triton is not installed"
    if not q.is_cuda and not interpreting():
        return f"the tensors are on {q.device.type}, Triton needs a CUDA device"
    if q.is_cuda and torch.version.hip is not None:
        return "the kernels are made for NVIDIA's GPUs"
    if q.is_cuda and _capability(q.device) < (8, 0):
        return f"{torch.cuda.get_device_name(q.device)} is older than compute capability 8.0"
    if len(weights) > 2:
        return f"the memory has {len(weights)} layers, the kernels have 1 or 2"
    if max(q.shape[-1], v.shape[-1]) > MAX_WIDTH:
        return f"keys of {q.shape[-1]} and values of {v.shape[-1]} dimensions, the kernels take {MAX_WIDTH} at most"
    if len(weights) == 2 and weights[0].shape[-1] > MAX_HIDDEN:
        return f"{weights[0].shape[-1]} hidden units, the kernels take {MAX_HIDDEN} at most"
    if min(chunk_size, q.shape[2]) > MAX_CHUNK:
        return f"`chunk_size` is {chunk_size}, the kernels take {MAX_CHUNK} at most"
    if any(g.dim() == 4 for g in ((decay,) if isinstance(decay, Tensor) else decay)):
        return "`decay` is by channel, the kernels take one number a token and layer"
    if norm_eps != NORM_EPS:
        return f"`norm_eps` is {norm_eps}, the kernels have {NORM_EPS}"
    if rest is not None:
        return "`rest` is given, the kernels decay to zero"
    if q.is_cuda and q.shape[2] > 1:
        return _why_not_in_shared_memory(q, v, weights, min(chunk_size, q.shape[2]))
    return None


@cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


def _why_not_in_shared_memory(q: Tensor, v: Tensor, weights: Sequence[Tensor], chunk_size: int) -> str | None:
    double = torch.float64 in (q.dtype, v.dtype, weights[0].dtype)
    operand = 8 if double else 2 if q.dtype == v.dtype == torch.bfloat16 else 4
    width = max(q.shape[-1], v.shape[-1])
    longest = longest_chunk(_capability(q.device), len(weights), operand, width)
    if chunk_size <= longest:
        return None
    shorter = f"chunks of {longest} do; " if longest else ""
    return (
        f"chunks of {chunk_size} tokens of {width} dimensions, {operand} bytes a number, do not fit the shared memory "
        f"of {torch.cuda.get_device_name(q.device)}; {shorter}bfloat16 takes less"
    )


def longest_chunk(capability: tuple[int, int], layers: int, operand: int, width: int) -> int:
    """Tokens of the longest chunk that GPUs of this compute capability have the shared memory for; 0: none."""
    fitting = LONGEST_CHUNK[layers, operand]
    longest = fitting[min(most for most in fitting if width <= most)]
    return longest[SHARED_MEMORY.index(shared_memory(capability))]


def shared_memory(capability: tuple[int, int]) -> int:
    """KB of shared memory that a program has on GPUs of this compute capability, the least of those not known."""
    small, middle, large = SHARED_MEMORY
    return large if (9, 0) <= capability < (12, 0) else middle if capability in ((8, 0), (8, 7)) else small


def choose_backend(
    backend: str,
    q: Tensor,
    v: Tensor,
    weights: Sequence[Tensor],
    decay: Sequence[Tensor],
    chunk_size: int,
    norm_eps: float = NORM_EPS,
    rest: Layers | None = None,
) -> str:
    """Names the backend that runs: "auto" is "triton" on CUDA for what its kernels take, else "torch"."""
    if backend == "auto" and not q.is_cuda:
        return "torch"
    if backend not in ("auto", "triton"):
        return backend
    reason = reason_against(q, v, weights, decay, chunk_size, norm_eps, rest)
    if reason is not None and backend == "triton":
        raise ValueError(f'`backend` "triton" is not available here: {reason}; use "auto" or "torch"')
    return "triton" if reason is None else "torch"
