"""One token of the neural memory on a GPU, without gradients: one launch, and nothing else on the device.

A token takes as long as its call takes to start. So the kernel takes all tensors where they lie, packed by nobody, and
picks the anchor and moves the position itself; what this file does besides is to allocate what comes out.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pyro_memory.kernels.memory import triton_launch
from pyro_memory.kernels.memory.definition import Layers
from pyro_memory.kernels.memory.triton_decode import deep_decode, linear_decode
from pyro_memory.kernels.memory.triton_form import check_devices
from pyro_memory.kernels.triton_parts import FUSED, block

PLAIN = {Tensor, nn.Parameter}  # what a kernel may be given; others have their own idea of an operator


def triton_token(
    tokens: Sequence[Tensor], weights: Layers, momentum_state: Layers, anchor: Layers, gates: Sequence[Layers], *,
    position: Tensor | None, chunk_size: int, activation: str = "gelu", residual_norm: bool = False,
    norm_weight: Tensor | None = None, norm_bias: Tensor | None = None, **_: Any,
) -> tuple[Any, ...]:  # fmt: skip
    """Computes what ``run_memory`` does for one token: y, weights and momentum, with a position also anchor and it.

    The anchor of a sequence whose position is 0 is not read.
    """
    depth, norm = len(weights), (norm_weight, norm_bias) if residual_norm else (None, None)
    states = [*weights, *momentum_state, *(anchor if position is not None else ())]
    layered = [g for kind in gates for g in kind]
    given = [*tokens, *states, *layered, *(t for t in (position, *norm) if t is not None)]
    if len({t.get_device() for t in given}) > 1:
        names = ("weights", "momentum_state", "anchor", "lr", "momentum", "decay")
        groups = dict(zip(names, (weights, momentum_state, anchor, *gates), strict=True))
        others = {"position": (position,), "norm_weight": (norm_weight,), "norm_bias": (norm_bias,)}
        check_devices(tokens[0].device, k=tokens[1:2], v=tokens[2:], **groups, **others)
    run = token if _seen_by_nobody(given) else memory_token
    y, *after = run(*tokens, states, layered, position, *norm, chunk_size, activation, residual_norm)
    parts = [tuple(after[i : i + depth]) for i in range(0, len(states), depth)]
    return y, *parts, *after[len(states) :]


def _seen_by_nobody(tensors: Sequence[Tensor]) -> bool:
    """Whether the operator may be left out, which takes longer to start than its kernel: where nothing looks for it."""
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack():
        return False
    return {type(t) for t in tensors} <= PLAIN


def token(
    q: Tensor, k: Tensor, v: Tensor, states: list[Tensor], gates: list[Tensor], position: Tensor | None,
    norm_weight: Tensor | None, norm_bias: Tensor | None, chunk_size: int, activation: str, residual_norm: bool,
) -> list[Tensor]:  # fmt: skip
    """What the operator runs. ``states`` and ``gates`` are in the order of the call's arguments, all of a layer each.

    What does not lie as the kernel reads it is copied first: tokens and states that are not contiguous, or states of
    several dtypes. Gates may have any strides that the layers share.
    """
    outputs = _outputs(q, k, v, states, gates, position, norm_weight, norm_bias, chunk_size, activation, residual_norm)
    y, *after = outputs
    depth, dtype = len(gates) // 3, after[0].dtype
    tokens = [_contiguous(t) for t in (q, k, v)]
    states = [_contiguous(s if s.dtype == dtype else s.to(dtype)) for s in states]
    strides: list[int] = []
    for i in range(0, 3 * depth, depth):
        step = gates[i].stride()
        if depth > 1 and gates[i + 1].stride() != step:
            gates = [g.contiguous() if i <= j < i + depth else g for j, g in enumerate(gates)]
            step = gates[i].stride()
        strides += step[:2]
    norms = [None if t is None else t if t.stride(1) == 1 else t.contiguous() for t in (norm_weight, norm_bias)]
    strides += [0 if t is None else t.stride(0) for t in norms]
    place = None if position is None else _contiguous(position)
    nothing: list[None] = [None] * depth if position is None else []  # no anchor and no position, before and after
    batch, heads = k.shape[:2]
    widths = (k.shape[3], *(s.shape[3] for s in states[:depth]))
    kernel, options, configurations = _plan(q.device, batch * heads, widths, activation, residual_norm)
    args = (*tokens, *states, *nothing, *gates, place, *norms, y, *after, *nothing)
    args += (*nothing[:1], heads, chunk_size, *strides)
    triton_launch._launch(kernel, (batch * heads,), args, options, configurations)
    return outputs


memory_token = torch.library.custom_op(
    "pyro_memory::neural_memory_token",
    token,
    mutates_args=(),
    schema="(Tensor q, Tensor k, Tensor v, Tensor[] states, Tensor[] gates, Tensor? position, Tensor? norm_weight, "
    "Tensor? norm_bias, int chunk_size, str activation, bool residual_norm) -> Tensor[]",
)


@memory_token.register_fake
def _outputs(q, k, v, states, gates, position, norm_weight, norm_bias, chunk_size, activation, residual_norm):
    """y in the dtype of q, states in the widest of what goes into them, the position."""
    kinds = {t.dtype for t in (q, k, v, *states, *gates)}
    dtype = functools.reduce(torch.promote_types, kinds, torch.float32)
    like = functools.partial(torch.empty_like, memory_format=torch.contiguous_format)  # in half the time of torch.empty
    outputs = [like(v, dtype=q.dtype), *(like(s, dtype=dtype) for s in states)]
    return outputs if position is None else [*outputs, like(position)]


def _contiguous(t: Tensor) -> Tensor:
    return t if t.is_contiguous() else t.contiguous()


@functools.lru_cache(maxsize=256)
def _plan(
    device: torch.device, rows: int, widths: tuple[int, ...], activation: str, residual_norm: bool
) -> tuple[object, dict[str, object], tuple[triton_launch.Configuration, ...]]:
    """The kernel, its options and configurations; the options are the caller's to read only."""
    options = {"DI": widths[0], "DO": widths[-1], "BI": block(widths[0]), "BO": block(widths[-1])}
    options |= {"NORM": residual_norm, **FUSED, **triton_launch.wave(torch.empty(0, device=device), rows)}
    if len(widths) == 2:
        narrow = max(options["BI"], options["BO"]) <= 64
        return linear_decode, options, ((0, 4, 1), (0, 8, 1)) if narrow else ((0, 8, 1),)  # 4 spill 4 KB a thread
    tiles = triton_launch._tiles(widths[1])
    configurations = (*((tile, 4, 1) for tile in tiles), *((tile, 8, 1) for tile in tiles[1:]))
    return deep_decode, options | {"DH": widths[1], "ACTIVATION": activation}, configurations
