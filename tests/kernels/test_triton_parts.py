"""Functions that the kernels of every room share, alone."""

import pytest
import torch

pytest.importorskip("triton", reason="triton exists for Linux only")

import triton
import triton.language as tl

from pyro_memory.kernels.triton_parts import place, round_tf32

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


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


@triton.jit
def _places(p_i, p_j, p_out, width, N: tl.constexpr):
    o = tl.arange(0, N)
    tl.store(p_out + o, place(tl.load(p_i + o), tl.load(p_j + o), width))


def test_places_are_counted_in_64_bits():
    i = torch.tensor([0, 1, 2**17, 2**31 - 1], dtype=torch.int32, device=DEVICE)
    j = torch.tensor([5, 0, 2**15, 2**31 - 1], dtype=torch.int32, device=DEVICE)
    width = 2**15 + 1
    out = torch.empty(4, dtype=torch.int64, device=DEVICE)
    _places[(1,)](i, j, out, width, N=4)
    assert out.tolist() == [a * width + b for a, b in zip(i.tolist(), j.tolist(), strict=True)]
