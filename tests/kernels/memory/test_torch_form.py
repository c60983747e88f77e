"""The chunk form against the token rule, the token rule against a loop of its own, and what both refuse."""

import itertools
import math

import pytest
import torch
from memory_calls import STATE, call, with_gradients
from torch.testing import assert_close

from pyro_memory.kernels import apply_memory, memory_surprise, neural_memory
from pyro_memory.kernels.memory.arguments import prepared

BATCH, HEADS, TIME, WIDTH, HIDDEN = 2, 2, 23, 4, 6


def problem(depth=2, *, time=TIME, per_layer=True, channels=False, norm=False, gates=None, dtype=torch.float64):
    """Tensors of one call: random weights, gates that matter. ``gates`` changes each momentum and decay."""
    widths = [WIDTH, *[HIDDEN] * (depth - 1), WIDTH]
    shapes = [(BATCH, HEADS, a, b) for a, b in itertools.pairwise(widths)]
    lead = (BATCH, HEADS, time)
    n = depth if per_layer else 1
    tensors = {name: [torch.randn(*lead, WIDTH)] for name in "qkv"}
    tensors["weights"] = [torch.randn(s) / s[2] ** 0.5 for s in shapes]
    tensors["momentum_state"] = [0.1 * torch.randn(s) for s in shapes]
    tensors["lr"] = [0.05 * torch.rand(lead) for _ in range(n)]
    tensors["momentum"] = [torch.rand(lead) for _ in range(n)]
    tensors["decay"] = [0.2 * torch.rand(*lead, *([widths[i + 1]] if channels else [])) for i in range(n)]
    for name in ("momentum", "decay") if gates is not None else ():
        tensors[name] = [gates(t) for t in tensors[name]]
    if norm:
        tensors["norm_weight"] = [1 + 0.3 * torch.randn(HEADS, WIDTH)]
        tensors["norm_bias"] = [0.3 * torch.randn(HEADS, WIDTH)]
    return {name: [t.to(dtype) for t in group] for name, group in tensors.items()}


def cut_tokens(tensors, where):
    return tensors | {n: [t[:, :, where] for t in tensors[n]] for n in ("q", "k", "v", "lr", "momentum", "decay")}


def assert_backends_agree(tensors, **options):
    for actual, expected in zip(
        with_gradients(tensors, backend="torch", **options),
        with_gradients(tensors, backend="reference", **options),
        strict=True,
    ):
        assert_close(actual, expected, rtol=1e-9, atol=1e-10)


# --- the specification


@pytest.mark.parametrize("activation", ["gelu", "silu"])
@pytest.mark.parametrize("norm", [False, True])
def test_the_token_rule_is_the_papers_update_written_out_for_one_sequence(activation, norm):
    tensors = problem(2, norm=norm, time=7)
    y, W1, W2, S1, S2 = call(tensors, chunk_size=3, backend="reference", activation=activation)

    def memory(w1, w2, x):
        z = x @ w1
        z = z * 0.5 * (1 + torch.erf(z / math.sqrt(2))) if activation == "gelu" else z / (1 + torch.exp(-z))
        z = z @ w2
        if norm:
            z = (z - z.mean()) / torch.sqrt(z.var(unbiased=False) + 1e-5)
            z = x + z * tensors["norm_weight"][0][h] + tensors["norm_bias"][0][h]
        return z

    for b, h in itertools.product(range(BATCH), range(HEADS)):
        W = [w[b, h].clone() for w in tensors["weights"]]
        S = [s[b, h].clone() for s in tensors["momentum_state"]]
        for t in range(7):
            if t % 3 == 0:
                start = [w.clone().requires_grad_() for w in W]
            loss = torch.linalg.vector_norm(memory(*start, tensors["k"][0][b, h, t]) - tensors["v"][0][b, h, t]) ** 2
            gradients = torch.autograd.grad(loss, start)
            for i in range(2):
                theta, eta, alpha = (tensors[name][i][b, h, t] for name in ("lr", "momentum", "decay"))
                S[i] = eta * S[i] - theta * gradients[i]
                W[i] = (1 - alpha) * W[i] + S[i]
            assert_close(y[b, h, t], memory(*W, tensors["q"][0][b, h, t]))
        for actual, expected in zip((W1, W2, S1, S2), (*W, *S), strict=True):
            assert_close(actual[b, h], expected)


def test_one_token_written_to_a_linear_memory_is_a_closed_form():
    k, v = torch.tensor([1.0, 0.0]), torch.tensor([3.0, 5.0])
    tokens = [x.view(1, 1, 1, 2) for x in (k, k, v)]
    gates = [torch.full((1, 1, 1), x) for x in (0.25, 0.0, 0.0)]
    for backend in ("reference", "torch"):
        y, (W,), (S,) = neural_memory(*tokens, (torch.zeros(1, 1, 2, 2),), *gates, chunk_size=1, backend=backend)
        assert_close(y.flatten(), 0.5 * v)  # W = -theta grad = 2 theta k^T v
        assert_close(W, S)
        assert_close(W[0, 0], torch.stack([0.5 * v, torch.zeros(2)]))


# --- the chunk form is the token rule


@pytest.mark.parametrize("chunk_size", [1, 7, 16, 64])
@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("norm", [False, True])
def test_values_states_and_gradients_are_those_of_the_token_rule(depth, chunk_size, norm):
    for activation in ("gelu", "silu") if depth > 1 else ("gelu",):
        assert_backends_agree(problem(depth, norm=norm), chunk_size=chunk_size, activation=activation)


@pytest.mark.parametrize("chunk_size", [1, 7, 64])
@pytest.mark.parametrize("depth", [1, 3])
def test_decay_may_lead_to_other_weights_than_zero_and_ln_may_have_its_own_eps(depth, chunk_size):
    tensors = problem(depth, norm=True, channels=depth == 3)
    tensors["rest"] = [torch.randn_like(w) for w in tensors["weights"]]
    assert_backends_agree(tensors, chunk_size=chunk_size, norm_eps=0.5)
    kept = with_gradients(tensors, chunk_size=chunk_size)
    for actual, expected in zip(with_gradients(tensors, chunk_size=chunk_size, checkpoint_chunks=2), kept, strict=True):
        assert_close(actual, expected)


def test_what_is_decayed_whole_is_what_decay_leads_to():
    tensors = problem(3, norm=True)
    rest = [torch.randn_like(w) for w in tensors["weights"]]
    quiet = tensors | {"decay": [torch.ones_like(t) for t in tensors["decay"]]}
    quiet |= {name: [torch.zeros_like(t) for t in tensors[name]] for name in ("lr", "momentum")}
    for backend in ("torch", "reference"):
        y, *states = call(quiet | {"rest": rest}, chunk_size=7, backend=backend)
        for actual, expected in zip(states[:3], rest, strict=True):
            assert_close(actual, expected)
        norm = {name: tensors[name][0] for name in ("norm_weight", "norm_bias")}
        assert_close(y, apply_memory(rest, tensors["q"][0], residual_norm=True, **norm))


@pytest.mark.parametrize("channels", [False, True])
def test_gates_may_be_shared_by_the_layers_and_decay_may_be_by_channel(channels):
    assert_backends_agree(problem(2, channels=channels, norm=True), chunk_size=7)
    if not channels:
        assert_backends_agree(problem(2, per_layer=False, norm=True), chunk_size=7)


def at_the_ends(gate):
    """Zeros, ones and values in between, in any order."""
    kind = torch.randint(3, gate.shape)
    return torch.where(kind == 0, 0.0, torch.where(kind == 1, 1.0, gate))


@pytest.mark.parametrize("channels", [False, True])
def test_gates_of_exactly_zero_and_one_keep_values_and_gradients_right(channels):
    assert_backends_agree(problem(2, channels=channels, gates=at_the_ends, norm=True), chunk_size=7)


@pytest.mark.parametrize("value", [0.0, 1e-30, 1.0])
def test_long_products_of_small_or_full_gates_stay_right_and_finite(value):
    tensors = problem(2, gates=lambda g: torch.full_like(g, value), norm=True)
    assert_backends_agree(tensors, chunk_size=64)
    single = {name: [t.float() for t in group] for name, group in tensors.items()}
    assert all(t.isfinite().all() for t in with_gradients(single, chunk_size=64))


@pytest.mark.parametrize("checkpoint_chunks", [1, 2, 3])
def test_recomputing_chunks_changes_nothing(checkpoint_chunks):
    tensors = problem(2, norm=True)
    kept = with_gradients(tensors, chunk_size=4)
    for actual, expected in zip(
        with_gradients(tensors, chunk_size=4, checkpoint_chunks=checkpoint_chunks), kept, strict=True
    ):
        assert_close(actual, expected)


@pytest.mark.parametrize("chunk_size", [4, 64])
@pytest.mark.parametrize("checkpoint_chunks", [None, 2])
def test_without_the_last_state_reads_and_their_gradients_are_the_same(chunk_size, checkpoint_chunks):
    tensors = {name: [t.requires_grad_() for t in group] for name, group in problem(2, norm=True).items()}
    inputs = [t for group in tensors.values() for t in group]
    options = {"chunk_size": chunk_size, "residual_norm": True, "checkpoint_chunks": checkpoint_chunks}
    arguments = {n: tuple(group) if len(group) > 1 else group[0] for n, group in tensors.items()}
    alone, *nothing = neural_memory(**arguments, **options, return_state=False)
    assert nothing == [None, None]
    y, *_ = neural_memory(**arguments, **options)
    assert_close(alone, y, rtol=0, atol=0)
    pairs = zip(*(torch.autograd.grad(t.sin().sum(), inputs) for t in (alone, y)), strict=True)
    for actual, expected in pairs:
        assert_close(actual, expected)
    with torch.no_grad():
        assert_close(neural_memory(**arguments, **options, return_state=False)[0], y, rtol=0, atol=0)


def test_a_graph_may_be_walked_twice():
    tensors = {name: [t.requires_grad_() for t in group] for name, group in problem(2, norm=True).items()}
    inputs = [t for group in tensors.values() for t in group]
    loss = sum(t.square().sum() for t in call(tensors, chunk_size=7))
    first = torch.autograd.grad(loss, inputs, retain_graph=True)
    for again, once in zip(torch.autograd.grad(loss, inputs), first, strict=True):
        assert_close(again, once, rtol=0, atol=0)


def test_gradients_pass_gradcheck():
    tensors = problem(2, time=5, norm=True)
    names = [name for name, group in tensors.items() for _ in group]
    flat = [t[:1, :1] if t.dim() > 2 else t[:1] for group in tensors.values() for t in group]

    def f(*inputs):
        again = {name: [t for n, t in zip(names, inputs, strict=True) if n == name] for name in tensors}
        return tuple(call(again, chunk_size=3, backend="torch"))

    assert torch.autograd.gradcheck(f, [t.clone().requires_grad_() for t in flat])


def test_single_precision_is_as_right_as_the_token_rule_in_it():
    tensors = problem(2, time=64, norm=True)
    truth = with_gradients(tensors, chunk_size=16)
    single = {name: [t.float() for t in group] for name, group in tensors.items()}
    peer = with_gradients(single, chunk_size=16, backend="reference")
    for actual, other, exact in zip(with_gradients(single, chunk_size=16), peer, truth, strict=True):
        error, allowed = ((t.double() - exact).norm() for t in (actual, other))
        assert error <= 2 * allowed + 4 * torch.finfo(torch.float32).eps * exact.norm()


# --- cuts, lengths, batches


@pytest.mark.parametrize("backend", ["torch", "reference"])
@pytest.mark.parametrize("cut", [7, 14, 21])
def test_a_cut_on_a_chunk_boundary_resumes_exactly(cut, backend):
    tensors = problem(2, norm=True)
    whole = call(tensors, chunk_size=7, backend=backend)
    first = call(cut_tokens(tensors, slice(cut)), chunk_size=7, backend=backend)
    state = {"weights": first[1:3], "momentum_state": first[3:]}
    second = call(cut_tokens(tensors, slice(cut, None)) | state, chunk_size=7, backend=backend)
    assert_close(torch.cat([first[0], second[0]], 2), whole[0])
    for actual, expected in zip(second[1:], whole[1:], strict=True):
        assert_close(actual, expected)


@pytest.mark.parametrize("lengths", [[23, 9], [0, 14], [1, 22]])
def test_with_lengths_each_sequence_is_as_if_it_were_alone(lengths):
    tensors = problem(2, norm=True)
    lengths = torch.tensor(lengths)
    assert_backends_agree(tensors, chunk_size=7, lengths=lengths)
    y, *state = call(tensors, chunk_size=7, lengths=lengths)
    for b, n in enumerate(lengths.tolist()):
        assert not y[b, :, n:].any()
        if not n:
            for actual, given in zip(state, (*tensors["weights"], *tensors["momentum_state"]), strict=True):
                assert_close(actual[b], given[b])
            continue
        alone = {name: [t[b : b + 1] for t in group] for name, group in tensors.items() if "norm" not in name}
        alone = {name: group if name in STATE else [t[:, :, :n] for t in group] for name, group in alone.items()}
        alone |= {name: tensors[name] for name in ("norm_weight", "norm_bias")}
        for actual, expected in zip((y[:, :, :n], *state), call(alone, chunk_size=7), strict=True):
            assert_close(actual[b], expected[0])


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_what_stands_past_a_sequences_length_is_ignored(backend):
    tensors = problem(2, norm=True)
    lengths = torch.tensor([23, 9])
    clean = with_gradients(tensors, chunk_size=7, lengths=lengths, backend=backend)
    for name in "qkv":
        tensors[name][0][1, :, 9:] = math.nan
    for actual, expected in zip(
        with_gradients(tensors, chunk_size=7, lengths=lengths, backend=backend), clean, strict=True
    ):
        assert_close(actual, expected)


def test_nothing_leaks_from_the_future_or_from_other_sequences_and_heads():
    tensors = problem(2, norm=True)
    y = call(tensors, chunk_size=7)[0]
    for name in ("q", "k", "v", "lr", "momentum", "decay"):
        changed = {n: [t.clone() for t in group] for n, group in tensors.items()}
        for t in changed[name]:
            t[1, 0, 10:] *= 0.5
        other = call(changed, chunk_size=7)[0]
        assert_close(other[0], y[0], rtol=0, atol=0)
        assert_close(other[1, 1], y[1, 1], rtol=0, atol=0)
        assert_close(other[1, 0, :10], y[1, 0, :10])
        assert (other[1, 0, 10:] - y[1, 0, 10:]).abs().amax(-1).min() > 1e-8


@pytest.mark.parametrize("norm", [False, True])
def test_surprise_is_the_inner_loss_and_the_norm_of_its_gradient(norm):
    tensors = problem(3, norm=norm)
    lengths = torch.tensor([23, 9])
    arguments = {n: tuple(group) if len(group) > 1 else group[0] for n, group in tensors.items() if n != "q"}
    options = {"chunk_size": 7, "residual_norm": norm, "lengths": lengths}
    surprise, weights, momentum_state = memory_surprise(**arguments, **options)
    for actual, expected in zip(
        (*weights, *momentum_state), call(tensors, chunk_size=7, lengths=lengths)[1:], strict=True
    ):
        assert_close(actual, expected)
    assert not surprise[1, :, 9:].any()
    before = call(cut_tokens(tensors, slice(7)), chunk_size=7)[
        1:4
    ]  # the weights that the second chunk's gradients are of
    start = [w.requires_grad_() for w in before]
    options = {name: tensors[name][0] for name in ("norm_weight", "norm_bias") if norm}
    out = apply_memory(start, tensors["k"][0][:, :, 8:9], residual_norm=norm, **options)
    losses = (out - tensors["v"][0][:, :, 8:9]).square().sum((2, 3))
    gradients = torch.autograd.grad(losses.sum(), start)
    assert_close(surprise[:, :, 8, 0], losses)
    assert_close(surprise[:, :, 8, 1], sum(g.square().sum((2, 3)) for g in gradients).sqrt())


def test_weights_without_a_batch_are_those_of_every_sequence():
    tensors = problem(2)
    shared = tensors | {"weights": [w[0] for w in tensors["weights"]]}
    spread = tensors | {"weights": [w[:1].expand_as(w) for w in tensors["weights"]]}
    for actual, expected in zip(call(shared, chunk_size=7), call(spread, chunk_size=7), strict=True):
        assert_close(actual, expected)


def test_half_precision_is_computed_in_single():
    tensors = problem(2, norm=True, dtype=torch.bfloat16)
    single = {name: [t.float() for t in group] for name, group in tensors.items()}
    y, *state = call(tensors, chunk_size=7)
    expected_y, *expected = call(single, chunk_size=7)
    assert y.dtype == torch.bfloat16
    assert_close(y, expected_y.bfloat16())
    for actual, wanted in zip(state, expected, strict=True):
        assert_close(actual, wanted)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_close(call(single, chunk_size=7)[0], expected_y)


# --- misuse


def refuse(change=None, **options):
    tensors = problem(2)
    change = change or (lambda tensors: None)
    change(tensors)
    call(tensors, **{"chunk_size": 7} | options)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"chunk_size": 0}, "`chunk_size` must be at least 1; got 0"),
        ({"activation": "relu"}, '`activation` must be "gelu" or "silu"'),
        ({"backend": "cuda"}, '`backend` must be one of "auto", "torch", "reference"'),
        ({"checkpoint_chunks": 0}, "`checkpoint_chunks` must be at least 1"),
        ({"lengths": torch.tensor([24, 3])}, "`lengths` must lie between 0 and the 23 tokens"),
        ({"lengths": torch.tensor([24.0, 3.0])}, "`lengths` must be integers"),
        ({"norm_bias": torch.zeros(WIDTH)}, "`norm_bias` belongs to LN: give it with residual_norm=True"),
        ({"change": lambda p: p["momentum"][1].fill_(1.2)}, r"`momentum` must be in \[0, 1\]; got values from 1.2"),
        ({"change": lambda p: p["decay"][0].fill_(-0.1)}, r"`decay` must be in \[0, 1\]"),
        ({"change": lambda p: p["decay"][0].fill_(math.nan)}, r"`decay` must be in \[0, 1\]"),
        ({"change": lambda p: p["lr"][0].fill_(-0.1)}, "`lr` must be at least 0 and finite"),
        ({"change": lambda p: p["lr"][0].fill_(math.inf)}, "`lr` must be at least 0 and finite"),
        ({"change": lambda p: p["lr"].append(p["lr"][0])}, "`lr` must be one tensor, or one for each of the 2 layers"),
        ({"change": lambda p: p.update(lr=[torch.ones(2, 2)])}, r"`lr` must be \[batch, head, time\] = \[2, 2, 23\]"),
        (
            {"change": lambda p: p.update(k=[p["k"][0][0]], q=p["k"][0][0:1])},
            "`k` must be floating point, .batch, head",
        ),
        ({"change": lambda p: p.update(k=[p["k"][0][:, :, :3]])}, "`q` must have the shape of `k`"),
        ({"change": lambda p: p.update(v=[p["v"][0][:, :, :3]])}, r"`v` must start with \[2, 2, 23\]"),
        ({"change": lambda p: p.update({n: [p[n][0][:, :, :0]] for n in "qkv"})}, "`k` must hold at least one token"),
        ({"change": lambda p: p.update(weights=p["weights"][:1])}, "`weights` must lead from keys of 4 to values of 4"),
        ({"change": lambda p: p.update(weights=[w[:1] for w in p["weights"]])}, "`weights` must hold"),
        (
            {"change": lambda p: p.update(momentum_state=p["momentum_state"][:1])},
            "`momentum_state` must have the shapes of `weights`",
        ),
        ({"change": lambda p: p.update(rest=p["weights"][:1])}, "`rest` must have the shapes of `weights`"),
        ({"norm_eps": 0.0}, "`norm_eps` must be positive and finite; got 0.0"),
    ],
)
def test_bad_input_is_refused_with_the_remedy(arguments, message):
    with pytest.raises(ValueError, match=message):
        refuse(**arguments)


def test_a_residual_memory_needs_keys_as_wide_as_values_and_norms_that_fit():
    tensors = problem(1, norm=True)
    with pytest.raises(ValueError, match=r"`norm_weight` must be \[out\] or \[head, out\] = \[2, 4\]"):
        call(tensors | {"norm_weight": [torch.ones(3)]}, chunk_size=7)
    narrow = tensors | {name: [t[..., :3] for t in tensors[name]] for name in ("v", "weights", "momentum_state")}
    with pytest.raises(ValueError, match="`residual_norm` adds keys to values"):
        call(narrow, chunk_size=7)


def test_only_on_a_cpu_are_values_looked_at_unasked():
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
    prepared((tokens, tokens), layers, None, others, chunk_size=2, lengths=lengths)
