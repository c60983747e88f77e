"""Addresses over large memories: streamed and nearest, against the dense Categorical."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from address_parts import assert_drawn_from
from conftest import ink, sharpen
from pyro.infer import TraceEnum_ELBO, config_enumerate
from torch import nn
from torch.distributions import kl_divergence
from torch.testing import assert_close

from pyro_memory import (
    VIMCO,
    ContentAddress,
    FrozenAddress,
    LearnedPrior,
    SlotMemory,
    StreamedCategorical,
    importance_bound,
    information_gain,
)


def pair(batch=(6,), slots=23, dim=3, masked=True):
    """The streamed distribution and the dense one, in float64."""
    query, key = 2 * torch.randn(*batch, dim).double(), torch.randn(slots, dim).double()
    mask = torch.rand(slots) < 0.7 if masked else None
    if masked:
        mask[-1] = True
    streamed = StreamedCategorical(query.requires_grad_(), key.requires_grad_(), mask)
    logits = query @ key.mT if mask is None else (query @ key.mT).masked_fill(~mask, -math.inf)
    return streamed, dist.Categorical(logits=logits)


@pytest.mark.parametrize("batch", [(), (6,), (1,), (4, 6)])
@pytest.mark.parametrize("masked", [False, True])
def test_it_is_the_dense_categorical(batch, masked):
    streamed, dense = pair(batch, masked=masked)
    a = dense.sample((5,))
    assert_close(streamed.log_prob(a), dense.log_prob(a))
    assert_close(streamed.entropy(), dense.entropy())
    assert_close(streamed.dense().logits, dense.logits)
    prior = torch.randn(23).double()
    assert_close(streamed.kl_to(dist.Categorical(logits=prior)), kl_divergence(dense, dist.Categorical(logits=prior)))
    every = torch.arange(23).reshape((-1,) + (1,) * len(batch))
    assert_close(streamed.log_prob(every), dense.log_prob(every))
    best = dense.logits.topk(2)
    assert_close(streamed.nearest(2)[0], best.indices)
    assert_close(streamed.usage(), dense.probs.reshape(-1, 23).mean(0))


def test_gradients_of_log_prob_entropy_and_kl_are_the_dense_ones():
    streamed, dense = pair(masked=False)
    a, prior = dense.sample(), torch.randn(23).double()
    for one, other in [
        (streamed.log_prob(a), dense.log_prob(a)),
        (streamed.entropy(), dense.entropy()),
        (kl_divergence(streamed, dist.Categorical(logits=prior)), kl_divergence(dense, dist.Categorical(logits=prior))),
    ]:
        leaves = (streamed.query, streamed.key)
        assert_close(*(torch.autograd.grad(t.sin().sum(), leaves, retain_graph=True) for t in (one, other)))


def test_what_is_known_without_a_graph_is_computed_again_for_a_gradient():
    streamed, dense = pair(masked=False)
    with torch.no_grad():
        a = streamed.sample()
    assert_close(*(torch.autograd.grad(q.log_prob(a).sum(), streamed.key)[0] for q in (streamed, dense)))


@pytest.mark.parametrize("shape", [(2, 4, 6), (4, 6)])
def test_expanded_copies_keep_shapes_and_share_passes(shape):
    streamed, dense = pair((6,))
    wide, wide_dense = streamed.expand(shape), dense.expand(shape)
    a = wide.sample((3,))
    few = torch.arange(5)
    assert a.shape == (3, *shape)
    assert_close(wide.log_prob(a), wide_dense.log_prob(a))
    assert_close(wide.entropy(), wide_dense.entropy())
    assert streamed._known is wide._known
    single, single_dense = pair((1,))
    assert_close(single.entropy(), single_dense.entropy())
    assert_close(single.expand((5,)).log_prob(few), single_dense.expand((5,)).log_prob(few))
    assert single.expand((5,)).sample().shape == (5,)


def test_expanded_samples_follow_each_row():
    streamed, dense = pair((2,), masked=True)
    a = streamed.expand((100_000, 2)).sample()
    for i in range(2):
        assert_drawn_from(a[:, i], dense.probs[i].detach())


def test_a_learned_prior_may_be_streamed_too(monkeypatch):
    memory, key = SlotMemory(torch.randn(7, 3), mask=torch.tensor([True] * 6 + [False])), nn.Linear(3, 4)
    prior = LearnedPrior(key, 4)
    nn.init.normal_(prior.query)
    x = torch.randn(5, 3)
    dense = kl_divergence(ContentAddress(key)(x, memory), prior(memory))
    for place in ("priors", "content"):
        monkeypatch.setattr(f"pyro_memory.addressing.{place}.STREAM_ABOVE", 5)
    assert isinstance(prior(memory), StreamedCategorical)
    streamed = kl_divergence(ContentAddress(key)(x, memory), prior(memory).expand((5,)))
    assert_close(streamed, dense)
    assert torch.autograd.grad(streamed.sum(), prior.query)[0].abs().sum() > 0


def test_the_content_address_streams_by_choice_and_beyond_a_size(monkeypatch):
    x, memory, embed = torch.randn(6, 3), SlotMemory(torch.randn(9, 3)), nn.Linear(3, 4)
    dense = ContentAddress(embed)(x, memory)
    assert isinstance(dense, dist.Categorical)
    assert_close(ContentAddress(embed, stream=True)(x, memory).dense().logits, dense.logits)
    monkeypatch.setattr("pyro_memory.addressing.content.STREAM_ABOVE", 8)
    assert isinstance(ContentAddress(embed)(x, memory), StreamedCategorical)
    assert isinstance(ContentAddress(embed, stream=False)(x, memory), dist.Categorical)
    per_datum = SlotMemory(torch.randn(6, 9, 3), batch_dim=-1)
    assert isinstance(ContentAddress(embed, stream=True)(x, per_datum), dist.Categorical)


def test_the_none_slot_and_a_memory_without_others_are_addressed_alike():
    x, embed, mask = torch.randn(6, 3), nn.Linear(3, 4), torch.tensor([True, False, True])
    for memory in (SlotMemory(torch.randn(3, 3), mask=mask).with_none(), SlotMemory.empty((3,)).with_none()):
        dense, streamed = (ContentAddress(embed, stream=s)(x, memory) for s in (False, True))
        a = torch.full((6,), memory.slots - 1)
        assert_close(streamed.log_prob(a), dense.log_prob(a))
        assert_close(kl_divergence(streamed, memory.prior()), kl_divergence(dense, memory.prior()))
        assert (dense.log_prob(streamed.sample((50,))) > -math.inf).all()


def test_many_slots_are_embedded_a_block_at_a_time_with_the_same_gradient(monkeypatch):
    x, embed = torch.randn(6, 3), nn.Linear(3, 4)
    values = torch.randn(50, 3, requires_grad=True)
    grads = []
    for block in (4096, 7):
        monkeypatch.setattr("pyro_memory.addressing.content.BLOCK", block)
        loss = ContentAddress(embed)(x, SlotMemory(values)).log_prob(torch.arange(6)).sum()
        grads.append(torch.autograd.grad(loss, [values, *embed.parameters()]))
    assert_close(*grads)


def test_frozen_keys_give_the_same_address():
    x, memory, address = torch.randn(6, 3), SlotMemory(torch.randn(9, 3)), ContentAddress(nn.Linear(3, 4))
    keyed = SlotMemory(memory.values, keys=address.embed(memory))
    assert_close(FrozenAddress(address)(x, keyed).dense().logits, address(x, memory).logits)
    halved = SlotMemory(memory.values, keys=address.embed(memory, dtype=torch.float16))
    a = torch.arange(6)
    assert_close(FrozenAddress(address)(x, halved).log_prob(a), address(x, memory).log_prob(a), atol=0.01, rtol=0)
    with pytest.raises(ValueError, match=r"`memory` must carry embedded keys, .* got none. Make them with"):
        FrozenAddress(address)(x, memory)
    with pytest.raises(ValueError, match="keys of the queries' dimension, 4; got 5"):
        FrozenAddress(address)(x, SlotMemory(memory.values, keys=torch.randn(9, 5)))


def test_a_sharpness_multiplies_the_scores():
    x, memory, address = torch.randn(6, 3), SlotMemory(torch.randn(9, 3)), ContentAddress(nn.Linear(3, 4))
    keyed = SlotMemory(memory.values, keys=address.embed(memory))
    sharp = FrozenAddress(address, sharpness=3.0)
    assert_close(sharp(x, keyed).dense().logits, (3 * address(x, memory).logits).log_softmax(-1))
    assert_close(sharp(x, keyed).entropy(), sharp(x, keyed).dense().entropy())
    with pytest.raises(ValueError, match="`sharpness` must be positive; got 0"):
        FrozenAddress(address, sharpness=0)


# --- inside Pyro


def loss_and_grads(model, guide, x, memory, objective=None):
    pyro.set_rng_seed(1)
    objective = objective or VIMCO(3, max_plate_nesting=1)
    objective.differentiable_loss(model, guide, x, memory).backward()
    grads = {n: p.grad.clone() for n, p in guide.named_parameters() if p.grad is not None}
    guide.zero_grad()
    return grads


def test_vimco_trains_the_streamed_address_as_the_dense_one(tiny_pair, shared_memory):
    """The estimator is a mean over addresses: enumerated by hand here, so that sampling noise plays no part."""
    model, guide = tiny_pair
    x = ink(4, 1, 6, 6)
    replayed = torch.randint(5, (3, 4))

    def fixed(x, memory):
        with pyro.plate("batch", len(x)):
            a = pyro.sample("a", guide.a_dist(x, memory), obs=None, infer={"was": "fixed"})
            pyro.sample("z", guide.z_dist(x, memory[a]))

    grads = []
    for stream in (False, True):
        guide.address.stream = stream
        with pyro.poutine.trace() as trace, pyro.plate("num_particles_vectorized", 3, dim=-2):
            pyro.poutine.condition(fixed, data={"a": replayed})(x, shared_memory)
        trace.trace.compute_log_prob()
        grads.append(torch.autograd.grad(trace.trace.nodes["a"]["log_prob_sum"], list(guide.address.parameters())))
    assert_close(*grads)
    streamed = loss_and_grads(model, guide, x, shared_memory)
    assert all(g.isfinite().all() for g in streamed.values())
    assert any(name.startswith("address") and g.abs().sum() > 0 for name, g in streamed.items())


def test_bounds_and_information_agree_with_the_dense_address(tiny_pair, shared_memory):
    model, guide = tiny_pair
    x = ink(16, 1, 6, 6)
    gains, bounds = [], []
    for stream in (False, True):
        guide.address.stream = stream
        pyro.set_rng_seed(0)
        gains.append(information_gain(model, guide, x, shared_memory))
    for module in (model, guide):
        sharpen(module, 0.5)  # where few particles hold all the weight, the error of their mean is not honest
    for stream in (False, True):
        guide.address.stream = stream
        bounds.append(importance_bound(model, guide, x, shared_memory, particles=2000, chunk_size=500))
    noise = math.hypot(bounds[0].monte_carlo_se, bounds[1].monte_carlo_se)
    assert abs(bounds[0].mean - bounds[1].mean) < 5 * noise + 1e-3
    dense, streamed = (g.to_dict()["addresses"]["a"] for g in gains)
    assert gains[1]["a"].method == "closed form"
    assert_close(gains[1]["a"].kl, gains[0]["a"].kl)
    for name, value in dense.items():
        assert streamed[name] == pytest.approx(value, abs=1e-5), name


def test_enumeration_is_refused_with_the_remedy(tiny_pair, shared_memory):
    model, guide = tiny_pair
    guide.address.stream = True
    with pytest.raises(NotImplementedError, match=r"no parallel enumeration, which needs the dense form.*stream=False"):
        TraceEnum_ELBO(max_plate_nesting=1).loss(model, config_enumerate(guide), ink(4, 1, 6, 6), shared_memory)


def test_a_prior_per_datum_is_refused():
    streamed, _ = pair()
    with pytest.raises(ValueError, match="`prior` must be one distribution over the 23 slots for all data"):
        streamed.kl_to(dist.Categorical(logits=torch.randn(6, 23)))
    with pytest.raises(ValueError, match="`prior` must be one distribution over the 23 slots"):
        streamed.kl_to(dist.Categorical(logits=torch.randn(22)))
