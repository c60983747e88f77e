"""How far gradients reach through deep memories, and what is refused beyond."""

import pytest
import torch

from pyro_memory.models import NeuralMemory


def norm_of_gradients(time, **options):
    torch.manual_seed(0)
    memory = NeuralMemory(32, heads=2, **options)
    memory(torch.randn(1, time, 32))[0].square().mean().backward()
    return torch.cat([p.grad.flatten() for p in memory.parameters()]).norm()


@pytest.mark.parametrize(
    ("depth", "time", "options"),
    [
        (2, 2048, {}),
        (3, 1024, {}),
        (3, 256, {"chunk_size": 4}),
        (3, 64, {"chunk_size": 1}),
        (4, 512, {}),
        (4, 32, {"chunk_size": 1}),
        (6, 256, {}),
        (3, 2048, {"residual_norm": False}),
    ],
)
def test_gradients_are_steady_as_far_as_a_call_may_be_long(depth, time, options):
    assert norm_of_gradients(time, depth=depth, **options) < 5 * norm_of_gradients(16, depth=depth, **options)


@pytest.mark.parametrize(("depth", "most"), [(3, 1024), (4, 512), (6, 256)])
def test_a_longer_call_of_a_deep_memory_is_refused_where_gradients_are_kept(depth, most):
    with pytest.raises(ValueError, match=rf"`x` must have at most {most} tokens.*state\.detach\(\)"):
        NeuralMemory(8, heads=2, depth=depth)(torch.randn(1, most + 1, 8))


def test_a_deep_memory_goes_on_from_a_detached_state_and_anywhere_without_gradients():
    memory, x = NeuralMemory(8, heads=2, depth=4), torch.randn(1, 1040, 8)
    with torch.no_grad():
        whole, _ = memory(x)
    parts, state = [], None
    for part in x.split(512, 1):
        y, state = memory(part, state)
        state = state.detach()
        parts.append(y)
    torch.testing.assert_close(torch.cat(parts, 1), whole)
