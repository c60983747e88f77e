"""Launches the Triton kernels of the neural memory: block sizes, precisions, and a small set of configurations.

On a GPU a kernel is tuned at its first launch for a combination of widths, options and how full the programs make the
GPU, never at import: Triton's autotuner times the few configurations below and keeps the choice for the process
(TRITON_CACHE_AUTOTUNING=1: on disk). The interpreter takes the first one.
"""

import functools

import torch
import triton
from torch import Tensor

from pyro_memory.kernels.dispatch import float_precision, on_device_of
from pyro_memory.kernels.memory.triton_decode import deep_decode, linear_decode
from pyro_memory.kernels.memory.triton_deep import deep_forward
from pyro_memory.kernels.memory.triton_deep_backward import deep_backward
from pyro_memory.kernels.memory.triton_gates import ROWS, gates_backward, gates_forward
from pyro_memory.kernels.memory.triton_linear import linear_backward, linear_forward
from pyro_memory.kernels.triton_parts import FUSED, block

RESIDENT_BYTES = 2**17  # W and S that a program keeps in registers: half of a streaming multiprocessor's
RESIDENT_HIDDEN = 128  # a tile of more does not fit in shared memory
TUNED_BY = ("DI", "DO", "C", "NORM", "PRECISION", "PRODUCT", "DH", "ACTIVATION", "READS", "KEEP", "wave")
Configuration = tuple[int, int, int]  # hidden tile or 0, warps, stages of loads ahead of products
GATES: tuple[Configuration, ...] = ((0, 2, 1), (0, 1, 1), (0, 4, 1), (0, 8, 1))
MULTIPROCESSORS = 132  # of an H100, where there is no GPU to ask


def interpreted() -> bool:
    """Whether the kernels' modules were imported under TRITON_INTERPRET=1."""
    return not isinstance(linear_forward, triton.runtime.JITFunction)


def forward(
    q: Tensor, k: Tensor, v: Tensor, state: Tensor, gates: Tensor, norm: Tensor | None, lengths: Tensor | None,
    y: Tensor, kept: Tensor, widths: list[int], chunk_size: int, activation: str, every: int,
    chunks: range, reads: bool = True,
) -> None:  # fmt: skip
    """Writes y and kept, and ``state`` in place, over a range of chunks."""
    options = _options(q, state, widths, chunk_size, norm, lengths)
    heads = 1 if norm is None else len(norm)
    weights = _gate_weights(q, gates, lengths, chunks, options)
    args = (q, k, v, *weights, norm, lengths, y, state, kept, q.shape[1], heads, chunks.start, chunks.stop)
    args += (max(every, 1), kept.stride(0))
    options |= {"READS": reads, "KEEP": every > 0}
    if len(widths) == 2:
        _launch(linear_forward, (len(q),), args, options, _configurations(linear_forward, options, (1, 2)))
        return
    hidden = widths[1]
    resident = state.shape[1] * state.element_size() <= RESIDENT_BYTES and block(hidden) <= RESIDENT_HIDDEN
    tiles = (block(hidden),) if resident else _tiles(hidden)
    options |= {"DH": hidden, "ACTIVATION": _activation(activation, options), "RESIDENT": resident}
    stages = (1, 2) if resident else (1,)
    _launch(deep_forward, (len(q),), args, options, _configurations(deep_forward, options, stages, tiles))


def decode(
    q: Tensor, k: Tensor, v: Tensor, before: Tensor, anchor: Tensor, gates: Tensor, norm: Tensor | None, y: Tensor,
    after: Tensor, widths: list[int], activation: str,
) -> None:  # fmt: skip
    """Writes y and the state after one token, whose gradient is taken at the anchor's weights."""
    options = {"DI": widths[0], "DO": widths[-1], "BI": block(widths[0]), "BO": block(widths[-1])}
    options |= {"NORM": norm is not None, **_common(q, len(q))}
    args = (q, k, v, gates, norm, before, anchor, y, after, 1 if norm is None else len(norm))
    if len(widths) == 2:
        _launch(linear_decode, (len(q),), args, options, ((0, 4, 1), (0, 8, 1)))
        return
    options |= {"DH": widths[1], "ACTIVATION": activation}
    _launch(deep_decode, (len(q),), args, options, tuple((tile, 4, 1) for tile in _tiles(widths[1])))


def backward(
    dy: Tensor, q: Tensor, k: Tensor, v: Tensor, gates: Tensor, norm: Tensor | None, lengths: Tensor | None,
    kept: Tensor, grads: tuple[Tensor, ...], widths: list[int], chunk_size: int, activation: str, chunks: range,
) -> None:  # fmt: skip
    """Writes ``grads``: of q, k, v and gates; adds to that of norm; changes that of the state in place."""
    dq, dk, dv, dgates, dnorm, dstate = grads
    options = _options(q, dstate, widths, chunk_size, norm, lengths)
    layers, size = len(widths) - 1, options["BC"]
    weights = _gate_weights(q, gates, lengths, chunks, options)
    dweights = dstate.new_empty(len(q), len(chunks), layers, size + ROWS.value, size)
    args = (dy, q, k, v, *weights, norm, lengths, kept, dq, dk, dv, dweights, dnorm, dstate)
    numbers = (q.shape[1], 1 if norm is None else len(norm), chunks.start, chunks.stop, kept.stride(0))
    if layers == 1:
        configurations = _configurations(linear_backward, options, (1, 2, 3))
        _launch(linear_backward, (len(q),), args + numbers, options, configurations)
    else:
        hidden = widths[1]
        scratch = dstate.new_empty(len(q), 2, size, hidden)
        deep = options | {"DH": hidden, "ACTIVATION": _activation(activation, options)}
        configurations = _configurations(deep_backward, deep, (1,), _tiles(hidden))
        _launch(deep_backward, (len(q),), (*args, scratch, *numbers), deep, configurations)
    args = (gates, lengths, *weights, dweights, dgates, q.shape[1], chunks.start, len(chunks), layers)
    programs = len(q) * len(chunks) * layers
    _launch(gates_backward, (programs,), args, _gate_options(options, q, programs), GATES)


def _gate_weights(
    q: Tensor, gates: Tensor, lengths: Tensor | None, chunks: range, options: dict[str, object]
) -> tuple[Tensor, Tensor]:
    """G, in the products' precision, and the rows beside it, of all layers of a range of chunks."""
    layers, size = gates.shape[1] // 3, options["BC"]
    lead = len(q), len(chunks), layers
    G = gates.new_empty(*lead, size, size, dtype=torch.bfloat16 if options["PRECISION"] == "bf16" else gates.dtype)
    rows = gates.new_empty(*lead, ROWS.value, size)
    args = (gates, lengths, G, rows, q.shape[1], chunks.start, len(chunks), layers)
    programs = len(q) * len(chunks) * layers
    _launch(gates_forward, (programs,), args, _gate_options(options, q, programs), GATES)
    return G.bfloat16().to(G.dtype) if options["PRECISION"] == "rounded" else G, rows


def _gate_options(options: dict[str, object], q: Tensor, programs: int) -> dict[str, object]:
    product = {"bf16": "tf32", "rounded": "tf32"}.get(options["PRECISION"], options["PRECISION"])
    return {name: options[name] for name in ("C", "BC", "LENGTHS")} | {"PRODUCT": product, **_common(q, programs)}


def _options(
    q: Tensor, state: Tensor, widths: list[int], chunk_size: int, norm: Tensor | None, lengths: Tensor | None
) -> dict[str, object]:
    return {
        "DI": widths[0], "DO": widths[-1], "BI": block(widths[0]), "BO": block(widths[-1]),
        "C": chunk_size, "BC": block(chunk_size), "NORM": norm is not None, "LENGTHS": lengths is not None,
        "PRECISION": _precision(q, state), **_common(q, len(q)),
    }  # fmt: skip


def _common(q: Tensor, programs: int) -> dict[str, object]:
    """Of every launch: how full the GPU is, in four steps."""
    there = torch.cuda.get_device_properties(q.device).multi_processor_count if q.is_cuda else MULTIPROCESSORS
    return {"wave": min(3, (max(programs - 1, 0) // there).bit_length()), **FUSED}


def _precision(q: Tensor, state: Tensor) -> str:
    """Of products; sums are always in the state's dtype, and so are the gates' products.

    bfloat16 tokens: bfloat16 products; in the interpreter, which has none, products of rounded operands. float16: tf32,
    which has float16's digits and the range that gradients need.
    float32: three tf32 products that give float32's digits, or one where torch is allowed that for matrix products.
    """
    if state.dtype == torch.float64 or q.dtype not in (torch.bfloat16, torch.float16):
        return float_precision(state.dtype)
    if q.dtype == torch.float16:
        return "tf32"
    return "rounded" if interpreted() else "bf16"


def _activation(activation: str, options: dict[str, object]) -> str:
    """GELU in seven digits where products have fewer: the error function is what most of a wide memory waits for."""
    return "gelu7" if activation == "gelu" and options["PRECISION"] in ("bf16", "rounded") else activation


def _tiles(hidden: int) -> tuple[int, ...]:
    return tuple(size for size in (32, 64) if size <= block(hidden)) or (16,)


def _configurations(
    kernel: object, options: dict[str, object], stages: tuple[int, ...], tiles: tuple[int, ...] = (0,)
) -> tuple[Configuration, ...]:
    """At most four: each tile with either number of warps and, for the first number, each of the stages."""
    widest = max(options["BI"], options["BO"])
    first, second = (4, 2) if widest <= 32 else (4, 8) if widest <= 64 else (8, 4)
    found = [(t, w, s) for t in tiles for w in (first, second) for s in (stages if w == first else stages[:1])]
    return tuple(c for c in found if not _never(kernel, options, *c))


def _never(kernel: object, options: dict[str, object], tile: int, warps: int, stages: int) -> bool:
    """What compiling for compute capability 9.0 showed not to fit or to spill more than another."""
    if kernel is deep_backward and tile == options["BC"] == 64 and options["PRECISION"] not in ("bf16", "rounded"):
        return True  # 232 KB of shared memory of 227, after minutes of compiling
    if kernel is deep_forward and tile == 64 and options["BC"] == 16 and not options["RESIDENT"]:
        return True  # 2.7 KB a thread, a tile of 32 none
    return kernel in (deep_forward, deep_backward) and warps == 2 and options["DH"] > 64  # 7.4 KB a thread


def _launch(
    kernel: object, grid: tuple[int], args: tuple, options: dict[str, object],
    configurations: tuple[Configuration, ...],
) -> None:  # fmt: skip
    if not grid[0]:
        return
    reloads = kernel is deep_backward or (kernel is deep_forward and not options["RESIDENT"])
    if reloads and any(stages > 1 for *_, stages in configurations):
        raise RuntimeError(f"{kernel} must have one stage: loads ahead would pass the stores they need")
    if interpreted():
        tile = {"BH": configurations[0][0]} if configurations[0][0] else {}
        kernel[grid](*args, **options, **tile)
        return
    try:
        with on_device_of(args[0]):
            _tuned(kernel, configurations)[grid](*args, **options)
    except triton.runtime.errors.OutOfResources as error:
        raise RuntimeError(
            f"{kernel.__name__} does not fit this GPU in any of its configurations ({error}). Use bfloat16 tokens, "
            'shorter chunks, or backend="torch"'
        ) from error


@functools.cache
def _tuned(kernel: object, configurations: tuple[Configuration, ...]) -> object:
    configs = [
        triton.Config({"BH": tile} if tile else {}, num_warps=warps, num_stages=stages)
        for tile, warps, stages in configurations
    ]
    changed = [name for name in kernel.arg_names if name in ("p_state", "p_dstate", "p_dnorm")]
    keys = [name for name in kernel.arg_names if name in TUNED_BY]
    return triton.autotune(configs, keys, restore_value=changed)(kernel)
