"""Calls of ``neural_memory`` that several test files share: their tensors, their gradients, the watch over memory."""

import itertools

import pytest
import torch
from torch.testing import assert_close

from pyro_memory.kernels import neural_memory, why_not_triton

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
STATE = ("weights", "momentum_state", "anchor", "rest")


@pytest.fixture(autouse=True)
def watched_memory(monkeypatch):
    """Poisons torch.empty; without a GPU interprets the kernels, and watches what they do to memory."""
    torch.manual_seed(0)
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    if GPU:
        yield
    else:
        monkeypatch.setenv("TRITON_INTERPRET", "1")
        from kernel_watch import watched

        with watched(monkeypatch) as launches:
            yield launches
    torch.use_deterministic_algorithms(before)


@pytest.fixture(autouse=GPU)
def first_configuration():
    """That fits: tuning would compile them all."""
    from kernels_cases import first_that_fits

    with first_that_fits():
        yield


def problem(widths, time, *, batch=1, heads=2, norm=False, dtype=torch.float64):
    """Tensors of one call: random weights, gates that matter."""
    shapes = [(batch, heads, a, b) for a, b in itertools.pairwise(widths)]
    lead, depth = (batch, heads, time), len(shapes)
    tensors = {"q": [torch.randn(*lead, widths[0])], "k": [torch.randn(*lead, widths[0]) / widths[0] ** 0.5]}
    tensors["v"] = [torch.randn(*lead, widths[-1])]
    tensors["weights"] = [torch.randn(s) / s[2] ** 0.5 for s in shapes]
    tensors["momentum_state"] = [0.1 * torch.randn(s) / s[2] ** 0.5 for s in shapes]
    tensors["lr"] = [0.05 * torch.rand(lead) for _ in range(depth)]
    tensors["momentum"] = [torch.rand(lead) for _ in range(depth)]
    tensors["decay"] = [0.2 * torch.rand(lead) for _ in range(depth)]
    if norm:
        tensors["norm_weight"] = [1 + 0.3 * torch.randn(heads, widths[-1])]
        tensors["norm_bias"] = [0.3 * torch.randn(heads, widths[-1])]
    return {name: [t.to(DEVICE, dtype) for t in group] for name, group in tensors.items()}


def call(tensors, **options):
    """Runs it; all outputs in a row."""
    args = {n: tuple(group) if n in STATE or len(group) > 1 else group[0] for n, group in tensors.items()}
    y, *after = neural_memory(**args, residual_norm="norm_weight" in tensors, **options)
    return [y, *(t for part in after for t in (part if isinstance(part, tuple) else (part,)))]


def with_gradients(tensors, **options):
    """Outputs, and the gradients of a random sum of them in every tensor that went in."""
    tensors = {name: [t.clone().requires_grad_() for t in group] for name, group in tensors.items()}
    outputs = call(tensors, **options)
    generator = torch.Generator().manual_seed(1)
    floating = [t for t in outputs if t.is_floating_point()]
    loss = sum((t * torch.randn(t.shape, generator=generator).to(t)).sum() for t in floating)
    leaves = [t for group in tensors.values() for t in group]
    gradients = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
    return [*(t.detach() for t in outputs), *gradients]


def skip_what_does_not_fit(tensors, chunk_size):
    """In the shared memory of a smaller GPU."""
    q, v, weights, decay = (tensors[name] for name in ("q", "v", "weights", "decay"))
    reason = why_not_triton(q[0], v[0], weights, decay, chunk_size=chunk_size)
    if reason is not None and "shared memory" in reason:
        pytest.skip(reason)


def assert_follows_the_rule(tensors, **options):
    skip_what_does_not_fit(tensors, options["chunk_size"])
    rule = {n: o for n, o in options.items() if n != "checkpoint_chunks"}
    for actual, expected in zip(
        with_gradients(tensors, backend="triton", **options),
        with_gradients(tensors, backend="reference", **rule),
        strict=True,
    ):
        assert_close(actual, expected, rtol=1e-9, atol=1e-10)


def assert_no_worse(actual, peers, truth, factor=2.0):
    """At most ``factor`` times as wrong, root mean square, as PyTorch in this dtype; ``truth`` is float64."""
    assert actual.isfinite().all()
    error, *allowed = ((t.double() - truth).square().mean().sqrt() for t in (actual, *peers))
    assert error <= factor * max(allowed) + torch.finfo(peers[0].dtype).eps * truth.square().mean().sqrt()
