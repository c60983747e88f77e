"""What is scored for all slots by one matrix product is the plain distribution of the slot that is read."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import ink
from pyro.infer import TraceEnum_ELBO
from torch.testing import assert_close

from pyro_memory import (
    VIMCO,
    AddressedBernoulli,
    AddressedCategorical,
    AddressedMultinomial,
    AddressedPoisson,
    SlotMemory,
    TemplateMemory,
    fit,
)

SLOTS = 3
ADDRESSES = {
    "sampled": torch.tensor([0, 2, 2, 1]),
    "particles": torch.tensor([[0, 2, 2, 1], [1, 1, 0, 2], [0, 0, 0, 0]]),
    "enumerated": torch.arange(3)[:, None],
    "enumerated, expanded over data": torch.arange(3)[:, None].expand(3, 4),
    "enumerated left of particles": torch.arange(3)[:, None, None],
    "enumerated, expanded over particles and data": torch.arange(3)[:, None, None].expand(3, 2, 4),
    "as many as slots, but drawn": torch.tensor([[2], [1], [0]]),
    "the first datum's in order": torch.tensor([[0, 2, 2, 1], [1, 1, 0, 2], [2, 0, 0, 0]]),
    "as many data as slots": torch.tensor([0, 1, 2, 1]),
}
KINDS = {  # the distribution, the plain one, its parameter's shape, data of a shape
    "Bernoulli": (
        AddressedBernoulli, lambda t: dist.Bernoulli(logits=t).to_event(2), (SLOTS, 2, 5),
        lambda *lead: ink(*lead, 2, 5).double(),
    ),
    "Poisson": (
        AddressedPoisson, lambda t: dist.Poisson(t.exp()).to_event(2), (SLOTS, 2, 5),
        lambda *lead: torch.poisson(torch.full((*lead, 2, 5), 1.5).double()),
    ),
    "Multinomial": (
        lambda *args, **options: AddressedMultinomial(*args, 6, **options),
        lambda t: dist.Multinomial(6, logits=t), (SLOTS, 5),
        lambda *lead: dist.Multinomial(6, torch.ones(5).double()).expand(lead).sample(),
    ),
    "Categorical": (
        AddressedCategorical, lambda t: dist.Categorical(logits=t).to_event(2), (SLOTS, 2, 5, 4),
        lambda *lead: torch.randint(4, (*lead, 2, 5)),
    ),
    "Categorical, one": (
        AddressedCategorical, lambda t: dist.Categorical(logits=t), (SLOTS, 4), lambda *lead: torch.randint(4, lead),
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("a", ADDRESSES.values(), ids=list(ADDRESSES))
def test_it_is_the_distribution_of_the_slot_read_values_and_gradients(kind, a):
    addressed, plain, shape, data = KINDS[kind]
    table, x = torch.randn(shape, dtype=torch.float64, requires_grad=True), data(4)
    one, other = addressed(table, a).log_prob(x), plain(table[a]).log_prob(x)
    assert_close(one, other)
    weight = torch.randn_like(other)
    assert_close(*(torch.autograd.grad((p * weight).sum(), table)[0] for p in (one, other)))
    assert_close(addressed(table, a).mean, plain(table[a]).mean, equal_nan=True)


@pytest.mark.parametrize("kind", KINDS)
def test_data_with_particles_of_their_own_are_matched(kind):
    addressed, plain, shape, data = KINDS[kind]
    table, x, a = torch.randn(shape).double(), data(6, 4), torch.randint(SLOTS, (6, 4))
    assert_close(addressed(table, a).log_prob(x), plain(table[a]).log_prob(x))
    inner = torch.arange(SLOTS)[:, None, None]  # enumerated over two plates
    assert_close(addressed(table, inner).log_prob(x), plain(table[inner]).log_prob(x))


@pytest.mark.parametrize("kind", KINDS)
def test_what_never_is_costs_nothing_where_it_is_not(kind):
    addressed, plain, shape, data = KINDS[kind]
    table, a = torch.randn(shape).double(), torch.arange(SLOTS)[:, None]
    table[1].view(-1)[0] = -math.inf
    table.requires_grad_()
    x = torch.zeros_like(data(2))
    x[1].view(-1)[:1] = 1  # the first pixel, count or class there is and is not
    if kind == "Multinomial":
        x = torch.tensor([[0.0, 6, 0, 0, 0], [1, 5, 0, 0, 0]]).double()
    if kind == "Categorical, one":
        x = torch.tensor([1, 0])
    never = 0 if kind == "Categorical" else 1
    found = addressed(table, a).log_prob(x)
    assert found[1, never] == -math.inf
    assert found.isfinite().sum() == found.numel() - 1
    (grad,) = torch.autograd.grad(found[found.isfinite()].sum(), table)
    assert grad.isfinite().all()
    if kind != "Bernoulli":  # torch's own is not a number there
        assert_close(found, plain(table[a]).log_prob(x))


@pytest.mark.parametrize("kind", KINDS)
def test_samples_are_those_of_the_slots_read(kind):
    addressed, plain, shape, data = KINDS[kind]
    table, a = torch.randn(shape), torch.tensor([2, 0])
    pyro.set_rng_seed(3)
    draws = addressed(table, a).sample((5,))
    pyro.set_rng_seed(3)
    assert_close(draws, plain(table[a]).sample((5,)))
    assert draws.shape == (5, 2, *data(2).shape[1:])
    assert addressed(table, a).log_prob(draws).shape == (5, 2)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_expanded_stays_checked(kind):
    addressed, plain, shape, data = KINDS[kind]
    table, a = torch.randn(shape).double(), torch.tensor([2, 0])
    wider = addressed(table, a).expand((3, 2))
    assert wider.batch_shape == (3, 2)
    x = data(3, 2)
    assert_close(wider.log_prob(x), plain(table[a]).log_prob(x))
    assert wider.sample((5,)).shape == (5, *x.shape)
    with pytest.raises(ValueError, match="within the support"):
        wider.log_prob(x - 10)
    if x.is_floating_point():
        addressed(table, a, validate_args=False).expand((3, 2)).log_prob(x + 0.5)


def test_samples_have_the_mean():
    logits, a = torch.randn(3, 2, 5), torch.tensor([2, 0])
    d = AddressedBernoulli(logits, a)
    draws = d.sample((4000,))
    assert draws.shape == (4000, 2, 2, 5)
    assert ((draws.mean(0) - d.mean).abs() < 5 * 0.5 / 4000**0.5).all()


def test_documents_may_differ_in_length():
    logits, x, a = torch.randn(3, 5).double(), torch.randint(4, (4, 5)).double(), torch.arange(3)[:, None]
    rows = [dist.Multinomial(int(row.sum()), logits=logits).log_prob(row) for row in x]
    d = AddressedMultinomial(logits, a)
    assert_close(d.log_prob(x), torch.stack(rows, -1))
    assert_close(d.log_prob(x.long()), d.log_prob(x))
    with pytest.raises(ValueError, match=r"`total_count` must be given where counts are drawn, .*; got None"):
        d.sample()


class Model(torch.nn.Module):
    def __init__(self, kind, addressed, enumerate_in_model=False):
        super().__init__()
        torch.manual_seed(1)
        one, plain, shape, _ = KINDS[kind]
        self.decode = torch.nn.Linear(10, math.prod(shape[1:])).double()
        self.fn = one if addressed else lambda table, a: plain(table[a])
        self.shape = shape[1:]

    def forward(self, x, memory):
        with pyro.plate("batch", len(x)):
            a = pyro.sample("a", memory.prior())
            pyro.sample("x", self.fn(self.decode(memory.values).unflatten(1, self.shape), a), obs=x)


def guide(x, memory):
    with pyro.plate("batch", len(x)):
        logits = (x.flatten(1).double() @ torch.ones(x[0].numel(), 3).double()) + memory.values.sum(-1)
        pyro.sample("a", dist.Categorical(logits=logits), infer={"enumerate": "parallel"})


@pytest.mark.parametrize("kind", ["Bernoulli", "Poisson", "Multinomial", "Categorical"])
@pytest.mark.parametrize("objective", [TraceEnum_ELBO, lambda **k: VIMCO(6, **k)])
def test_objectives_need_no_change_of_the_model(kind, objective):
    memory, x = SlotMemory(ink(3, 10).double()), KINDS[kind][3](4)
    found = []
    for addressed in (True, False):
        model = Model(kind, addressed)
        pyro.set_rng_seed(0)
        loss = objective(max_plate_nesting=1).differentiable_loss(model, guide, x, memory)
        found.append((loss, *torch.autograd.grad(loss, list(model.parameters()))))
    assert_close(found[0], found[1])


class Topics(pyro.nn.PyroModule):
    """Each count of words follows one learned template; the model sums the address out."""

    def __init__(self, words, addressed, init):
        super().__init__("topics")
        self.words, self.addressed = words, addressed
        self.templates = TemplateMemory(*init.shape[:1], init.shape[1:], init=init, name="templates")

    def forward(self, x):
        memory = self.templates()
        with pyro.plate("batch", len(x)):
            a = pyro.sample("a", memory.prior(), infer={"enumerate": "parallel"})
            pyro.sample("x", self.words(memory.values, a, self.addressed), obs=x)


WORDS = {
    "Poisson": lambda table, a, addressed: (
        AddressedPoisson(table, a) if addressed else dist.Poisson(table[a].exp()).to_event(1)
    ),
    "Multinomial": lambda table, a, addressed: (
        AddressedMultinomial(table, a) if addressed else dist.Multinomial(30, logits=table[a], validate_args=False)
    ),
}


@pytest.mark.parametrize("words", WORDS)
def test_a_model_that_sums_the_address_out_itself_learns_its_templates(words):
    truth = 1.5 * torch.randn(4, 12).double()
    x = dist.Multinomial(30, logits=truth[torch.randint(4, (200,))]).sample()
    init, losses = 0.1 * torch.randn(20, 12).double(), []
    for addressed in (True, False):
        model = Topics(WORDS[words], addressed, init)
        loss = TraceEnum_ELBO(max_plate_nesting=1).differentiable_loss(model, lambda x: None, x)
        losses.append((loss, *torch.autograd.grad(loss, list(model.parameters()))))
    assert_close(*losses)
    model = Topics(WORDS[words], True, init)
    objective = TraceEnum_ELBO(max_plate_nesting=1)
    fit(model, lambda x: None, [(x,)], objective, steps=150, learning_rate=0.05, progress=False, information_every=None)
    parts = WORDS[words](model.templates.values, torch.arange(20), False)
    mixture = dist.MixtureSameFamily(dist.Categorical(torch.full((20,), 0.05).double()), parts)
    assert_close(objective.loss(model, lambda x: None, x), -mixture.log_prob(x).sum().item())
    before, after = (
        (t.softmax(-1).unsqueeze(1) - truth.softmax(-1)).abs().sum(-1).min(0).values
        for t in (init, model.templates.values.detach())
    )
    assert (before > 0.5).all()
    assert (after < 0.3).all()


def test_misuse_is_refused():
    a = torch.zeros(1).long()
    with pytest.raises(ValueError, match=r"`logits` must be \[slot, \*event\], .*; got \[3\]"):
        AddressedBernoulli(torch.zeros(3), a)
    with pytest.raises(ValueError, match=r"`log_rate` must be \[slot, \*event\], .*; got \[3\]"):
        AddressedPoisson(torch.zeros(3), a)
    with pytest.raises(ValueError, match=r"`a` must be from 0 to 2, the slots; got 3"):
        AddressedPoisson(torch.zeros(3, 2), a + 3)
    with pytest.raises(ValueError, match=r"`total_count` must be at least 0; got -1"):
        AddressedMultinomial(torch.zeros(3, 2), a, -1)
    with pytest.raises(ValueError, match=r"`log_rate`.*LessThan"):
        AddressedPoisson(torch.full((3, 2), math.inf), a)
    with pytest.raises(ValueError, match="within the support"):
        AddressedBernoulli(torch.zeros(3, 2), a).log_prob(torch.tensor([[0.0, 2.0]]))
    with pytest.raises(ValueError, match="within the support"):
        AddressedPoisson(torch.zeros(3, 2), a).log_prob(torch.tensor([[0.0, 1.5]]))
    with pytest.raises(ValueError, match="within the support"):
        AddressedMultinomial(torch.zeros(3, 2), a, 3).log_prob(torch.tensor([[2.0, 2.0]]))
    with pytest.raises(ValueError, match="within the support"):
        AddressedCategorical(torch.zeros(3, 2, 4), a).log_prob(torch.tensor([[0, 4]]))


@pytest.mark.parametrize("kind", KINDS)
def test_a_memory_for_each_datum_is_refused(kind):
    addressed, _, shape, data = KINDS[kind]
    if kind == "Multinomial":
        with pytest.raises(ValueError, match=r"`logits` must be .* tensor \[slot, category\]; got"):
            addressed(torch.zeros(4, *shape), torch.zeros(4).long())
        return
    with pytest.raises(
        ValueError, match=r"`value` must end with \[.*\], .* with a memory for each datum \(batch_dim\)"
    ):
        addressed(torch.zeros(4, *shape), torch.zeros(4).long()).log_prob(data(4))
