"""The Triton kernels of the neural memory against the token rule: on a GPU, or in Triton's interpreter without one."""

import itertools

import pytest
import torch
from kernels_cases import inputs
from kernels_cases import with_gradients as stable_gradients
from kernels_cost import Case
from memory_calls import (  # noqa: F401
    DEVICE,
    GPU,
    assert_follows_the_rule,
    assert_no_worse,
    call,
    first_configuration,
    problem,
    skip_what_does_not_fit,
    watched_memory,
    with_gradients,
)
from torch.testing import assert_close

from pyro_memory.kernels.memory import plan
from pyro_memory.kernels.memory.definition import token_rule

LONG = 64  # tokens: these memories amplify, and over more of them rounding alone separates two right computations
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


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
    from pyro_memory.kernels.memory import triton_launch

    monkeypatch.setattr(triton_launch, "RESIDENT_BYTES", 0)
    monkeypatch.setattr(plan, "SPLIT", dict.fromkeys(plan.SPLIT, 0))
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
    tensors = problem(widths, LONG if GPU else 24, norm=True, dtype=dtype)
    skip_what_does_not_fit(tensors, chunk_size)
    chunks = {"chunk_size": chunk_size}
    truth = with_gradients({n: [t.double() for t in g] for n, g in tensors.items()}, **chunks, backend="reference")

    def in_its_dtype(tensors, **options):
        tensors = {name: [t.clone().requires_grad_() for t in group] for name, group in tensors.items()}
        norms = {name: tensors[name][0] for name in ("norm_weight", "norm_bias")}
        args = [tensors[name][0] for name in "qkv"]
        args += [tuple(tensors[name]) for name in ("weights", "momentum_state", "lr", "momentum", "decay")]
        y, weights, momenta, *_ = token_rule(*args, residual_norm=True, **norms, **options)
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
def test_tokens_one_by_one_go_on_in_the_open_chunk(widths, norm, activation, monkeypatch):
    from pyro_memory.kernels.memory import triton_passes

    tensors = problem(widths, 3, norm=norm, batch=2)
    position = torch.tensor([0, 1], device=DEVICE)  # of chunks of two: one ends at each token
    options = {"chunk_size": 2, "activation": activation}
    anchor = [w + 0.1 * torch.randn_like(w) for w in tensors["weights"]]
    whole = call(tensors | {"anchor": anchor}, position=position, backend="reference", **options)
    monkeypatch.setattr(triton_passes, "forward", None)  # no kernel of chunks runs
    depth, parts, state = len(widths) - 1, [], {"anchor": anchor}
    for t in range(3):
        token = {n: [x[:, :, t : t + 1] for x in tensors[n]] for n in ("q", "k", "v", "lr", "momentum", "decay")}
        with torch.no_grad():
            y, *rest, position = call(tensors | state | token, position=position, backend="triton", **options)
        parts.append(y)
        state = {"weights": rest[:depth], "momentum_state": rest[depth : 2 * depth], "anchor": rest[2 * depth :]}
    for actual, expected in zip([torch.cat(parts, 2), *rest, position], whole, strict=True):
        assert_close(actual, expected)


def test_pieces_that_begin_and_end_inside_chunks_are_the_whole():
    tensors = problem((4, 4), 7, batch=2, norm=True)
    tensors["anchor"] = [w + 0.1 * torch.randn_like(w) for w in tensors["weights"]]
    position, lengths = torch.tensor([1, 0], device=DEVICE), torch.tensor([7, 5], device=DEVICE)
    options = {"chunk_size": 3, "position": position, "lengths": lengths}
    actual, expected = (with_gradients(tensors, backend=backend, **options) for backend in ("triton", "reference"))
    for one, other in zip(actual, expected, strict=True):
        assert_close(one, other)


# --- as an operator of torch


def test_the_operators_pass_opcheck():
    from pyro_memory.kernels.memory.triton_form import memory_backward, memory_forward

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
