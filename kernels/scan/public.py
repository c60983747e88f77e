"""The public function of the scan: checks, and the choice of a form."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_memory.gate import checked
from pyro_memory.kernels.dispatch import check_backend, interpreting, own_precision, refuse_transforms
from pyro_memory.kernels.scan.definition import recurrence
from pyro_memory.kernels.scan.torch_form import DoublingScan


@checked
def decay_scan(x: Tensor, decay: Tensor, initial: Tensor | None = None, *, backend: str = "auto") -> Tensor:
    r"""Runs h_t = a_t h_{t-1} + x_t along time, per channel.

    Args:
        x: what comes in, ``[..., time, dim]``.
        decay: a, any numbers, of a shape that broadcasts to x: ``[..., time, 1]`` decays all channels alike.
        initial: h before the first token, ``[..., dim]``; zero by default.
        backend: "auto" ("triton" on CUDA, else "torch"), "triton", "torch" (a scan of log time steps) or "reference"
            (a loop over time). All are differentiable in x, a and ``initial``.

    Returns:
        h, ``[..., time, dim]``, in the dtype of x. float16 and bfloat16 are computed in float32, and autocast changes
        nothing.

    Cost: O(time dim), "torch" a factor log time more. The backward pass is a scan of its own and keeps a and h.

    Raises:
        ValueError: for shapes that do not fit, no tokens, an unknown backend.
        NotImplementedError: inside of ``torch.func``'s grad, vmap and the like, which "reference" takes.

    References: Parallelizing Linear Recurrent Neural Nets Over Sequence Length (Martin & Cundy, 2018),
    https://arxiv.org/abs/1709.04057
    """
    check_backend(backend)
    if backend != "reference":
        refuse_transforms("decay_scan")
    if x.dim() < 2 or not x.is_floating_point():
        raise ValueError(f"`x` must be floating point, [..., time, dim]; got {x.dtype} of shape {list(x.shape)}")
    if not x.shape[-2]:
        raise ValueError("`x` must hold at least one token; got time 0. Skip the call, the state stays as it is")
    state = x.shape[:-2] + x.shape[-1:]
    initial = x.new_zeros(state) if initial is None else initial
    for name, tensor, wanted in (("decay", decay, x.shape), ("initial", initial, state)):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"`{name}` must be a tensor that broadcasts to {list(wanted)}; got {tensor!r}")
        sizes = zip(reversed(tensor.shape), reversed(wanted), strict=False)
        if tensor.dim() > len(wanted) or any(n not in (1, w) for n, w in sizes):
            raise ValueError(f"`{name}` must broadcast to {list(wanted)}, as `x` asks; got shape {list(tensor.shape)}")
        if tensor.device != x.device:
            raise ValueError(f"`{name}` must be on the device of `x`, {x.device}; got {tensor.device}")
    if backend == "auto":
        backend = "triton" if x.is_cuda else "torch"
    if backend == "triton" and not x.is_cuda and not interpreting():
        raise ValueError(
            f'`backend` "triton" is not available here: the tensors are on {x.device.type}, Triton needs a CUDA '
            'device; use "auto" or "torch"'
        )
    dtype = torch.promote_types(torch.promote_types(x.dtype, decay.dtype), torch.float32)
    flat = x.reshape(-1, *x.shape[-2:]).to(dtype)
    a = decay.expand(x.shape).reshape(flat.shape).to(dtype)
    initial = initial.expand(state).reshape(-1, x.shape[-1]).to(dtype)
    with own_precision(x):
        if backend == "reference":
            h = recurrence(flat, a, initial)
        elif backend == "torch":
            h = DoublingScan.apply(flat, a, initial)
        else:
            from pyro_memory.kernels.scan.triton_form import scan  # only here: without a GPU nobody loads triton

            h = scan(flat.contiguous(), a.contiguous(), initial.contiguous())
    return h.view(x.shape).to(x.dtype)
