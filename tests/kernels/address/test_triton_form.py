"""The Triton kernels of the fused read: on a GPU, or in Triton's interpreter without one."""

import importlib.util
import math

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

from pyro_memory.kernels.address.triton_draw import draw, gumbel


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
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


@pytest.mark.parametrize(
    ("batch", "slots", "draws", "masked"),
    [(1, 1000, 128, True), (2, 150, 128, True), (2, 300, 128, False), (70, 300, 8, True)],
)
def test_samples_pass_a_chi_square_test(batch, slots, draws, masked):
    """Over several spans of slots; more queries than a block holds too."""
    query, key, _, _, mask = parts(2, slots, dtype=torch.float32)
    query = query[torch.arange(batch, device=DEVICE) % 2]
    mask[: slots // 2] &= not masked  # whole blocks are empty
    mask = mask if masked else None
    got = [fused_address(query, key, mask=mask, samples=draws, backend="triton") for _ in range(2)]
    scores = query[:2] @ key.mT
    probs = (scores if mask is None else scores.masked_fill(~mask, -torch.inf)).softmax(-1)
    for i in range(min(batch, 2)):
        assert_drawn_from(torch.cat([g.samples[:, i::2].flatten() for g in got]).cpu(), probs[i].cpu())
    gap = torch.cat([(g.maxima - g.logsumexp).flatten() for g in got]).double().cpu()
    assert abs(gap.mean() - 0.5772157) < 5 * math.pi / math.sqrt(6 * len(gap))
    assert abs(gap.var() - math.pi**2 / 6) < 5 * math.sqrt(4.4 * math.pi**4 / 36 / len(gap))  # of kurtosis 5.4


@pytest.mark.skipif(not GPU, reason="the blocks of one span are many only where slots are")
def test_samples_of_many_blocks_pass_a_chi_square_test():
    query, key, _, _, mask = parts(1, 2**19, dtype=torch.float32)
    got = fused_address(query.expand(1024, -1), key, mask=mask, samples=128, backend="triton").samples
    probs = (query.double() @ key.double().mT).masked_fill(~mask, -torch.inf).softmax(-1)[0]
    assert_drawn_from((got.flatten() >> 9).cpu(), probs.reshape(1024, 512).sum(-1).cpu())


@pytest.mark.parametrize("span", [128, 384])
def test_each_level_of_a_draw_has_its_own_probability(span):
    """Spans of one block and of three, most of the weight in the last slot of the last block, and a block empty."""
    slots = 600
    key = torch.zeros(slots, 16, device=DEVICE)
    key[-1, 0], key[:300, 0] = math.log(1000), 1
    query, mask = torch.eye(2, 16, device=DEVICE), torch.ones(slots, dtype=torch.bool, device=DEVICE)
    mask[128:256] = False
    scores = (query @ key.mT).masked_fill(~mask, -torch.inf)
    blocks = torch.nn.functional.pad(scores, (0, 40), value=-torch.inf).reshape(2, 5, 128).logsumexp(-1)
    spans = [blocks[:, i : i + span // 128].logsumexp(-1) for i in range(0, 5, span // 128)]
    rows = torch.cat([torch.stack(spans), blocks.mT]).contiguous()
    drawn, _ = draw(query, key, mask.to(torch.int8), scores.logsumexp(-1), rows, span, 128, 400, None)
    for i in range(2):
        assert_drawn_from(drawn[:, i].cpu(), scores[i].softmax(-1).cpu())


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter's
def test_samples_stay_within_the_slots_where_scores_are_no_numbers():
    query, key, *_ = parts(2, 150)
    samples = fused_address(query * torch.nan, key, samples=3, backend="triton").samples
    assert ((samples >= 0) & (samples < 150)).all()


def test_a_sample_takes_memory_for_blocks_and_not_for_slots():
    query, key, values, *_ = parts(60, 2000, dtype=torch.float32)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            made = [t.numel() for t in torch.utils._pytree.tree_leaves(out) if torch.is_tensor(t)]
            largest = max(largest, *made, 0)
            return out

    with Watch():
        fused_address(query, key, value=values, samples=3, backend="triton")
    assert largest <= 40_000  # bytes, which the interpreter copies, of five sums of each span; scores would be 120,000


@pytest.mark.skipif(GPU, reason="counts what the interpreter runs")
def test_every_pass_is_spread_over_the_slots(monkeypatch):
    from kernel_watch import watched

    with watched(monkeypatch) as launches:
        with_gradients(parts(5, 150), lambda i: results(i, "triton"))
    # A block of queries; spans of 128 slots for the two passes that split them, and blocks of 64.
    assert [launch.program + 1 for launch in launches] == [2, 2, 3]


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
def _noise(p_i, p_out, width, seed, N: tl.constexpr, M: tl.constexpr):
    i, j = tl.arange(0, N)[:, None], tl.arange(0, M)[None, :]
    tl.store(p_out + i * M + j, gumbel(seed, tl.load(p_i + i), j, width))


def test_draws_that_lie_2_to_the_32_apart_have_noise_of_their_own():
    """Of 1e6 slots, in 1024 spans and some 8000 blocks, 1024 queries' 128 draws have 2^30 places; these have more."""
    i = torch.tensor([0, 0, 2**15, 2**16], device=DEVICE)
    out = torch.empty(4, 128, device=DEVICE)
    _noise[(1,)](i, out, 2**17, 7, N=4, M=128)
    assert_close(out[0], out[1], rtol=0, atol=0)
    for one, other in [(0, 2), (0, 3), (2, 3)]:
        assert (out[one] != out[other]).sum() > 120


def test_the_noise_is_gumbel_and_its_tail_is_finely_divided():
    out = torch.empty(1, 2**20, device=DEVICE)
    _noise[(1,)](torch.zeros(1, dtype=torch.long, device=DEVICE), out, 2**20, 3, N=1, M=2**20)
    u = (-(-out.double()).exp()).exp().sort().values.flatten().cpu()
    assert (u - torch.linspace(0, 1, len(u))).abs().max() < 2 / len(u) ** 0.5  # Kolmogorov and Smirnov: 1 in 1500
    assert len(out[out > 8].unique()) > 0.99 * (out > 8).sum()
