"""Doubly reparameterised gradients: the mean of VIMCO's, with less noise."""

import gc
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from mixture import Mixture, gradients, mean_gradient
from pyro import poutine
from pyro.infer.autoguide import AutoNormal
from small_pairs import Chain
from torch.testing import assert_close

from pyro_memory import VIMCO, DReG


@pytest.mark.parametrize("particles", [2, 3])
def test_the_mean_gradient_is_that_of_the_exact_bound_with_a_discrete_site_before_the_continuous(particles):
    toy = Mixture()
    (-toy.exact_bound(particles)).backward()
    exact = gradients(toy)
    mean, se = mean_gradient(DReG(particles, max_plate_nesting=1), calls=60)
    assert ((mean - exact).abs() < 5 * se + 1e-9).all()
    assert se.max() < 0.1 * exact.abs().max()  # a test that can fail


class Long(torch.nn.Module):
    """u -> b -> z1 -> z2 -> z3 -> items y: b is discrete, and each continuous site looks at all before it.

    Only z1, z2, z3 and y can be reparameterised twice; ``late`` draws a discrete c after them, and nothing can.
    """

    def __init__(self, copies=1, *, late=False):
        super().__init__()
        g = torch.Generator().manual_seed(1)
        for part in ("of_model", "of_guide"):
            rows = 0.6 * torch.randn(6, 6, generator=g, dtype=torch.float64)
            setattr(self, part, torch.nn.Parameter(rows))
        self.copies, self.late = copies, late

    def draw(self, rows, scale, data):
        def normal(row, *before):
            loc = rows[row, 0] + sum((rows[row, i + 1] * b for i, b in enumerate(before)), torch.zeros(()))
            return dist.Normal(loc, scale)

        with pyro.plate("data", self.copies, dim=-2):
            seen = [pyro.sample("u", normal(0).expand([self.copies, 1]))]
            seen.append(pyro.sample("b", dist.Bernoulli(logits=rows[1, 0] + 2 * rows[1, 1] * seen[0])))
            for row, name in enumerate(("z1", "z2", "z3")):
                seen.append(pyro.sample(name, normal(row + 2, *seen)))
            if self.late:
                seen.append(pyro.sample("c", dist.Bernoulli(logits=rows[1, 2] + 2 * rows[1, 3] * seen[-1])))
            with pyro.plate("item", 2, dim=-1):
                y = pyro.sample("y", normal(5, *seen[1:5]))
                if data is not None:
                    pyro.sample("x", dist.Normal(y + seen[0] + seen[-1], 1.0), obs=data)

    def model(self):
        self.draw(self.of_model, 1.0, torch.tensor([1.0, -0.4], dtype=torch.float64))

    def guide(self):
        self.draw(self.of_guide, 0.8, None)


def drawn(objective, toy, calls, program=lambda p: p):
    rows = []
    for _ in range(calls):
        toy.zero_grad()
        objective.loss_and_grads(program(toy.model), program(toy.guide))
        rows.append(gradients(toy) / toy.copies)
    return torch.stack(rows)


def assert_same_mean(one, other):
    se = (one.var(0) / len(one) + other.var(0) / len(other)).sqrt()
    assert ((one.mean(0) - other.mean(0)).abs() < 5 * se + 1e-9).all()
    assert se.max() < 0.05 * other.mean(0).abs().max()


@pytest.mark.parametrize("late", [False, True])
def test_a_long_chain_with_plates_inside_and_discrete_sites_between_has_the_mean_gradient_of_vimco(late):
    torch.manual_seed(0)
    toy = Long(1000, late=late)
    one, other = (drawn(kind(3, max_plate_nesting=2), toy, 60) for kind in (DReG, VIMCO))
    assert_same_mean(one, other)


def test_a_site_that_a_discrete_one_follows_keeps_the_plain_gradient():
    loc = torch.nn.Parameter(torch.tensor(0.4))

    def model():
        with pyro.plate("data", 5):
            u = pyro.sample("u", dist.Normal(0.0, 1.0))
            b = pyro.sample("b", dist.Bernoulli(0.4))
            pyro.sample("x", dist.Normal(u + 2 * b, 1.0), obs=torch.linspace(-1, 2, 5))

    def guide():
        with pyro.plate("data", 5):
            u = pyro.sample("u", dist.Normal(loc, 0.8))
            pyro.sample("b", dist.Bernoulli(logits=3 * u))

    slopes = []
    for kind in (DReG, VIMCO):
        torch.manual_seed(0)
        loss = kind(4, max_plate_nesting=1).differentiable_loss(model, guide)
        slopes.append(torch.autograd.grad(loss, loc)[0])
    assert_close(*slopes)


def test_given_the_draws_it_is_the_gradient_derived_by_hand():
    toy = Chain(copies=4)
    torch.manual_seed(3)
    DReG(5, max_plate_nesting=1).differentiable_loss(toy.model, toy.guide).backward()
    torch.manual_seed(3)
    noise = [torch.randn(5, 4, dtype=torch.float64) for _ in range(2)]
    z1 = toy.phi[0] + toy.phi[1].exp() * noise[0]
    z2 = toy.phi[2] + toy.phi[3] * z1 + toy.phi[4].exp() * noise[1]
    paths = toy.log_weight(z1, z2, toy.phi.detach())
    share = paths.detach().softmax(0)
    (wanted,) = torch.autograd.grad((share**2 * paths).sum(), toy.phi, retain_graph=True)
    (of_model,) = torch.autograd.grad((share * paths).sum(), toy.theta)
    assert_close(toy.phi.grad, -wanted)
    assert_close(toy.theta.grad, -of_model)


def test_with_the_posterior_as_guide_every_draw_has_no_gradient():
    """x | z ~ N(z, 1), z ~ N(0, 1): the posterior is N(x / 2, 1/2)."""
    x, spread = torch.randn(6), torch.nn.Parameter(torch.tensor(0.5).sqrt().log())
    slope = torch.nn.Parameter(torch.tensor(0.5))

    def model():
        with pyro.plate("data", 6):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide():
        with pyro.plate("data", 6):
            pyro.sample("z", dist.Normal(slope * x, spread.exp()))

    found = []
    for kind in (DReG, VIMCO):
        loss = kind(4, max_plate_nesting=1).differentiable_loss(model, guide)
        found.append(torch.stack(torch.autograd.grad(loss, [slope, spread])).norm())
    assert found[0] < 1e-5 < 0.1 < found[1]


def signal_to_noise(kind, particles, draws=4000):
    """Of the guide's parameters, for x | z ~ N(z, 1) and a guide that is near its posterior; a draw in each cell."""
    torch.manual_seed(0)
    phi = torch.tensor([0.7, 0.0]).repeat(draws, 1).requires_grad_()

    def model():
        with pyro.plate("data", draws):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=torch.ones(draws))

    def guide():
        with pyro.plate("data", draws):
            pyro.sample("z", dist.Normal(phi[:, 0], phi[:, 1].exp()))

    (rows,) = torch.autograd.grad(kind(particles, max_plate_nesting=1).differentiable_loss(model, guide), phi)
    return rows.mean(0).abs() / rows.std(0)


def test_more_particles_raise_the_signal_to_noise_and_lower_that_of_the_plain_gradient():
    twice, plain = (torch.stack([signal_to_noise(kind, k) for k in (4, 64)]) for kind in (DReG, VIMCO))
    assert (twice[1] > 2 * twice[0]).all()
    assert (plain[1] < 0.5 * plain[0]).all()
    assert (twice[0] > plain[0]).all()


def test_its_value_is_that_of_vimco():
    for toy, nesting in ((Mixture(), 1), (Long(5), 2)):
        losses = []
        for kind in (DReG, VIMCO):
            torch.manual_seed(1)
            objective = kind(4, max_plate_nesting=nesting)
            losses.append(objective.loss(toy.model, toy.guide))
            torch.manual_seed(1)
            losses.append(objective.differentiable_loss(toy.model, toy.guide).item())
        assert len(set(losses)) == 1


def test_an_automatic_guide_with_constraints_has_the_mean_gradient_of_vimco():
    def model():
        with pyro.plate("data", 1000):
            rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
            z = pyro.sample("z", dist.Normal(0.0, rate))
            pyro.sample("x", dist.Normal(z, 1.0), obs=torch.linspace(-1, 1, 1000))

    guide, rows = AutoNormal(model, init_scale=0.5), []
    guide()
    torch.manual_seed(0)
    for kind in (DReG, VIMCO):
        elbo = kind(3, max_plate_nesting=1)(model, guide)
        calls = []
        for _ in range(60):
            elbo.zero_grad()
            elbo().backward()
            calls.append(torch.stack([p.grad.sum() for p in guide.parameters()]) / 1000)
        rows.append(torch.stack(calls))
    assert_same_mean(*rows)
    assert (rows[0].var(0) < 0.9 * rows[1].var(0)).any()


@pytest.mark.parametrize("how", ["mask", "scale"])
def test_where_log_q_counts_other_than_once_it_is_vimco(how):
    toy, rows = Chain(3), []
    half = torch.tensor([True, False, True])

    def program(p):
        if how == "mask":
            return poutine.mask(p, half)
        return poutine.scale(p, 0.5) if p == toy.guide else p

    for kind in (DReG, VIMCO):
        torch.manual_seed(0)
        rows.append(drawn(kind(3, max_plate_nesting=1), toy, 1, program))
    assert_close(*rows)
    torch.manual_seed(0)
    assert not torch.equal(drawn(DReG(3, max_plate_nesting=1), toy, 1), rows[0])


def test_parameters_that_the_guide_gets_through_its_arguments_have_no_share_of_log_q():
    """A memory that is computed by a network is such an argument."""
    phi = torch.nn.Parameter(torch.randn(5, dtype=torch.float64))
    toy, rows = Chain(3), []

    def guide(given):
        with pyro.plate("data", 3):
            z1 = pyro.sample("z1", toy.dists(given).expand([3]))
            pyro.sample("z2", toy.dists(given, z1))

    for given in (phi, 3 * (phi / 3)):
        torch.manual_seed(0)
        loss = DReG(3, max_plate_nesting=1).differentiable_loss(lambda _: toy.model(), guide, given)
        rows.append(torch.autograd.grad(loss, phi)[0])
    assert_close(*rows)


def test_a_step_leaves_nothing_behind():
    for toy, nesting in ((Chain(3), 1), (Long(3), 2), (Long(3, late=True), 2)):
        DReG(3, max_plate_nesting=nesting).loss_and_grads(toy.model, toy.guide)
    gc.collect()
    assert not [thing for thing in gc.get_objects() if type(thing).__name__ == "_Twice"]


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match=r"`num_particles` must be at least 2.*got 1"):
        DReG(1)
    with pytest.raises(ValueError, match="`baseline` must be one of"):
        DReG(2, baseline="harmonic")
    assert math.isinf(DReG(2).max_plate_nesting)
