"""Deep memories: that gradients through them stay as long as they are, that they learn, and go on after forgetting."""

import pytest
import torch
from torch.testing import assert_close

from pyro_memory.kernels import apply_memory
from pyro_memory.models import NeuralMemory


def tokens(kind, time, dim):
    key = torch.randn(1, 1, dim)
    if kind == "repeated":
        return key.expand(1, time, dim)
    if kind == "two in turn":
        return torch.where(torch.arange(time)[None, :, None] % 2 == 0, key, torch.randn(1, 1, dim))
    return (1000 if kind == "large" else 1) * torch.randn(1, time, dim)


def norm_of_gradients(time, kind="noise", opened=False, dim=32, **options):
    torch.manual_seed(0)
    memory = NeuralMemory(dim, heads=2, **options)
    if opened:
        with torch.no_grad():
            for linear in (memory.to_lr, memory.to_momentum, memory.to_decay):
                linear.weight.zero_()
                linear.bias.fill_(30.0)
    memory(tokens(kind, time, dim))[0].square().mean().backward()
    return torch.cat([p.grad.flatten() for p in memory.parameters()]).norm()


@pytest.mark.parametrize(
    ("depth", "options"),
    [
        (2, {}),
        (3, {}),
        (4, {}),
        (3, {"residual_norm": False}),
        (3, {"channel_decay": True}),
        (4, {"kind": "repeated", "opened": True}),
        (4, {"kind": "two in turn"}),
        (3, {"kind": "large"}),
        (1, {"dim": 4}),
        (2, {"dim": 4}),
        (3, {"dim": 4}),
        (2, {"kind": "repeated", "steady": True}),
        (3, {"max_lr": 4.0}),
    ],
)
def test_gradients_do_not_grow_with_the_length(depth, options):
    short = norm_of_gradients(64, depth=depth, **options)
    assert norm_of_gradients(2048, depth=depth, **options) < 5 * short


@pytest.mark.parametrize(("depth", "chunk_size", "time"), [(3, 1, 256), (6, 4, 512), (3, 64, 4096)])
def test_nor_with_the_length_of_a_chunk(depth, chunk_size, time):
    options = {"depth": depth, "chunk_size": chunk_size}
    assert norm_of_gradients(time, **options) < 5 * norm_of_gradients(4 * chunk_size, **options)


@pytest.mark.parametrize("depth", [3, 4])
def test_a_difference_in_the_state_fades(depth):
    memory = NeuralMemory(32, heads=2, depth=depth).double()
    x = torch.randn(1, 3200, 32, dtype=torch.float64)
    with torch.no_grad():
        _, here = memory(x[:, 1600:], memory(x[:, :1600])[1])
        _, there = memory(x[:, 1600:])
    for a, b in zip(here.weights, there.weights, strict=True):
        assert (a - b).norm() < 0.2 * a.norm()


@pytest.mark.parametrize("depth", [3, 4])
def test_pairs_that_come_again_are_learned(depth):
    memory = NeuralMemory(32, heads=2, depth=depth, convolution=1)
    x = torch.randn(1, 16, 32)
    with torch.no_grad():
        _, k, v = memory._qkv(memory.to_qkv(x))

        def loss(weights):
            return (apply_memory(weights, k, residual_norm=True, norm_eps=1.0) - v).square().sum()

        _, state = memory(x.repeat(1, 200, 1))
        assert loss(state.weights) < 0.5 * loss(memory.initial_state(1).weights)


def loss_after_a_pass(**options):
    """Over eight pairs seen once with the gates that learn most, as a share of that before."""
    memory = NeuralMemory(32, convolution=1, chunk_size=8, **options)
    with torch.no_grad():
        memory.to_lr.bias.fill_(30.0)
        memory.to_decay.bias.fill_(-30.0)
        x = torch.randn(4, 8, 32)
        _, k, v = memory._qkv(memory.to_qkv(x))
        before, after = memory.initial_state(4), memory(x)[1]
        losses = [(apply_memory(s.weights, k, **memory._memory()) - v).square().sum() for s in (before, after)]
    return losses[1] / losses[0]


@pytest.mark.parametrize("depth", [3, 4])
def test_with_a_higher_bound_a_pass_teaches_nearly_as_much_as_by_the_plain_rule(depth):
    plain, careful, bold = (loss_after_a_pass(**o) for o in ({}, {"depth": depth}, {"depth": depth, "max_lr": 4.0}))
    assert plain < bold < 1.6 * plain
    assert careful < 1


def test_what_forgets_everything_is_where_it_began_and_learns_on():
    memory = NeuralMemory(32, heads=2, depth=4)
    with torch.no_grad():
        memory.to_decay.weight.zero_()
        memory.to_decay.bias.fill_(30.0)
        memory.to_lr.bias.fill_(-30.0)
        memory.to_lr.weight.zero_()
        _, state = memory(torch.randn(1, 1024, 32))
        assert_close(state.weights, memory.initial_state(1).weights, rtol=1e-4, atol=1e-4)


def test_memories_up_to_depth_2_in_heads_that_are_not_narrow_keep_the_plain_rule():
    assert not NeuralMemory(8, heads=2, depth=2).steady
    assert NeuralMemory(8, heads=2, depth=3).steady
    assert NeuralMemory(6, heads=2).steady
    assert not NeuralMemory(6, heads=2, residual_norm=False).steady
    for options in ({"depth": 3}, {"heads": 4}):
        with pytest.raises(ValueError, match=r"`steady` may be False up to depth 2.*Leave it out"):
            NeuralMemory(8, **{"heads": 2} | options, steady=False)
