"""Under autocast the kernels compute what they compute without it: forward, and in a backward pass called inside."""

import importlib.util

import pytest
import torch
from address_parts import parts
from memory_calls import DEVICE, call, problem, watched_memory, with_gradients  # noqa: F401
from torch.testing import assert_close

from pyro_memory.kernels import apply_memory, decay_scan, fused_address, memory_surprise, nearest_slots

BACKENDS = ("torch", "triton") if importlib.util.find_spec("triton") else ("torch",)


def assert_autocast_changes_nothing(compute):
    expected = compute()
    with torch.autocast(DEVICE, torch.bfloat16):
        actual = compute()
    for one, other in zip(actual, expected, strict=True):
        assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize("options", [{}, {"checkpoint_chunks": 2}, {"lengths": torch.tensor([5, 13], device=DEVICE)}])
def test_a_memory_and_its_gradients_are_those_without_autocast(options):
    tensors = problem((4, 8, 4), 13, batch=2, norm=True, dtype=torch.float32)
    assert_autocast_changes_nothing(lambda: with_gradients(tensors, chunk_size=4, backend="torch", **options))


@pytest.mark.skipif("triton" not in BACKENDS, reason="Triton has no wheel for this machine")
def test_the_kernels_of_a_memory_and_their_gradients_are_those_without_autocast():
    tensors = problem((16, 16), 5, heads=1, dtype=torch.float32)
    assert_autocast_changes_nothing(lambda: with_gradients(tensors, chunk_size=4, backend="triton"))


def test_a_memory_that_decays_by_channel_and_its_gradients_are_those_without_autocast():
    tensors = problem((4, 8, 4), 9, dtype=torch.float32)
    tensors["decay"] = [
        g.unsqueeze(-1) * torch.rand(out, device=DEVICE) for g, out in zip(tensors["decay"], (8, 4), strict=True)
    ]
    assert_autocast_changes_nothing(lambda: with_gradients(tensors, chunk_size=4))


def test_the_token_rule_is_that_without_autocast():
    tensors = problem((4, 8, 4), 5, dtype=torch.float32)
    assert_autocast_changes_nothing(lambda: [t.detach() for t in call(tensors, chunk_size=2, backend="reference")])


def test_surprise_and_reads_are_those_without_autocast():
    tensors = problem((4, 8, 4), 5, dtype=torch.float32)
    gates = {name: tuple(tensors[name]) for name in ("lr", "momentum", "decay")}
    k, v, q, weights = tensors["k"][0], tensors["v"][0], tensors["q"][0], tuple(tensors["weights"])
    assert_autocast_changes_nothing(lambda: memory_surprise(k, v, weights, **gates, chunk_size=2)[:1])
    assert_autocast_changes_nothing(lambda: [apply_memory(weights, q, residual_norm=True)])


def test_half_precision_tokens_read_a_memory_in_single():
    tensors = problem((4, 8, 4), 5, dtype=torch.float32)
    q, weights = tensors["q"][0].bfloat16(), tuple(tensors["weights"])
    actual = apply_memory(weights, q, residual_norm=True)
    assert actual.dtype == torch.bfloat16
    assert_close(actual, apply_memory(weights, q.float(), residual_norm=True).bfloat16())


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_scan_and_its_gradients_are_those_without_autocast(backend):
    x, a, initial = (torch.rand(shape, device=DEVICE, requires_grad=True) for shape in ((2, 7, 3), (2, 7, 3), (2, 3)))

    def compute():
        h = decay_scan(x, a, initial, backend=backend)
        return [h.detach(), *torch.autograd.grad(h.square().sum(), (x, a, initial))]

    assert_autocast_changes_nothing(compute)


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_address_and_its_gradients_are_those_without_autocast(backend):
    query, key, value, log_prior, mask = (t.to(DEVICE) for t in parts(dtype=torch.float32))
    leaves = [t.requires_grad_() for t in (query, key, value, log_prior)]

    def compute():
        read = fused_address(query, key, value=value, log_prior=log_prior, mask=mask, nearest=3, backend=backend)
        outputs = [t for t in read if t is not None]
        loss = read.logsumexp.sum() + read.entropy.sum() + read.kl.sum() + read.read.square().sum()
        gradients = torch.autograd.grad(loss + read.best_scores.sum(), leaves)
        return [*(t.detach() for t in outputs), *gradients, nearest_slots(query, key, 2)[1].detach()]

    assert_autocast_changes_nothing(compute)
