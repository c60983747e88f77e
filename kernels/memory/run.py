"""Runs a memory by the form that was chosen, once its arguments fit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from pyro_memory.kernels.dispatch import chosen, own_precision, transforming
from pyro_memory.kernels.memory.definition import Layers, token_rule
from pyro_memory.kernels.memory.forms import cast, piece
from pyro_memory.kernels.memory.limits import choose_backend
from pyro_memory.kernels.memory.pieces import in_pieces
from pyro_memory.kernels.memory.torch_form import chunk_surprise
from pyro_memory.kernels.memory.torch_operator import as_operator


def run_memory(
    tokens: tuple[Tensor, Tensor, Tensor], weights: Layers, momentum_state: Layers, anchor: Layers,
    gates: Sequence[Layers], *, position: Tensor | None = None, start: int | None = None,
    stale: bool = False, lengths: Tensor | None = None, chunk_size: int, backend: str = "auto",
    checkpoint_chunks: int | None = None, return_state: bool = True, **options: Any,
) -> tuple[Any, ...]:  # fmt: skip
    """Computes ``neural_memory`` from arguments that nobody looks at: q, k and v, all of a layer for each sequence.

    ``start`` is the position of all sequences, where that is known without a look. Where ``position`` is 0 the anchor
    must be the weights, unless it is ``stale``.
    """
    done: tuple[Any, ...]
    if _is_one_token(backend, tokens, (weights, momentum_state, anchor, *gates), lengths, options):
        special = {name: options[name] for name in ("norm_eps", "rest") if name in options}
        if choose_backend(backend, tokens[0], tokens[2], weights, gates[2], chunk_size, **special) == "triton":
            from pyro_memory.kernels.memory.triton_token import triton_token  # without a GPU nobody loads triton

            at = {"position": position, "chunk_size": chunk_size}
            y, *after = triton_token(tokens, weights, momentum_state, anchor, gates, **at, **options)
            return y, *(after if return_state else [None] * len(after))
    given = tokens[0].dtype
    if stale:
        anchor = chosen(position == 0, weights, anchor)
    tokens, (weights, momentum_state, anchor), gates, options = _cast(
        tokens, (weights, momentum_state, anchor), gates, options
    )
    special = {name: options[name] for name in ("norm_eps", "rest") if name in options}
    backend = choose_backend(backend, tokens[0], tokens[-1], weights, gates[2], chunk_size, **special)
    if backend != "triton":
        tokens = cast(tokens, weights[0].dtype)
    states = weights, momentum_state
    with own_precision(tokens[0]):
        if backend == "reference":
            at = {"anchor": anchor, "position": position, "lengths": lengths}
            rule: Callable[..., Any] = token_rule
            done = rule(*tokens, *states, *gates, chunk_size=chunk_size, **at, **options)
        elif backend == "torch" and (position is None or tokens[0].shape[2] != 1) and _traced():
            stand = tokens[0].new_zeros(len(tokens[0]), dtype=torch.long) if position is None else position
            call = (tokens, *states, anchor, gates, stand, lengths)
            done = as_operator(*call, chunk_size, checkpoint_chunks, options)
        else:
            run = piece(backend, {"chunk_size": chunk_size} | options, checkpoint_chunks)
            tokens = (*tokens, *(g for gate in gates for g in gate))
            if position is None:
                done = run(tokens, *states, None, lengths, return_state)
            else:
                done = in_pieces(run, tokens, *states, anchor, position, chunk_size, lengths, start)
    y, *after = done[: 3 if position is None else 5]
    return y.to(given), *(after if return_state else [None] * len(after))


def run_surprise(
    tokens: tuple[Tensor, Tensor], weights: Layers, momentum_state: Layers, anchor: Layers, gates: Sequence[Layers],
    *, position: Tensor | None = None, stale: bool = False, lengths: Tensor | None = None, chunk_size: int,
    **options: Any,
) -> tuple[Any, ...]:  # fmt: skip
    """Computes ``memory_surprise`` likewise, from k and v."""
    if stale:
        anchor = chosen(position == 0, weights, anchor)
    tokens, (weights, momentum_state, anchor), gates, options = _cast(
        tokens, (weights, momentum_state, anchor), gates, options
    )

    def run(tokens, weights, momentum_state, anchor, lengths):
        gates = [tokens[2 + i * len(weights) :][: len(weights)] for i in range(3)]
        at = {"chunk_size": chunk_size, "anchor": anchor, "lengths": lengths}
        return chunk_surprise(*tokens[:2], weights, momentum_state, *gates, **at, **options)

    tokens = (*cast(tokens, weights[0].dtype), *(g for gate in gates for g in gate))
    with own_precision(tokens[0]):
        if position is None:
            return run(tokens, weights, momentum_state, None, lengths)
        return in_pieces(run, tokens, weights, momentum_state, anchor, position, chunk_size, lengths)


def _is_one_token(
    backend: str, tokens: Layers, groups: Sequence[Layers], lengths: Tensor | None, options: dict[str, Any]
) -> bool:
    """Whether a call is one token of each sequence that nothing differentiates, and may be for the GPU."""
    if tokens[0].shape[2] != 1 or lengths is not None or not (backend == "triton" or tokens[0].is_cuda):
        return False
    if transforming() or torch.autograd.forward_ad._current_level >= 0:
        return False
    if not torch.is_grad_enabled():
        return True
    others = (options.get("norm_weight"), options.get("norm_bias"))
    every = (tokens, *groups, tuple(t for t in others if t is not None))
    return not any(t.requires_grad for group in every for t in group)


def _traced() -> bool:
    return torch.compiler.is_compiling() or transforming()


def _cast(tokens: Layers, states: Sequence[Layers], gates: Sequence[Layers], options: dict[str, Any]) -> Any:
    """Tokens in one dtype, all else in one of at least float32, which is the state's."""
    narrow = reduce(torch.promote_types, {t.dtype for t in tokens})
    others = {t.dtype for group in (*states, *gates) for t in group}
    wide = reduce(torch.promote_types, others, torch.promote_types(narrow, torch.float32))
    options = {name: x.to(wide) if isinstance(x, Tensor) else x for name, x in options.items()}
    if options.get("rest") is not None:
        options["rest"] = cast(options["rest"], wide)
    return cast(tokens, narrow), [cast(s, wide) for s in states], [cast(g, wide) for g in gates], options
