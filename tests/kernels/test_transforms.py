"""The transforms of torch.func: what they give is what autograd gives, or they are refused with a remedy."""

from functools import partial

import pytest
import torch
from torch.func import functional_call, grad, jvp, vmap
from torch.testing import assert_close

from pyro_memory.kernels import apply_memory, decay_scan, fused_address, memory_surprise, nearest_slots, neural_memory
from pyro_memory.models import NeuralMemory, TitansLMM, TitansMAC, TitansMAG, TitansMAL

QUERY, KEY = torch.randn(3, 4), torch.randn(6, 4)
TOKENS, GATE, LAYERS = torch.randn(2, 1, 5, 4), torch.full((2, 1, 5), 0.1), (torch.randn(2, 1, 4, 4),)
GATES = {"lr": GATE, "momentum": GATE, "decay": GATE, "chunk_size": 2}
CALLS = {
    "memory_surprise": (lambda t: memory_surprise(t, t, LAYERS, **GATES)[0], TOKENS),
    "fused_address": (lambda t: fused_address(t, KEY).logsumexp, QUERY),
    "decay_scan": (lambda t: decay_scan(t, torch.ones(())), torch.randn(2, 5, 4)),
}
TRANSFORMS = {
    "grad": lambda f, t: grad(lambda t: f(t).sum())(t),
    "vmap": lambda f, t: vmap(f, randomness="different")(torch.stack([t, t])),
    "jvp": lambda f, t: jvp(f, (t,), (t,)),
}


@pytest.mark.unchecked
@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("name", CALLS)
def test_a_transform_of_what_has_a_gradient_by_hand_is_refused(name, transform):
    call, tensor = CALLS[name]
    with pytest.raises(NotImplementedError, match=f"`{name}` does not run inside .*torch.autograd.grad"):
        TRANSFORMS[transform](call, tensor)


@pytest.mark.unchecked
@pytest.mark.parametrize(
    "call",
    [
        lambda t: apply_memory(LAYERS, t, residual_norm=True),
        lambda t: decay_scan(t, torch.ones(()), backend="reference"),
        lambda t: nearest_slots(t.flatten(0, -2), KEY, 2)[1],
    ],
)
def test_what_autograd_differentiates_is_transformed(call):
    leaf = TOKENS.clone().requires_grad_()
    expected = torch.autograd.grad(call(leaf).sum(), leaf)[0]
    assert_close(grad(lambda t: call(t).sum())(TOKENS), expected)
    assert_close(vmap(call)(torch.stack([TOKENS, TOKENS]))[1], call(TOKENS))


MIXERS = [
    partial(NeuralMemory, chunk_size=4), partial(NeuralMemory, chunk_size=4, depth=3),
    *(partial(kind, chunk_size=4, persistent=3) for kind in (TitansLMM, TitansMAL, TitansMAG)),
    partial(TitansMAC, chunk_size=4, persistent=3, segment=8),
]  # fmt: skip


@pytest.mark.unchecked
@pytest.mark.parametrize("time", [1, 11])
@pytest.mark.parametrize("make", MIXERS)
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_gradients_of_each_sequence_are_those_that_it_has_alone(make, time):
    mixer, x = make(8, heads=2).double(), torch.randn(2, time, 8, dtype=torch.float64)
    parameters = dict(mixer.named_parameters())

    def loss(parameters, x):
        return functional_call(mixer, parameters, (x.unsqueeze(0),))[0].sin().sum()

    found = vmap(grad(loss), in_dims=(None, 0))(parameters, x)
    for i in range(2):
        wanted = torch.autograd.grad(
            loss(parameters, x[i]), list(parameters.values()), allow_unused=True, materialize_grads=True
        )
        for actual, expected in zip(found.values(), wanted, strict=True):
            assert_close(actual[i], expected)


@pytest.mark.unchecked
def test_a_memory_has_first_derivatives_only_under_transforms():
    def loss(t, gates=GATES):
        return neural_memory(t, t, t, LAYERS, **gates)[0].sin().sum()

    for tokens, gate in ((TOKENS, GATE), (TOKENS[:, :, :1], GATE[:, :, :1])):
        given = {name: value if name == "chunk_size" else gate for name, value in GATES.items()}
        leaf = tokens.clone().requires_grad_()
        assert_close(grad(loss)(tokens, given), torch.autograd.grad(loss(leaf, given), leaf)[0])

    def of_lr(lr):
        return neural_memory(TOKENS, TOKENS, TOKENS, LAYERS, **GATES | {"lr": lr})[0]

    assert_close(vmap(of_lr)(torch.stack([GATE, 2 * GATE]))[1], of_lr(2 * GATE))
    with pytest.raises(NotImplementedError, match='no second derivative; backend="reference"'):
        grad(lambda t: grad(loss)(t).sum())(TOKENS)
    with pytest.raises(NotImplementedError, match='no forward derivative; backend="reference"'):
        jvp(loss, (TOKENS,), (TOKENS,))


@pytest.mark.parametrize("make", [NeuralMemory, TitansMAC])
def test_a_mixer_runs_with_parameters_handed_in(make):
    mixer, x = make(8, heads=2), torch.randn(2, 5, 8)
    other = {name: (0.5 * p).detach().requires_grad_() for name, p in mixer.named_parameters()}
    y, _ = functional_call(mixer, other, (x,))
    gradients = torch.autograd.grad(y.square().sum(), list(other.values()))
    mixer.load_state_dict({name: p.detach() for name, p in other.items()}, strict=False)
    expected, _ = mixer(x)
    assert_close(y, expected)
    wanted = torch.autograd.grad(expected.square().sum(), list(mixer.parameters()))
    for actual, gradient in zip(gradients, wanted, strict=True):
        assert_close(actual, gradient)
