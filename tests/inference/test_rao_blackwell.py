import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from mixture import Mixture, gradients, mean_gradient
from pyro.infer import TraceEnum_ELBO, TraceGraph_ELBO
from torch.testing import assert_close

from pyro_memory import NearestAddress, RaoBlackwellELBO


@pytest.mark.parametrize("likeliest", [1, 2])
def test_the_mean_gradient_is_that_of_the_exact_bound(likeliest):
    toy = Mixture()
    (-toy.exact_bound(1)).backward()
    exact = gradients(toy)
    mean, se = mean_gradient(RaoBlackwellELBO(likeliest, max_plate_nesting=1))
    assert ((mean - exact).abs() < 5 * se + 1e-9).all()
    assert se.max() < 0.1 * exact.abs().max()  # a test that can fail


def test_its_value_is_the_exact_bound():
    toy, copies = Mixture(), 4000
    many, objective = Mixture(copies), RaoBlackwellELBO(1, max_plate_nesting=1)
    values = torch.tensor([-objective.loss(many.model, many.guide) / copies for _ in range(10)])
    se = values.std().item() / math.sqrt(10)
    assert abs(values.mean().item() - toy.exact_bound(1).item()) < 5 * se
    assert se < 0.05


def test_summing_likely_values_lowers_the_gradients_variance_by_much():
    """At equal passes (3 a datum) with a guide that is nearly sure."""
    toy = Mixture(2000)
    with torch.no_grad():
        toy.logits.mul_(4)

    def variance(objective):
        rows = []
        for _ in range(30):
            toy.zero_grad()
            objective.loss_and_grads(toy.model, toy.guide)
            rows.append(toy.logits.grad.clone() / toy.copies)
        return torch.stack(rows).var(0).sum()

    score = TraceGraph_ELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=1)
    assert variance(RaoBlackwellELBO(2, max_plate_nesting=1)) < 0.2 * variance(score)


def test_a_guide_with_no_mass_on_the_rest_is_summed_exactly(tiny_pair, shared_memory):
    model, guide = tiny_pair
    guide.address = NearestAddress(guide.address, 2)
    x = shared_memory.values[:3]

    def grads(objective):
        pyro.set_rng_seed(1)
        total = torch.zeros(sum(p.numel() for p in guide.parameters()))
        for _ in range(150):
            guide.zero_grad()
            objective.loss_and_grads(model, guide, x, shared_memory)
            total += torch.cat([p.grad.reshape(-1) for p in guide.parameters()])
        return total / 150

    one, other = grads(RaoBlackwellELBO(3, max_plate_nesting=1)), grads(TraceEnum_ELBO(max_plate_nesting=1))
    assert one.isfinite().all()
    assert (one - other).norm() < 0.1 * other.norm()


def test_without_noise_it_is_enumeration_to_rounding():
    logits = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    means = torch.randn(3, dtype=torch.float64, requires_grad=True)
    x = torch.randn(4, dtype=torch.float64)
    sure = torch.tensor([0.0, 0.0, -math.inf], dtype=torch.float64)

    def model():
        with pyro.plate("batch", 8, subsample_size=4):
            a = pyro.sample("a", dist.Categorical(torch.ones(3, dtype=torch.float64)))
            pyro.sample("x", dist.Normal(means[a], 1.0), obs=x)

    def guide():
        with pyro.plate("batch", 8, subsample_size=4):
            pyro.sample("a", dist.Categorical(logits=logits + sure), infer={"enumerate": "parallel"})

    found = []
    for objective in (TraceEnum_ELBO(max_plate_nesting=1), RaoBlackwellELBO(2, max_plate_nesting=1)):
        loss = objective.differentiable_loss(model, guide)
        found.append((loss, *torch.autograd.grad(loss, [logits, means])))
    assert_close(found[0], found[1])


def no_address():
    with pyro.plate("batch", 2):
        pyro.sample("z", dist.Normal(0.0, 1.0))


def two_discrete():
    with pyro.plate("batch", 2):
        pyro.sample("a", dist.Categorical(torch.ones(3)))
        pyro.sample("b", dist.Bernoulli(0.5))


def with_ancestor():
    with pyro.plate("batch", 2):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("a", dist.Categorical(logits=torch.stack([z, -z, 0 * z], -1)))


def not_categorical():
    with pyro.plate("batch", 2):
        pyro.sample("a", dist.Bernoulli(0.5))


@pytest.mark.parametrize(
    ("program", "likeliest", "message"),
    [
        (no_address, 1, "`site` must be a latent of the guide, one of z; got 'a'"),
        (two_discrete, 1, "all latents but `a` must be reparameterised; b cannot. Use VIMCO"),
        (with_ancestor, 1, "site `a` must have no sampled ancestors"),
        (two_discrete, 3, "`likeliest` must be below the 3 values of site `a`; got 3. Enumerate them all"),
        (not_categorical, 1, "`site` a must be Categorical; got Bernoulli"),
    ],
)
def test_a_pair_that_it_cannot_train_is_refused(program, likeliest, message):
    with pytest.raises(ValueError, match=message):
        RaoBlackwellELBO(likeliest, max_plate_nesting=1).loss(program, program)


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="`likeliest` must be at least 1 value; got 0"):
        RaoBlackwellELBO(0)


def test_a_site_inside_a_datum_is_refused():
    def program():
        with pyro.plate("batch", 2, dim=-2):
            with pyro.plate("part", 3, dim=-1):
                pyro.sample("a", dist.Categorical(torch.ones(3)))
            pyro.sample("x", dist.Normal(torch.zeros(2, 1), 1.0), obs=torch.zeros(2, 1))

    def guide():
        with pyro.plate("batch", 2, dim=-2), pyro.plate("part", 3, dim=-1):
            pyro.sample("a", dist.Categorical(torch.ones(3)))

    with pytest.raises(ValueError, match="site `a` must have one value for each datum"):
        RaoBlackwellELBO(1, max_plate_nesting=2).loss(program, guide)
