"""A memory of memories: what is cached of a past, and what an address over it reads."""

import math
from functools import partial

import pytest
import torch
from conftest import sharpen
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceEnum_ELBO
from torch import nn
from torch.testing import assert_close

from pyro_memory import (
    VIMCO,
    ContentAddress,
    NearestAddress,
    RecallAddress,
    SlotMemory,
    fit,
    information_gain,
    load,
    memory_contribution,
    save,
)
from pyro_memory.guides import CachedTitansGuide, EmptyGuide
from pyro_memory.models import CachedTitans, NeuralMemory, SequenceModel, StateCache, TransformerMixer

ENUMERATED = TraceEnum_ELBO(max_plate_nesting=2)
mixer = partial(TransformerMixer, heads=1, window=3)


@pytest.fixture
def pair():
    return make()


def make(**options):
    torch.manual_seed(3)
    memory = {"heads": 2, "chunk_size": 2}
    model = CachedTitans.tokens(11, mixer, dim=8, key_dim=6, segment=4, **memory, **options)
    guide = CachedTitansGuide.mlp(model.states, 7, **options)
    return sharpen(model, 1.3), sharpen(guide, 1.3)


def drawn(batch, time):
    return torch.randint(11, (batch, time))


def test_a_slot_holds_the_state_after_its_own_segment_and_nothing_else(pair):
    states, past = pair[0].states, drawn(2, 10)
    cache = states.remember(past)
    assert (cache.slots, cache.batch_dim, cache.event_shape) == (3, -2, states.event_shape)
    for slot, part in enumerate(past.split(4, 1)):
        hidden = states.reader.hidden(part)[:, 1:]
        weights = states.memory(hidden)[1].weights
        for got, expected in zip(states.weights(cache.values[:, slot]), weights, strict=True):
            assert_close(got, expected)
        gate = states.to_gate(hidden).sigmoid()
        assert_close(cache.keys[:, slot], (gate * states.to_key(hidden)).sum(1) / gate.sum(1))


def test_a_past_may_come_in_pieces_and_a_full_cache_forgets_its_oldest_slot(pair):
    states, past = pair[0].states, drawn(2, 20)
    whole, cache = states.remember(past), states.reserve(2, 4)
    for piece in (past[:, :8], past[:, 8:12], past[:, 12:]):
        cache = states.remember(piece, cache)
    order = cache.ages[0].argsort(descending=True)
    assert_close(cache.values[:, order], whole.values[:, 1:])
    assert_close(cache.keys[:, order], whole.keys[:, 1:])
    again = SlotMemory.from_tensors(cache.to_tensors())
    x = drawn(2, 3)
    assert_close(pair[0].log_evidence(x, again), pair[0].log_evidence(x, cache))


def test_padding_is_not_remembered(pair):
    states, past = pair[0].states, drawn(3, 11)
    cache = states.remember(past, lengths=torch.tensor([11, 6, 4]))
    assert cache.filled.tolist() == [[True] * 3, [True, True, False], [True, False, False]]
    short = states.remember(past[1:2, :6])
    assert_close(cache.values[1, :2], short.values[0])
    assert_close(cache.keys[1, :2], short.keys[0])
    assert pair[0].a_dist(pair[0].states.present(drawn(3, 2)), cache).probs[2, :, 1:].abs().max() == 0


def test_the_evidence_is_the_sum_over_slots(pair):
    model, _ = pair
    x, cache = drawn(2, 5), model.states.remember(drawn(2, 12))
    h = model.states.present(x)
    probs = torch.zeros(2, 5)
    for slot in range(3):
        states = model.states
        recalled = states.memory.retrieve(states.to_recall(h), states.weights(cache.values[:, slot]))
        likelihood = states.reader.readout(states.norm(h + recalled)).log_prob(x).exp()
        probs += model.a_dist(h, cache).probs[..., slot] * likelihood
    assert_close(model.log_evidence(x, cache), probs.log())
    assert_close(model.x_dist(x, cache).log_prob(x), probs.log())
    one_cache = SlotMemory(cache.values[0], cache.keys[0])
    assert_close(model.log_evidence(x[:1], one_cache), probs[:1].log())


def test_a_drawn_address_reads_the_slot_that_an_enumerated_one_does(pair):
    model, _ = pair
    x, cache = drawn(2, 5), model.states.remember(drawn(2, 12))
    h = model.states.present(x)
    every = model.x_dist_at(torch.arange(3).reshape(3, 1, 1), h, cache).logits
    for lead in ((), (4,)):
        a = torch.randint(3, (*lead, 2, 5))
        expected = every.expand(3, 2, 5, 11).gather(0, a.reshape(-1, 2, 5)[..., None].expand(-1, -1, -1, 11))
        assert_close(model.x_dist_at(a, h, cache).logits, expected.reshape(*a.shape, 11))


def test_the_bound_is_the_evidence_minus_the_guides_error_where_it_is_asked(pair):
    model, guide = pair
    x, past, mask = drawn(3, 5), drawn(3, 12), torch.rand(3, 5) > 0.4
    cache = model.states.remember(past)
    h, slots = model.states.present(x), torch.arange(3).reshape(3, 1, 1)
    q = guide.a_dist(x, cache)
    joint = model.a_dist(h, cache).log_prob(slots) + model.x_dist_at(slots, h, cache).log_prob(x)
    posterior = torch.distributions.Categorical(logits=joint.movedim(0, -1))
    expected = model.log_evidence(x, cache) - torch.distributions.kl_divergence(q, posterior)
    for given in (cache, past):
        bound = -torch.tensor(ENUMERATED.loss(model, guide, x, given, mask))
        assert_close(bound, expected[mask].sum())


def test_the_present_is_the_reader_and_what_the_memory_makes_of_it(pair):
    states, x = pair[0].states, drawn(2, 5)
    hidden = states.reader.hidden(x)[:, :5]
    mixed = hidden + states.memory(hidden)[0]
    assert_close(
        states.present(x),
        mixed / mixed.square().mean(-1, keepdim=True).sqrt() * states.norm.weight,
        rtol=1e-4,
        atol=1e-5,
    )
    states.present(x).square().sum().backward()
    assert states.reader.embedding.weight.grad.abs().max() > 0


def test_a_memory_that_records_its_surprise_records_that_of_the_present():
    model = CachedTitans.tokens(11, mixer, dim=8, key_dim=6, segment=4, heads=2, chunk_size=2, surprise=True)
    trace = poutine.trace(model).get_trace(drawn(2, 5), drawn(2, 8))
    (site,) = [name for name in trace.nodes if name.endswith("surprise")]
    assert trace.nodes[site]["value"].shape == (2, 5, 2)


def test_nothing_looks_ahead_of_the_element_it_explains(pair):
    model, guide = pair
    x, cache = drawn(1, 6), model.states.remember(drawn(1, 8))
    changed = x.clone()
    changed[0, 3] = (x[0, 3] + 1) % 11
    before, after = (model.a_dist(model.states.present(t), cache).probs for t in (x, changed))
    assert_close(after[:, :4], before[:, :4])
    assert not torch.allclose(after[:, 4], before[:, 4])
    looked, again = (guide.a_dist(t, cache).probs for t in (x, changed))
    assert_close(again[:, :3], looked[:, :3])
    assert not torch.allclose(again[:, 3], looked[:, 3])  # the guide looks the element up


def test_an_address_weighs_what_each_memory_answers(pair):
    model, guide = pair
    x, cache = drawn(2, 5), model.states.remember(drawn(2, 12))
    h = model.states.present(x)
    for address, by in ((model.address, h), (guide.address, torch.cat([h, model.states.reader.embedding(x)], -1))):
        scores = [
            address.score(torch.cat([by, model.states.recall(h, cache.values[:, slot : slot + 1])], -1)).squeeze(-1)
            for slot in range(3)
        ]
        logits = address.content(by, cache).logits + torch.stack(scores, -1)
        assert_close(address(by, cache).probs, logits.softmax(-1))
        assert not torch.allclose(address(by, cache).probs, address.content(by, cache).probs, atol=1e-3)


@pytest.mark.parametrize("objective", [ENUMERATED, VIMCO(3, max_plate_nesting=2)], ids=["summed", "drawn"])
def test_it_trains_through_the_states_it_remembers(pair, objective):
    model, guide = pair
    batch = drawn(3, 4), drawn(3, 12)
    both = nn.ModuleList([model, guide])
    before = {name: p.detach().clone() for name, p in both.named_parameters()}
    fit(model, guide, [batch], objective, steps=2, progress=False, information_every=None)
    still = [name for name, p in both.named_parameters() if torch.equal(p, before[name])]
    assert not still


def test_what_a_lookup_was_worth_is_measured_with_the_usual_tools(pair):
    model, guide = make(none_slot=True)
    x, cache = drawn(4, 5), model.states.remember(drawn(4, 12)).detach()
    gain = information_gain(model, guide, x, cache, max_plate_nesting=2)["a"]
    q, p = guide.a_dist(x, cache.with_none()), model.a_dist(model.states.present(x), cache.with_none())
    assert_close(gain.kl.reshape(4, 5), torch.distributions.kl_divergence(q, p))
    worth = memory_contribution(model, guide, x, cache, particles=1, exact=("a",), max_plate_nesting=2)
    assert set(worth.alternatives) == {"shuffled", "emptied"}
    empty = model.log_evidence(x, model.states.reserve(4, 1))
    assert_close(worth.alternatives["emptied"].bound.sum().float(), empty.sum())
    assert_close(worth.given.bound.sum().float(), model.log_evidence(x, cache).sum())


def test_any_address_of_the_package_reads_it(pair):
    model, guide = pair
    content = ContentAddress(nn.Linear(8, 6), nn.Identity())
    nearest = CachedTitans(model.states, NearestAddress(content, 2, epsilon=0.1))
    uniform = CachedTitans(model.states, None)
    streamed = CachedTitans(model.states, ContentAddress(nn.Linear(8, 6), nn.Identity(), stream=True))
    x, cache = drawn(2, 5), model.states.remember(drawn(2, 16))
    shared = SlotMemory(cache.values[0].detach(), cache.keys[0].detach())
    for other, given in ((nearest, cache), (uniform, cache), (streamed, shared)):
        loss = VIMCO(300, max_plate_nesting=2).loss(other, guide, x, given)
        assert loss == pytest.approx(-other.log_evidence(x, given).sum().item(), abs=0.3)
    with pytest.raises(TypeError, match=r"`content` must give a Categorical.*StreamedCategorical. Build it"):
        RecallAddress(model.states, streamed.address)(model.states.present(x), shared)
    assert_close(uniform.a_dist(model.states.present(x), cache).probs, torch.full((2, 5, 4), 0.25))


def test_a_pair_is_saved_with_its_cache(pair, tmp_path):
    model, guide = pair
    x, cache = drawn(2, 5), model.states.remember(drawn(2, 16)).detach()
    save(tmp_path / "pair.safetensors", model, guide, cache)
    again, its_guide, kept = load(tmp_path / "pair.safetensors")
    assert again.states is its_guide.states
    assert_close(again.log_evidence(x, kept), model.log_evidence(x, cache))
    assert_close(its_guide.a_dist(x, kept).probs, guide.a_dist(x, cache).probs)


def test_a_series_is_read_by_its_evidence_and_bounded_by_its_guide(pair):
    reader = SequenceModel.series(2, mixer, dim=8, blocks=1)
    states = StateCache(reader, NeuralMemory(8, heads=2, chunk_size=2), key_dim=6, segment=4)
    model = CachedTitans(states, ContentAddress(nn.Linear(8, 6), nn.Identity()))
    x, past = torch.randn(3, 5, 2), torch.randn(3, 8, 2)
    guide = CachedTitansGuide.mlp(states, 7)
    bound = -ENUMERATED.loss(model, guide, x, past)
    assert 0 <= model.log_evidence(x, past).sum().item() - bound < 3 * 5 * math.log(2)  # of two slots
    with pytest.raises(TypeError, match=r"`x_dist` is for tokens.*NormalReadout. Take log_evidence"):
        model.x_dist(x, past)


def test_the_marginal_model_is_the_evidence_where_it_is_asked(pair):
    model, _ = pair
    x, past, mask = drawn(3, 5), drawn(3, 12), torch.rand(3, 5) > 0.4
    loss = Trace_ELBO(max_plate_nesting=2).loss(model.marginal, EmptyGuide(), x, past, mask)
    assert_close(torch.tensor(-loss), model.log_evidence(x, past)[mask].sum())
    fit(
        model.marginal, EmptyGuide(), [(x, past, mask)], Trace_ELBO(max_plate_nesting=2), steps=2, progress=False,
        information_every=None,
    )  # fmt: skip
    assert model.log_evidence(x, past)[mask].sum() > -loss


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda s: torch.zeros(2, 0, dtype=torch.long), "`past` must hold at least one element.*reserve"),
        (lambda s: SlotMemory(torch.zeros(2, 3, 5), batch_dim=-2), r"`past` must hold states of this memory, \[\d+\]"),
        (lambda s: s.remember(drawn(3, 8)), "one for each of the 2 sequences with batch_dim=-2; got 3"),
        (lambda s: s.reserve(2, 3), "`memory` must hold at least one item"),
        (lambda s: SlotMemory(torch.zeros(2, 3, *s.event_shape), batch_dim=-2), "keys of .6.; got .* and keys None"),
        (lambda s: torch.full((2, 4), 11), r"`x` must hold tokens 0 .. 10; got 11 .. 11"),
    ],
)
def test_a_past_that_does_not_fit_is_refused(pair, given, message):
    past = given(pair[0].states)
    for call in (pair[0], pair[1], lambda *args: ENUMERATED.loss(*pair, *args)):
        with pytest.raises(ValueError, match=message):
            call(drawn(2, 3), past)


def test_sizes_that_do_not_fit_are_refused(pair):
    reader = SequenceModel.tokens(11, mixer, dim=8, blocks=1)
    with pytest.raises(ValueError, match="`memory` must mix vectors of the reader's 8 dimensions; got 6"):
        StateCache(reader, NeuralMemory(6, heads=2))
    with pytest.raises(ValueError, match="`segment` must be at least 1; got 0"):
        StateCache(reader, NeuralMemory(8), segment=0)
    states = pair[0].states
    with pytest.raises(ValueError, match="`lengths` must be left out where a `cache` is given"):
        states.remember(drawn(2, 8), states.reserve(2, 4), torch.tensor([8, 8]))
    for outside in ([9, 8], [8, -1]):
        with pytest.raises(ValueError, match=r"`lengths` must be one for each of 2 sequences, in 0 .. 8; got"):
            states.remember(drawn(2, 8), lengths=torch.tensor(outside))
    with pytest.raises(ValueError, match="`x` must hold at least one element"):
        pair[0](drawn(2, 0), drawn(2, 8))


def test_without_a_past_the_slot_of_no_memory_is_read():
    model, guide = make(none_slot=True)
    x = drawn(2, 5)
    empty = model.states.reserve(2, 3)
    h = model.states.present(x)
    zero = model.x_dist_at(torch.tensor(3).reshape(1, 1, 1), h, empty.with_none()).log_prob(x)
    assert_close(model.log_evidence(x, empty), zero[0])
    assert torch.isfinite(torch.tensor(ENUMERATED.loss(model, guide, x, empty)))
