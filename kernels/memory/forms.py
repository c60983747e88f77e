"""The form that runs a piece of a call: in Triton or PyTorch, from a chunk's start on or at an anchor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_memory.kernels.memory.definition import Layers
from pyro_memory.kernels.memory.pieces import Form
from pyro_memory.kernels.memory.torch_anchored import anchored_form, anchored_token
from pyro_memory.kernels.memory.torch_form import chunk_form


def piece(backend: str, options: dict[str, Any], checkpoint_chunks: int | None) -> Form:
    """Runs tokens and gates from a chunk's start on, or at an anchor."""

    def run(
        tokens: tuple[Tensor, ...], weights: Layers, momentum_state: Layers, anchor: Layers | None,
        lengths: Tensor | None, return_state: bool = True,
    ) -> tuple[Tensor, Layers | None, Layers | None]:  # fmt: skip
        gates = [tokens[3 + i * len(weights) :][: len(weights)] for i in range(3)]
        single = tokens[0].shape[2] == 1 and lengths is None
        if backend == "triton" and anchor is None:
            from pyro_memory.kernels.memory.triton_form import triton_form  # without a GPU nobody loads triton

            more = {"lengths": lengths, "checkpoint_chunks": checkpoint_chunks}
            plain = {name: value for name, value in options.items() if name not in ("norm_eps", "rest")}
            return triton_form(*tokens[:3], weights, momentum_state, *gates, **plain | more)
        tokens = cast(tokens[:3], weights[0].dtype)
        if anchor is None:
            more = {"lengths": lengths, "checkpoint_chunks": checkpoint_chunks, "return_state": return_state}
            return chunk_form(*tokens, weights, momentum_state, *gates, **options | more)
        form = anchored_token if single else anchored_form
        return form(*tokens, weights, momentum_state, *gates, **options | {"anchor": anchor, "lengths": lengths})

    return run


def cast(tensors: Sequence[Tensor], dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Brings tensors to a dtype; a gate that layers share stays one tensor."""
    if all(t.dtype == dtype for t in tensors):
        return tuple(tensors)
    known = {id(t): t.to(dtype) for t in tensors}
    return tuple(known[id(t)] for t in tensors)
