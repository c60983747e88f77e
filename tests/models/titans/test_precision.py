"""Mixers in mixed precision: what autocast rounds, and what it must not break."""

from functools import partial

import pytest
import torch
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

MEMORY = {"heads": 2, "chunk_size": 4}
MIXERS = {
    "memory": partial(NeuralMemory, **MEMORY),
    "memory, checkpoints": partial(NeuralMemory, checkpoint_chunks=2, **MEMORY),
    "memory, decay by channel": partial(NeuralMemory, channel_decay=True, **MEMORY),
    "memory, token by token": partial(NeuralMemory, backend="reference", **MEMORY),
    "LMM": partial(TitansLMM, persistent=3, **MEMORY),
    "MAL": partial(TitansMAL, persistent=3, window=5, **MEMORY),
    "MAG": partial(TitansMAG, persistent=3, window=5, **MEMORY),
    "MAC": partial(TitansMAC, persistent=3, segment=8, **MEMORY),
    "attention": partial(TransformerMixer, heads=2, window=5),
    "LSTM": LSTMMixer,
}
ROUNDING = {"rtol": 0, "atol": 0.05}  # of numbers around 1, in bfloat16


def lower():
    return torch.autocast("cpu", torch.bfloat16)


@pytest.fixture(params=MIXERS)
def mixer(request):
    return MIXERS[request.param](16)


def gradients(mixer, x):
    mixer.zero_grad()
    mixer(x)[0].float().square().mean().backward()
    return torch.cat([p.grad.flatten() for p in mixer.parameters()])


def test_gradients_under_autocast_are_those_outside_but_for_rounding(mixer):
    x = torch.randn(2, 21, 16)
    expected = gradients(mixer, x)
    with lower():
        actual = gradients(mixer, x)
    assert actual.dtype == torch.float32
    assert (actual - expected).norm() < 0.05 * expected.norm()


@torch.no_grad()
def test_a_stream_under_autocast_is_the_whole_but_for_rounding(mixer):
    x = torch.randn(2, 21, 16)
    with lower():
        whole, state, stream = mixer(x)[0], None, []
        for token in x.unbind(1):
            y, state = mixer.step(token, state)
            stream.append(y)
    assert_close(torch.stack(stream, 1).float(), whole.float(), **ROUNDING)


@torch.no_grad()
def test_a_state_goes_into_autocast_and_out_of_it(mixer):
    x = torch.randn(2, 21, 16)
    whole, _ = mixer(x)
    first, state = mixer(x[:, :6])
    with lower():
        second, state = mixer(x[:, 6:13], state)
    third, _ = mixer(x[:, 13:], state)
    assert third.dtype == torch.float32
    assert_close(torch.cat([first, second.float(), third], 1), whole, **ROUNDING)


def test_lengths_under_autocast_are_those_outside_but_for_rounding(mixer):
    x, lengths = torch.randn(2, 13, 16), torch.tensor([5, 13])
    expected, _ = mixer(x, None, lengths)
    with lower():
        actual, state = mixer(x, None, lengths)
        mixer(x, state, lengths)[0].float().sum().backward()
    assert_close(actual.float(), expected, **ROUNDING)


def test_a_module_in_bfloat16_streams_and_trains(mixer):
    mixer, x = mixer.bfloat16(), torch.randn(2, 13, 16, dtype=torch.bfloat16)
    y, state = mixer(x)
    y, state = mixer(x, state)
    y, _ = mixer.step(x[:, 0], state)
    assert y.dtype == torch.bfloat16
    y.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in mixer.parameters() if p.grad is not None)


def test_a_sequence_model_generates_under_autocast(mixer):
    model = SequenceModel.tokens(7, lambda dim: mixer, dim=16, blocks=1)
    with lower():
        drawn, _ = model.generate(torch.randint(7, (2, 3)), 9, seed=0)
        distribution = model.next_dist(torch.randint(7, (2, 3)))
    assert drawn.shape == (2, 9)
    assert distribution.logits.dtype == torch.float32
