"""What docs/streaming.md says of mixers and their states: they go on anywhere, fork, start afresh and stay small."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from mixers import DIM, MIXERS, enlarged, noise
from pyro.infer import SVI, Trace_ELBO
from pyro.nn import PyroSample
from safetensors.torch import load_file, save_file
from torch import nn
from torch.testing import assert_close

from pyro_memory.models import NeuralMemory, TitansLMM, TitansMAC, TitansMAG, TitansMAL
from pyro_memory.models.titans import WindowAttention

TIME, LENGTHS = 13, torch.tensor([5, 0, 3])
FIVE = ("memory", "LMM", "MAL", "MAG", "MAC")


@pytest.fixture(params=MIXERS)
def mixer(request):
    return enlarged(request.param)


@pytest.fixture(params=FIVE)
def one(request):
    """Of each class."""
    return enlarged(request.param)


def numbers(state):
    return {name: t.detach().clone() for name, t in state.named_tensors()}


def same(state, other):
    assert_close(numbers(state), numbers(other))


def in_pieces(mixer, x, sizes, state=None):
    outputs = []
    for piece in x.split(sizes, 1):
        y, state = mixer(piece, state)
        outputs.append(y)
    return torch.cat(outputs, 1), state


def streamed(mixer, x, state=None):
    outputs = []
    for token in x.unbind(1):
        y, state = mixer.step(token, state)
        outputs.append(y)
    return torch.stack(outputs, 1), state


def gradients(mixer, x, run):
    """Outputs, the state, and the gradients of a random sum of both in the tokens and all parameters."""
    x = x.clone().requires_grad_()
    y, state = run(mixer, x)
    leaves = [x, *mixer.parameters()]
    results = [y, *(t for _, t in state.named_tensors())]
    torch.manual_seed(1)
    loss = sum((t * torch.randn_like(t)).sum() for t in results if t.is_floating_point())
    return results, torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)


def token_by_token(mixer, name):
    twin = MIXERS[name](backend="reference").double()
    twin.load_state_dict(mixer.state_dict())
    return twin


# --- a sequence goes on


@pytest.mark.parametrize("name", MIXERS)
def test_the_token_rule_the_chunk_form_a_stream_and_cuts_have_one_value_state_and_gradient(name):
    mixer, x = enlarged(name), noise(2, TIME)
    whole = gradients(mixer, x, lambda m, x: m(x))
    others = {
        "token rule": (token_by_token(mixer, name), lambda m, x: m(x)),
        "streamed": (mixer, streamed),
        "cut": (mixer, lambda m, x: in_pieces(m, x, [1, 6, 2, 3, 1])),
    }
    for how, (other, run) in others.items():
        for actual, expected in zip(gradients(other, x, run), whole, strict=True):
            for a, e in zip(actual, expected, strict=True):
                assert_close(a, e, rtol=1e-8, atol=1e-9, msg=lambda text, how=how: f"{how}: {text}")


@pytest.mark.parametrize("name", MIXERS)
def test_sequences_at_different_places_go_on_each_as_if_alone(name):
    """In values, states and gradients, by tokens and by pieces, also after no token, and by the token rule."""
    mixer, first, x = enlarged(name), noise(3, 5), noise(3, TIME)

    def uneven(go_on, mixer, x):
        _, state = mixer(first, None, LENGTHS)
        return go_on(mixer, x, state)

    def alone(mixer, x):
        rows, states = [], []
        for i, n in enumerate(LENGTHS.tolist()):
            y, state = mixer(torch.cat([first[i : i + 1, :n], x[i : i + 1]], 1))
            rows.append(y[:, n:])
            states.append(state)
        tensors = zip(*([t for _, t in s.named_tensors()] for s in states), strict=True)
        joined = iter([torch.cat(t) for t in tensors])
        return torch.cat(rows), states[0].map(lambda _: next(joined))

    expected = gradients(mixer, x, alone)
    ways = {
        "token rule": (token_by_token(mixer, name), partial(uneven, lambda m, x, s: m(x, s))),
        "streamed": (mixer, partial(uneven, streamed)),
        "pieces": (mixer, partial(uneven, lambda m, x, s: in_pieces(m, x, [2, 7, 4], s))),
    }
    for how, (other, run) in ways.items():
        for actual, wanted in zip(gradients(other, x, run), expected, strict=True):
            for a, e in zip(actual, wanted, strict=True):
                assert_close(a, e, rtol=1e-8, atol=1e-9, msg=lambda text, how=how: f"{how}: {text}")


def test_a_state_from_a_file_goes_on_as_the_one_that_was_saved(mixer, tmp_path):
    x = noise(2, TIME)
    _, state = mixer(x[:, :10])
    save_file(state.to_tensors(), tmp_path / "state")
    again = type(state).from_tensors(load_file(tmp_path / "state"))
    same(again, state)
    results = []
    for start in (again, state.detach()):
        mixer.zero_grad()
        y, end = mixer(x[:, 10:], start)
        y.square().sum().backward()
        results.append((y, numbers(end), [p.grad for p in mixer.parameters()]))
    assert_close(*results)


def test_no_tokens_leave_a_state_as_it_was(mixer):
    x = noise(3, 6)
    _, state = mixer(x)
    y, after = mixer(x, state, torch.zeros(3, dtype=torch.long))
    same(after, state)
    assert not y.any()


def test_a_sequence_shorter_than_a_chunk_is_read_with_the_gradients_of_m_0(one):
    """Each token is written and read at once; the chunk that it leaves open goes on with the next call."""
    x = noise(1, 3)
    y, state = one(x)
    memory = getattr(state, "memory", state)
    start = one.initial_state(1)
    begun = getattr(start, "memory", start).position
    assert_close(memory.position, (begun + 3) % 4)
    changed = x.clone()
    changed[:, 0] += 1
    assert (one(changed)[0] - y)[:, 1:].abs().amax(-1).min() > 1e-6


def test_m_0_is_used_where_no_state_is_given_and_never_again():
    memory, x = NeuralMemory(DIM, heads=2, chunk_size=4).double(), noise(1, 9)
    _, state = memory(x)
    after, _ = memory(x, state)
    with torch.no_grad():
        memory.initial_0.add_(1.0)
    assert_close(memory(x, state)[0], after)
    assert not torch.allclose(memory(x)[0], memory(x, state)[0])
    start = memory.initial_state(2)
    assert_close(start.weights[0], memory.initial_0.expand(2, -1, -1, -1))
    assert_close(start.anchor, start.weights)
    assert not any(s.any() for s in start.momentum)


@pytest.mark.parametrize("depth", [2, 3])
def test_only_a_steady_memory_looks_at_m_0_after_the_start(depth):
    memory = NeuralMemory(DIM, heads=2, chunk_size=4, depth=depth).double()
    _, state = memory(noise(2, 6))
    memory(noise(2, 6), state.detach())[0].sum().backward()
    reached = [getattr(memory, f"initial_{layer}").grad is not None for layer in range(depth)]
    assert reached == [memory.steady] * depth
    assert memory.steady == (depth == 3)


# --- a state is a value


def test_sequences_are_taken_and_repeated_and_go_on_as_those_they_came_from(mixer):
    first, x = noise(3, 6), noise(3, 7)
    _, state = mixer(first, None, torch.tensor([6, 2, 5]))
    y, end = mixer(x, state)
    order = torch.tensor([2, 0, 2])
    chosen, after = mixer(x[order], state.select(order))
    assert_close(chosen, y[order])
    same(after, end.select(order))
    assert_close(mixer(x[1:], state.select(torch.tensor([False, True, True])))[0], y[1:])
    beams = x.repeat_interleave(2, 0)
    beams[1::2] = noise(3, 7)
    both, _ = mixer(beams, state.repeat(2))
    assert_close(both[::2], y)
    assert_close(both[1::2], mixer(beams[1::2], state)[0])


def test_some_sequences_start_afresh_and_the_others_go_on(mixer):
    first, x = noise(3, 6), noise(3, 7)
    _, state = mixer(first)
    ended = torch.tensor([False, True, False])
    y, _ = mixer(x, state.reset(ended, mixer.initial_state(1)))
    assert_close(y[1], mixer(x)[0][1])
    assert_close(y[[0, 2]], mixer(x, state)[0][[0, 2]])
    same(state.where(~ended, mixer.initial_state(3)), state.reset(ended, mixer.initial_state(1)))


def test_states_are_compared_to_a_tolerance_and_shown_in_a_line(one):
    _, state = one(noise(2, 6))
    assert state.allclose(state.to(torch.float32), rtol=1e-3, atol=1e-3)
    assert not state.allclose(one(noise(2, 6))[1])
    assert not state.allclose(state.select(torch.tensor([0])))
    other = type(state.map(lambda t: t)).from_tensors(state.to_tensors())
    assert state.allclose(other)
    assert repr(state).startswith(f"{type(state).__name__}(2 sequences, ")
    assert len(repr(state)) < 80


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: s.select(torch.tensor([2])), "`which` must be from 0 to 1, numbers of sequences; got 2"),
        (lambda s: s.select(torch.tensor(0)), r"`which` must be a mask of the 2 sequences, .*\[2\], or a row of their"),
        (lambda s: s.select(torch.tensor([True])), r"`which` must be a mask .*; got torch.bool of shape \[1\]"),
        (lambda s: s.repeat(0), "`times` must be at least 1; got 0"),
        (
            lambda s: s.where(torch.tensor([True]), s),
            r"`mask` must be a mask .*; got torch.bool of shape \[1\]",
        ),
        (lambda s: s.reset(torch.tensor([0, 1]), s), r"`which` must be a mask .*; got torch.int64 of shape \[2\]"),
        (lambda s: s.reset(torch.tensor([True, True]), s), "`start` must be a state of one sequence, mixer.initial_st"),
        (lambda s: type(s).from_tensors({"fast.weights.0": torch.zeros(1)}), "must hold .*; got .'fast'.*read the seq"),
    ],
)
def test_what_a_state_cannot_do_is_refused(one, call, message):
    with pytest.raises(ValueError, match=message):
        call(one(noise(2, 6))[1])


@torch.no_grad()
def test_a_state_keeps_its_size_and_no_token_that_went_by(one):
    def held(state):
        return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors(state)}.values())

    def tensors(state):
        return [t for _, t in state.named_tensors()]

    _, state = one(noise(2, 8))
    size, most = [t.shape for t in tensors(state)], 1.1 * sum(t.numel() * t.element_size() for t in tensors(state))
    for _ in range(5):
        _, state = one(noise(2, 195), state)
        assert [t.shape for t in tensors(state)] == size
        assert held(state) < most
        _, state = streamed(one, noise(2, 5), state)
        assert held(state) < most


def test_a_state_costs_three_times_the_weights_and_the_window_or_the_segment():
    heads, width, taps, batch = 2, DIM // 2, 4, 3
    weights = heads * (width * 4 * width + 4 * width * width)
    memory = 3 * weights + (taps - 1) * 3 * DIM + 1
    window, segment = 2 * (7 - 1) * DIM + 1, 2 * 2 * 8 * DIM + 1
    extra = {"memory": 0, "LMM": 0, "MAL": window, "MAG": window, "MAC": weights + segment}
    for name, more in extra.items():
        state = enlarged(name).initial_state(batch)
        assert sum(t.numel() for _, t in state.named_tensors()) == batch * (memory + more)


# --- gradients through a state


def test_detach_ends_the_gradient_and_changes_no_number(one):
    x = noise(2, 12).requires_grad_()
    _, state = one(x[:, :6])
    same(state.detach(), state)
    (through,) = torch.autograd.grad(one(x[:, 6:], state)[0].sum(), x, retain_graph=True)
    (cut,) = torch.autograd.grad(one(x[:, 6:], state.detach())[0].sum(), x)
    assert through[:, :6].any()
    assert not cut[:, :6].any()
    assert cut[:, 6:].any()


@pytest.mark.parametrize("without", [torch.inference_mode, torch.no_grad])
def test_a_state_made_without_gradients_goes_on_with_them_and_the_other_way_round(one, without):
    x = noise(2, TIME)
    whole, end = one(x)
    with without():
        _, state = one(x[:, :6])
        _, state = one.step(x[:, 6], state)
    y, state = one(x[:, 7:11], state)
    y.square().sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in one.parameters())
    assert any(p.grad is not None and p.grad.any() for p in one.parameters())
    with without():
        last, state = one(x[:, 11:], state)
    assert_close(torch.cat([y, last], 1), whole[:, 7:])
    same(state, end)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", FIVE)
@torch.no_grad()
def test_a_module_of_half_precision_streams_what_it_reads_whole(name, dtype):
    one, x = MIXERS[name]().to(dtype), noise(2, TIME).to(dtype)
    whole, end = one(x)
    y, state = streamed(one, x)
    assert y.dtype == dtype
    assert_close(y, whole, rtol=0, atol=0.1)
    dtypes = {name: t.dtype for name, t in state.named_tensors()}
    assert dtypes == {name: t.dtype for name, t in end.named_tensors()}
    inner = {t for name, t in dtypes.items() if name.split(".")[-2:-1] in (["weights"], ["momentum"], ["anchor"])}
    assert inner == {torch.float32}
    assert {t for name, t in dtypes.items() if name.endswith(("tail", "keys", "values"))} == {dtype}
    again, _ = one(x, state.reset(torch.tensor([True, False]), one.initial_state(1)))
    assert_close(again[0], whole[0], rtol=0, atol=0.1)


# --- with Pyro, and without


def test_parameters_are_pyro_s_under_its_handlers_alone(one):
    x = noise(2, 5)
    _, state = one(x)
    one.step(x[:, 0], state)
    assert not list(pyro.get_param_store())
    pyro.poutine.trace(one).get_trace(x)
    assert len(list(pyro.get_param_store())) == len(list(one.parameters()))
    pyro.clear_param_store()

    def model(x):
        pyro.sample("y", dist.Normal(one(x)[0], 1.0).to_event(3), obs=x)

    before = [p.detach().clone() for p in one.parameters()]
    SVI(model, lambda x: None, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO()).step(x)
    changed = [not torch.equal(p, old) for p, old in zip(one.parameters(), before, strict=True)]
    assert all(changed)


@pytest.mark.parametrize("kind", [NeuralMemory, TitansLMM, TitansMAL, TitansMAG, TitansMAC])
def test_a_random_bias_is_drawn_once_a_call_and_anew_with_the_next(kind):
    options = {"segment": 8} if kind is TitansMAC else {}
    mixer = kind(DIM, heads=2, chunk_size=4, **options)
    memory = getattr(mixer, "memory", mixer)
    drawn = []

    class Watched(dist.Normal):
        def __call__(self, *args, **kwargs):
            drawn.append(super().__call__(*args, **kwargs))
            return drawn[-1]

        def expand(self, *args):
            return self

    memory.to_lr.bias = PyroSample(Watched(torch.zeros(4), 1.0))
    assert isinstance(memory.to_lr, nn.Linear)
    x = torch.randn(1, 21, DIM)
    mixer(x)
    assert len(drawn) == 1
    mixer(x)
    assert len(drawn) == 2
    assert not torch.equal(*drawn)


@pytest.mark.parametrize("time", [1, 3, 8, 9])
def test_attention_that_begins_is_attention_from_an_empty_window(time):
    attention = WindowAttention(DIM, heads=2, window=8).double()
    x, persistent = (torch.randn(*shape, DIM, dtype=torch.float64) for shape in ((3, time), (2,)))
    lengths = torch.tensor([time, 1, 0])
    for options in ({}, {"lengths": lengths}, {"persistent": persistent}):
        (y, state), (same, kept) = attention(x, **options), attention(x, attention.initial_state(3), **options)
        assert_close(y, same, rtol=0, atol=1e-14)
        assert_close(state.keys, kept.keys, rtol=0, atol=0)
