"""How the kernels of the neural memory are launched: without a wait for the device, in which configurations."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from memory_calls import (  # noqa: F401
    DEVICE,
    GPU,
    call,
    first_configuration,
    problem,
    watched_memory,
    with_gradients,
)
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from pyro_memory.kernels.memory import plan

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


# --- nothing is read back from the device


class NothingReadBack(TorchDispatchMode):
    """Raises where a number of a tensor is asked for: on a GPU the call waits there, and no graph can hold it."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        assert name not in ("_local_scalar_dense", "nonzero", "masked_select"), f"{name} waits for the device"
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("widths", [(16, 16), (16, 24, 16)])
def test_no_call_waits_for_the_device(widths, monkeypatch):
    tensors = problem(widths, 6, batch=2, heads=1, norm=True)
    lengths = torch.tensor([5, 3], device=DEVICE)

    def refuse(*args):
        raise AssertionError("a list of numbers waits for the device")

    monkeypatch.setattr(torch.Tensor, "tolist", refuse)
    for options in ({}, {"lengths": lengths}, {"checkpoint_chunks": 2}):
        with NothingReadBack():
            with_gradients(tensors, chunk_size=3, backend="triton", check_values=False, **options)
    with pytest.raises(AssertionError, match="waits for the device"), NothingReadBack():
        call(tensors, chunk_size=4, backend="triton", check_values=True)


@pytest.mark.skipif(not GPU, reason="graphs are CUDA's")
@pytest.mark.parametrize("widths", [(64, 64), (64, 256, 64)])
def test_a_graph_of_one_token_gives_what_the_call_does(widths):
    token = problem(widths, 1, norm=True, dtype=torch.float32)
    with torch.no_grad():
        expected = call(token, chunk_size=16, backend="triton")
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            call(token, chunk_size=16, backend="triton")
        torch.cuda.current_stream().wait_stream(stream)
        with torch.cuda.graph(graph):
            captured = call(token, chunk_size=16, backend="triton")
        for _ in range(2):
            for t in captured:
                t.zero_()
            graph.replay()
            for actual, wanted in zip(captured, expected, strict=True):
                assert_close(actual, wanted, rtol=0, atol=0)


# --- precisions and configurations that torch and the GPU choose


def test_products_of_float32_follow_torch_s_settings_old_and_new():
    """In a process of its own: torch refuses to mix them, and they cannot be taken back."""
    code = (
        f"import sys; sys.path.insert(0, {str(BENCHMARKS)!r}); import bare; bare.load_kernels()\n"
        "import torch; from pyro_memory.kernels.dispatch import float_precision as p\n"
        "kinds = [p(torch.float32)]\n"
        "for setting in ('high', 'highest', 'medium'):\n"
        "    torch.set_float32_matmul_precision(setting); kinds.append(p(torch.float32))\n"
        "matmul = torch.backends.cuda.matmul\n"
        "for setting in ('ieee', 'tf32') if hasattr(matmul, 'fp32_precision') else ():\n"
        "    matmul.fp32_precision = setting; kinds.append(p(torch.float32))\n"
        "print(*kinds, p(torch.float64))\n"
    )
    env = {n: v for n, v in os.environ.items() if n != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=120)
    assert done.returncode == 0, done.stderr
    kinds = ["tf32x3", "tf32", "tf32x3", "tf32", "tf32x3", "tf32"]
    if not hasattr(torch.backends.cuda.matmul, "fp32_precision"):
        kinds = kinds[:4]
    assert done.stdout.split() == [*kinds, "ieee"]


def test_the_autotuner_chooses_by_how_full_the_gpu_is(monkeypatch):
    from pyro_memory.kernels.memory import triton_launch

    gpu = SimpleNamespace(is_cuda=True, device=0)
    properties = SimpleNamespace(multi_processor_count=100)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    waves = [triton_launch.wave(gpu, programs)["wave"] for programs in (0, 1, 100, 101, 200, 201, 400, 401, 10**6)]
    assert waves == [0, 0, 0, 1, 1, 2, 2, 3, 3]
    assert "wave" in triton_launch.TUNED_BY


def launches(tensors, **options):
    """Kernel names of a forward and a backward pass, each with the configurations that it may take."""
    from kernels_cases import configured

    found = {}

    def note(kernel, configurations):
        return found.setdefault(kernel.fn.__name__, configurations)

    with configured(note):
        with_gradients(tensors, backend="triton", **options)
    return found


def test_what_compiling_showed_to_be_useless_is_not_among_the_configurations(monkeypatch):
    from pyro_memory.kernels.memory import triton_form

    monkeypatch.setattr(triton_form, "at_once", lambda tensor: 132)
    split = launches(problem((64, 256, 64), 20, heads=1, dtype=torch.bfloat16), chunk_size=16)
    assert split["deep_back_reads"] == ((64, 4, 2), (64, 4, 1), (32, 4, 2), (32, 4, 1))
    assert split["deep_walk"] == ((64, 8, 1), (64, 4, 1))
    few = plan.SPLIT
    monkeypatch.setattr(plan, "SPLIT", dict.fromkeys(few, 0))
    fused = launches(problem((64, 256, 64), 20, heads=1, dtype=torch.bfloat16), chunk_size=16)
    assert {tile for tile, *_ in fused["deep_forward"]} == {32}
    thin = launches(problem((32, 128, 32), 20, heads=1), chunk_size=16)
    assert {warps for _, warps, _ in thin["deep_forward"]} == {4, 8}
    assert {stages for *_, stages in thin["deep_back_keys"]} == {1}  # wider operands
    monkeypatch.setattr(plan, "SPLIT", few)
    linear = launches(problem((64, 64), 20, heads=1, dtype=torch.bfloat16), chunk_size=16)
    assert {stages for *_, stages in linear["linear_back_walk"]} == {1, 2, 3}
    assert linear["linear_read"] == ((0, 4, 1), (0, 8, 1))  # no loop, so no stages
    assert {warps for _, warps, _ in linear["gates_forward"]} == {1, 2, 4, 8}
    assert all(0 < len(group) <= 4 for found in (split, fused, linear) for group in found.values())


def test_a_kernel_that_reloads_what_it_stored_takes_no_loads_ahead(monkeypatch):
    from pyro_memory.kernels.memory import triton_launch

    tensors = problem((16, 24, 16), 9)
    monkeypatch.setattr(plan, "SPLIT", dict.fromkeys(plan.SPLIT, 0))
    monkeypatch.setattr(triton_launch, "RESIDENT_BYTES", 0)
    monkeypatch.setattr(triton_launch, "_configurations", lambda *args: ((32, 4, 2),))
    with pytest.raises((RuntimeError, ValueError), match="loads ahead would pass the stores they need"):
        with_gradients(tensors, chunk_size=8, backend="triton")
