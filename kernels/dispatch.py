"""What a choice between PyTorch and Triton asks for: nothing here imports triton."""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache, wraps
from typing import Any, TypeVar

import torch
from torch import Tensor

from pyro_memory.gate import checked

Entry = TypeVar("Entry", bound=Callable[..., Any])
CHOICES = ("auto", "torch", "reference", "triton")


def interpreting() -> bool:
    """Whether Triton kernels that load now run in its interpreter."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def float_precision(dtype: torch.dtype) -> str:
    """How Triton multiplies blocks: float32 as three tf32 products, or one where torch is allowed that."""
    if dtype == torch.float64 or interpreting() or torch.version.hip is not None:
        return "ieee"
    matmul = torch.backends.cuda.matmul
    if hasattr(matmul, "fp32_precision"):  # from torch 2.9 on; there the other raises once a user has set this one
        return "tf32" if matmul.fp32_precision == "tf32" else "tf32x3"
    return "tf32x3" if torch.get_float32_matmul_precision() == "highest" else "tf32"


def on_device_of(tensor: Tensor) -> AbstractContextManager:
    """Triton launches on the current device, which need not be that of its arguments."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def own_precision(tensor: Tensor) -> AbstractContextManager:
    """Computes in the dtypes given, whatever autocast the caller is in."""
    return torch.autocast(tensor.device.type, enabled=False)


def backward_in_own_precision(backward: Callable[..., Any]) -> Any:
    """Of an ``autograd.Function``: its backward pass runs in the autocast of who calls ``backward()``, and would meet
    products of another dtype than the tensors that it kept."""

    @wraps(backward)
    def run(ctx: Any, *grads: Any) -> Any:
        with own_precision(grads[0]):
            return backward(ctx, *grads)

    return run


def transforming() -> bool:
    """Whether ``torch.func`` transforms the call."""
    return not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()


def below_autograd(function: Entry) -> Entry:
    """Where gradients are off, runs it without what autograd does even then, a good part of a token's time.

    For our own operations alone: what is written in place there, or asks for gradients again, autograd does not see.
    What comes out are tensors like others, other than under ``torch.inference_mode``.
    """

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        wanted = torch.is_grad_enabled() or torch.autograd.forward_ad._current_level >= 0
        if wanted or torch.compiler.is_compiling() or transforming():
            return function(*args, **kwargs)
        with torch._C._AutoDispatchBelowADInplaceOrView():
            return function(*args, **kwargs)

    return run  # type: ignore[return-value]


@cache
def keep_freed_memory() -> None:
    """Frees a block of 31 MB, once, so that a step finds the memory that the last one freed.

    glibc gives back to the system what is freed above twice the largest block under 32 MB that ever was (mallopt(3));
    to ask for it again took a sixth of a small memory's training time. The process keeps up to 62 MB more.
    """
    torch.empty(31 * 2**20, dtype=torch.uint8, device="cpu")


def may_look(tensor: Tensor) -> bool:
    """Whether a tensor's values may be looked at: not while torch compiles or transforms, nor where a device waits."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling() and not transforming()


def chosen(which: Tensor, new: tuple[Tensor, ...], old: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """``new`` for the sequences of the mask ``which [batch]``, ``old`` for the others; nothing is copied where all are
    alike and may be looked at."""
    if may_look(which):
        there = which.tolist()
        if all(there) or not any(there):
            return new if all(there) else old
    return tuple(torch.where(which[:, None, None, None], n, o) for n, o in zip(new, old, strict=True))


@checked
def refuse_transforms(name: str) -> None:
    """Raises where ``torch.func`` transforms the call, which passes by hand-written gradients do not take.

    Raises:
        NotImplementedError: inside of grad, vmap, jvp and the like.
    """
    if transforming():
        raise NotImplementedError(
            f"`{name}` does not run inside of torch.func's grad, vmap, jvp, jacrev and hessian, as its gradient is "
            "written by hand. Use torch.autograd.grad in place of grad, and the batch in place of vmap; functional_call"
            " does run"
        )


def check_backend(backend: str) -> None:
    if backend not in CHOICES:
        names = ", ".join(f'"{name}"' for name in CHOICES)
        raise ValueError(f"`backend` must be one of {names}; got {backend!r}")
