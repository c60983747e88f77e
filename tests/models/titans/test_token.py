"""The short way of one streamed token is the general way, and is left where it would not be."""

from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from mixers import DIM, enlarged, noise
from pyro import poutine
from pyro.nn import PyroSample
from torch import nn
from torch.autograd import forward_ad
from torch.testing import assert_close

from pyro_memory.models import (
    LSTMMixer,
    NeuralMemory,
    SequenceModel,
    TitansLMM,
    TitansMAC,
    TitansMAG,
    TitansMAL,
    TransformerMixer,
)

OPTIONS = {
    "as it is": {},
    "decay by channel": {"channel_decay": True},
    "no momentum": {"momentum": False},
    "no decay": {"weight_decay": False},
    "steady": {"steady": True},
    "steady, no decay, decay's channels": {"steady": True, "weight_decay": False, "channel_decay": True},
    "no convolution": {"convolution": 1},
    "linear": {"depth": 1, "residual_norm": False},
    "deep, silu": {"depth": 4, "activation": "silu"},
    "online": {"chunk_size": 1},
}


@pytest.fixture
def taken(monkeypatch):
    """The calls that took the short way."""
    calls, own = [], NeuralMemory._token

    def short(*args):
        calls.append(args)
        return own(*args)

    monkeypatch.setattr(NeuralMemory, "_token", short)
    return calls


def memory(**options):
    built = NeuralMemory(DIM, **{"heads": 2, "chunk_size": 4, **options}).double()
    with torch.no_grad():
        for p in built.parameters():
            p.mul_(1.5)
    return built


def in_general(built, x, state):
    """One token as a sequence that may have been longer."""
    y, state = built(x.unsqueeze(1), state, torch.ones(len(x), dtype=torch.long))
    return y.squeeze(1), state


def same(one, other):
    assert_close(one[0], other[0], rtol=1e-10, atol=1e-12)
    assert one[1].allclose(other[1], rtol=1e-10, atol=1e-12)


def leaves(y, state):
    return [y, *(t for t in state.tensors() if t.is_floating_point())]


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("context", [nullcontext, torch.no_grad, torch.inference_mode])
def test_the_short_way_is_the_general_way(options, context, taken):
    built, x = memory(**options), noise(3, 7)
    with context():
        state = built(x, lengths=torch.tensor([7, 0, 6]))[1]
        for token in noise(3, 6).unbind(1):
            expected = in_general(built, token, state)
            y, state = built.step(token, state)
            same((y, state), expected)
    assert len(taken) == 6


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_gradients_of_the_short_way_are_those_of_the_general_way(options, taken):
    built, x = memory(**options), noise(3, 6)
    state = built(x, lengths=torch.tensor([6, 0, 5]))[1].detach()
    state = state.map(lambda t: t.requires_grad_() if t.is_floating_point() else t)
    token = noise(3, 1)[:, 0].requires_grad_()
    inputs = [token, *(t for t in state.tensors() if t.is_floating_point()), *built.parameters()]
    begins = (state.position == 0)[:, None, None, None]  # a chunk, of which the weights are the anchor
    anchor = tuple(torch.where(begins, w, a) for w, a in zip(state.weights, state.anchor, strict=True))
    state = replace(state, anchor=anchor)
    weights = [torch.randn_like(t) for t in leaves(*in_general(built, token, state))]
    found = [
        torch.autograd.grad(leaves(*way(token, state)), inputs, weights, retain_graph=True, materialize_grads=True)
        for way in (built.step, lambda *given: in_general(built, *given))
    ]
    assert len(taken) == 1
    assert_close(found[0], found[1], rtol=1e-9, atol=1e-11)


HOOKS = {
    "after": lambda built: built.register_forward_hook(lambda module, args, output: (2 * output[0], output[1])),
    "before": lambda built: built.register_forward_pre_hook(lambda module, args: (2 * args[0], *args[1:])),
    "inside": lambda built: built.to_out.register_forward_hook(lambda module, args, output: 2 * output),
}


class Counting(nn.Linear):
    """Writes in place, and asks for gradients, where none are wanted."""

    def __init__(self, weight):
        super().__init__(*weight.shape[::-1], bias=False)
        self.weight, self.seen = weight, []
        self.register_buffer("mean", torch.ones((), dtype=weight.dtype))

    def forward(self, x):
        y = super().forward(x) * self.mean
        self.mean.mul_(2)
        with torch.enable_grad():
            self.seen.append((self.weight * 2).requires_grad)
        return y


@pytest.mark.parametrize("name", ["to_qkv", "to_gate", "to_out"])
def test_a_layer_of_the_users_is_seen_by_autograd(name, taken):
    built, token = memory(), noise(2, 1)[:, 0]
    layer = Counting(getattr(built, name).weight)
    setattr(built, name, layer)
    kept = layer.weight.sum() * layer.mean
    with torch.no_grad():
        built.step(token, built.initial_state(2))
    assert len(taken) == 1
    assert layer.seen == [True]
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        kept.backward()


@pytest.mark.parametrize("kind", [TransformerMixer, LSTMMixer, NeuralMemory])
def test_a_state_of_another_kind_is_refused(kind):
    built, token = kind(16), torch.randn(2, 16)
    for state in (5, (LSTMMixer if kind is not LSTMMixer else NeuralMemory)(16).initial_state(2)):
        with pytest.raises((TypeError, ValueError), match="`state` must be"):
            built.step(token, state)


@pytest.mark.parametrize("add", HOOKS.values(), ids=HOOKS)
@torch.no_grad()
def test_hooks_are_called(add):
    built, token = memory(), noise(2, 1)[:, 0]
    state = built.initial_state(2)
    plain = built.step(token, state)[0]
    add(built)
    same(built.step(token, state), in_general(built, token, state))
    assert not torch.allclose(built.step(token, state)[0], plain)


@torch.no_grad()
def test_another_backend_computes_it(taken):
    built, token = memory(backend="reference"), noise(2, 1)[:, 0]
    built.step(token, built.initial_state(2))
    assert not taken


@torch.no_grad()
def test_handlers_see_what_they_see_of_a_sequence(taken):
    token, state = noise(2, 1)[:, 0], memory().initial_state(2)
    for surprise in (False, True):
        built = memory(surprise=surprise, name="memory")
        seen = []
        for way in (built.step, partial(in_general, built)):
            with poutine.trace() as trace:
                way(token, state)
            seen.append({n: site["value"] for n, site in trace.trace.nodes.items() if site["type"] != "args"})
        assert_close(*seen)
        assert ("memory.surprise" in seen[0]) == surprise
    assert len(taken) == 1


@torch.no_grad()
def test_random_weights_are_drawn():
    built, token = memory(), noise(2, 1)[:, 0]
    state = built.initial_state(2)
    built.to_lr.weight = PyroSample(dist.Normal(torch.zeros(4, DIM).double(), 1.0).to_event(2))
    built.to_out.weight = PyroSample(dist.Normal(torch.zeros(DIM, DIM).double(), 1.0).to_event(2))
    draws = []
    for way in (built.step, partial(in_general, built), built.step):
        pyro.set_rng_seed(len(draws) // 2)
        draws.append(way(token, state)[0])
    assert_close(draws[0], draws[1])
    assert not torch.allclose(draws[0], draws[2])


@pytest.mark.parametrize("kind", [TitansLMM, TitansMAL, TitansMAG, TitansMAC])
@torch.no_grad()
def test_a_mixer_and_a_model_s_token_take_it(kind, taken):
    mixer = partial(kind, heads=2, chunk_size=4, **({"segment": 8} if kind is TitansMAC else {}))
    built = mixer(DIM)
    built.step(torch.randn(2, DIM), built.initial_state(2))
    assert len(taken) == 1
    model = SequenceModel.tokens(5, mixer, dim=DIM, blocks=2)
    model.step(torch.zeros(2).long(), model.read(torch.zeros(2, 1).long())[1])
    assert len(taken) == 3


@torch.no_grad()
def test_precisions_that_differ_go_the_general_way(taken):
    built = NeuralMemory(DIM, heads=2)
    token, state = torch.randn(2, DIM), built.initial_state(2)
    with torch.autocast("cpu", torch.bfloat16):
        y, after = built.step(token, state)
        assert_close(y, in_general(built, token, state)[0])
    assert y.dtype == torch.bfloat16
    assert not taken
    built.step(token, after)
    assert len(taken) == 1


def test_what_a_token_without_gradients_gives_may_be_trained_on(taken):
    built, token = memory(), noise(2, 1)[:, 0]
    with torch.no_grad():
        y, state = built.step(token, built.initial_state(2))
    assert not y.is_inference()
    assert not y.requires_grad
    later, _ = built.step(token, state)
    (later * (y * built.read_norm.sum())).sum().backward()
    assert built.to_qkv.weight.grad.abs().sum() > 0
    assert len(taken) == 2


def test_a_forward_derivative_is_not_lost():
    built, (token, direction) = memory(), noise(2, 2).unbind(1)
    state = built(noise(2, 3))[1].detach()
    with torch.no_grad(), forward_ad.dual_level():
        y, _ = built.step(forward_ad.make_dual(token, direction), state)
        tangent = forward_ad.unpack_dual(y).tangent
    with torch.no_grad():
        ahead, behind = (built.step(token + sign * 1e-6 * direction, state)[0] for sign in (1, -1))
    assert_close(tangent, (ahead - behind) / 2e-6, rtol=1e-6, atol=1e-8)


def test_a_token_of_another_width_is_refused_as_ever():
    built = enlarged("memory")
    with pytest.raises(ValueError, match=r"`token` must be .*dim = 12"):
        built.step(noise(2, 1, DIM + 1)[:, 0], built.initial_state(2))
    with pytest.raises(ValueError, match="`state` must be one of this module for 3 sequences"):
        built.step(noise(3, 1)[:, 0], built.initial_state(2))
