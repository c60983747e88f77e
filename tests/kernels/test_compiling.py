"""What can be known of the kernels without a GPU: that they compile for one, what they count, what the scripts say."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pyro_memory.kernels.memory.limits import longest_chunk, shared_memory

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def run(*arguments):
    env = {n: v for n, v in os.environ.items() if n != "TRITON_INTERPRET"} | {"CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=500, cwd=BENCHMARKS.parent)


@pytest.mark.skipif(sys.platform != "linux", reason="triton exists for Linux only")
def test_every_kernel_compiles_for_a_gpu_that_need_not_be_here():
    arguments = ["--dim", "16", "--expansion", "0", "1", "--chunk", "16", "--first"]
    done = run("benchmarks/kernels_resources.py", *arguments)
    assert done.returncode == 0, done.stderr
    kernels = {line.split()[0] for line in done.stdout.splitlines()[1:]}
    assert kernels == {
        "linear_forward", "linear_read", "linear_back_reads", "linear_back_walk", "linear_back_keys", "linear_decode",
        "deep_forward", "deep_walk", "deep_read", "deep_back_reads", "deep_back_walk", "deep_back_keys", "deep_decode",
        "gates_forward", "gates_backward",
    }  # fmt: skip


@pytest.mark.skipif(sys.platform != "linux", reason="triton exists for Linux only")
@pytest.mark.parametrize(("capability", "dtype", "dim", "expansion"), [(86, "float64", 32, 0), (86, "float32", 32, 1)])
def test_the_longest_chunk_fits_in_shared_memory(capability, dtype, dim, expansion):
    """In the first configuration, which for wide operands is the leanest."""
    layers, operand = 2 if expansion else 1, getattr(torch, dtype).itemsize
    chunk = longest_chunk(divmod(capability, 10), layers, operand, dim)
    options = {"--capability": capability, "--dtype": dtype, "--dim": dim, "--expansion": expansion, "--chunk": chunk}
    done = run("benchmarks/kernels_resources.py", "--shared", "--first", *map(str, itertools.chain(*options.items())))
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()[1:]]
    launches = [list(group) for _, group in itertools.groupby(lines, key=lambda line: line[0])]
    least = [min(int(line[-1]) for line in group) for group in launches]
    assert len(least) >= 10
    assert max(least) <= 1024 * shared_memory(divmod(capability, 10))


@pytest.mark.skipif(sys.platform != "linux", reason="triton exists for Linux only")
def test_registers_are_those_of_the_kernel_not_of_the_function_before_it():
    usage = (
        " Function __internal_log2:\n  REG:56 STACK:0 SHARED:0\n Function linear_forward:\n  REG:255 STACK:264 SHARED:9"
    )
    code = f"import sys; sys.path.insert(0, 'benchmarks'); import kernels_resources as k; print(k.taken({usage!r}))"
    done = run("-c", code)
    assert done.stdout.strip() == "[255, 264]", done.stderr


READS = """
import sys, torch; sys.path.insert(0, "benchmarks")
import kernels_compile
from pyro_memory.kernels import fused_address
from pyro_memory.kernels.scan.triton_form import scan

kernels_compile.install(int(sys.argv[1]))
for dtype, (batch, dim, value), samples in (
    (torch.float32, (64, 128, 128), 5), (torch.bfloat16, (1, 16, 100), 0), (torch.float64, (64, 64, 10), 1)
):
    shapes = (batch, dim), (9, dim), (9, value)
    query, key, values = (torch.zeros(shape, dtype=dtype).requires_grad_() for shape in shapes)
    out = fused_address(query, key, value=values, samples=samples, backend="triton")
    (out.kl.sum() + out.read.sum()).backward()
x = torch.zeros(2, 9, 100).requires_grad_()
scan(x, x, x[:, 0]).sum().backward()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="triton exists for Linux only")
@pytest.mark.parametrize("capability", [86, 90])
def test_the_fused_read_and_the_scan_compile_and_fit_in_shared_memory(capability):
    done = run("-c", READS, str(capability))
    assert done.returncode == 0, done.stderr


SIZES = """
import collections, sys, torch; sys.path.insert(0, "benchmarks")
import kernels_compile
from pyro_memory.kernels import fused_address
from pyro_memory.kernels.scan.triton_form import scan

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


@pytest.mark.skipif(sys.platform != "linux", reason="triton exists for Linux only")
def test_sizes_and_seeds_compile_nothing_anew_and_products_are_fused_whatever_the_default():
    done = run("-W", "error:TRITON_DEFAULT_FP_FUSION", "-c", SIZES)
    assert done.returncode == 0, done.stderr
    once = {"_backward_query": 1, "_backward_slot": 1, "_draw": 1, "_forward": 1}
    once |= {"_scan_kernel": 2}  # forward and back
    assert done.stdout.strip() == str(sorted(once.items()))


def test_the_longest_chunk_is_shorter_on_smaller_gpus_and_for_wider_tokens():
    gpus = [(8, 9), (8, 0), (9, 0)]
    assert [longest_chunk(gpu, 2, 4, 128) for gpu in gpus] == [32, 64, 64]
    assert [longest_chunk((8, 6), 2, 4, width) for width in (16, 64, 65)] == [64, 64, 32]
    assert [longest_chunk((9, 0), 1, 8, width) for width in (20, 64, 128)] == [64, 64, 0]
    assert longest_chunk((12, 0), 2, 4, 100) == longest_chunk((8, 6), 2, 4, 100)


@pytest.mark.skipif(torch.cuda.is_available(), reason="counts what the interpreter runs")
@pytest.mark.parametrize(("expansion", "norm"), list(itertools.product((0, 1, 2), (False, True))))
def test_operations_are_those_of_the_products_that_run(expansion, norm, monkeypatch):
    """Beside those of the gates, and what launches and passes over the hidden units repeat."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    from kernels_cases import inputs, run
    from kernels_cost import Case, flops
    from triton.runtime.interpreter import InterpreterBuilder

    counted = [0]
    product = InterpreterBuilder.create_dot

    def create_dot(self, a, b, *rest):
        counted[0] += 2 * a.data.shape[0] * a.data.shape[1] * b.data.shape[1]
        return product(self, a, b, *rest)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", create_dot)
    C, d, h = 16, 32, 32 * expansion
    case = Case(d, expansion, C, C, 1, 1, norm, "float32")
    arguments = inputs(case, "cpu")
    y, *_ = run(case, arguments, "triton")
    forward, counted[0] = counted[0], 0
    torch.autograd.grad(y.sum(), arguments["q"])
    gates = (2 if expansion else 1) * 2 * C**3
    assert forward == flops(case, backward=False) + gates + 4 * C * d * h  # z_1 and u in the reads
    # reads: z_1 twice, u, what the queries give, (G o A_1) D_1; keys: u, and as with one layer K gW and K gS
    again = 20 * C * d * h + 2 * C * C * h if expansion else 4 * C * d * d
    assert counted[0] == flops(case, backward=True) + 3 * gates + again
