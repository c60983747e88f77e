"""The activations inside the kernels, alone."""

import pytest
import torch

pytest.importorskip("triton", reason="triton exists for Linux only")

import triton
import triton.language as tl

from pyro_memory.kernels.memory.triton_layers import act_and_slope, act_curvature

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"


@triton.jit
def derivatives(p_z, p_out, N: tl.constexpr, ACTIVATION: tl.constexpr):
    o = tl.arange(0, N)
    b_z = tl.load(p_z + o)
    b_h, b_slope = act_and_slope(b_z, ACTIVATION)
    tl.store(p_out + o, b_h)
    tl.store(p_out + N + o, b_slope)
    tl.store(p_out + 2 * N + o, act_curvature(b_z, ACTIVATION))


@pytest.mark.parametrize(("kind", "error"), [("gelu", 1e-12), ("silu", 1e-12), ("gelu3", 2e-3 if GPU else 1.2e-4)])
def test_activations_and_their_derivatives_are_those_of_torch(kind, error):
    if kind == "gelu3" and not GPU:
        kind = "gelu3_interpreted"
    z = torch.linspace(-20, 20, 4096, device=DEVICE).double().requires_grad_()
    value = torch.nn.functional.silu(z) if kind == "silu" else torch.nn.functional.gelu(z)
    slope = torch.autograd.grad(value.sum(), z, create_graph=True)[0]
    curvature = torch.autograd.grad(slope.sum(), z)[0]
    for dtype, allowed in ((torch.float64, error), (torch.float32, max(error, 2e-6))):
        out = z.new_empty(3, 4096, dtype=dtype)
        derivatives[(1,)](z.detach().to(dtype), out, N=4096, ACTIVATION=kind)
        for actual, wanted in zip(out.double(), (value, slope, curvature), strict=True):
            assert (actual - wanted).abs().max() < allowed
