"""The fused read against the dense Categorical."""

import math

import pytest
import torch
from torch.distributions import Categorical, kl_divergence
from torch.testing import assert_close

from pyro_memory.kernels import fused_address, nearest_slots


def parts(batch=5, slots=37, dim=3, value=4, dtype=torch.float64):
    query, key = 2 * torch.randn(batch, dim, dtype=dtype), torch.randn(slots, dim, dtype=dtype)
    values, log_prior = torch.randn(slots, value, dtype=dtype), torch.randn(slots, dtype=dtype).log_softmax(0)
    mask = torch.rand(slots) < 0.8
    mask[-1] = True
    return query, key, values, log_prior, mask


def dense(query, key, values, log_prior, mask):
    """What the fused read must equal: the filled slots alone (the prior stays as it is)."""
    scores = query @ key[mask].mT
    p = Categorical(logits=scores)
    kl = (p.probs * (p.logits - log_prior[mask])).sum(-1)
    return scores.logsumexp(-1), p.entropy(), kl, p.probs @ values[mask]


@pytest.mark.parametrize(("batch", "slots"), [(5, 37), (1, 37), (5, 1), (1, 1), (3, 14)])
@pytest.mark.parametrize("chunk_size", [1, 7, 64])
def test_values_and_gradients_equal_the_dense_ones(batch, slots, chunk_size):
    inputs = [t.requires_grad_() if t.is_floating_point() else t for t in parts(batch, slots)]
    query, key, values, log_prior, mask = inputs
    fused = fused_address(query, key, value=values, log_prior=log_prior, mask=mask, chunk_size=chunk_size)[:4]
    expected = dense(*inputs)
    assert_close(fused, expected)
    weights = [torch.randn_like(t) for t in expected]
    leaves = [query, key, values, log_prior]
    grads = [
        torch.autograd.grad(sum((w * t).sum() for w, t in zip(weights, out, strict=True)), leaves)
        for out in (fused, expected)
    ]
    assert_close(*grads)


def test_the_prior_is_uniform_over_filled_slots_by_default():
    query, key, _, _, mask = parts()
    query.requires_grad_()
    kl = fused_address(query, key, mask=mask, chunk_size=5).kl
    uniform = Categorical(logits=torch.zeros(int(mask.sum()), dtype=torch.float64))
    expected = kl_divergence(Categorical(logits=query @ key[mask].mT), uniform)
    assert_close(kl, expected)
    assert_close(*(torch.autograd.grad(t.square().sum(), query, retain_graph=True) for t in (kl, expected)))


def test_gradients_agree_with_finite_differences():
    query, key, values, log_prior, mask = parts(2, 5)
    for t in (query, key, values, log_prior):
        t.requires_grad_()

    def results(query, key, values, log_prior):
        return fused_address(query, key, value=values, log_prior=log_prior, mask=mask, chunk_size=2)[:4]

    assert torch.autograd.gradcheck(results, (query, key, values, log_prior))


def test_huge_scores_neither_overflow_nor_lose_the_entropy():
    query, key = torch.tensor([[1e4, 0.0], [-1e4, 0.0]]), torch.tensor([[1.0, 0], [1.0, 0], [-1.0, 0], [0.5, 0]])
    got = fused_address(query, key, chunk_size=1)
    assert_close(got.logsumexp, torch.tensor([1e4 + math.log(2), 1e4]))
    assert_close(got.entropy, torch.tensor([math.log(2), 0.0]))


def test_a_slot_that_the_prior_rules_out_makes_the_kl_infinite():
    query, key, _, log_prior, _ = parts()
    log_prior[3] = -math.inf
    assert (fused_address(query, key, log_prior=log_prior).kl == math.inf).all()
    mask = torch.ones(len(key), dtype=torch.bool)
    mask[3] = False
    assert fused_address(query, key, log_prior=log_prior, mask=mask).kl.isfinite().all()


def test_half_precision_keys_are_summed_in_the_queries_precision():
    query, key, *_ = parts(dtype=torch.float32)
    got = fused_address(query, key.half())
    assert got.logsumexp.dtype == torch.float32
    assert_close(got.logsumexp, (query @ key.half().float().mT).logsumexp(-1))


def assert_drawn_from(samples, probs):
    """Chi-square within five standard deviations, cells of fewer than five expected pooled, impossible ones empty."""
    draws = len(samples)
    counts = torch.bincount(samples, minlength=len(probs)).double()
    assert counts[probs == 0].sum() == 0
    expected = draws * probs.double()
    rare = expected < 5
    counts = torch.cat([counts[~rare], counts[rare].sum().reshape(1)])
    expected = torch.cat([expected[~rare], expected[rare].sum().reshape(1)])
    counts, expected = counts[expected > 0], expected[expected > 0]
    degrees = len(counts) - 1
    chi_square = ((counts - expected).square() / expected).sum()
    assert chi_square < degrees + 5 * math.sqrt(2 * degrees) + 5, (chi_square, degrees)


@pytest.mark.parametrize("chunk_size", [4, 64])
def test_samples_pass_a_chi_square_test_at_100000_draws(chunk_size):
    query, key, _, _, mask = parts(2, 37, dtype=torch.float32)
    generator = torch.Generator().manual_seed(3)
    samples = fused_address(query, key, mask=mask, samples=100_000, chunk_size=chunk_size, generator=generator).samples
    probs = (query @ key.mT).masked_fill(~mask, -math.inf).softmax(-1)
    for i in range(2):
        assert_drawn_from(samples[:, i], probs[i])
    joint = samples[:, 0] * 37 + samples[:, 1]  # rows draw independently
    assert_drawn_from(joint, torch.outer(probs[0], probs[1]).flatten())


def test_the_maxima_are_gumbel_around_the_logsumexp():
    query, key, *_ = parts(1)
    got = fused_address(query, key, samples=100_000, chunk_size=5)
    gap = got.maxima[:, 0] - got.logsumexp
    assert abs(gap.mean() - 0.5772157) < 5 * math.pi / math.sqrt(6 * 100_000)
    assert abs(gap.var() - math.pi**2 / 6) < 0.05


def test_the_best_slots_are_found_across_chunks_and_skip_empty_ones():
    query, key, _, _, mask = parts()
    query.requires_grad_()
    scores = (query @ key.mT).masked_fill(~mask, -math.inf)
    expected = scores.topk(6)
    got = fused_address(query, key, mask=mask, nearest=6, chunk_size=4)
    assert_close(got.best, expected.indices)
    assert_close(got.best_scores, expected.values)
    assert_close(*(torch.autograd.grad(t.square().sum(), query) for t in (got.best_scores, expected.values)))
    assert_close(nearest_slots(query, key, 6, mask=mask)[0], expected.indices)


def test_it_never_makes_anything_as_large_as_batch_times_slots():
    query, key, values, log_prior, mask = parts(64, 5000, dtype=torch.float32)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for t in torch.utils._pytree.tree_leaves(out):
                largest = max(largest, t.numel() if isinstance(t, torch.Tensor) else 0)
            return out

    query.requires_grad_()
    with Watch():
        got = fused_address(query, key, value=values, log_prior=log_prior, mask=mask, samples=3, chunk_size=50)
        (got.logsumexp + got.kl).sum().backward()
    assert largest <= 5000 * 4  # the values; batch x slots would be 320,000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"key": torch.randn(7, 5)},
            r"`query` must be \[batch, dim\] and `key` \[slot, dim\] with one dim; got \[2, 3\]",
        ),
        ({"value": torch.randn(6, 2)}, r"`value` must be \[slot, value\] with 7 slots"),
        ({"log_prior": torch.randn(7, 1)}, r"`log_prior` must be \[slot\] with 7 slots"),
        ({"mask": torch.ones(7)}, "use `mask.bool\\(\\)`"),
        ({"mask": torch.zeros(7, dtype=torch.bool)}, "`key` must hold at least one slot"),
        ({"nearest": 8}, "`nearest` must lie between 0 and the 7 filled slots; got 0 and 8"),
        ({"samples": -1}, "`samples` must not be negative"),
        ({"chunk_size": 0}, "`chunk_size` must be at least 1 slot"),
        ({"backend": "cuda"}, '`backend` must be "auto", "torch" or "triton"'),
    ],
)
def test_bad_input_is_refused_with_the_remedy(change, message):
    with pytest.raises(ValueError, match=message):
        fused_address(**({"query": torch.randn(2, 3), "key": torch.randn(7, 3)} | change))
