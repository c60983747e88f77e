"""A call of the torch form as one operator, which ``torch.compile``, ``torch.export`` and ``torch.func`` take whole.

Inside it values may be looked at, so that any length and any place in a chunk is one node of the graph, compiled once.
Nothing is kept for the way back: it runs the call again, by the eager form, and goes back through that.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyro_memory.kernels.dispatch import own_precision, transforming
from pyro_memory.kernels.memory.definition import NORM_EPS, Layers
from pyro_memory.kernels.memory.forms import piece
from pyro_memory.kernels.memory.pieces import in_pieces

_SCHEMA = """(
    Tensor[] inputs, Tensor position, Tensor? lengths, int depth, int chunk_size, str activation, bool residual_norm,
    float norm_eps, bool[] given, int checkpoint_chunks
) -> Tensor[]"""
_EAGER = torch._C._dispatch_tls_local_include_set(), torch._C._dispatch_tls_local_exclude_set()
_RULE = 'backend="reference", the rule token by token, has'
_OPTIONAL = ("norm_weight", "norm_bias", "rest")


def as_operator(
    tokens: Layers, weights: Layers, momentum_state: Layers, anchor: Layers, gates: list[Layers], position: Tensor,
    lengths: Tensor | None, chunk_size: int, checkpoint_chunks: int | None, options: dict[str, Any],
) -> tuple[Tensor, Layers, Layers, Layers, Tensor]:  # fmt: skip
    """Runs ``in_pieces`` on the torch form as an operator."""
    depth, given = len(weights), [options.get(name) is not None for name in _OPTIONAL]
    norms = [options[name] for name in _OPTIONAL[:2] if options.get(name) is not None]
    rest = options.get("rest") or ()
    inputs = [*tokens, *weights, *momentum_state, *anchor, *(g for gate in gates for g in gate), *norms, *rest]
    settings = (
        depth, chunk_size, options["activation"], options["residual_norm"], options.get("norm_eps", NORM_EPS), given,
        checkpoint_chunks or 0,
    )  # fmt: skip
    if transforming():
        y, *after, position = _Transformed.apply(settings, position, lengths, *inputs)
    else:
        y, *after, position = memory_run(inputs, position, lengths, *settings)
    return y, *(tuple(after[i * depth : (i + 1) * depth]) for i in range(3)), position


def _run(inputs, position, lengths, depth, chunk_size, activation, residual_norm, norm_eps, given, checkpoint_chunks):
    groups, rest = [tuple(inputs[3 + i * depth :][:depth]) for i in range(6)], list(inputs[3 + 6 * depth :])
    options: dict[str, Any] = {
        "chunk_size": chunk_size, "activation": activation, "residual_norm": residual_norm, "norm_eps": norm_eps,
    }  # fmt: skip
    for name, there in zip(_OPTIONAL, given, strict=True):
        if there:
            options[name] = tuple(rest) if name == "rest" else rest.pop(0)
    tokens = (*inputs[:3], *(g for gate in groups[3:] for g in gate))
    run = piece("torch", options, checkpoint_chunks or None)
    y, *after, position = in_pieces(run, tokens, *groups[:3], position, chunk_size, lengths)
    return [y, *(s for state in after for s in state), position]


@torch.library.custom_op("pyro_memory::memory_run", mutates_args=(), schema=_SCHEMA)
def memory_run(inputs, position, lengths, *options):
    return [t.clone(memory_format=torch.contiguous_format) for t in _run(inputs, position, lengths, *options)]


@memory_run.register_fake
def _shapes(inputs, position, lengths, depth, *options):
    return [torch.empty_like(t, memory_format=torch.contiguous_format) for t in
            (inputs[2], *inputs[3 : 3 + 3 * depth], position)]  # fmt: skip


def _save(ctx, inputs, output):
    tensors, position, lengths, *options = inputs
    ctx.save_for_backward(*tensors, position, lengths)
    ctx.options = options
    ctx.mark_non_differentiable(output[-1])


def _backward(ctx, grads):
    *inputs, position, lengths = ctx.saved_tensors
    return memory_run_backward(list(grads[:-1]), inputs, position, lengths, *ctx.options), *[None] * 9


@torch.library.custom_op(
    "pyro_memory::memory_run_backward", mutates_args=(), schema=_SCHEMA.replace("(", "(Tensor[] grads, ", 1)
)
def memory_run_backward(grads, inputs, position, lengths, *options):
    with torch._C._ForceDispatchKeyGuard(*_EAGER):  # autograd, which is off inside of an operator
        found = _back(grads, inputs, position, lengths, *options)
    return [g.clone(memory_format=torch.contiguous_format) for g in found]


def _back(grads, inputs, position, lengths, *options):
    with torch.enable_grad(), own_precision(inputs[0]):
        leaves = [t.detach().requires_grad_() for t in inputs]
        *outputs, _ = _run(leaves, position, lengths, *options)
        return torch.autograd.grad(outputs, leaves, grads, allow_unused=True, materialize_grads=True)


@memory_run_backward.register_fake
def _gradients(grads, inputs, *_):
    return [torch.empty_like(t, memory_format=torch.contiguous_format) for t in inputs]


memory_run.register_autograd(_backward, setup_context=_save)


class _Transformed(torch.autograd.Function):
    """The operator for ``torch.func``, which does not take an operator's own gradient."""

    @staticmethod
    def forward(settings, position, lengths, *inputs):
        return tuple(t.clone() for t in _run(list(inputs), position, lengths, *settings))

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.settings, *tensors = inputs
        ctx.save_for_backward(*tensors)
        ctx.mark_non_differentiable(output[-1])

    @staticmethod
    def backward(ctx, *grads):
        found = _TransformedBackward.apply(ctx.settings, len(grads) - 1, *grads[:-1], *ctx.saved_tensors)
        return None, None, None, *found

    @staticmethod
    def jvp(ctx, *tangents):
        raise NotImplementedError(f"a neural memory has no forward derivative; {_RULE}")

    @staticmethod
    def vmap(info, in_dims, *args):
        return _one_by_one(_Transformed.apply, info, in_dims, args)


class _TransformedBackward(torch.autograd.Function):
    @staticmethod
    def forward(settings, outputs, *tensors):
        position, lengths, *inputs = tensors[outputs:]
        return tuple(_back(tensors[:outputs], inputs, position, lengths, *settings))

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, *grads):
        raise NotImplementedError(f"a neural memory has no second derivative; {_RULE}")

    @staticmethod
    def vmap(info, in_dims, *args):
        return _one_by_one(_TransformedBackward.apply, info, in_dims, args)


def _one_by_one(function, info, in_dims, args):
    """Under ``vmap``: each by itself."""
    results = [
        function(*(x.select(d, i) if isinstance(d, int) else x for d, x in zip(in_dims, args, strict=True)))
        for i in range(info.batch_size)
    ]
    outputs = tuple(torch.stack(x) for x in zip(*results, strict=True))
    return outputs, (0,) * len(outputs)
