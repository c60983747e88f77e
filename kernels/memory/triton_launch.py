"""Launches the Triton kernels of the neural memory: block sizes, precisions, and a small set of configurations.

On a GPU a kernel is tuned at its first launch for a combination of widths, options and how full the programs make the
GPU, never at import: Triton's autotuner times the few configurations below and keeps the choice for the process
(TRITON_CACHE_AUTOTUNING=1: on disk). The interpreter takes the first one.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from pyro_memory.kernels.dispatch import float_precision, on_device_of
from pyro_memory.kernels.memory.plan import Plan, multiprocessors
from pyro_memory.kernels.memory.triton_gates import gates_forward
from pyro_memory.kernels.triton_parts import FUSED, block

# W and S that a program keeps in registers: half of a streaming multiprocessor's, and a tile of no more hidden units
# than shared memory holds; half of both where operands take more than bfloat16's two bytes.
RESIDENT_BYTES, RESIDENT_HIDDEN = 2**17, 128
TUNED_BY = ("DI", "DO", "C", "NORM", "PRECISION", "PRODUCT", "DH", "ACTIVATION", "READS", "KEEP", "SHARDS", "wave")
Configuration = tuple[int, int, int]  # hidden tile or 0, warps, stages of loads ahead of products
GATES: tuple[Configuration, ...] = ((0, 2, 1), (0, 4, 1), (0, 1, 1), (0, 8, 1))
STAGES = {  # where there is a loop, the best first
    "linear_forward": (2, 1), "linear_back_walk": (3, 2, 1), "deep_walk": (2, 1), "deep_back_walk": (2, 1),
    "deep_forward": (1, 2),
}  # fmt: skip
TILED = ("deep_read", "deep_back_reads", "deep_back_keys")  # which work on a chunk's hidden units tile by tile
CHANGED = {  # in place, and put back after each run of the autotuner
    "linear_forward": ("p_state",), "deep_forward": ("p_state",), "deep_walk": ("p_state",),
    "linear_back_walk": ("p_dD", "p_dstate"), "deep_back_walk": ("p_dz", "p_dstate"),
    "linear_back_keys": ("p_dk", "p_dnorm"), "deep_back_keys": ("p_dk", "p_dnorm"),
}  # fmt: skip
WALKS = ("deep_walk", "deep_back_walk")  # whose tile is a program's units


def interpreted() -> bool:
    """Whether the kernels' modules were imported under TRITON_INTERPRET=1."""
    return not isinstance(gates_forward, triton.runtime.JITFunction)


class Call(NamedTuple):
    """The tensors of a call, a row at a time: tokens, gates, the norm of each head, lengths; and how it runs."""

    q: Tensor
    k: Tensor
    v: Tensor
    gates: Tensor
    norm: Tensor | None
    lengths: Tensor | None
    widths: list[int]
    chunk_size: int
    activation: str
    plan: Plan

    @property
    def chunks(self) -> range:
        return range(-(-self.k.shape[1] // self.chunk_size))

    @property
    def deep(self) -> bool:
        return len(self.widths) == 3

    def numbers(self, chunks: range, kept: Tensor, *, walks: bool) -> tuple[int, ...]:
        heads = 1 if self.norm is None else len(self.norm)
        return self.k.shape[1], heads, chunks.start, chunks.stop if walks else len(chunks), kept.stride(0)


class Launcher:
    """Launches the kernels of one call with what they have in common; ``state`` is in the dtype of sums."""

    def __init__(self, call: Call, state: Tensor) -> None:
        self.call, self.state = call, state
        widths, size = call.widths, call.chunk_size
        precision = _precision(call.q, state)
        self.half = precision in ("bf16", "rounded")
        self.options: dict[str, Any] = {
            "DI": widths[0], "DO": widths[-1], "BI": block(widths[0]), "BO": block(widths[-1]), "C": size,
            "BC": block(size), "NORM": call.norm is not None, "LENGTHS": call.lengths is not None,
            "PRECISION": precision, **FUSED,
        }  # fmt: skip
        if call.deep:
            fast = ("gelu3_interpreted" if interpreted() else "gelu3") if self.half else "gelu"
            self.options |= {"DH": widths[1], "ACTIVATION": fast if call.activation == "gelu" else call.activation}

    def low(self, *shape: int) -> Tensor:
        """An empty tensor in the precision of a product's operand."""
        return self.state.new_empty(shape, dtype=torch.bfloat16 if self.half else None)

    def exchange(self) -> tuple[Tensor | None, Tensor | None]:
        """Tickets and counts of arrival of a walk's programs, zeros, and the place of what they exchange."""
        shards = self.call.plan.shards
        if shards == 1:
            return None, None
        rows = len(self.call.k)
        tickets = torch.zeros(1 + rows, dtype=torch.int32, device=self.state.device)
        return tickets, self.low(rows, 2, shards, self.options["BC"], self.options["BO"])

    def __call__(
        self, kernel: Any, chunks: int | None, args: tuple[Any, ...], numbers: tuple[int, ...], **more: bool
    ) -> None:
        """A program a row, or for each of its ``chunks``; in a walk of shared hidden units one for each share."""
        name, plan, rows = kernel.fn.__name__, self.call.plan, len(self.call.k)
        taken = {n: o for n, o in self.options.items() if n in kernel.arg_names or n in FUSED} | more
        tiles: tuple[int, ...] = (0,)
        programs = rows * (1 if chunks is None else chunks)
        if name in WALKS:
            programs, tiles = rows * plan.shards, (plan.units,)
            taken["SHARDS"] = plan.shards
        elif self.call.deep:
            tiles = _tiles(self.options["DH"])
        if name == "deep_forward":
            bytes_a_row = self.state.shape[1] * self.state.element_size()
            hidden, wide = block(self.options["DH"]), 1 if self.half else 2
            taken["RESIDENT"] = wide * bytes_a_row <= RESIDENT_BYTES and wide * hidden <= RESIDENT_HIDDEN
            tiles = (hidden,) if taken["RESIDENT"] else tiles
        configurations = _configurations(name, taken, tiles)
        _launch(kernel, (programs,), (*args, *numbers), taken | wave(self.state, programs), configurations)

    def gates(self, kernel: Any, programs: int, args: tuple[Any, ...]) -> None:
        precision = self.options["PRECISION"]
        product = "tf32" if self.half else precision
        taken = {name: self.options[name] for name in ("C", "BC", "LENGTHS")}
        _launch(kernel, (programs,), args, {**taken, "PRODUCT": product, **FUSED, **wave(self.state, programs)}, GATES)


def wave(tensor: Tensor, programs: int) -> dict[str, int]:
    """How full the GPU is, in four steps."""
    return {"wave": min(3, (max(programs - 1, 0) // multiprocessors(tensor)).bit_length())}


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


def _tiles(hidden: int) -> tuple[int, ...]:
    return tuple(size for size in (32, 64) if size <= block(hidden)) or (16,)


def _configurations(name: str, options: dict[str, Any], tiles: tuple[int, ...]) -> tuple[Configuration, ...]:
    """At most four; for bfloat16 the first is what a simulation of the machine code has fastest (docs/kernels.md).

    What takes wider operands begins with what needs the least of shared memory.
    """
    widest, half = max(options["BI"], options["BO"]), options["PRECISION"] in ("bf16", "rounded")
    shared = options.get("SHARDS", 1) > 1  # few programs: the more warps of one wait less
    first, second = (8, 4) if widest > 64 or (shared and widest > 32) else (4, 8)
    if name in TILED and half:
        stages = (2, 1) if options["BC"] < 64 else (1, 2)
        found = [(t, 4, s) for t in tiles[::-1] for s in stages if widest <= 64 or (t, s) != (64, 2)]
        found.append((tiles[-1], 8, 1))
    else:
        stages = (1,) if _reloads(name, options) else STAGES.get(name, (1,))
        stages = stages if half else tuple(sorted(stages)[:2])
        found = [(t, w, s) for t in tiles for w in (first, second) for s in (stages if w == first else stages[:1])]
    return tuple(c for c in found if not _never(name, options, *c))[:4]


def _reloads(name: str, options: dict[str, Any]) -> bool:
    """Whether a program loads what it or another of the launch has stored: loads ahead would pass those stores."""
    return options.get("SHARDS", 1) > 1 or (name == "deep_forward" and not options["RESIDENT"])


def _never(name: str, options: dict[str, Any], tile: int, warps: int, stages: int) -> bool:
    """What compiling for compute capability 9.0 showed not to fit, or to spill more than another."""
    if name == "deep_forward" and tile == 64 and options["BC"] == 16 and not options["RESIDENT"]:
        return True  # 2.7 KB a thread, a tile of 32 none
    wide = max(options["BI"], options["BO"]) > 64
    return name == "linear_back_walk" and stages == 3 and wide and options["BC"] == 64  # 243 KB


def _launch(
    kernel: Any, grid: tuple[int], args: tuple[Any, ...], options: dict[str, Any],
    configurations: tuple[Configuration, ...],
) -> None:  # fmt: skip
    if not grid[0]:
        return
    if _reloads(kernel.fn.__name__, options) and any(stages > 1 for *_, stages in configurations):
        raise RuntimeError(f"{kernel} must have one stage: loads ahead would pass the stores they need")
    if interpreted():
        tile = {"BH": configurations[0][0]} if configurations[0][0] else {}
        kernel[grid](*args, **options, **tile)
        return
    try:
        with on_device_of(args[0]):
            _tuned(kernel, configurations, options.get("SHARDS", 1) > 1)[grid](*args, **options)
    except triton.runtime.errors.OutOfResources as error:
        raise RuntimeError(
            f"{kernel.__name__} does not fit this GPU in any of its configurations ({error}). Use bfloat16 tokens, "
            'shorter chunks, or backend="torch"'
        ) from error


@functools.cache
def _tuned(kernel: Any, configurations: tuple[Configuration, ...], shared: bool) -> Any:
    configs = [
        triton.Config({"BH": tile} if tile else {}, num_warps=warps, num_stages=stages)
        for tile, warps, stages in configurations
    ]
    keys = [name for name in kernel.arg_names if name in TUNED_BY]
    changed = [name for name in CHANGED.get(kernel.fn.__name__, ()) if name in kernel.arg_names]
    return triton.autotune(configs, keys, restore_value=changed, reset_to_zero=["p_tickets"] if shared else None)(
        kernel
    )
