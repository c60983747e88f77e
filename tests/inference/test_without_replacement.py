"""Values drawn without replacement: unbiased by enumeration of what can be drawn."""

import itertools
import math

import pytest
import torch
from mixture import Mixture, gradients, mean_gradient
from pyro.infer import TraceEnum_ELBO
from small_pairs import Table
from torch.testing import assert_close

from pyro_memory import LeaveOneOutELBO, RaoBlackwellELBO
from pyro_memory.inference.without_replacement import chances_of_order, draw_distinct

P = torch.tensor([0.4, 0.25, 0.2, 0.1, 0.05], dtype=torch.float64)


def chance(order):
    """The probability to draw these values in this order."""
    out, left = 1.0, 1.0
    for value in order:
        out, left = out * P[value].item() / left, left - P[value].item()
    return out


def of_set(values, start=()):
    return sum(chance([*start, *rest]) for rest in itertools.permutations([v for v in values if v not in start]))


@pytest.mark.parametrize("m", [1, 2, 3, 4, 5])
def test_the_chances_are_those_of_all_orders_counted(m):
    for values in itertools.combinations(range(5), m):
        index = torch.tensor(values)
        first, second = chances_of_order(3.0 * P[index], 3.0 * (1 - P[index].sum()))
        assert_close(first, torch.tensor([of_set(values, [s]) / of_set(values) for s in values], dtype=torch.float64))
        for i, s in enumerate(values):
            both = [0.0 if s == t else of_set(values, [s, t]) / of_set(values, [s]) for t in values]
            assert_close(second[i], torch.tensor(both, dtype=torch.float64))


def test_chances_of_tiny_masses_and_of_values_without_any_are_finite():
    mass = torch.tensor([[1e-30, 0.5], [1e-30, 0.0], [1e-30, 0.3], [1e-30, 0.0]])
    first, second = chances_of_order(mass, torch.tensor([1.0, 0.2]))
    assert_close(first[:, 0], torch.full((4,), 0.25))
    assert_close(first[::2, 1], chances_of_order(mass[::2, 1], torch.tensor(0.2))[0])
    assert (first[1::2, 1] == 0).all()
    assert second.isfinite().all()
    assert_close(second.sum(1)[:, 1], torch.tensor([1.0, 0, 1, 0]))


def test_draws_are_distinct_and_come_with_the_probability_of_their_set():
    torch.manual_seed(0)
    drawn = draw_distinct(P.expand(100_000, 5), 2)
    assert (drawn[0] != drawn[1]).all()
    for values in itertools.combinations(range(5), 2):
        share = (torch.tensor(values) == drawn.sort(0).values.T).all(-1).double().mean().item()
        exact = of_set(values)
        assert abs(share - exact) < 5 * math.sqrt(exact * (1 - exact) / 100_000)


def loss_and_gradient(objective, toy):
    toy.zero_grad()
    loss = objective.differentiable_loss(toy.model, toy.guide)
    loss.backward()
    return torch.cat([loss.detach().reshape(1), gradients(toy)])


@pytest.mark.parametrize(("likeliest", "sampled"), [(0, 2), (0, 4), (2, 2), (3, 2), (1, 3)])
def test_value_and_gradient_have_the_mean_of_enumeration(likeliest, sampled):
    exact = loss_and_gradient(TraceEnum_ELBO(max_plate_nesting=1), Table())
    objective, toy = RaoBlackwellELBO(likeliest, sampled=sampled, max_plate_nesting=1), Table(copies=500)
    torch.manual_seed(0)
    rows = torch.stack([loss_and_gradient(objective, toy) / 500 for _ in range(40)])
    se = rows.std(0) / math.sqrt(len(rows))
    assert ((rows.mean(0) - exact).abs() < 5 * se + 1e-9).all()
    assert se.max() < 0.05 * exact[1:].abs().max()  # a test that can fail


@pytest.mark.parametrize(("likeliest", "sampled"), [(0, 2), (1, 2)])
def test_with_a_continuous_latent_the_mean_gradient_is_that_of_the_exact_bound(likeliest, sampled):
    toy = Mixture()
    (-toy.exact_bound(1)).backward()
    exact = gradients(toy)
    mean, se = mean_gradient(RaoBlackwellELBO(likeliest, sampled=sampled, max_plate_nesting=1))
    assert ((mean - exact).abs() < 5 * se + 1e-9).all()
    assert se.max() < 0.1 * exact.abs().max()


@pytest.mark.parametrize("empty", [(), (1,), (0, 1, 2, 4)])
@pytest.mark.parametrize(("likeliest", "sampled"), [(0, 6), (2, 4), (4, 2)])
def test_where_all_values_are_covered_it_is_enumeration(likeliest, sampled, empty):
    toy = Table()
    toy.bias[list(empty)] = -math.inf
    exact = loss_and_gradient(TraceEnum_ELBO(max_plate_nesting=1), toy)
    assert_close(loss_and_gradient(RaoBlackwellELBO(likeliest, sampled=sampled, max_plate_nesting=1), toy), exact)


@pytest.mark.parametrize(("likeliest", "sampled"), [(0, 4), (1, 3), (3, 2)])
def test_where_few_values_have_mass_it_is_enumeration_of_these(likeliest, sampled):
    toy = Table()
    toy.bias[[0, 2, 5]] = -math.inf
    exact = loss_and_gradient(TraceEnum_ELBO(max_plate_nesting=1), toy)
    assert_close(loss_and_gradient(RaoBlackwellELBO(likeliest, sampled=sampled, max_plate_nesting=1), toy), exact)


def variance(objective, toy):
    torch.manual_seed(0)
    return torch.stack([loss_and_gradient(objective, toy) for _ in range(60)])[:, 1:].var(0).sum()


def test_at_equal_passes_the_variance_is_below_that_of_one_draw_and_of_draws_with_replacement():
    toy = Table(slots=40, copies=100)
    several = variance(RaoBlackwellELBO(1, sampled=4, max_plate_nesting=1), toy)
    assert several < 0.5 * variance(RaoBlackwellELBO(4, max_plate_nesting=1), toy)
    assert several < variance(LeaveOneOutELBO(5, max_plate_nesting=1), toy)
    sharp = Table(slots=6, copies=100, sharpness=2.0)
    unordered = variance(RaoBlackwellELBO(0, sampled=4, max_plate_nesting=1), sharp)
    assert unordered < 0.5 * variance(LeaveOneOutELBO(4, max_plate_nesting=1), sharp)


def test_one_draw_is_the_plain_estimator():
    """The numbers that the estimator gave before it could draw more."""
    torch.manual_seed(4)
    found = loss_and_gradient(RaoBlackwellELBO(2, max_plate_nesting=1), Table())
    before = [4.794746521660052, 0.7508398101907967, -0.11528780580258483, 0.16762763202409267]
    assert_close(found[[0, 1, 5, -1]], torch.tensor(before, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"likeliest": 0}, "`likeliest` must be at least 1 value; got 0. With 0, sample 2 or more"),
        ({"likeliest": -1, "sampled": 2}, "`likeliest` must be at least 1 value; got -1"),
        ({"sampled": 9}, "`sampled` must be 1 to 8 values.*got 9"),
        ({"sampled": 0}, "`sampled` must be 1 to 8 values.*got 0"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        RaoBlackwellELBO(**arguments)


def test_more_values_than_there_are_are_refused():
    with pytest.raises(ValueError, match="`likeliest` and `sampled` must be at most the 6 values of site `a` together"):
        loss_and_gradient(RaoBlackwellELBO(4, sampled=3, max_plate_nesting=1), Table())
