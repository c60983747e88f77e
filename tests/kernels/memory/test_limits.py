"""Which backend a call of the neural memory gets, and what its kernels refuse."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from memory_calls import GPU, call, first_configuration, problem, watched_memory  # noqa: F401
from torch.testing import assert_close

from pyro_memory.kernels import why_not_triton
from pyro_memory.kernels.memory.limits import choose_backend

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


@pytest.mark.parametrize(
    ("widths", "options", "reason"),
    [
        ((4, 5, 5, 4), {}, "the memory has 3 layers, the kernels have 1 or 2"),
        ((130, 4), {}, "keys of 130 and values of 4 dimensions, the kernels take 128 at most"),
        ((4, 513, 4), {}, "513 hidden units, the kernels take 512 at most"),
        ((4, 4), {"chunk_size": 65}, "`chunk_size` is 65, the kernels take 64 at most"),
        ((4, 4), {"norm_eps": 0.5}, "`norm_eps` is 0.5, the kernels have 1e-05"),
    ],
)
def test_what_the_kernels_do_not_take_is_refused_with_the_reason(widths, options, reason):
    tensors = problem(widths, 70, heads=1)
    options = {"chunk_size": 16} | options
    with pytest.raises(ValueError, match=f'`backend` "triton" is not available here: {reason}; use "auto" or "torch"'):
        call(tensors, backend="triton", **options)
    q, v, weights, decay = (tensors[n] for n in ("q", "v", "weights", "decay"))
    assert why_not_triton(q[0], v[0], weights, decay, **options) == reason
    if len(weights) < 3:
        assert_close(call(tensors, **options)[0], call(tensors, backend="torch", **options)[0])


def test_a_decay_by_channel_and_a_cpu_without_interpreter_are_refused(monkeypatch):
    tensors = problem((4, 4), 5)
    args = (tensors["q"][0], tensors["v"][0], tensors["weights"])
    assert why_not_triton(*args, tensors["decay"], chunk_size=4) is None
    by_channel = tensors["decay"][0].unsqueeze(-1).expand(-1, -1, -1, 4)
    assert why_not_triton(*args, by_channel, chunk_size=4).startswith("`decay` is by channel")
    rest = why_not_triton(*args, tensors["decay"], chunk_size=4, rest=tensors["weights"])
    assert rest == "`rest` is given, the kernels decay to zero"
    cpu = [t.cpu() if isinstance(t, torch.Tensor) else t for t in args]
    assert choose_backend("auto", *cpu, tensors["decay"], 4) == "torch"  # an interpreter is never taken unasked
    assert choose_backend("auto", *args, tensors["decay"], 4) == ("triton" if GPU else "torch")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert why_not_triton(*cpu, tensors["decay"], chunk_size=4) == "the tensors are on cpu, Triton needs a CUDA device"


def test_tensors_on_several_devices_are_refused():
    tensors = problem((4, 4), 5)
    tensors["weights"] = [torch.empty_like(w, device="meta") for w in tensors["weights"]]
    with pytest.raises(ValueError, match=r"`weights\[0\]` must be on the device of `q`, .* on meta"):
        call(tensors, chunk_size=4, backend="triton")


def test_a_cpu_never_loads_triton():
    code = (
        f"import sys; sys.path.insert(0, {str(BENCHMARKS)!r}); import bare; bare.load_kernels()\n"
        "sys.modules['triton'] = None; import torch\n"
        "from pyro_memory.kernels import neural_memory\n"
        "x, g, w = torch.ones(1, 1, 3, 4), torch.ones(1, 1, 3) / 9, torch.ones(1, 1, 4, 4)\n"
        "neural_memory(x, x, x, (w,), g, g, g, chunk_size=2)\n"
    )
    env = {n: v for n, v in os.environ.items() if n != "TRITON_INTERPRET"} | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=120)
    assert done.returncode == 0, done.stderr
