"""The Titans written out by their equations (Behrouz et al., 2025, https://arxiv.org/abs/2501.00663)."""

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from pyro_memory.kernels import neural_memory
from pyro_memory.models import NeuralMemory, TitansLMM, TitansMAG, TitansMAL
from pyro_memory.models.titans.block import Block

DIM, TIME, PREFIX = 12, 21, 6


@pytest.fixture
def x():
    return torch.randn(2, TIME, DIM, dtype=torch.float64)


def after_the_prefix(mixer, x):
    """M([p] || x), the places of x."""
    prefixed = torch.cat([mixer.persistent.expand(len(x), -1, -1), x], 1)
    return mixer.memory(prefixed)[0][:, PREFIX:]


def test_lmm_is_the_memory_of_the_prefixed_sequence(x):
    mixer = TitansLMM(DIM, heads=2, chunk_size=4, persistent=PREFIX).double()
    assert_close(mixer(x)[0], after_the_prefix(mixer, x))


def test_mag_is_its_equations(x):
    mixer = TitansMAG(DIM, heads=2, chunk_size=4, persistent=PREFIX, window=7).double()
    y = mixer.attention(x, persistent=mixer.persistent)[0]
    sides = []
    for side, norm in zip((y, after_the_prefix(mixer, x)), mixer.gate.norms, strict=True):
        side = (side - side.mean(-1, keepdim=True)) / (side.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        sides.append(F.silu(side * norm.weight + 1))
    assert_close(mixer(x)[0], sides[0] * sides[1] @ mixer.gate.to_out.weight.T)


def test_mal_is_its_equations_with_residuals_and_a_norm_between(x):
    mixer = TitansMAL(DIM, heads=2, chunk_size=4, persistent=PREFIX, window=7).double()
    y = after_the_prefix(mixer, x)
    assert_close(mixer(x)[0], y + mixer.attention(mixer.norm(x + y), persistent=mixer.persistent)[0])


def linear_memory(**options):
    return NeuralMemory(DIM, heads=1, depth=1, residual_norm=False, chunk_size=4, **options).double()


def by_hand(memory, x, eta, alpha):
    """A linear memory of one head: convolved projections, unit keys and queries, the rule, a norm, a gate."""
    projected = F.pad(memory.to_qkv(x), (0, 0, 3, 0))
    taps = memory.convolution.weight[:, 0]
    mixed = sum(taps[:, i] * projected[:, i : i + TIME] for i in range(4))
    q, k, v = (t.unsqueeze(1) for t in mixed.chunk(3, -1))
    q, k = (t / t.norm(dim=-1, keepdim=True) for t in (q, k))
    gates = (t.movedim(-1, 1) for t in (0.5 * (1 - memory.max_momentum) / 4 * memory.to_lr(x).sigmoid(), eta, alpha))
    y = neural_memory(q, k, v, (memory.initial_0,), *gates, chunk_size=4, backend="reference")[0].squeeze(1)
    y = y / (y.square().mean(-1, keepdim=True) + 1e-6).sqrt() * memory.read_norm
    return memory.to_out(y * F.silu(memory.to_gate(x)))


def test_projections_are_convolved_causally_by_channel_before_keys_and_queries_are_normalised(x):
    memory = linear_memory()
    expected = by_hand(memory, x, 0.8 * memory.to_momentum(x).sigmoid(), memory.to_decay(x).sigmoid() / 4)
    assert_close(memory(x)[0], expected)


def test_without_momentum_and_decay_their_gates_are_zero(x):
    memory = linear_memory(momentum=False, weight_decay=False)
    zero = torch.zeros_like(x[..., :1])
    assert_close(memory(x)[0], by_hand(memory, x, zero, zero))


def test_a_memory_is_by_default_of_the_camera_ready_paper_s_sizes():
    memory = NeuralMemory(32, heads=4)
    assert memory.shapes == [(8, 32), (32, 8)]
    assert memory.convolution.kernel_size == (4,)
    assert memory.options == {"activation": "gelu", "residual_norm": True}


def test_a_block_is_a_mixer_and_a_swiglu_each_normalised_before_and_added_after(x):
    block = Block(DIM, TitansLMM(DIM, heads=2, chunk_size=4), 9).double()

    def norm(t, weight):
        return t / (t.square().mean(-1, keepdim=True) + torch.finfo(t.dtype).eps).sqrt() * weight

    h = x + block.mixer(norm(x, block.mixer_norm.weight))[0]
    gate, value = block.mlp.gate_and_value(norm(h, block.mlp_norm.weight)).chunk(2, -1)
    assert_close(block(x, None, None)[0], h + block.mlp.out(F.silu(gate) * value))
