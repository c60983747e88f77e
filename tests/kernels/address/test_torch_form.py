"""The definition of the address, its PyTorch form against it, and what both refuse."""

import math

import pytest
import torch
from address_parts import assert_drawn_from, parts
from torch.distributions import Categorical, kl_divergence
from torch.testing import assert_close

from pyro_memory.kernels import fused_address, nearest_slots
from pyro_memory.kernels.address.definition import dense_address


def test_the_definition_is_the_categorical_over_filled_slots():
    query, key, values, log_prior, mask = parts()
    whole = dense_address(query, key, value=values, log_prior=log_prior)
    p = Categorical(logits=query @ key.mT)
    assert_close(whole.logsumexp, (query @ key.mT).exp().sum(-1).log())
    assert_close(whole[1:4], (p.entropy(), kl_divergence(p, Categorical(logits=log_prior)), p.probs @ values))
    masked = dense_address(query, key, value=values, log_prior=log_prior, mask=mask, nearest=3)
    alone = dense_address(query, key[mask], value=values[mask], log_prior=log_prior[mask], nearest=3)
    assert_close(masked[:4], alone[:4])
    assert_close(masked.best, mask.nonzero().squeeze(-1)[alone.best])
    assert_close(masked.best_scores, (query.unsqueeze(1) * key[masked.best]).sum(-1))


@pytest.mark.parametrize(("batch", "slots"), [(5, 37), (1, 37), (5, 1), (1, 1), (3, 14)])
@pytest.mark.parametrize("chunk_size", [1, 7, 64])
def test_values_and_gradients_equal_the_dense_ones(batch, slots, chunk_size):
    inputs = [t.requires_grad_() if t.is_floating_point() else t for t in parts(batch, slots)]
    query, key, values, log_prior, mask = inputs
    fused = fused_address(query, key, value=values, log_prior=log_prior, mask=mask, chunk_size=chunk_size)[:4]
    expected = dense_address(query, key, value=values, log_prior=log_prior, mask=mask)[:4]
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
    expected = dense_address(query, key, mask=mask, nearest=6)
    got = fused_address(query, key, mask=mask, nearest=6, chunk_size=4)
    assert_close(got.best, expected.best)
    assert_close(got.best_scores, expected.best_scores)
    assert_close(*(torch.autograd.grad(t.square().sum(), query) for t in (got.best_scores, expected.best_scores)))
    assert_close(nearest_slots(query, key, 6, mask=mask)[0], expected.best)


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
