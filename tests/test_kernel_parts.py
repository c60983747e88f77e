"""Functions inside the kernels, alone."""

import pytest
import torch

pytest.importorskip("triton", reason="triton exists for Linux only")

import triton
import triton.language as tl

from pyro_memory.kernels.triton_parts import act, act_curvature, act_slope, round_tf32

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@triton.jit
def derivatives(p_z, p_out, N: tl.constexpr, ACTIVATION: tl.constexpr):
    o = tl.arange(0, N)
    b_z = tl.load(p_z + o)
    tl.store(p_out + o, act(b_z, ACTIVATION))
    tl.store(p_out + N + o, act_slope(b_z, ACTIVATION))
    tl.store(p_out + 2 * N + o, act_curvature(b_z, ACTIVATION))


@pytest.mark.parametrize(("kind", "error"), [("gelu", 1e-12), ("silu", 1e-12), ("gelu7", 4e-7)])
def test_activations_and_their_derivatives_are_those_of_torch(kind, error):
    z = torch.linspace(-6, 6, 4096, device=DEVICE).double().requires_grad_()
    value = torch.nn.functional.silu(z) if kind == "silu" else torch.nn.functional.gelu(z)
    slope = torch.autograd.grad(value.sum(), z, create_graph=True)[0]
    curvature = torch.autograd.grad(slope.sum(), z)[0]
    for dtype, allowed in ((torch.float64, error), (torch.float32, max(error, 1e-6))):
        out = z.new_empty(3, 4096, dtype=dtype)
        derivatives[(1,)](z.detach().to(dtype), out, N=4096, ACTIVATION=kind)
        for actual, wanted in zip(out.double(), (value, slope, curvature), strict=True):
            assert (actual - wanted).abs().max() < allowed


@triton.jit
def rounded(p_x, p_out, N: tl.constexpr):
    o = tl.arange(0, N)
    tl.store(p_out + o, round_tf32(tl.load(p_x + o)))


def test_tf32_is_rounded_to_the_nearest_and_what_it_holds_stays():
    x = torch.cat(
        [
            torch.randn(4090) * 10.0 ** torch.randint(-30, 30, (4090,)),
            torch.tensor([0.0, -0.0, 1, -2, torch.inf, -torch.inf]),
        ]
    )
    x = x.to(DEVICE)
    out = torch.empty_like(x)
    rounded[(1,)](x, out, N=4096)
    assert (out.view(torch.int32) & 0x1FFF == 0).all()
    error = ((out - x) / x)[:4090].double()
    assert error.abs().max() <= 2**-11
    assert error.mean().abs() < 2**-11 / 20  # dropped digits would make it 2^-12 of the size, always towards zero
    again = torch.empty_like(x)
    rounded[(1,)](out, again, N=4096)
    assert torch.equal(again, out)
    assert torch.equal(out[4090:], x[4090:])
    nan = torch.tensor([0x7FFFFFFF, -1, 0x7FC00000, 0x7F800001], dtype=torch.int32, device=DEVICE).view(torch.float32)
    rounded[(1,)](nan, out, N=4)
    assert out[:4].isnan().all()
