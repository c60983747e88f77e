import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import ink
from pyro.infer import TraceEnum_ELBO, config_enumerate
from torch.testing import assert_close

from pyro_memory import SlotMemory


def per_datum(batch=3, slots=4):
    return SlotMemory(torch.arange(batch * slots * 2.0).reshape(batch, slots, 2), batch_dim=-1)


def test_a_shared_memory_gathers_for_any_shape_of_address():
    memory = SlotMemory(torch.randn(4, 2, 3))
    for shape in [(), (5,), (7, 5), (4, 1, 1)]:
        a = torch.randint(4, shape)
        assert memory[a].shape == shape + (2, 3)
        assert_close(memory[a].reshape(-1, 2, 3), torch.stack([memory.values[i] for i in a.reshape(-1)]))


@pytest.mark.parametrize("batch_dim", [-1, -2])
def test_a_memory_per_datum_reads_each_datum_from_its_own(batch_dim):
    values = torch.randn(3, 4, 2)
    memory = SlotMemory(values, batch_dim=batch_dim)
    plates = (3,) if batch_dim == -1 else (3, 6)
    for lead in [(), (5,), (7, 5)]:
        a = torch.randint(4, lead + plates)
        read = memory[a]
        assert read.shape == lead + plates + (2,)
        for index in torch.cartesian_prod(*(torch.arange(s) for s in a.shape)).reshape(-1, a.dim()):
            at = tuple(index.tolist())
            assert_close(read[at], values[at[len(lead)], a[at]])


def test_an_enumerated_address_reads_every_slot_of_every_datum():
    memory = per_datum()
    assert_close(memory[torch.arange(4).reshape(4, 1)], memory.values.transpose(0, 1))


@pytest.mark.parametrize("batch_dim", [None, -1])
def test_reading_works_under_sampling_particles_and_enumeration(batch_dim):
    values = torch.randn(4) if batch_dim is None else torch.randn(3, 4)
    memory, x = SlotMemory(values, batch_dim=batch_dim), torch.randn(3)
    logits = torch.randn(3, 4)

    def model():
        with pyro.plate("batch", 3):
            a = pyro.sample("a", memory.prior())
            pyro.sample("x", dist.Normal(memory[a], 1.0), obs=x)

    def guide():
        with pyro.plate("batch", 3):
            pyro.sample("a", dist.Categorical(logits=logits))

    q = logits.softmax(-1)
    terms = dist.Normal(values, 1.0).log_prob(x[:, None]) - math.log(4) - q.log()
    exact = (q * terms).sum()
    for options in [{}, {"num_particles": 6, "vectorize_particles": True}]:
        elbo = TraceEnum_ELBO(max_plate_nesting=1, **options)
        assert_close(torch.tensor(-elbo.loss(model, config_enumerate(guide))), exact)
    sampled = pyro.infer.Trace_ELBO(num_particles=4000, vectorize_particles=True, max_plate_nesting=1)
    assert_close(torch.tensor(-sampled.loss(model, guide)), exact, atol=0.3, rtol=0)


def test_read_gives_the_same_whether_slots_or_reads_are_fewer():
    for memory in (SlotMemory(torch.randn(4, 2)), per_datum()):
        for shape in [(3,), (9, 3)]:
            a = torch.randint(4, shape)
            doubled, negated = memory.read(a, lambda m: (2 * m, -m))
            assert_close(doubled, 2 * memory[a])
            assert_close(negated, -memory[a])


def test_each_slot_is_computed_once_where_there_are_more_reads():
    seen = []
    SlotMemory(torch.randn(4, 2)).read(torch.randint(4, (50, 3)), lambda m: seen.append(len(m)) or m)
    assert seen == [4]


@pytest.mark.parametrize("batch_dim", [None, -1, -2])
def test_a_blend_is_the_expected_read(batch_dim):
    values = torch.randn(5, 2, 3) if batch_dim is None else torch.randn(4, 5, 2, 3)
    memory = SlotMemory(values, batch_dim=batch_dim)
    lead = (6, 4) if batch_dim != -2 else (6, 4, 3)
    weights = torch.rand(*lead, 5)
    reads = torch.stack([memory[torch.full(lead, a)] for a in range(5)], -1)
    assert_close(memory.blend(weights), (reads * weights[..., None, None, :]).sum(-1))


def test_the_prior_is_uniform_over_filled_slots():
    mask = torch.tensor([True, False, True, True])
    prior = SlotMemory(torch.randn(4, 2), mask=mask).prior()
    assert_close(prior.probs, torch.tensor([1, 0, 1, 1]) / 3)
    assert prior.log_prob(torch.tensor(1)) == -math.inf
    rows = torch.stack([mask, torch.ones(4, dtype=torch.bool)])
    prior = SlotMemory(torch.randn(2, 4, 2), mask=rows, batch_dim=-2).prior()
    assert prior.batch_shape == (2, 1)
    assert_close(prior.probs[1, 0], torch.full((4,), 0.25))


def test_the_none_slot_comes_last_is_filled_and_blank():
    memory = SlotMemory(torch.randn(2, 3), mask=torch.tensor([True, False])).with_none()
    assert memory.slots == 3
    assert memory.filled.tolist() == [True, False, True]
    assert_close(memory[torch.tensor(2)], torch.zeros(3))
    assert_close(SlotMemory.empty((3,)).with_none().prior().probs, torch.ones(1))
    assert per_datum().with_none().values.shape == (3, 5, 2)


def test_a_ring_fills_free_slots_and_then_replaces_the_oldest():
    memory = SlotMemory.reserve(3, ())
    for i in range(5):
        memory = memory.write(torch.tensor([float(i)]))
        kept = sorted(memory.values[memory.filled].tolist())
        assert kept == [float(j) for j in range(max(0, i - 2), i + 1)]
    at_once = SlotMemory.reserve(3, ()).write(torch.arange(5.0))
    assert_close(at_once.values, memory.values)
    assert_close(at_once.ages, memory.ages)


def test_writing_carries_gradients_and_keys():
    item, key = torch.randn(1, 2, requires_grad=True), torch.ones(1, 5)
    memory = SlotMemory(torch.zeros(3, 2), keys=torch.zeros(3, 5)).write(item, key)
    memory.values.sum().backward()
    assert_close(item.grad, torch.ones(1, 2))
    assert memory.keys.sum() == 5


def test_memories_per_datum_are_written_each_on_its_own():
    memory = SlotMemory(torch.zeros(2, 3), mask=torch.tensor([[True, False, False], [True] * 3]), batch_dim=-1)
    memory = memory.write(torch.tensor([[1.0], [2.0]]))
    assert memory.values.tolist() == [[0, 1, 0], [2, 0, 0]]


def test_a_reservoir_keeps_every_item_equally_often():
    generator = torch.Generator().manual_seed(1)
    batch, items, slots = 4000, 10, 3
    memory = SlotMemory(torch.zeros(batch, slots), mask=torch.zeros(batch, slots, dtype=torch.bool), batch_dim=-1)
    stream = torch.arange(float(items)).expand(batch, items)
    memory = memory.write(stream[:, :4], policy="reservoir", generator=generator)
    memory = memory.write(stream[:, 4:], policy="reservoir", generator=generator)
    share = torch.nn.functional.one_hot(memory.values.long(), items).sum((0, 1)) / batch
    expected = slots / items
    assert (share - expected).abs().max() < 5 * math.sqrt(expected * (1 - expected) / batch)
    assert (memory.seen == items).all()


def test_a_selection_takes_the_memories_of_some_data():
    assert_close(per_datum().select(torch.tensor([2, 0])).values, per_datum().values[[2, 0]])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: SlotMemory(torch.tensor(1.0)), "`values` must be"),
        (lambda: SlotMemory(torch.tensor([1.0, math.nan])), "`values` must be finite"),
        (lambda: SlotMemory(torch.randn(4), mask=torch.ones(3, dtype=torch.bool)), r"`mask` must start with \[4\]"),
        (lambda: SlotMemory(torch.randn(4), mask=torch.ones(4)), "Convert it: mask.bool\\(\\)"),
        (lambda: SlotMemory(torch.randn(4, 2), keys=torch.randn(3, 2)), "`keys` must start with"),
        (lambda: SlotMemory(torch.randn(4), batch_dim=0), "`batch_dim` counts"),
        (lambda: SlotMemory(torch.randn(4), mask=torch.zeros(4, dtype=torch.bool)).prior(), "all slots masked"),
        (lambda: SlotMemory.empty((2,)).prior(), 'no slots. Write items first, or use a model .* with a "none" slot'),
        (lambda: SlotMemory.reserve(0, (2,)), "`slots` must be at least 1"),
        (lambda: SlotMemory(torch.randn(4, 2)).write(torch.randn(1, 3)), "`values` must be"),
        (lambda: SlotMemory(torch.randn(4, 2)).write(torch.randn(1, 2), torch.randn(1, 2)), "`keys` must be given"),
        (lambda: SlotMemory(torch.randn(4, 2)).write(torch.randn(1, 2), policy="lru"), '"ring" or "reservoir"'),
        (lambda: SlotMemory.empty((2,)).write(torch.randn(1, 2)), "`write` needs slots"),
        (lambda: SlotMemory(torch.randn(4, 2)).select(torch.tensor([0])), "one memory per datum"),
    ],
)
@pytest.mark.unchecked
def test_bad_input_is_refused_with_the_remedy(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_it_says_what_it_holds():
    assert repr(SlotMemory(ink(4, 2))) == "SlotMemory(shared, slots=4, filled=4, event=[2])"
