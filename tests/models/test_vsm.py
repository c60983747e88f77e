"""Variational structured memory: recall, model, guide, lifetime."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import ink
from pyro import poutine
from pyro.infer import TraceEnum_ELBO
from set_parts import CODE, DIM, SHAPE, SLOTS, K, pair, sets, stores
from torch.testing import assert_close

from pyro_memory import (
    VIMCO,
    ConceptMemory,
    EpisodicMemory,
    Lifetime,
    Recall,
    SlotMemory,
    StructuredMemory,
    fit,
    importance_bound,
    information_gain,
    remember,
)
from pyro_memory.data import SetTasks, glyphs
from pyro_memory.guides import VAEBaseGuide, VSMGuide
from pyro_memory.models import VSM, VAEBase
from pyro_memory.recall.recall import Evidence


def evidence(tasks=2):
    return Evidence(torch.rand(tasks, 1, DIM) * 3, torch.randn(tasks, 1, DIM))


def test_no_evidence_leaves_the_generative_prior():
    model, _ = pair()
    memory, nothing = stores(), Evidence(torch.zeros(2, 1, DIM), torch.zeros(2, 1, DIM))
    recall, k = model.recall, torch.tensor([[0], [2]])
    assert_close(recall.k_dist(memory, nothing).probs[0, 0], memory.concepts.prior().probs)
    s, t = recall.s_dist(k, memory, nothing).base_dist, memory.concepts.predictive(k).base_dist
    for name in ("df", "loc", "scale"):
        assert_close(getattr(s, name), getattr(t, name))
    rho = memory.episodes.responsibilities[: SLOTS - 1]
    weights = torch.cat([rho.T[k.squeeze(-1)], torch.zeros(2, 1), torch.ones(2, 1)], -1)
    assert_close(recall.j_dist(k, memory, nothing).probs.squeeze(1), weights / weights.sum(-1, keepdim=True))


def test_evidence_on_an_address_is_the_marginal_likelihood():
    e = evidence(1)
    loc, variance = torch.randn(4, DIM), torch.rand(4, DIM)
    u = torch.linspace(-12, 12, 40_001).unsqueeze(-1).double()
    for row in range(4):
        density = dist.Normal(loc[row].double(), variance[row].double().sqrt()).log_prob(u).exp()
        likelihood = (-0.5 * e.precision[0, 0].double() * u**2 + e.shift[0, 0].double() * u).exp()
        wanted = torch.trapezoid(density * likelihood, u, dim=0).log().sum()
        assert_close(e.log_marginal(loc, variance)[0, 0, row].double(), wanted, atol=1e-4, rtol=1e-4)


def test_evidence_updates_a_normal_by_bayes():
    e = evidence(1)
    loc, variance = e.update(torch.full((1, 1, DIM), 0.3), torch.full((1, 1, DIM), 0.5))
    precision = 1 / 0.5 + e.precision
    assert_close(variance, 1 / precision)
    assert_close(loc, (0.3 / 0.5 + e.shift) / precision)


def test_strong_evidence_pins_the_concept_s_content():
    model, _ = pair()
    strong = Evidence(torch.full((1, 1, DIM), 1e6), torch.full((1, 1, DIM), 0.7e6))
    s = model.recall.s_dist(torch.tensor([[0]]), stores(), strong).base_dist
    assert_close(s.loc, torch.full((1, 1, DIM), 0.7), atol=1e-3, rtol=0)
    assert bool((s.scale < 2e-3).all())
    assert bool((s.df > 1e4).all())


def test_a_set_finds_its_own_episode_before_anything_is_learned():
    recall = Recall(SHAPE, dim=16, code_dim=CODE).calibrate(ink(100, *SHAPE))
    support = sets([3, 3, 3])
    memory = StructuredMemory(ConceptMemory.reserve(K, 16), EpisodicMemory.reserve(6, 3, SHAPE, 16, K))
    memory = remember(recall, memory, support)
    p = recall.j_dist(torch.zeros(3, 1, dtype=torch.long), memory, recall.gather(support)[0]).probs.squeeze(1)
    own = torch.tensor([int((memory.episodes.items == s).flatten(1).all(1).nonzero()) for s in support.values])
    assert p[torch.arange(3), own].min() > 0.5


@pytest.mark.parametrize("kind", ["vae", "hierarchical"])
def test_the_order_of_the_support_does_not_matter(kind):
    model, guide = pair(kind)
    x, support, memory = ink(2, 1, *SHAPE), sets([3, 3]), stores()
    turned = SlotMemory(support.values.flip(1), mask=support.mask.flip(1), batch_dim=-2)
    values = []
    for s in (support, turned):
        pyro.set_rng_seed(3)
        values.append(importance_bound(model, guide, x, s, memory, particles=4, max_plate_nesting=2).bound)
    assert_close(*values, rtol=1e-6, atol=0)  # computed in single precision


def test_padding_of_a_support_says_nothing():
    model, _ = pair()
    support = sets([2, 0], width=4)
    one = model.recall.gather(support)[0]
    bare = SlotMemory(support.values[:1, :2], batch_dim=-2)
    assert_close(one.shift[:1], model.recall.gather(bare)[0].shift)
    assert_close(one.precision[1], torch.zeros(1, DIM))


def test_support_and_queries_are_read_as_one_set():
    model, _ = pair()
    support, x = sets([2, 2]), ink(2, 3, *SHAPE)
    both = SlotMemory(torch.cat([support.values, x], 1), batch_dim=-2)
    for one, other in zip(
        model.recall.gather_all(support, model.recall.look(x)), model.recall.gather(both), strict=True
    ):
        assert_close(one.shift, other.shift)
        assert_close(one.precision, other.precision)


def test_what_a_guide_found_is_used_once_and_never_after_a_change():
    model, _ = pair()
    recall, support, x = model.recall, sets([2]), ink(1, 1, *SHAPE)
    recall.gather_all(support, recall.look(x))
    given = recall.given[1]
    assert recall.gather(support) is given
    assert recall.given is None
    recall.gather_all(support, recall.look(x))
    with torch.no_grad():
        recall.told.weight.mul_(2)
    fresh = recall.gather(support)
    assert not torch.allclose(fresh[1].shift, given[1].shift)


ARGUMENTS = {
    "support": lambda: (ink(2, 2, *SHAPE), sets([3, 1]), stores()),
    "nothing in the support": lambda: (ink(2, 2, *SHAPE), sets([0, 0]), stores()),
    "no concepts": lambda: (ink(2, 2, *SHAPE), sets([3, 1]), stores().without_concepts()),
    "no episodes": lambda: (ink(2, 2, *SHAPE), sets([3, 1]), stores().without_episodes()),
}


@pytest.mark.parametrize("kind", ["vae", "hierarchical"])
@pytest.mark.parametrize("arguments", ARGUMENTS)
def test_vimco_and_enumeration_share_a_pair_without_change(kind, arguments):
    model, guide = pair(kind)
    args = ARGUMENTS[arguments]()
    exact = TraceEnum_ELBO(num_particles=60, vectorize_particles=True, max_plate_nesting=2).loss(model, guide, *args)
    several = sum(VIMCO(5, max_plate_nesting=2).loss(model, guide, *args) for _ in range(20)) / 20
    assert several < exact + 0.02 * abs(exact)


def test_the_bound_is_below_the_evidence_and_reaches_it():
    """The reference sums discrete latents by hand and draws the continuous ones from the model, not from the guide."""
    pyro.set_rng_seed(1)
    model, guide = pair(factor=1.0)
    x, support, memory = ink(1, 1, *SHAPE), sets([2]), stores()
    parts = []
    with torch.no_grad():
        address, content, context = model.recall.gather(support)
        log_k = model.recall.k_dist(memory, address).logits[0, 0]
        for k in range(K):
            addresses = torch.full((8000, 1), k)
            s = model.recall.s_dist(addresses, memory, content).sample()
            log_j = model.recall.j_dist(addresses[:1], memory, address).logits[0, 0]
            for j in (log_j > -math.inf).nonzero().flatten().tolist():
                slots = torch.full((8000, 1), j)
                c = model.recall.c_dist(s, model.recall.episode(slots, memory), context).sample()
                page = memory.page(addresses, slots)
                log_i = memory.which(page[:1]).logits[0, 0]
                for i in (log_i > -math.inf).nonzero().flatten().tolist():
                    told = model.context(page, torch.full((8000, 1), i), c, memory)
                    z = model.base.z_dist(told).sample()
                    log_x = model.base.x_dist(z, told).log_prob(x[0]).flatten().double()
                    parts.append((log_k[k] + log_j[j] + log_i[i]).double() + log_x)
    evidence = torch.stack(parts).exp()
    value, error = evidence.mean(1).sum(), (evidence.var(1).sum() / 8000).sqrt()
    high = importance_bound(model, guide, x, support, memory, particles=20_000, chunk_size=2000, max_plate_nesting=2)
    assert abs(high.bound.exp().item() - value) < 5 * (error**2 + (value * high.monte_carlo_se) ** 2).sqrt()
    few = [importance_bound(model, guide, x, support, memory, particles=2, max_plate_nesting=2) for _ in range(100)]
    low = torch.stack([f.bound[0] for f in few])
    assert low.mean() + 2 * low.std() / 10 < value.log()


def test_information_names_every_level():
    model, guide = pair()
    x, support, memory = ink(3, 1, *SHAPE), sets([2, 2, 2]), stores()
    gain = information_gain(model, guide, x, support, memory, max_plate_nesting=2)
    assert list(gain.sites) == ["k", "s", "j", "c", "i", "z"]
    assert all(gain[site].method == "closed form" for site in "kjci")
    told = information_gain(model.imagined, model.recalled, support, memory, max_plate_nesting=2)
    assert list(told.sites) == ["k", "s", "j", "c"]
    assert told["k"].mean > 0
    q, p = (model.recall.k_dist(memory, e) for e in (model.recall.gather(support)[0], evidence_of_nothing(3)))
    assert_close(told["k"].kl, torch.distributions.kl_divergence(q, p).flatten())


def evidence_of_nothing(tasks):
    return Evidence(torch.zeros(tasks, 1, DIM), torch.zeros(tasks, 1, DIM))


def test_the_decoder_sees_the_image_that_was_read():
    model, _ = pair()
    memory, c = stores(), torch.zeros(1, 1, CODE)
    z = torch.zeros(1, 1, 2)

    def drawn(j, i, memory=memory):
        page = memory.page(torch.tensor([[0]]), torch.tensor([[j]]))
        return model.base.x_dist(z, model.context(page, torch.tensor([[i]]), c, memory)).mean

    for other in ((0, 1), (1, 0), (SLOTS, 0)):
        assert not torch.allclose(drawn(0, 0), drawn(*other))
    shuffled = memory.shuffled()
    assert_close(shuffled.episodes.loc, memory.episodes.loc)
    assert not torch.allclose(drawn(0, 0, shuffled), drawn(0, 0))


def test_an_image_finds_its_own_copy_among_those_of_an_episode():
    model, _ = pair()
    recall, memory = model.recall, stores()
    with torch.no_grad():
        recall.key.weight.mul_(5)
    x = memory.episodes.items[:2]  # two tasks, each asks for the three images of an episode
    page = torch.tensor([[0], [1]])
    like, key = recall.matches(recall.look(x), page, memory)
    assert_close(like.probs.argmax(-1), torch.arange(3).expand(2, 3))
    assert_close(key(like.probs.argmax(-1)), recall.key(recall.look(x)))
    none = torch.full((2, 3), 3)
    assert_close(key(none), torch.zeros(2, 3, 32))


def test_an_address_stays_among_the_images_that_are_there():
    model, _ = pair()
    memory = remember(model.recall, stores(), sets([1, 2]))
    counts = [*memory.episodes.counts.tolist(), 0]
    assert sorted(counts)[:3] == [0, 1, 2]
    for j in range(SLOTS + 1):
        seen = model.recall.look(ink(1, 2, *SHAPE))
        page = memory.page(torch.tensor([[0]]), torch.tensor([[j]]))
        q = model.recall.matches(seen, page, memory)[0].probs
        p = memory.which(page).probs
        there = torch.tensor([*range(counts[j]), 3])
        for probs in (q, p.expand(q.shape)):
            assert_close(probs[..., there].sum(-1), torch.ones(1, 2))
        assert_close(p[..., : counts[j]], torch.full((1, 1, counts[j]), 1 / (counts[j] + 0.05)))


@pytest.mark.parametrize("kind", ["vae", "hierarchical", "diffusion", "autoregressive"])
def test_it_generates_images_of_a_task_and_of_a_concept(kind):
    model, _ = pair(kind)
    model.eval()
    images = model.generate(sets([2, 0]), stores(), 5, remembered=False)
    assert images.shape == (2, 5, *SHAPE)
    assert 0 <= images.min() <= images.max() <= 1
    assert model.decode_concepts(torch.randn(4, DIM), stores(), 2).shape == (4, 2, *SHAPE)


def test_an_image_is_likely_of_a_set_as_far_as_their_evidence_agrees():
    recall, support, x = pair()[0].recall, sets([2, 0, 3]), ink(3, 2, *SHAPE)
    found, each = recall.likeness(x, support), recall.evidence(recall.look(x))[0]
    own, none = each.log_marginal(*recall.embed(support)), each.log_marginal(torch.zeros(1, DIM), torch.ones(1, DIM))
    assert_close(found, torch.stack([own[t, :, t] for t in range(3)]) - none.squeeze(-1))
    assert_close(found[1], torch.zeros(2))
    assert found[[0, 2]].abs().min() > 1e-4


def test_of_many_candidates_images_are_kept_in_proportion_to_their_likeness(monkeypatch):
    model, support, two = pair()[0], sets([2]), ink(2, *SHAPE)
    odds = (5 * model.recall.likeness(two.unsqueeze(0), support)[0]).softmax(-1)  # five times: as they would be taught
    assert 0.05 < odds.min() < 0.45
    like = model.recall.likeness
    monkeypatch.setattr(model.recall, "likeness", lambda x, support: 5 * like(x, support))
    monkeypatch.setattr(model.base, "generate", lambda context, shape: two[torch.randint(2, shape)])
    drawn = [model.generate(support, stores(), 4000, remembered=False, candidates=n)[0] for n in (1, 50)]
    shares = [(images == two[0]).flatten(1).all(1).double().mean().item() for images in drawn]
    assert_close(shares, [0.5, odds[0].item()], atol=0.035, rtol=0)
    with pytest.raises(ValueError, match="`candidates` must be at least 1"):
        model.generate(support, stores(), 1, remembered=False, candidates=0)


def test_a_diffusion_base_trains_with_one_particle_and_is_measured_by_whole_paths():
    model, guide = pair("diffusion")
    args = ink(2, 1, *SHAPE), sets([1, 2]), stores()
    with pytest.raises(ValueError, match="marked as noisy"):
        importance_bound(model, guide, *args, particles=2, max_plate_nesting=2)
    model.eval(), guide.eval()
    assert importance_bound(model, guide, *args, particles=3, max_plate_nesting=2).bound.isfinite().all()


def life(tasks=2, **options):
    data = glyphs("background")
    recall = Recall(data.shape, dim=DIM, code_dim=CODE, channels=(2, 3), hidden=8)
    model = VSM(VAEBase(data.shape, latent_dim=2, code_dim=CODE, channels=(2, 3)), recall)
    guide = VSMGuide(VAEBaseGuide(data.shape, latent_dim=2, code_dim=CODE, channels=(2, 3)), recall)
    recall.calibrate(data[torch.arange(0, 2000, 10)])
    memory = StructuredMemory(ConceptMemory.reserve(4, DIM), EpisodicMemory.reserve(6, 3, data.shape, DIM, 4))
    source = SetTasks(data, tasks=tasks, queries=2, shots=range(1, 4), seed=0)

    def imagine(s, items, memory):
        return model.decode_concepts(s, memory, items)

    return model, guide, Lifetime(source, recall, memory, consolidate_every=3, timescale=0.5, replay=imagine, **options)


def test_a_lifetime_writes_converts_and_replays():
    _, _, one = life()
    _, support, memory = one[0]
    assert int(memory.episodes.filled.sum()) == 2
    assert_close(memory.episodes.items[0, : int(support.filled[0].sum())], support.values[0, support.filled[0]])
    again = one[0][2]
    assert again is memory  # the newest step may be asked for again
    for step in range(1, 5):
        memory = one[step][2]
    assert int(one.consolidation.converted.sum()) > 0
    assert memory.concepts.counts.sum() > 0
    assert bool(memory.episodes.replayed.any())
    with pytest.raises(ValueError, match="`step` must not be before 4"):
        one[2]


def test_rehearsed_tasks_are_replayed_episodes_and_are_not_written_again():
    _, _, one = life(tasks=4, rehearse=2)
    for step in range(4):
        one[step]
    before = one.memory.episodes
    assert bool((before.replayed & before.filled).any())
    x, support, memory = one[4]
    plain, own = one.tasks[4]
    assert torch.equal(x[:4], plain)
    assert torch.equal(support.values[:4], own.values)
    assert x.shape == (6, *plain.shape[1:])
    assert set(x[4:].unique().tolist()) <= {0.0, 1.0}
    assert int((support.filled[4:]).sum()) == 2  # episodes of three images: two asked for, one left
    assert int((memory.episodes.ages < 4).sum()) == 4
    assert not bool(memory.episodes.replayed[memory.episodes.ages < 4].any())
    again = one[4]
    assert torch.equal(again[0], x)


def test_a_lifetime_resumes_bit_for_bit(tmp_path):
    results = []
    for stops in ([7], [4, 7]):
        model, guide, one = None, None, None
        for stop in stops:
            pyro.clear_param_store()
            torch.manual_seed(0)
            model, guide, one = life()
            path = tmp_path / f"{len(stops)}.safetensors"
            fit(
                model, guide, one, VIMCO(2, max_plate_nesting=2), steps=stop, learning_rate=1e-2, checkpoint=path,
                seed=0, progress=False, information_every=None,
            )  # fmt: skip
        results.append((dict(model.state_dict()), one.memory.to_tensors()))
    for one, other in zip(*results, strict=True):
        assert one.keys() == other.keys()
        for key, value in one.items():
            assert torch.equal(value, other[key]), key


@pytest.mark.unchecked
def test_bad_input_is_refused_with_the_remedy():
    model, guide = pair()
    x, support, memory = ink(2, 2, *SHAPE), sets([1, 2]), stores()
    cases = [
        ((x[0], support, memory), r"`x` must be a floating-point tensor \[task, query, channel, height, width\]"),
        ((x * math.nan, support, memory), "`x` must be finite"),
        ((x, SlotMemory(ink(2, *SHAPE)), memory), "`support` must be a SlotMemory of one set for each of the 2 tasks"),
        ((x[:1], support, memory), "one set for each of the 1 tasks"),
        ((ink(2, 2, 1, 8, 8), support, memory), r"`x` must hold images of \[1, 9, 7\]"),
    ]
    for args, message in cases:
        for program in (guide, model):
            with pytest.raises(ValueError, match=message):
                poutine.trace(program).get_trace(*args)
    with pytest.raises(ValueError, match="`episodes` must have the embedding size and number of concepts"):
        StructuredMemory(ConceptMemory.reserve(K, DIM + 1), memory.episodes)
    other = StructuredMemory(ConceptMemory.reserve(K, 5), EpisodicMemory.reserve(2, 2, SHAPE, 5, K))
    with pytest.raises(ValueError, match="`memory` must hold embeddings of 3 dimensions, as `recall`; got 5"):
        guide(x, support, other)
    with pytest.raises(ValueError, match="`consolidate_every` must be at least 1"):
        Lifetime([], model.recall, memory, consolidate_every=0)
    with pytest.raises(ValueError, match="`state` must hold stores and step"):
        life()[2].load_state_dict({})
