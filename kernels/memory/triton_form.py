"""The neural memory on a GPU: the Triton kernels as one operator that autograd, autocast and torch.compile know.

A state is one tensor a row (a head of a sequence): the weights of all layers, then their momenta. Gates are
``[row, 3 layers, time]``: theta, eta and alpha of a layer, then those of the next.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_memory.kernels.dispatch import backward_in_own_precision
from pyro_memory.kernels.memory import triton_passes
from pyro_memory.kernels.memory.plan import at_once, kept_every, multiprocessors, operand_bytes, planned
from pyro_memory.kernels.memory.triton_launch import Call
from pyro_memory.kernels.triton_parts import block

_ARGUMENTS = "Tensor q, Tensor k, Tensor v, Tensor gates, Tensor? norm, Tensor? lengths"
_SIZES = "int[] widths, int chunk_size, str activation, int every"


def triton_form(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    weights: Sequence[Tensor],
    momentum_state: Sequence[Tensor],
    lr: Sequence[Tensor],
    momentum: Sequence[Tensor],
    decay: Sequence[Tensor],
    *,
    chunk_size: int,
    lengths: Tensor | None = None,
    checkpoint_chunks: int | None = None,
    activation: str = "gelu",
    residual_norm: bool = False,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
) -> tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Computes what ``token_rule`` does, in the same arguments; q, k and v may be in half precision."""
    batch, heads, time = k.shape[:3]
    rows = batch * heads
    check_devices(
        q.device, k=(k,), v=(v,), weights=weights, momentum_state=momentum_state, lr=lr, momentum=momentum, decay=decay,
        lengths=(lengths,), norm_weight=(norm_weight,), norm_bias=(norm_bias,),
    )  # fmt: skip
    widths = [k.shape[-1], *(w.shape[-1] for w in weights)]
    q, k, v = (x.reshape(rows, time, x.shape[-1]).contiguous() for x in (q, k, v))
    state = _packed((*weights, *momentum_state))
    gates = [g.reshape(rows, time) for layer in zip(lr, momentum, decay, strict=True) for g in layer]
    gates = torch.stack(gates, 1)
    norm = None
    if residual_norm:
        ones = state.new_ones(heads, widths[-1])
        norm_weight = ones if norm_weight is None else norm_weight
        norm = torch.stack([norm_weight, torch.zeros_like(ones) if norm_bias is None else norm_bias], 1)
    if lengths is not None:
        lengths = lengths.to(torch.int32).repeat_interleave(heads)
    chunk_size = min(chunk_size, block(time))
    learns = torch.is_grad_enabled() and any(t.requires_grad for t in (q, k, v, gates, state, norm) if t is not None)
    sizes = (rows, time, widths, chunk_size, operand_bytes(q.dtype, state.dtype), state.itemsize)
    every = (checkpoint_chunks or kept_every(*sizes)) if learns else 0
    y, state, _ = memory_forward(q, k, v, gates, norm, lengths, state, widths, chunk_size, activation, every)
    sizes = [w.shape[-2] * w.shape[-1] for w in (*weights, *weights)]
    parts = [p.view_as(w) for p, w in zip(state.split(sizes, 1), (*weights, *weights), strict=True)]
    return y.view(batch, heads, time, widths[-1]), tuple(parts[: len(weights)]), tuple(parts[len(weights) :])


def _packed(layers: Sequence[Tensor]) -> Tensor:
    return torch.cat([s.flatten(0, 1).flatten(1) for s in layers], 1)


def check_devices(device: torch.device, **groups: Sequence[Tensor | None]) -> None:
    for name, group in groups.items():
        for t in group:
            if t is not None and t.device != device:
                raise ValueError(
                    f"`{name}` must be on the device of `q`, {device}; got {t.device}. Use .to({str(device)!r})"
                )


def _chunks(k: Tensor, chunk_size: int) -> int:
    return -(-k.shape[1] // chunk_size)


@torch.library.custom_op(
    "pyro_memory::neural_memory",
    mutates_args=(),
    schema=f"({_ARGUMENTS}, Tensor state, {_SIZES}) -> (Tensor, Tensor, Tensor)",
)
def memory_forward(q, k, v, gates, norm, lengths, state, widths, chunk_size, activation, every):
    y, after, kept = _outputs(q, k, v, gates, norm, lengths, state, widths, chunk_size, activation, every)
    after.copy_(state)
    call = _call(q, k, v, gates, norm, lengths, state, widths, chunk_size, activation, every)
    triton_passes.forward(call, after, y, kept)
    return y, after, kept


def _call(q, k, v, gates, norm, lengths, state, widths, chunk_size, activation, every):
    plan = planned(
        *k.shape[:2], widths, chunk_size, operand_bytes(q.dtype, state.dtype), state.itemsize, learns=every > 0,
        checkpoint_chunks=every or None, multiprocessors=multiprocessors(k), at_once=at_once(k),
    )  # fmt: skip
    return Call(q, k, v, gates, norm, lengths, widths, chunk_size, activation, plan)


@memory_forward.register_fake
def _outputs(q, k, v, gates, norm, lengths, state, widths, chunk_size, activation, every):
    """y, the state after, and the states kept: every n-th; all of them in the operands' precision."""
    slots = -(-_chunks(k, chunk_size) // every) if every else 0
    half = every == 1 and operand_bytes(q.dtype, state.dtype) == 2
    kept = state.new_empty(k.shape[0], slots, state.shape[1], dtype=torch.bfloat16 if half else state.dtype)
    return torch.empty_like(v), torch.empty_like(state), kept


@torch.library.custom_op(
    "pyro_memory::neural_memory_backward",
    mutates_args=(),
    schema=f"(Tensor dy, Tensor dstate, {_ARGUMENTS}, Tensor kept, {_SIZES})"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def memory_backward(dy, dstate, q, k, v, gates, norm, lengths, kept, widths, chunk_size, activation, every):
    grads = _gradients(dy, dstate, q, k, v, gates, norm, lengths, kept, widths, chunk_size, activation, every)
    dnorm, dbefore = grads[-2:]
    dnorm.zero_()
    dbefore.copy_(dstate)
    call = _call(q, k, v, gates, norm, lengths, dstate, widths, chunk_size, activation, every)
    triton_passes.backward(call, dy, kept, grads)
    return grads


@memory_backward.register_fake
def _gradients(dy, dstate, q, k, v, gates, norm, lengths, kept, widths, chunk_size, activation, every):
    """Of q, k, v, gates, norm (a row's part) and the state before."""
    dnorm = dstate.new_empty((k.shape[0], 2, widths[-1]) if norm is not None else (0,))
    return (*(torch.empty_like(t) for t in (q, k, v, gates)), dnorm, torch.empty_like(dstate))


def _save(ctx, inputs, output):
    *tensors, _, widths, chunk_size, activation, every = inputs
    ctx.save_for_backward(*tensors, output[2])
    ctx.mark_non_differentiable(output[2])
    ctx.sizes = widths, chunk_size, activation, every


@backward_in_own_precision
def _backward(ctx, dy, dstate, _):
    *tensors, kept = ctx.saved_tensors
    grads = memory_backward(dy.contiguous(), dstate.contiguous(), *tensors, kept, *ctx.sizes)
    dq, dk, dv, dgates, dnorm, dstate = grads
    norm = tensors[4]
    dnorm = None if norm is None else dnorm.unflatten(0, (-1, norm.shape[0])).sum(0)
    return dq, dk, dv, dgates, dnorm, None, dstate, None, None, None, None


memory_forward.register_autograd(_backward, setup_context=_save)
