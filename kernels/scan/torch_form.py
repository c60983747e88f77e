"""The scan in PyTorch: log time steps, forward and backward."""

import torch
from torch import Tensor

from pyro_memory.kernels.dispatch import backward_in_own_precision


def _doubling(x: Tensor, a: Tensor, initial: Tensor) -> Tensor:
    """Joins stretches of 1, 2, 4 ... tokens: only sums and products, so that a of 0 is exact."""
    h, a = x.clone(), a.clone()
    h[:, 0] += a[:, 0] * initial
    step = 1
    while step < x.shape[1]:
        h[:, step:] += a[:, step:] * h[:, :-step]
        a[:, step:] *= a[:, :-step].clone()
        step *= 2
    return h


class DoublingScan(torch.autograd.Function):
    """Computes ``recurrence``; the way back is the same recurrence from the last token on."""

    @staticmethod
    def forward(ctx, x: Tensor, a: Tensor, initial: Tensor) -> Tensor:
        h = _doubling(x, a, initial)
        ctx.save_for_backward(a, h, initial)
        return h

    @staticmethod
    @torch.autograd.function.once_differentiable
    @backward_in_own_precision
    def backward(ctx, dh: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        a, h, initial = ctx.saved_tensors
        later = torch.cat([a[:, 1:], torch.zeros_like(a[:, :1])], 1)  # dx_t = dh_t + a_{t+1} dx_{t+1}
        dx = _doubling(dh.flip(1), later.flip(1), torch.zeros_like(initial)).flip(1)
        before = torch.cat([initial.unsqueeze(1), h[:, :-1]], 1)
        return dx, dx * before, dx[:, 0] * a[:, 0]
