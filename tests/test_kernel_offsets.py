"""Kernels at sizes that 32 bits do not count, and at sizes that change: places, the noise there, what is compiled."""

import importlib.util

import pytest
import torch
from test_kernel_benchmarks import run
from test_memory_triton import watched_memory  # noqa: F401
from torch.testing import assert_close

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton has no wheel for this machine", allow_module_level=True)

import triton
import triton.language as tl

from pyro_memory.kernels.addressing_triton import gumbel
from pyro_memory.kernels.triton_parts import place

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@triton.jit
def _places(p_i, p_j, p_out, width, N: tl.constexpr):
    o = tl.arange(0, N)
    tl.store(p_out + o, place(tl.load(p_i + o), tl.load(p_j + o), width))


@triton.jit
def _noise(p_i, p_out, batch, seed, N: tl.constexpr, S: tl.constexpr):
    o = tl.arange(0, N)
    noise = gumbel(seed, tl.load(p_i + o)[:, None], 3, batch, tl.arange(0, S)[None, :], S)
    tl.store(p_out + o[:, None] * S + tl.arange(0, S)[None, :], noise)


def test_places_are_counted_in_64_bits():
    i = torch.tensor([0, 1, 2**17, 2**31 - 1], dtype=torch.int32, device=DEVICE)
    j = torch.tensor([5, 0, 2**15, 2**31 - 1], dtype=torch.int32, device=DEVICE)
    width = 2**15 + 1
    out = torch.empty(4, dtype=torch.int64, device=DEVICE)
    _places[(1,)](i, j, out, width, N=4)
    assert out.tolist() == [a * width + b for a, b in zip(i.tolist(), j.tolist(), strict=True)]


def test_blocks_that_lie_2_to_the_32_apart_have_noise_of_their_own():
    """Of 1e6 slots in blocks of 16, at 1024 queries and 128 draws, the first and the 2^15th do."""
    i = torch.tensor([0, 0, 2**15, 2**16], dtype=torch.int32, device=DEVICE)
    out = torch.empty(4, 128, device=DEVICE)
    _noise[(1,)](i, out, 1024, 7, N=4, S=128)
    assert_close(out[0], out[1], rtol=0, atol=0)
    for one, other in [(0, 2), (0, 3), (2, 3)]:
        assert (out[one] != out[other]).sum() > 120


SIZES = """
import collections, sys, torch; sys.path.insert(0, "benchmarks")
import kernels_compile
from pyro_memory.kernels import fused_address
from pyro_memory.kernels.decay_scan_triton import scan

class Counting(kernels_compile.Driver):
    compiled = collections.Counter()

    def load_binary(self, name, *rest):
        self.compiled[name] += 1
        return super().load_binary(name, *rest)

kernels_compile.Driver = Counting
kernels_compile.install(90)
for batch, slots, samples, seed in (5, 37, 9, 3), (1, 1, 12, 1), (16, 160, 16, 16), (11, 100_000, 11, 0):
    torch.randint = lambda *args, **options: torch.tensor(seed)
    query, key, values = (torch.zeros(n, 16).requires_grad_() for n in (batch, slots, slots))
    out = fused_address(query, key, value=values, samples=samples, backend="triton")
    (out.kl.sum() + out.read.sum()).backward()
for time in 9, 1, 16, 1600:
    x = torch.zeros(2, time, 16).requires_grad_()
    scan(x, x, x[:, 0]).sum().backward()
print(sorted(Counting.compiled.items()))
"""


def test_sizes_and_seeds_compile_nothing_anew_and_products_are_fused_whatever_the_default():
    done = run("-W", "error:TRITON_DEFAULT_FP_FUSION", "-c", SIZES)
    assert done.returncode == 0, done.stderr
    once = {"_backward_query": 1, "_backward_slot": 1, "_forward": 1, "_scan_kernel": 2}  # the scan: forward and back
    assert done.stdout.strip() == str(sorted(once.items()))
