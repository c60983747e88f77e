import pytest
import torch
from torch import nn
from torch.nn.functional import cosine_similarity
from torch.testing import assert_close

from pyro_memory import ContentAddress, Cosine, Dot, LearnedPrior, NearestAddress, SlotMemory

embed = nn.Linear(3, 4)


def test_the_key_is_normalised_and_the_query_is_not():
    x, values = torch.randn(6, 3), torch.randn(5, 3)
    logits = ContentAddress(embed)(x, SlotMemory(values)).logits
    key, query = embed(values), embed(x)
    scores = torch.stack([(query * k).sum(-1) / k.norm() for k in key], -1)
    assert_close(logits, scores.log_softmax(-1))


def test_cosine_and_dot_give_their_formulas():
    x, values = torch.randn(6, 3), torch.randn(5, 3)
    key, query = embed(values), embed(x)
    cosine = cosine_similarity(query[:, None], key[None], dim=-1) / 0.2
    assert_close(ContentAddress(embed, similarity=Cosine(0.2))(x, SlotMemory(values)).logits, cosine.log_softmax(-1))
    dot = query @ key.T / 2
    assert_close(ContentAddress(embed, similarity=Dot())(x, SlotMemory(values)).logits, dot.log_softmax(-1))


@pytest.mark.parametrize("batch_dim", [-1, -2])
def test_memories_per_datum_give_what_shared_ones_give_one_by_one(batch_dim):
    plates = (6,) if batch_dim == -1 else (6, 2)
    x, values, mask = torch.randn(*plates, 3), torch.randn(6, 5, 3), torch.rand(6, 5) < 0.7
    address = ContentAddress(embed)
    logits = address(x, SlotMemory(values, mask=mask, batch_dim=batch_dim)).logits
    assert logits.shape == plates + (5,)
    for i in range(6):
        assert_close(logits[i], address(x[i], SlotMemory(values[i], mask=mask[i])).logits)


def test_a_masked_slot_has_probability_zero_and_no_gradient():
    values = torch.randn(4, 3, requires_grad=True)
    memory = SlotMemory(values, mask=torch.tensor([True, True, False, True]))
    address = ContentAddress(nn.Linear(3, 4))(torch.randn(6, 3), memory)
    assert (address.probs[:, 2] == 0).all()
    address.log_prob(torch.zeros(6, dtype=torch.long)).sum().backward()
    assert values.grad.isfinite().all()
    assert (values.grad[2] == 0).all()


def test_keys_are_matched_instead_of_values():
    x, keys = torch.randn(6, 3), torch.randn(5, 3)
    with_keys = ContentAddress(embed)(x, SlotMemory(torch.randn(5, 7), keys=keys))
    assert_close(with_keys.logits, ContentAddress(embed)(x, SlotMemory(keys)).logits)


def test_each_slot_of_a_shared_memory_is_embedded_once():
    sizes = []

    class Counting(nn.Linear):
        def forward(self, t):
            sizes.append(t.shape[:-1].numel())
            return super().forward(t)

    ContentAddress(nn.Linear(3, 4), Counting(3, 4))(torch.randn(100, 3), SlotMemory(torch.randn(5, 3)))
    assert sizes == [5]


def test_nearest_keeps_the_likeliest_slots_in_proportion():
    x, memory = torch.randn(6, 3), SlotMemory(torch.randn(5, 3))
    full, near = ContentAddress(embed)(x, memory), NearestAddress(ContentAddress(embed), 2)(x, memory)
    kept = near.probs > 0
    assert (kept.sum(-1) == 2).all()
    assert_close(near.probs, torch.where(kept, full.probs, 0) / (full.probs * kept).sum(-1, keepdim=True))
    assert (full.probs.masked_fill(kept, 0).amax(-1) <= full.probs.masked_fill(~kept, 1).amin(-1)).all()
    assert_close(NearestAddress(ContentAddress(embed), 5)(x, memory).probs, full.probs)


def test_a_learned_prior_starts_uniform_and_learns():
    memory = SlotMemory(torch.randn(2, 5, 3), mask=torch.rand(2, 5) < 0.8, batch_dim=-1)
    prior = LearnedPrior(embed, 4)
    assert_close(prior(memory).probs, memory.prior().probs)
    prior(memory).log_prob(memory.filled.int().argmax(-1)).sum().backward()
    assert prior.query.grad.abs().sum() > 0


def test_a_learned_prior_scores_slots_by_a_learned_query():
    values, prior = torch.randn(5, 3), LearnedPrior(embed, 4)
    nn.init.normal_(prior.query)
    assert_close(prior(SlotMemory(values)).logits, (embed(values) @ prior.query).log_softmax(-1))


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="`temperature` must be positive; got 0"):
        Cosine(0)
    with pytest.raises(ValueError, match="`nearest` must be at least 1"):
        NearestAddress(ContentAddress(embed), 0)
    masked = SlotMemory(torch.randn(2, 3), mask=torch.zeros(2, dtype=torch.bool))
    with pytest.raises(ValueError, match="all slots masked"):
        ContentAddress(embed)(torch.randn(1, 3), masked)


def test_a_blank_key_has_a_finite_score():
    assert ContentAddress(nn.Identity())(torch.randn(1, 3), SlotMemory(torch.zeros(1, 3))).logits.isfinite().all()
