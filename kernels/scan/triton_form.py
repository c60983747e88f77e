"""The recurrence h_t = a_t h_{t-1} + x_t in Triton: a program is a block of channels of a row and walks the time."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from pyro_memory.kernels.dispatch import backward_in_own_precision, on_device_of
from pyro_memory.kernels.triton_parts import FUSED, compose, place

BLOCK_TIME, BLOCK_DIM = 32, 64


# Nothing is compiled anew for a T of 1 or a multiple of 16; for such a D it is, which decides how wide loads are.
@triton.jit(do_not_specialize=("T",))
def _scan_kernel(
    p_x, p_a, p_initial, p_h, p_da, p_before, T, D,
    BT: tl.constexpr, BD: tl.constexpr, BACK: tl.constexpr,
):  # fmt: skip
    """Forward: h. Back: the same recurrence from the last token on, with a_{t+1}, and the gradient of a beside it."""
    i_r = tl.program_id(0)
    o_d = tl.program_id(1) * BD + tl.arange(0, BD)
    o_s = tl.arange(0, BT)
    channels = o_d < D
    b_first = tl.load(p_initial + place(i_r, o_d, D), mask=channels, other=0)
    b_carry = tl.zeros_like(b_first) if BACK else b_first
    for start in range(0, T, BT):
        o_t = T - 1 - start - o_s if BACK else start + o_s
        inside = ((o_t >= 0) & (o_t < T))[:, None] & channels[None, :]
        o = place(place(i_r, o_t, T)[:, None], o_d[None, :], D)
        b_x = tl.load(p_x + o, mask=inside, other=0)  # [BT, BD]
        if BACK:
            b_a = tl.load(p_a + o + D, mask=inside & (o_t < T - 1)[:, None], other=0)
        else:
            b_a = tl.load(p_a + o, mask=inside, other=0)
        b_fade, b_h = tl.associative_scan((b_a, b_x), 0, compose)
        b_h += b_fade * b_carry[None, :]
        tl.store(p_h + o, b_h, mask=inside)
        if BACK:
            b_before = tl.load(p_before + o - D, mask=inside & (o_t > 0)[:, None], other=0)
            b_before = tl.where((o_t == 0)[:, None], b_first[None, :], b_before)
            tl.store(p_da + o, b_h * b_before, mask=inside)
        b_carry = tl.sum(tl.where((o_s == BT - 1)[:, None], b_h, 0.0), 0)


def _launch(x: Tensor, a: Tensor, initial: Tensor, h: Tensor, da: Tensor, before: Tensor, back: bool) -> None:
    rows, time, dim = x.shape
    if not x.numel():
        return
    block = min(BLOCK_DIM, triton.next_power_of_2(dim))
    grid = (rows, triton.cdiv(dim, block))
    with on_device_of(x):
        _scan_kernel[grid](x, a, initial, h, da, before, time, dim, BT=BLOCK_TIME, BD=block, BACK=back, **FUSED)


@torch.library.custom_op("pyro_memory::decay_scan", mutates_args=(), schema="(Tensor x, Tensor a, Tensor h0) -> Tensor")
def scan(x, a, initial):
    h = torch.empty_like(x)
    _launch(x, a, initial, h, h, h, back=False)
    return h


@scan.register_fake
def _(x, a, initial):
    return torch.empty_like(x)


@torch.library.custom_op(
    "pyro_memory::decay_scan_backward",
    mutates_args=(),
    schema="(Tensor dh, Tensor a, Tensor h0, Tensor h) -> (Tensor, Tensor)",
)
def scan_backward(dh, a, initial, h):
    dx, da = torch.empty_like(h), torch.empty_like(h)
    _launch(dh, a, initial, dx, da, h, back=True)
    return dx, da


@scan_backward.register_fake
def _(dh, a, initial, h):
    return torch.empty_like(h), torch.empty_like(h)


def _save(ctx, inputs, output):
    _, a, initial = inputs
    ctx.save_for_backward(a, initial, output)


@backward_in_own_precision
def _backward(ctx, dh):
    a, initial, h = ctx.saved_tensors
    dx, da = scan_backward(dh.contiguous(), a, initial, h)
    return dx, da, dx[:, 0] * a[:, 0]


scan.register_autograd(_backward, setup_context=_save)
