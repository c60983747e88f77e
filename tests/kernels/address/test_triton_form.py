"""The Triton kernels of the fused read: on a GPU, or in Triton's interpreter without one."""

import importlib.util

import pytest
import torch
from address_parts import assert_drawn_from
from address_parts import parts as parts_on_cpu
from memory_calls import DEVICE, GPU, watched_memory  # noqa: F401
from torch.testing import assert_close

from pyro_memory.kernels import fused_address
from pyro_memory.kernels.address.definition import dense_address

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton has no wheel for this machine", allow_module_level=True)

import triton
import triton.language as tl

from pyro_memory.kernels.address.triton_form import gumbel


def parts(*args, **options):
    return [t.to(DEVICE) for t in parts_on_cpu(*args, **options)]


def results(inputs, backend):
    query, key, values, log_prior, mask = inputs
    return fused_address(query, key, value=values, log_prior=log_prior, mask=mask, backend=backend)[:4]


def dense(inputs):
    query, key, values, log_prior, mask = inputs
    return dense_address(query, key, value=values, log_prior=log_prior, mask=mask)[:4]


def with_gradients(inputs, compute):
    leaves = [t.clone().requires_grad_() for t in inputs[:4]]
    out = compute([*leaves, inputs[4]])
    loss = sum((t * torch.linspace(1, 2, t.numel()).to(t).reshape(t.shape)).sum() for t in out)
    return [*(t.detach() for t in out), *torch.autograd.grad(loss, leaves)]


@pytest.mark.parametrize(("batch", "slots"), [(5, 150), (1, 37), (5, 1), (20, 70), *([(300, 20000)] if GPU else [])])
def test_float64_equals_the_dense_values_and_gradients(batch, slots):
    inputs = parts(batch, slots)
    assert_close(with_gradients(inputs, lambda i: results(i, "triton")), with_gradients(inputs, dense))


def test_the_kernel_agrees_with_finite_differences():
    query, key, values, log_prior, mask = parts(2, 5)
    leaves = [t.requires_grad_() for t in (query, key, values, log_prior)]
    assert torch.autograd.gradcheck(lambda *t: results([*t, mask], "triton"), leaves, nondet_tol=1e-12)


def test_without_value_prior_or_mask_it_gives_the_rest():
    query, key, *_ = parts(3, 80)
    got, expected = (fused_address(query, key, backend=b) for b in ("triton", "torch"))
    assert_close(got[:3], expected[:3])
    assert got.read is None
    assert got.samples is None


@pytest.mark.parametrize(("dim", "value"), [(16, 4), (60, 128), (128, 100)])
def test_wide_keys_and_values_give_the_same(dim, value):
    query, *rest = parts(20, 70, dim, value)
    inputs = [query / dim**0.5, *rest]
    assert_close(with_gradients(inputs, lambda i: results(i, "triton")), with_gradients(inputs, dense))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_at_most_twice_as_wrong_as_pytorch(dtype):
    errors = []
    for _ in range(4):  # a single draw is a matter of luck
        inputs = [t.to(dtype) if t.is_floating_point() else t for t in parts(5, 150)]
        exact = [t.double() if t.is_floating_point() else t for t in inputs]
        truth = with_gradients(exact, dense)
        kernel = with_gradients(inputs, lambda i: results(i, "triton"))
        peer = with_gradients(inputs, lambda i: results(i, "torch"))
        errors.append(
            [
                [(x.double() - t).abs().max() / t.abs().max() for x in (k, p)]
                for k, p, t in zip(kernel, peer, truth, strict=True)
            ]
        )
    error, allowed = torch.tensor(errors).mean(0).mT
    assert error.isfinite().all()
    assert (error <= 2 * allowed + torch.finfo(dtype).eps).all(), (error, allowed)


def test_uninitialised_memory_is_never_read():
    inputs = parts(5, 150)  # torch.empty is filled with NaN in these tests
    assert all(t.isfinite().all() for t in with_gradients(inputs, lambda i: results(i, "triton")))


def test_samples_pass_a_chi_square_test():
    query, key, _, _, mask = parts(2, 150, dtype=torch.float32)
    query = query.repeat(500, 1)
    samples = fused_address(query, key, mask=mask, samples=4, backend="triton").samples
    probs = (query[:2] @ key.mT).masked_fill(~mask, -torch.inf).softmax(-1)
    for i in range(2):
        assert_drawn_from(samples[:, i::2].flatten().cpu(), probs[i].cpu())


@pytest.mark.skipif(GPU, reason="counts what the interpreter runs")
def test_every_pass_is_spread_over_the_slots(monkeypatch):
    from kernel_watch import watched

    with watched(monkeypatch) as launches:
        with_gradients(parts(5, 150), lambda i: results(i, "triton"))
    assert [launch.program + 1 for launch in launches] == [3, 3, 3]  # a block of queries, and three of 64 slots


def test_the_same_inputs_give_the_same_bits():
    inputs = parts(20, 20000 if GPU else 150, dtype=torch.float32)
    first, again = (with_gradients(inputs, lambda i: results(i, "triton")) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(again, first, strict=True))


def test_an_empty_batch_gives_an_empty_answer_and_gradients_of_zero():
    out = with_gradients(parts(0, 70), lambda i: results(i, "triton"))
    assert [t.numel() for t in out[:5]] == [0] * 5
    assert not any(t.any() for t in out[5:])


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_a_gpu_is_waited_for_once_to_count_slots_and_not_without_a_mask(backend):
    query, key, values, _, mask = parts(5, 70)
    waits = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            waits.extend([func] if func is torch.ops.aten._local_scalar_dense.default else [])
            return func(*args, **(kwargs or {}))

    with Watch():
        fused_address(query, key, value=values, mask=mask, nearest=2, backend=backend)
        assert len(waits) == 1
        fused_address(query, key, value=values, nearest=2, backend=backend)
        assert len(waits) == 1


@pytest.mark.parametrize("rows", [(2**30 + 1, 1), (1, 2**30 + 1)])
def test_more_rows_than_32_bits_count_are_refused(rows):
    query, key = (torch.empty(n, 3, device="meta") for n in rows)
    with pytest.raises(ValueError, match=r"`query` and `key` must have at most 1073741824 rows.* got 1073741825 rows"):
        fused_address(query, key, backend="triton")


@pytest.mark.parametrize(("dim", "value", "samples"), [(129, 3, 0), (3, 784, 0), (3, 4, 129)])
def test_what_is_too_wide_is_refused_with_the_remedy_and_auto_takes_it(dim, value, samples):
    query, key, values, *_ = parts(2, 5, dim, value)
    got = f'got 5 rows, {max(dim, value)} columns and {samples} samples. Use "auto" or "torch"'
    with pytest.raises(ValueError, match=got):
        fused_address(query, key, value=values, samples=samples, backend="triton")
    read = fused_address(query, key, value=values, samples=samples).read
    assert_close(read, (query @ key.mT).softmax(-1) @ values)


def test_a_generator_decides_the_samples():
    query, key, *_ = parts(2, 50)
    first, again = (
        fused_address(query, key, samples=9, generator=torch.Generator(DEVICE).manual_seed(3), backend="triton").samples
        for _ in range(2)
    )
    assert torch.equal(first, again)


@triton.jit
def _noise(p_i, p_out, batch, seed, N: tl.constexpr, S: tl.constexpr):
    o = tl.arange(0, N)
    noise = gumbel(seed, tl.load(p_i + o)[:, None], 3, batch, tl.arange(0, S)[None, :], S)
    tl.store(p_out + o[:, None] * S + tl.arange(0, S)[None, :], noise)


def test_blocks_that_lie_2_to_the_32_apart_have_noise_of_their_own():
    """Of 1e6 slots in blocks of 16, at 1024 queries and 128 draws, the first and the 2^15th do."""
    i = torch.tensor([0, 0, 2**15, 2**16], dtype=torch.int32, device=DEVICE)
    out = torch.empty(4, 128, device=DEVICE)
    _noise[(1,)](i, out, 1024, 7, N=4, S=128)
    assert_close(out[0], out[1], rtol=0, atol=0)
    for one, other in [(0, 2), (0, 3), (2, 3)]:
        assert (out[one] != out[other]).sum() > 120
