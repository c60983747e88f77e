"""The Triton kernels of the neural memory against the token rule: on a GPU, or in Triton's interpreter without one."""

import itertools
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from kernels_cases import inputs
from kernels_cases import with_gradients as stable_gradients
from kernels_cost import Case
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from pyro_memory.kernels import memory_surprise, neural_memory, why_not_triton
from pyro_memory.kernels.dispatch import choose_backend

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
STATE = ("weights", "momentum_state")
LONG = 64  # tokens: these memories amplify, and over more of them rounding alone separates two right computations
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture(autouse=True)
def watched_memory(monkeypatch):
    """Poisons torch.empty; without a GPU interprets the kernels, and watches what they do to memory."""
    torch.manual_seed(0)
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    if GPU:
        yield
    else:
        monkeypatch.setenv("TRITON_INTERPRET", "1")
        from kernel_memory import watched

        with watched(monkeypatch):
            yield
    torch.use_deterministic_algorithms(before)


@pytest.fixture(autouse=GPU)
def first_configuration():
    """That fits: tuning would compile them all."""
    from kernels_cases import first_that_fits

    with first_that_fits():
        yield


def problem(widths, time, *, batch=1, heads=2, norm=False, dtype=torch.float64):
    """Tensors of one call: random weights, gates that matter."""
    shapes = [(batch, heads, a, b) for a, b in itertools.pairwise(widths)]
    lead, depth = (batch, heads, time), len(shapes)
    tensors = {"q": [torch.randn(*lead, widths[0])], "k": [torch.randn(*lead, widths[0]) / widths[0] ** 0.5]}
    tensors["v"] = [torch.randn(*lead, widths[-1])]
    tensors["weights"] = [torch.randn(s) / s[2] ** 0.5 for s in shapes]
    tensors["momentum_state"] = [0.1 * torch.randn(s) / s[2] ** 0.5 for s in shapes]
    tensors["lr"] = [0.05 * torch.rand(lead) for _ in range(depth)]
    tensors["momentum"] = [torch.rand(lead) for _ in range(depth)]
    tensors["decay"] = [0.2 * torch.rand(lead) for _ in range(depth)]
    if norm:
        tensors["norm_weight"] = [1 + 0.3 * torch.randn(heads, widths[-1])]
        tensors["norm_bias"] = [0.3 * torch.randn(heads, widths[-1])]
    return {name: [t.to(DEVICE, dtype) for t in group] for name, group in tensors.items()}


def call(tensors, **options):
    """Runs it; all outputs in a row."""
    args = {n: tuple(group) if n in STATE or len(group) > 1 else group[0] for n, group in tensors.items()}
    y, weights, momentum_state = neural_memory(**args, residual_norm="norm_weight" in tensors, **options)
    return [y, *weights, *momentum_state]


def with_gradients(tensors, **options):
    """Outputs, and the gradients of a random sum of them in every tensor that went in."""
    tensors = {name: [t.clone().requires_grad_() for t in group] for name, group in tensors.items()}
    outputs = call(tensors, **options)
    generator = torch.Generator().manual_seed(1)
    loss = sum((t * torch.randn(t.shape, generator=generator).to(t)).sum() for t in outputs)
    gradients = torch.autograd.grad(loss, [t for group in tensors.values() for t in group])
    return [*(t.detach() for t in outputs), *gradients]


def skip_what_does_not_fit(tensors, chunk_size):
    """In the shared memory of a smaller GPU."""
    q, v, weights, decay = (tensors[name] for name in ("q", "v", "weights", "decay"))
    reason = why_not_triton(q[0], v[0], weights, decay, chunk_size=chunk_size)
    if reason is not None and "shared memory" in reason:
        pytest.skip(reason)


def assert_follows_the_rule(tensors, **options):
    skip_what_does_not_fit(tensors, options["chunk_size"])
    rule = {n: o for n, o in options.items() if n != "checkpoint_chunks"}
    for actual, expected in zip(
        with_gradients(tensors, backend="triton", **options),
        with_gradients(tensors, backend="reference", **rule),
        strict=True,
    ):
        assert_close(actual, expected, rtol=1e-9, atol=1e-10)


# --- against the token rule: values, states, gradients


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize(
    ("widths", "time", "chunk_size", "activation"),
    [
        ((16, 16), 23, 16, "gelu"),
        ((20, 20), 9, 5, "gelu"),
        ((16, 16, 16), 23, 16, "gelu"),
        ((16, 32, 16), 17, 16, "silu"),
        ((20, 80, 20), 9, 5, "gelu"),
        *([((d, e * d, d), LONG, 32, "gelu") for d in (16, 64) for e in (1, 4)] if GPU else []),
        *([((d, d), LONG, c, "gelu") for d in (16, 48, 64) for c in (16, 32)] if GPU else []),
    ],
)
def test_values_states_and_gradients_are_those_of_the_token_rule(widths, time, chunk_size, activation, norm):
    assert_follows_the_rule(problem(widths, time, norm=norm), chunk_size=chunk_size, activation=activation)


@pytest.mark.skipif(GPU, reason="in float64 these do not fit a GPU")
@pytest.mark.parametrize("chunk_size", [32, 64])
def test_wide_heads_and_long_chunks_follow_the_rule(chunk_size):
    assert_follows_the_rule(problem((128, 128), 40, heads=1, norm=True), chunk_size=chunk_size)
    assert_follows_the_rule(problem((33, 64, 48), 40, heads=1), chunk_size=chunk_size)


@pytest.mark.parametrize("widths", [(16, 16), (16, 24, 16)])
def test_every_sequence_has_its_length_and_every_head_its_norm(widths):
    tensors = problem(widths, 10, batch=2, norm=True)
    lengths = torch.tensor([7, 0], device=DEVICE)
    assert_follows_the_rule(tensors, chunk_size=8, lengths=lengths)
    clean = call(tensors, chunk_size=8, lengths=lengths, backend="triton")
    for name in "qkv":
        tensors[name][0][0, :, 7:] = torch.nan
    for actual, expected in zip(call(tensors, chunk_size=8, lengths=lengths, backend="triton"), clean, strict=True):
        assert_close(actual, expected, rtol=0, atol=0)


@pytest.mark.parametrize("norm", [False, True])
def test_hidden_units_in_tiles_give_the_same(norm, monkeypatch):
    from pyro_memory.kernels import triton_launch

    monkeypatch.setattr(triton_launch, "RESIDENT_BYTES", 0)
    assert_follows_the_rule(problem((16, 70, 16), 20, heads=1, norm=norm), chunk_size=16)


@pytest.mark.parametrize("widths", [(16, 16), (16, 24, 16)])
def test_states_computed_again_in_the_backward_pass_give_the_same(widths):
    tensors = problem(widths, 11, heads=1, norm=True)
    lengths = torch.tensor([10], device=DEVICE)
    assert_follows_the_rule(tensors, chunk_size=4, lengths=lengths, checkpoint_chunks=2)


def at_the_ends(gate):
    """Zeros, ones and values in between, in any order."""
    kind = torch.randint(3, gate.shape, device=gate.device)
    return torch.where(kind == 0, 0.0, torch.where(kind == 1, 1.0, gate))


@pytest.mark.parametrize("gates", [at_the_ends, lambda g: torch.full_like(g, 1e-30)])
def test_gates_of_zero_and_one_and_long_products_stay_right(gates):
    tensors = problem((16, 16), 20, heads=1, norm=True)
    for name in ("momentum", "decay"):
        tensors[name] = [gates(t) for t in tensors[name]]
    assert_follows_the_rule(tensors, chunk_size=16)
    single = {name: [t.float() for t in group] for name, group in tensors.items()}
    assert all(t.isfinite().all() for t in with_gradients(single, chunk_size=16, backend="triton"))


def test_what_went_before_in_a_chunk_costs_later_gates_no_digits():
    """Gates of 1e-4 and then of 0.9: sums of their logarithms are long, differences of these short."""
    tensors = problem((16, 16), 32, heads=1)
    for name, small, usual in (("momentum", 1e-4, 0.9), ("decay", 1 - 1e-4, 0.1)):
        tensors[name] = [torch.where(torch.arange(32, device=DEVICE) < 16, small, usual).expand_as(tensors[name][0])]
    truth = with_gradients(tensors, chunk_size=32, backend="reference")
    single = {name: [t.float() for t in group] for name, group in tensors.items()}
    peers = with_gradients(single, chunk_size=32, backend="torch")
    actual = with_gradients(single, chunk_size=32, backend="triton")
    for value, peer, exact in zip(actual, peers, truth, strict=True):
        assert_no_worse(value, [peer], exact)


@pytest.mark.parametrize("widths", [(3, 2), (3, 4, 2), (3, 4, 3)])
def test_gradients_pass_gradcheck(widths):
    tensors = problem(widths, 4, heads=1, norm=widths[0] == widths[-1])
    names = [name for name, group in tensors.items() for _ in group]

    def f(*inputs):
        again = {name: [t for n, t in zip(names, inputs, strict=True) if n == name] for name in tensors}
        return torch.cat([t.flatten() for t in call(again, chunk_size=3, backend="triton")])

    flat = [t.requires_grad_() for group in tensors.values() for t in group]
    assert torch.autograd.gradcheck(f, flat, fast_mode=True)


# --- precisions


def assert_no_worse(actual, peers, truth, factor=2.0):
    """At most ``factor`` times as wrong, root mean square, as PyTorch in this dtype; ``truth`` is float64."""
    assert actual.isfinite().all()
    error, *allowed = ((t.double() - truth).square().mean().sqrt() for t in (actual, *peers))
    assert error <= factor * max(allowed) + torch.finfo(peers[0].dtype).eps * truth.square().mean().sqrt()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("widths", "chunk_size"),
    [
        ((16, 16), 16),
        ((16, 32, 16), 16),
        *([((d, e * d, d) if e else (d, d), c) for d in (64, 128) for e in (0, 1, 4) for c in (16, 32)] if GPU else []),
        *([((64, 64), 64), ((64, 64, 64), 64)] if GPU else []),
    ],
)
def test_each_precision_is_at_most_twice_as_wrong_as_pytorch_in_it(widths, chunk_size, dtype):
    from pyro_memory.kernels import reference

    tensors = problem(widths, LONG if GPU else 24, norm=True, dtype=dtype)
    skip_what_does_not_fit(tensors, chunk_size)
    chunks = {"chunk_size": chunk_size}
    truth = with_gradients({n: [t.double() for t in g] for n, g in tensors.items()}, **chunks, backend="reference")

    def in_its_dtype(tensors, **options):
        tensors = {name: [t.clone().requires_grad_() for t in group] for name, group in tensors.items()}
        norms = {name: tensors[name][0] for name in ("norm_weight", "norm_bias")}
        args = [tensors[name][0] for name in "qkv"]
        args += [tuple(tensors[name]) for name in ("weights", "momentum_state", "lr", "momentum", "decay")]
        y, weights, momenta = reference.token_rule(*args, residual_norm=True, **norms, **options)
        outputs = [y, *weights, *momenta]
        generator = torch.Generator().manual_seed(1)
        loss = sum((t.float() * torch.randn(t.shape, generator=generator).to(t.device)).sum() for t in outputs)
        gradients = torch.autograd.grad(loss, [t for group in tensors.values() for t in group])
        return [*(t.detach() for t in outputs), *gradients]

    actual = with_gradients(tensors, **chunks, backend="triton")
    peers = [in_its_dtype(tensors, **chunks)]
    if dtype == torch.float32:  # half precision is computed in float32 by the chunk form
        peers.append(with_gradients(tensors, **chunks, backend="torch"))
    for value, exact, *others in zip(actual, truth, *peers, strict=True):
        assert_no_worse(value, others, exact)
    assert actual[0].dtype == dtype
    assert actual[1].dtype == torch.float32


def test_autocast_and_mixed_precisions_change_nothing():
    tensors = problem((16, 16), 9, dtype=torch.float32)
    expected = call(tensors, chunk_size=8, backend="triton")
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        for actual, wanted in zip(call(tensors, chunk_size=8, backend="triton"), expected, strict=True):
            assert_close(actual, wanted, rtol=0, atol=0)
    tensors["q"] = [tensors["q"][0].bfloat16()]
    wanted = call(tensors, chunk_size=8, backend="torch")
    for actual, other in zip(call(tensors, chunk_size=8, backend="triton"), wanted, strict=True):
        assert_close(actual, other)
        assert actual.dtype == other.dtype


# --- cuts, layouts, repetition


@pytest.mark.parametrize("widths", [(16, 16), (16, 24, 16)])
def test_a_cut_on_a_chunk_boundary_resumes_exactly(widths):
    tensors = problem(widths, 23, norm=True)
    whole = call(tensors, chunk_size=8, backend="triton")
    per_token = ("q", "k", "v", "lr", "momentum", "decay")

    def part(where, state):
        return tensors | state | {n: [t[:, :, where] for t in tensors[n]] for n in per_token}

    depth = len(widths) - 1
    first = call(part(slice(16), {}), chunk_size=8, backend="triton")
    state = {"weights": first[1 : depth + 1], "momentum_state": first[depth + 1 :]}
    second = call(part(slice(16, None), state), chunk_size=8, backend="triton")
    for actual, expected in zip([torch.cat([first[0], second[0]], 2), *second[1:]], whole, strict=True):
        assert_close(actual, expected)


def test_strided_tensors_and_shared_weights_are_taken():
    tensors = problem((16, 24, 16), 9, batch=2)
    plain = call(tensors, chunk_size=8, backend="triton")
    strided = tensors | {n: [t.transpose(1, 2).contiguous().transpose(1, 2) for t in tensors[n]] for n in "qkv"}
    for actual, expected in zip(call(strided, chunk_size=8, backend="triton"), plain, strict=True):
        assert_close(actual, expected, rtol=0, atol=0)
    shared = tensors | {"weights": [w[0] for w in tensors["weights"]]}
    assert_follows_the_rule(shared, chunk_size=8)


def test_an_empty_batch_gives_an_empty_answer():
    tensors = problem((16, 24, 16), 9)
    empty = {name: [t[:0] for t in group] for name, group in tensors.items()}
    outputs = with_gradients(empty, chunk_size=8, backend="triton")
    assert outputs[0].shape == (0, 2, 9, 16)
    assert all(t.numel() == 0 for t in outputs)


@pytest.mark.parametrize("expansion", [0, 1, *([4] if GPU else [])])
def test_the_same_inputs_give_the_same_bits(expansion):
    case = Case(64, expansion, 64, 2048, 64, 2) if GPU else Case(16, expansion, 8, 12, 1, 2)
    arguments = inputs(case, DEVICE)
    first = sum(stable_gradients(case, arguments, "triton"), [])  # noqa: RUF017
    assert all(t.isfinite().all() for t in first)
    for _ in range(20 if GPU else 1):
        again = sum(stable_gradients(case, arguments, "triton"), [])  # noqa: RUF017
        assert all(torch.equal(a, b) for a, b in zip(again, first, strict=True))


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("widths", [(16, 16), (20, 20), (16, 24, 16), (20, 70, 20)])
@pytest.mark.parametrize("activation", ["gelu", "silu"])
def test_tokens_one_by_one_are_the_online_rule(widths, norm, activation, monkeypatch):
    from pyro_memory.kernels import triton_launch

    tensors = problem(widths, 3, norm=norm)
    whole = call(tensors, chunk_size=1, activation=activation, backend="reference")
    monkeypatch.setattr(triton_launch, "forward", None)  # no kernel of chunks runs
    depth, parts, state = len(widths) - 1, [], {}
    for t in range(3):
        token = {n: [x[:, :, t : t + 1] for x in tensors[n]] for n in ("q", "k", "v", "lr", "momentum", "decay")}
        with torch.no_grad():
            y, *rest = call(tensors | state | token, chunk_size=16, activation=activation, backend="triton")
        parts.append(y)
        state = {"weights": rest[:depth], "momentum_state": rest[depth:]}
    for actual, expected in zip([torch.cat(parts, 2), *rest], whole, strict=True):
        assert_close(actual, expected)


# --- nothing is read back from the device


class NothingReadBack(TorchDispatchMode):
    """Raises where a number of a tensor is asked for: on a GPU the call waits there, and no graph can hold it."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        assert name not in ("_local_scalar_dense", "nonzero", "masked_select"), f"{name} waits for the device"
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("widths", [(16, 16), (16, 24, 16)])
def test_no_call_waits_for_the_device(widths, monkeypatch):
    tensors = problem(widths, 9, batch=2, norm=True)
    lengths = torch.tensor([7, 3], device=DEVICE)

    def refuse(*args):
        raise AssertionError("a list of numbers waits for the device")

    monkeypatch.setattr(torch.Tensor, "tolist", refuse)
    for options in ({}, {"lengths": lengths}, {"checkpoint_chunks": 2}):
        with NothingReadBack():
            with_gradients(tensors, chunk_size=4, backend="triton", check_values=False, **options)
    with pytest.raises(AssertionError, match="waits for the device"), NothingReadBack():
        call(tensors, chunk_size=4, backend="triton", check_values=True)


def test_only_on_a_cpu_are_values_looked_at_unasked():
    from pyro_memory.kernels.memory import _checked

    x, ones, weights = torch.ones(1, 2, 5, 4), torch.ones(1, 2, 5), (torch.ones(2, 4, 4),)
    gates = (ones, ones, 2 * ones)
    with pytest.raises(ValueError, match=r"`decay` must be in \[0, 1\]"):
        neural_memory(x, x, x, weights, *gates, chunk_size=2)
    assert neural_memory(x, x, x, weights, *gates, chunk_size=2, check_values=False)[0].shape == x.shape
    assert memory_surprise(x, x, weights, *gates, chunk_size=2, check_values=False)[0].shape == (1, 2, 5, 2)
    elsewhere = (
        x.to("meta"),
        (weights[0].to("meta"),),
        [g.to("meta") for g in gates],
        torch.ones(1, device="meta").long(),
    )
    tokens, layers, others, lengths = elsewhere  # where a value cannot be looked at
    _checked((tokens, tokens), layers, None, others, chunk_size=2, lengths=lengths)


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
    from pyro_memory.kernels import triton_launch

    gpu = SimpleNamespace(is_cuda=True, device=0)
    properties = SimpleNamespace(multi_processor_count=100)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    waves = [triton_launch._common(gpu, rows)["wave"] for rows in (0, 1, 100, 101, 200, 201, 400, 401, 10**6)]
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


def test_what_compiling_showed_to_be_useless_is_not_among_the_configurations():
    single = launches(problem((64, 64, 64), 70, heads=1, dtype=torch.float32), chunk_size=64)
    assert {tile for tile, *_ in single["deep_backward"]} == {32}
    assert {tile for tile, *_ in launches(problem((64, 64, 64), 70, heads=1), chunk_size=32)["deep_backward"]} == {
        32,
        64,
    }
    narrow = launches(problem((64, 256, 64), 20, heads=1, dtype=torch.bfloat16), chunk_size=16)
    assert {tile for tile, *_ in narrow["deep_forward"]} == {32}
    assert {tile for tile, *_ in narrow["deep_backward"]} == {32, 64}
    assert {warps for _, warps, _ in launches(problem((32, 128, 32), 20, heads=1), chunk_size=16)["deep_backward"]} == {
        4
    }
    linear = launches(problem((64, 64), 20, heads=1), chunk_size=16)
    assert {stages for *_, stages in linear["linear_backward"]} == {1, 2, 3}
    assert {warps for _, warps, _ in linear["gates_forward"]} == {1, 2, 4, 8}
    assert all(0 < len(group) <= 4 for found in (single, narrow, linear) for group in found.values())


def test_a_kernel_that_reloads_what_it_stored_takes_no_loads_ahead(monkeypatch):
    from pyro_memory.kernels import triton_launch

    tensors = problem((16, 24, 16), 9)
    monkeypatch.setattr(triton_launch, "_configurations", lambda *args: ((32, 4, 2),))
    with pytest.raises(RuntimeError, match="loads ahead would pass the stores they need"):
        with_gradients(tensors, chunk_size=8, backend="triton")


# --- as an operator of torch


def test_the_operators_pass_opcheck():
    from pyro_memory.kernels.memory_triton import memory_backward, memory_forward

    def tensors(*shape, **options):
        return torch.randn(*shape, device=DEVICE, dtype=torch.float64, **options)

    for widths in ([4, 3], [4, 6, 4]):
        n = 2 * sum(a * b for a, b in itertools.pairwise(widths))
        norm = tensors(1, 2, 4, requires_grad=True) if widths[0] == widths[-1] else None
        gates = torch.rand(1, 3 * len(widths[1:]), 3, device=DEVICE, dtype=torch.float64)
        tokens = [tensors(1, 3, widths[i], requires_grad=True) for i in (0, 0, -1)]
        state = tensors(1, n, requires_grad=True)
        arguments = (*tokens, gates.requires_grad_(), norm, None, state, widths, 3, "gelu", 1)
        torch.library.opcheck(memory_forward, arguments)
        detached = [t.detach() if isinstance(t, torch.Tensor) else t for t in arguments]
        kept = memory_forward(*detached)[2]
        backward = (tensors(1, 3, widths[-1]), tensors(1, n), *detached[:6], kept, widths, 3, "gelu", 1)
        torch.library.opcheck(memory_backward, backward, test_utils=("test_schema", "test_faketensor"))


def test_a_second_derivative_is_refused():
    tensors = problem((4, 4), 3)
    q = tensors["q"][0].requires_grad_()
    y = call(tensors, chunk_size=2, backend="triton")[0]
    (dq,) = torch.autograd.grad(y.square().sum(), q, create_graph=True)
    with pytest.raises((RuntimeError, NotImplementedError), match="no autograd formula was registered"):
        dq.square().sum().backward()


def test_it_compiles_without_a_break():
    tensors = problem((16, 24, 16), 9, dtype=torch.float32)

    def forward(q, scale):
        return call(tensors | {"q": [q * scale]}, chunk_size=8, backend="triton")

    q = tensors["q"][0]
    compiled = torch.compile(forward, backend="aot_eager", fullgraph=True)
    for actual, expected in zip(compiled(q, 2.0), forward(q, 2.0), strict=True):
        assert_close(actual, expected)
    leaf, other = (q.clone().requires_grad_() for _ in range(2))
    compiled(leaf, 2.0)[0].sum().backward()
    forward(other, 2.0)[0].sum().backward()
    assert_close(leaf.grad, other.grad)


# --- the choice of a backend, and misuse


@pytest.mark.parametrize(
    ("widths", "options", "reason"),
    [
        ((4, 5, 5, 4), {}, "the memory has 3 layers, the kernels have 1 or 2"),
        ((130, 4), {}, "keys of 130 and values of 4 dimensions, the kernels take 128 at most"),
        ((4, 513, 4), {}, "513 hidden units, the kernels take 512 at most"),
        ((4, 4), {"chunk_size": 65}, "`chunk_size` is 65, the kernels take 64 at most"),
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
    cpu = [t.cpu() if isinstance(t, torch.Tensor) else t for t in args]
    assert choose_backend("auto", *cpu, tensors["decay"], 4) == "torch"  # an interpreter is never taken unasked
    assert choose_backend("auto", *args, tensors["decay"], 4) == ("triton" if GPU else "torch")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert why_not_triton(*cpu, tensors["decay"], chunk_size=4) == "the tensors are on cpu, Triton needs a CUDA device"


def test_tensors_on_several_devices_are_refused():
    tensors = problem((4, 4), 5)
    tensors["weights"] = [torch.empty_like(w, device="meta") for w in tensors["weights"]]
    with pytest.raises(ValueError, match=r"`weights` must be on the device of `q`, .*; got meta"):
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
