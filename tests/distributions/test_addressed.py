import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import ink
from pyro.infer import TraceEnum_ELBO
from torch.testing import assert_close

from pyro_memory import VIMCO, AddressedBernoulli, SlotMemory


def plain(logits, a):
    return dist.Bernoulli(logits=logits[a]).to_event(2)


ADDRESSES = {
    "sampled": torch.tensor([0, 2, 2, 1]),
    "particles": torch.tensor([[0, 2, 2, 1], [1, 1, 0, 2], [0, 0, 0, 0]]),
    "enumerated": torch.arange(3)[:, None],
    "enumerated left of particles": torch.arange(3)[:, None, None],
    "as many as slots, but drawn": torch.tensor([[2], [1], [0]]),
    "as many data as slots": torch.tensor([0, 1, 2, 1]),
}


@pytest.mark.parametrize("a", ADDRESSES.values(), ids=list(ADDRESSES))
def test_it_is_the_bernoulli_of_the_slot_read_values_and_gradients(a):
    logits = torch.randn(3, 2, 5, dtype=torch.float64, requires_grad=True)
    x = ink(4, 2, 5).double()
    one, other = AddressedBernoulli(logits, a).log_prob(x), plain(logits, a).log_prob(x)
    assert_close(one, other)
    weight = torch.randn_like(other)
    assert_close(*(torch.autograd.grad((p * weight).sum(), logits)[0] for p in (one, other)))
    assert AddressedBernoulli(logits, a).mean.shape == a.shape + (2, 5)


def test_data_with_particles_of_their_own_are_matched():
    logits, x = torch.randn(3, 2, 5), ink(6, 4, 2, 5)
    a = torch.randint(3, (6, 4))
    assert_close(AddressedBernoulli(logits, a).log_prob(x), plain(logits, a).log_prob(x))


class Model(torch.nn.Module):
    def __init__(self, likelihood):
        super().__init__()
        torch.manual_seed(1)
        self.decode = torch.nn.Linear(10, 10).double()
        self.likelihood = likelihood

    def forward(self, x, memory):
        with pyro.plate("batch", len(x)):
            a = pyro.sample("a", memory.prior())
            logits = self.decode(memory.values.flatten(1)).unflatten(1, (2, 5))
            pyro.sample("x", self.likelihood(logits, a), obs=x)


def guide(x, memory):
    with pyro.plate("batch", len(x)):
        logits = (x.flatten(1) @ memory.values.flatten(1).T).double()
        pyro.sample("a", dist.Categorical(logits=logits), infer={"enumerate": "parallel"})


@pytest.mark.parametrize("objective", [TraceEnum_ELBO, lambda **k: VIMCO(6, **k)])
def test_objectives_need_no_change_of_the_model(objective):
    memory, x = SlotMemory(ink(3, 2, 5).double()), ink(4, 2, 5).double()
    found = []
    for likelihood in (AddressedBernoulli, plain):
        model = Model(likelihood)
        pyro.set_rng_seed(0)
        loss = objective(max_plate_nesting=1).differentiable_loss(model, guide, x, memory)
        found.append((loss, *torch.autograd.grad(loss, list(model.parameters()))))
    assert_close(found[0], found[1])


def test_samples_have_the_mean():
    logits, a = torch.randn(3, 2, 5), torch.tensor([2, 0])
    d = AddressedBernoulli(logits, a)
    draws = d.sample((4000,))
    assert draws.shape == (4000, 2, 2, 5)
    assert ((draws.mean(0) - d.mean).abs() < 5 * 0.5 / 4000**0.5).all()


def test_misuse_is_refused():
    with pytest.raises(ValueError, match=r"`logits` must be \[slot, \*event\] and `a` integers; got \[3\]"):
        AddressedBernoulli(torch.zeros(3), torch.zeros(1).long())
    with pytest.raises(ValueError, match="within the support"):
        AddressedBernoulli(torch.zeros(3, 2), torch.zeros(1).long()).log_prob(torch.tensor([[0.0, 2.0]]))
