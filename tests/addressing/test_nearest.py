"""Nearest-k addresses: exact distributions over all slots, whatever finds the slots."""

import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from address_parts import assert_drawn_from
from conftest import ink
from pyro.infer import TraceEnum_ELBO, config_enumerate
from torch import nn
from torch.distributions import kl_divergence
from torch.testing import assert_close

from pyro_memory import (
    VIMCO,
    ContentAddress,
    FrozenAddress,
    NearestAddress,
    NearestCategorical,
    SlotIndex,
    SlotMemory,
    StreamedCategorical,
    importance_bound,
    information_gain,
)

SLOTS = 11


def by_hand(best, scores, mask, epsilon):
    """The table of probabilities, entry by entry."""
    filled = torch.ones(SLOTS, dtype=torch.bool) if mask is None else mask
    table = torch.zeros(*best.shape[:-1], SLOTS, dtype=torch.float64)
    for row in itertools.product(*map(range, best.shape[:-1])):
        rest = [a for a in range(SLOTS) if filled[a] and a not in best[row].tolist()]
        weights = scores[row].softmax(-1)
        for a, w in zip(best[row].tolist(), weights.tolist(), strict=True):
            table[row][a] = w * (1 - epsilon if rest else 1)
        for a in rest:
            table[row][a] = epsilon / len(rest)
    return table


def case(epsilon, masked, batch=(4,), k=3):
    mask = torch.ones(SLOTS, dtype=torch.bool)
    if masked:
        mask[[0, 4, 9]] = False
    allowed = mask.nonzero().squeeze(-1)
    order = torch.rand(*batch, len(allowed)).argsort(-1)[..., :k]
    best, scores = allowed[order], torch.randn(*batch, k).double()
    mask = mask if masked else None
    return NearestCategorical(best, scores, SLOTS, mask, epsilon=epsilon), by_hand(best, scores, mask, epsilon)


@pytest.mark.parametrize("epsilon", [0.0, 0.2])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("batch", [(), (4,), (2, 4)])
def test_it_is_the_table_written_by_hand(epsilon, masked, batch):
    q, table = case(epsilon, masked, batch)
    assert_close(q.probs, table)
    assert_close(table.sum(-1), torch.ones(batch).double())
    dense = dist.Categorical(probs=table)
    entropy = -torch.special.xlogy(table, table).sum(-1)
    assert_close(q.entropy(), entropy)
    for logits in (torch.zeros(SLOTS).double(), torch.randn(SLOTS).double()):
        if q.mask is not None:
            logits = logits.masked_fill(~q.mask, -math.inf)
        prior = dist.Categorical(logits=logits)
        finite = logits > -math.inf
        expected = (torch.special.xlogy(table, table) - table * prior.logits.masked_fill(~finite, 0)).sum(-1)
        assert_close(kl_divergence(q, prior), expected)
        assert_close(kl_divergence(q.expand((5, *batch)), prior), expected.expand((5, *batch)))
    a = torch.arange(SLOTS).reshape((-1,) + (1,) * len(batch))
    assert_close(q.log_prob(a), dense.probs.log().movedim(-1, 0))
    assert_close(q.usage(), table.reshape(-1, SLOTS).mean(0))


@pytest.mark.parametrize("masked", [False, True])
def test_samples_pass_a_chi_square_test_at_100000_draws(masked):
    q, table = case(0.3, masked, (2,))
    a = q.sample((100_000,))
    for i in range(2):
        assert_drawn_from(a[:, i], table[i])


def test_epsilon_has_no_effect_where_all_filled_slots_are_candidates():
    q, table = case(0.3, True, (4,), k=8)
    assert_close(q.probs, table)
    assert_close(q.log_prob(q.sample((50,))).isfinite().all(), torch.tensor(True))
    assert_close(q.entropy(), -torch.special.xlogy(table, table).sum(-1))


def test_a_prior_that_rules_out_a_slot_makes_the_kl_infinite_only_where_q_goes():
    logits = torch.zeros(SLOTS).double()
    logits[2] = -math.inf
    best, scores = torch.tensor([[0, 1], [2, 3]]), torch.zeros(2, 2).double()
    prior = dist.Categorical(logits=logits)
    assert (NearestCategorical(best, scores, SLOTS).kl_to(prior) == math.inf).tolist() == [False, True]
    assert (NearestCategorical(best, scores, SLOTS, epsilon=0.1).kl_to(prior) == math.inf).all()


def test_a_memory_per_datum_has_its_own_candidates():
    x, values, mask = torch.randn(6, 3), torch.randn(6, 5, 3), torch.rand(6, 5) < 0.8
    mask[:, :2] = True
    address = NearestAddress(ContentAddress(nn.Linear(3, 4)), 2, epsilon=0.2)
    together = address(x, SlotMemory(values, mask=mask, batch_dim=-1))
    prior = SlotMemory(values, mask=mask, batch_dim=-1).prior()
    for i in range(6):
        memory = SlotMemory(values[i], mask=mask[i])
        alone = address(x[i : i + 1], memory)
        assert_close(together.probs[i], alone.probs[0])
        assert_close(together.kl_to(prior)[i], alone.kl_to(memory.prior())[0])
    samples = together.sample((200,))
    assert mask[torch.arange(6), samples].all()


# --- as a guide: bounds stay bounds


@torch.no_grad()
def test_bounds_stay_below_the_evidence_and_converge_to_what_the_docstring_says():
    """An enumerable model: x in {0, 1}^2 given the slot alone, so that everything is a finite sum."""
    torch.manual_seed(2)
    logits, memory = 2 * torch.randn(SLOTS, 2).double(), SlotMemory(torch.randn(SLOTS, 3).double())
    x = torch.tensor([[0.0, 1.0], [1.0, 1.0], [0.0, 0.0]]).double()
    likelihood = dist.Bernoulli(logits=logits).to_event(1).log_prob(x.unsqueeze(1))
    joint = likelihood - math.log(SLOTS)
    evidence = joint.logsumexp(-1)
    embed = nn.Linear(2, 3).double()
    keyed = SlotMemory(torch.zeros(SLOTS), keys=memory.values)

    def model(x):
        with pyro.plate("batch", len(x)):
            a = pyro.sample("a", keyed.prior())
            pyro.sample("x", dist.Bernoulli(logits=logits[a]).to_event(1), obs=x)

    for epsilon in (0.0, 0.3):
        address = NearestAddress(ContentAddress(embed, nn.Identity()), 4, epsilon=epsilon)

        def guide(x, address=address):
            with pyro.plate("batch", len(x)):
                pyro.sample("a", address(x, keyed))

        q = address(x, keyed)
        elbo = (q.probs * torch.where(q.probs > 0, joint - q.probs.log(), 0)).sum(-1)
        assert (elbo <= evidence + 1e-12).all()
        among = torch.where(q.probs > 0, joint, -math.inf).logsumexp(-1)  # all slots where epsilon is positive
        pyro.set_rng_seed(0)
        estimate = importance_bound(model, guide, x, particles=40_000, chunk_size=20_000)
        weights = torch.where(q.probs > 0, (joint - q.probs.log()).exp(), 0)  # bounded, so its error is honest
        spread = (q.probs * weights.square()).sum(-1) / among.exp().square() - 1
        assert ((estimate.bound - among).abs() < 5 * (spread / 40_000).sqrt() + 1e-9).all()
        gaps = evidence - among
        assert (gaps.abs() < 1e-9).all() if epsilon else (gaps > 0.01).any()


def test_it_trains_under_vimco_and_under_enumeration(tiny_pair, shared_memory):
    model, guide = tiny_pair
    guide.address = NearestAddress(guide.address, 2, epsilon=0.1)
    x = ink(4, 1, 6, 6)
    for objective, program in [
        (VIMCO(3, max_plate_nesting=1), guide),
        (TraceEnum_ELBO(max_plate_nesting=1), config_enumerate(guide)),
    ]:
        guide.zero_grad()
        objective.loss_and_grads(model, program, x, shared_memory)
        grads = [p.grad for p in guide.address.parameters()]
        assert all(g.isfinite().all() for g in grads)
        assert any(g.abs().sum() > 0 for g in grads)


def test_information_gain_describes_it(tiny_pair, shared_memory):
    model, guide = tiny_pair
    x = ink(16, 1, 6, 6)
    guide.address = NearestAddress(guide.address, 2, epsilon=0.1)
    gain = information_gain(model, guide, x, shared_memory)
    probs = guide.a_dist(x, shared_memory).probs.double()
    kl = torch.special.xlogy(probs, probs).sum(-1) + math.log(5)
    assert gain["a"].mean == pytest.approx(kl.mean().item(), abs=1e-5)
    assert gain.addresses["a"].mutual_information + gain.addresses["a"].marginal_kl == pytest.approx(
        gain["a"].mean, abs=1e-5
    )


# --- with an index


def test_a_brute_index_gives_what_no_index_gives():
    x, values, embed = torch.randn(6, 3), torch.randn(50, 3), nn.Linear(3, 4)
    mask = torch.rand(50) < 0.7
    for memory in (SlotMemory(values), SlotMemory(values, mask=mask)):
        plain = NearestAddress(ContentAddress(embed), 4, epsilon=0.1)(x, memory)
        for index in (SlotIndex("brute"), SlotIndex()):
            address = NearestAddress(ContentAddress(embed), 4, epsilon=0.1, index=index)
            assert_close(address(x, memory).probs, plain.probs)
            assert_close(address.eval()(x, memory).probs, plain.probs)
        keyed = SlotMemory(values, keys=ContentAddress(embed).embed(memory), mask=memory.mask)
        frozen = FrozenAddress(ContentAddress(embed))
        assert_close(NearestAddress(frozen, 4, epsilon=0.1, index=SlotIndex("brute"))(x, keyed).probs, plain.probs)
        assert_close(NearestAddress(frozen, 4, epsilon=0.1)(x, keyed).probs, plain.probs)


def test_the_key_network_learns_through_the_candidates():
    x, memory = torch.randn(6, 3), SlotMemory(torch.randn(50, 3))
    embed = nn.Linear(3, 4)
    a = torch.zeros(6, dtype=torch.long)
    grads = []
    for index in (None, SlotIndex("brute")):
        q = NearestAddress(ContentAddress(embed), 4, epsilon=0.1, index=index)(x, memory)
        grads.append(torch.autograd.grad(q.log_prob(q.best[:, 1] + a).sum(), list(embed.parameters())))
    assert_close(*grads)


def test_staleness_is_measured_and_rebuilds_the_index():
    x, memory, embed = torch.randn(6, 4), SlotMemory(torch.randn(50, 3)), nn.Linear(3, 4, bias=False)
    index = SlotIndex("brute", check_every=3, max_staleness=0.2)
    address = NearestAddress(ContentAddress(nn.Identity(), embed, similarity=PlainDot()), 4, index=index)
    for _ in range(7):
        address(x, memory)
    assert index.builds == 1
    assert index.last_staleness == 0
    with torch.no_grad():
        embed.weight.mul_(1.25)
    for _ in range(3):
        address(x, memory)
    assert index.last_staleness == pytest.approx(0.2, abs=1e-6)  # |1.25 - 1| / 1.25
    before = index.builds
    with torch.no_grad():
        embed.weight.mul_(2.0)
    for _ in range(3):
        address(x, memory)
    assert index.builds == before + 1
    assert_close(index.keys, embed(memory.values).detach())
    with torch.no_grad():
        embed.weight.mul_(2.0)
    address(x, memory)
    address.eval()(x, memory)  # after training, evaluation looks once
    assert_close(index.keys, embed(memory.values).detach())
    address(x, SlotMemory(torch.randn(50, 3)))
    assert index.builds == before + 3


class PlainDot(nn.Module):
    def forward(self, query, key):
        return query, key


@pytest.mark.parametrize("kind", ["flat", "ivf", "hnsw"])
@pytest.mark.parametrize("masked", [False, True])
def test_faiss_indices_find_the_nearest_slots(kind, masked, tmp_path):
    pytest.importorskip("faiss")
    keys = nn.functional.normalize(torch.randn(3000, 16), dim=-1)
    mask = torch.rand(3000) < 0.7 if masked else None
    query = 5 * torch.randn(20, 16)
    index = SlotIndex(kind).build(keys, mask)
    found = index.search(query, 8)
    assert found.shape == (20, 8)
    assert all(len(set(row)) == 8 for row in found.tolist())
    if masked:
        assert mask[found].all()
    assert index.recall(query, 8) > (0.999 if kind == "flat" else 0.9)
    halves = SlotIndex(kind).build(keys.half(), mask)
    assert halves.recall(query, 8) > 0.9
    assert torch.equal(index.search(query.requires_grad_(), 8), found)  # as an address's own query has


def test_too_few_results_are_made_up_by_brute_force():
    pytest.importorskip("faiss")
    keys = torch.randn(3000, 4)
    index = SlotIndex("ivf", effort=1).build(keys)
    found = index.search(torch.randn(5, 4), 500)  # more than a cell holds
    assert all(len(set(row)) == 500 for row in found.tolist())


def test_auto_chooses_by_size():
    pytest.importorskip("faiss")
    from pyro_memory.addressing.index import _chosen

    assert [_chosen("auto", n) for n in (100, 50_000, 10**6)] == ["flat", "ivf", "hnsw"]


def test_without_faiss_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "faiss", None)
    with pytest.raises(ImportError, match=r'pip install "pyro-memory\[scale\]", or use kind="brute"'):
        SlotIndex("hnsw").build(torch.randn(5, 3))
    assert len(SlotIndex().build(torch.randn(5, 3)).search(torch.randn(2, 3), 2)) == 2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda a, x, m: NearestAddress(a, 0), "`nearest` must be at least 1 slot; got 0"),
        (lambda a, x, m: NearestAddress(a, 6)(x, m), "`nearest` must be at most the filled slots of the memory, 5"),
        (lambda a, x, m: NearestAddress(a, 2, epsilon=1.0), r"`epsilon` must lie in \[0, 1\); got 1.0"),
        (lambda a, x, m: SlotIndex("annoy"), "`kind` must be one of auto, brute, flat, ivf, hnsw; got 'annoy'"),
        (lambda a, x, m: SlotIndex(check_every=0), "`check_every` and `effort` must be at least 1"),
        (lambda a, x, m: SlotIndex().search(torch.randn(1, 3), 1), "`search` needs keys; call `build` first"),
        (
            lambda a, x, m: SlotIndex("brute").build(torch.randn(5, 3)).search(torch.randn(1, 4), 1),
            "dimension of the index's keys, 3; got 4. Build the index from keys of the same embedding",
        ),
        (
            lambda a, x, m: SlotIndex("brute").build(torch.randn(5, 3)).search(torch.randn(1, 3), 6),
            "`nearest` must lie between 1 and the index's 5 filled slots; got 6",
        ),
        (lambda a, x, m: SlotIndex("brute").build(torch.zeros(0, 3)), "`keys` must be .* with at least one"),
        (
            lambda a, x, m: NearestAddress(a, 2, index=SlotIndex("brute"))(
                x, SlotMemory(torch.randn(2, 5, 3), batch_dim=-1)
            ),
            "`index` needs a memory that all data share, in one process; got one per datum",
        ),
    ],
)
def test_bad_input_is_refused_with_the_remedy(call, message):
    mask = torch.tensor([True] * 5 + [False] * 2)
    with pytest.raises(ValueError, match=message):
        call(ContentAddress(nn.Linear(3, 4)), torch.randn(2, 3), SlotMemory(torch.randn(7, 3), mask=mask))


def test_a_streamed_prior_gives_the_same_kl():
    q, _ = case(0.2, False)
    query, key = torch.randn(3).double(), torch.randn(SLOTS, 3).double()
    dense = dist.Categorical(logits=key @ query)
    assert_close(kl_divergence(q, StreamedCategorical(query, key)), kl_divergence(q, dense))
