"""Simulation-based calibration, against exact posteriors and what is done to them."""

import json
import math

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.testing import assert_close

from pyro_memory import SlotMemory
from pyro_memory.diagnostics import Calibration, SiteCalibration, calibrate
from pyro_memory.diagnostics.reliability import binned
from pyro_memory.diagnostics.tables import clustered
from pyro_memory.diagnostics.uniformity import GRID, uniform_band

NOISE = 0.8
X = torch.zeros(4, 2)  # its shape is all that counts
DEVIATION = math.sqrt(NOISE**2 / (1 + NOISE**2))  # of the posterior


def model(x):
    with pyro.plate("batch", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        pyro.sample("x", dist.Normal(z, NOISE).to_event(1), obs=x)


def guide_of(scale=1.0, shift=0.0):
    """The exact posterior, its deviation times ``scale``, its mean moved by so many deviations."""

    def guide(x):
        with pyro.plate("batch", len(x)):
            mean = x / (1 + NOISE**2) + shift * DEVIATION
            pyro.sample("z", dist.Normal(mean, scale * DEVIATION).to_event(1))

    return guide


exact = guide_of()


def lookups(sharpness=1.0):
    """An address with its exact posterior, its logits times ``sharpness``."""

    def read(x, memory):
        with pyro.plate("batch", len(x)):
            a = pyro.sample("a", memory.prior())
            pyro.sample("x", dist.Normal(memory[a], 1.0).to_event(1), obs=x)

    def find(x, memory):
        with pyro.plate("batch", x.shape[-2]):
            apart = (x.unsqueeze(-2) - memory.values).square().sum(-1)
            pyro.sample("a", dist.Categorical(logits=-0.5 * sharpness * apart))

    return (
        read,
        find,
        torch.zeros(8, 2),
        SlotMemory(1.5 * torch.randn(5, 2, generator=torch.Generator().manual_seed(1))),
    )


def grouped(x):
    """A global latent, and local ones around it."""
    centre = pyro.sample("centre", dist.Normal(0.0, 2.0))
    with pyro.plate("batch", x.shape[-1]):
        z = pyro.sample("z", dist.Normal(centre, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def grouped_guide(x, scale=1.0):
    precision = 1 / 4 + x.shape[-1] / 2
    centre = pyro.sample("centre", dist.Normal(x.sum(-1) / 2 / precision, scale * precision**-0.5))
    with pyro.plate("batch", x.shape[-1]):
        pyro.sample("z", dist.Normal((centre + x) / 2, math.sqrt(0.5)))


def test_the_exact_posterior_is_calibrated():
    calibration = calibrate(model, exact, X)
    site = calibration["z"]
    assert site.ranks.shape == (200 * 4, 1, 2)
    assert calibration.calibrated
    assert not site.outside.any()
    assert "calibrated within the noise of 800 ranks in each of 2 dimensions" in repr(calibration)
    for share in (0.5, 0.9):
        mean, se = site.coverage(share)
        assert abs(mean - share) < 5 * se
        assert_close(se, math.sqrt(share * (1 - share) / 1600), rtol=0.1, atol=0.0)
    mean, se = site.mean_rank
    assert abs(mean - 0.5) < 5 * se


def test_draws_that_spread_too_little_are_called_too_narrow():
    calibration = calibrate(model, guide_of(scale=0.5), X)
    site = calibration["z"]
    held, se = site.coverage(0.9)
    # the truth lies within 1.645 deviations of draws half as wide
    assert abs(held - (2 * dist.Normal(0.0, 1.0).cdf(torch.tensor(0.5 * 1.645)) - 1)) < 5 * se + 0.01
    assert site.verdict.startswith("too narrow: 90% intervals hold ")
    assert site.outside.all()
    assert not calibration.calibrated


def test_draws_that_spread_too_far_are_called_too_wide():
    assert calibrate(model, guide_of(scale=2.0), X)["z"].verdict.startswith("too wide: 90% intervals hold 99")


@pytest.mark.parametrize(("shift", "word"), [(-1.0, "biased low: "), (0.5, "biased high: ")])
def test_draws_beside_the_truth_are_called_biased(shift, word):
    verdict = calibrate(model, guide_of(shift=shift), X)["z"].verdict
    assert verdict.startswith(word)
    assert "narrow" not in verdict
    assert "wide" not in verdict


def test_a_dimension_alone_is_found():
    shift = torch.tensor([0.0, 0.6])
    site = calibrate(model, guide_of(shift=shift), X)["z"]
    assert site.outside.tolist() == [False, True]
    assert site.verdict.endswith("(1 of 2 dimensions outside the band)")
    opposed = calibrate(model, guide_of(shift=torch.tensor([-0.6, 0.6])), X)["z"]
    assert "biased" in opposed.verdict
    assert "2 of 2 outside the band" in opposed.verdict
    assert abs(opposed.mean_rank[0] - 0.5) < 5 * opposed.mean_rank[1]


def test_calibrated_guides_leave_the_band_as_often_as_it_says():
    ranks = torch.rand(60, 1, 4000, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    band = uniform_band(60, 0.05)
    outside = SiteCalibration(ranks, band).outside.double()
    assert abs(outside.mean() - 0.05) < 5 * math.sqrt(0.05 * 0.95 / 4000)
    assert (uniform_band(60, 0.05 / 8)[1] >= band[1]).all()
    wide = uniform_band(6000, 0.05)[1].max() / band[1].max()
    assert_close(wide.item(), 0.1, rtol=0.15, atol=0.0)


def test_a_latent_that_is_drawn_from_its_prior_is_calibrated_too():
    def prior(x):
        with pyro.plate("batch", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    assert calibrate(model, prior, X, simulations=50).calibrated


def test_ranks_are_those_counted_by_hand():
    seen, truths = {}, {}

    def logged(x):
        with pyro.plate("batch", 3):
            z = pyro.sample("z", dist.Poisson(3.0))
            truths.setdefault(tuple(z.tolist()), z)
            pyro.sample("x", dist.Normal(z, 0.1), obs=x)

    def looking(x):
        with pyro.plate("batch", 3):
            z = pyro.sample("z", dist.Poisson(x.abs() + 1.0))
        if z.dim() == 2:  # all draws of a simulation
            seen[tuple(x.round().tolist())] = z

    calibration = calibrate(logged, looking, torch.zeros(3), simulations=6, draws=7)
    ranks = calibration["z"].ranks.reshape(6, 3) * 8
    places = list(seen)[-6:]
    for rank, place in zip(ranks, places, strict=True):
        truth = torch.tensor(place)
        below, equal = (seen[place] < truth).sum(0), (seen[place] == truth).sum(0)
        assert ((below <= rank) & (rank < below + equal + 1)).all()
    assert any((seen[place] == torch.tensor(place)).any() for place in places)


def test_an_address_is_ranked_at_random_among_ties_and_its_probabilities_are_right():
    read, find, x, memory = lookups()
    site = calibrate(read, find, x, memory)["a"]
    assert site.verdict == "calibrated within the noise of 1600 ranks"
    error, se = site.reliability.error
    assert site.reliability.lookups == 1600
    assert error < site.reliability.noise + 5 * se
    predicted, frequency, bin_se = site.reliability.curve
    assert ((predicted - frequency).abs() < 5 * bin_se + 1e-9).all()


def test_a_sharpened_address_is_overconfident():
    read, find, x, memory = lookups(sharpness=4.0)
    site = calibrate(read, find, x, memory)["a"]
    assert site.verdict.startswith("too narrow")
    error, se = site.reliability.error
    assert error - site.reliability.noise > 5 * se
    predicted, frequency, _ = site.reliability.curve
    assert frequency[-1] < predicted[-1] - 0.02  # the surest were true less often
    assert "by noise alone, 1600 lookups" in repr(site)


def test_equal_values_in_clusters_of_different_sizes_have_no_error():
    values = torch.tensor([[3.0, math.nan], [3.0, 3.0], [3.0, 3.0]])
    assert clustered(values) == (3.0, 0.0)
    assert_close(clustered(torch.tensor([[1.0, 3.0], [5.0, 7.0]])), (4.0, 2.0))


def test_reliability_counts_the_slots_of_a_bin():
    probs = torch.tensor([[0.72, 0.28, 0.0], [0.5, 0.25, 0.25]])
    hits, predicted, pairs, variance = binned(probs, torch.tensor([0, 2]))
    assert hits.nonzero().tolist() == [[0, 7], [1, 2]]
    assert_close(predicted[:, [2, 5, 7]].float(), torch.tensor([[0.28, 0.0, 0.72], [0.5, 0.5, 0.0]]))
    assert pairs[:, [0, 2, 5, 7]].tolist() == [[0, 1, 0, 1], [0, 2, 1, 0]]
    assert_close(variance[:, 7].float(), torch.tensor([0.72 * 0.28, 0.0]))


def test_a_global_latent_makes_a_simulation_one_of_its_kind():
    good = calibrate(grouped, grouped_guide, torch.zeros(6))
    assert good["centre"].ranks.shape == (200, 1, 1)
    assert good["z"].ranks.shape == (200, 6, 1)
    assert good.calibrated
    bad = calibrate(grouped, lambda x: grouped_guide(x, scale=0.3), torch.zeros(6))
    assert bad["centre"].verdict.startswith("too narrow")


def test_cells_of_nested_plates_are_independent_where_all_sites_lie_in_them():
    def nested(x):
        with pyro.plate("tasks", 3, dim=-2), pyro.plate("items", 2, dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, NOISE), obs=x)

    def inferred(x):
        with pyro.plate("tasks", 3, dim=-2), pyro.plate("items", 2, dim=-1):
            mean = x / (1 + NOISE**2)
            pyro.sample("z", dist.Normal(mean, DEVIATION * torch.tensor([1.0, 0.2])))

    site = calibrate(nested, inferred, torch.zeros(3, 2))["z"]
    ranks = site.ranks.reshape(200, 3, 2)
    held = ((ranks - 0.5).abs() < 0.45).double().mean((0, 1))
    assert held[0] > 0.85
    assert held[1] < 0.5  # cells keep their places


def test_a_guide_that_mixes_dimensions_draws_one_by_one():
    """In one pass it would sum over draws: its z would have another log-probability."""

    def mixing(x):
        with pyro.plate("batch", 4):
            first = pyro.sample("first", dist.Normal(x.mean(-1), 1.0))
            pyro.sample("z", dist.Normal(first.flatten().cumsum(0)[:4], 1.0))

    def mixed(x):
        with pyro.plate("batch", 4):
            first = pyro.sample("first", dist.Normal(0.0, 1.0))
            z = pyro.sample("z", dist.Normal(first, 1.0))
            pyro.sample("x", dist.Normal(z.unsqueeze(-1), NOISE).expand([4, 2]).to_event(1), obs=x)

    lone, passes = [], []

    def counted(x):
        passes.append(1)
        lone.append(mixing(x))

    calibrate(mixed, counted, X, simulations=2, draws=30)
    assert len(passes) > 60


def test_masked_cells_are_left_out():
    seen = torch.tensor([True, False, True, True])

    def masked(x):
        with pyro.plate("batch", 4), pyro.poutine.mask(mask=seen):
            model_of_one(x)

    def model_of_one(x):
        z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        pyro.sample("x", dist.Normal(z, NOISE).to_event(1), obs=x)

    def off(x):
        with pyro.plate("batch", 4):
            mean = x / (1 + NOISE**2) + 5.0 * (~seen).unsqueeze(-1)
            pyro.sample("z", dist.Normal(mean, DEVIATION).to_event(1))

    site = calibrate(masked, off, X)["z"]
    assert site.calibrated
    assert site.to_dict()["ranks"] == 200 * 3 * 2
    read, find, x, memory = lookups()
    hidden = pyro.poutine.mask(read, mask=torch.arange(8) < 6)
    assert calibrate(hidden, find, x, memory, simulations=5)["a"].reliability.lookups == 5 * 6


def test_several_observations_and_data_by_name():
    def two(x, y=None):
        with pyro.plate("batch", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)
            pyro.sample("y", dist.Normal(z, 1.0), obs=y.squeeze(-1))

    def both(x, y=None):
        with pyro.plate("batch", len(x)):
            pyro.sample("z", dist.Normal((x + y.squeeze(-1)) / 3, 3**-0.5))

    x, y, same = torch.arange(5.0), torch.ones(5, 1), torch.zeros(5)
    found = calibrate(two, both, x, y=y, simulations=40, seed=1)
    assert found.calibrated
    with pytest.raises(ValueError, match="`data` must tell which argument holds the data of site `y`"):
        calibrate(two, both, same.clone(), y=same.unsqueeze(-1))
    named = calibrate(two, both, same, y=same.unsqueeze(-1), data={"x": "x", "y": "y"}, simulations=40, seed=1)
    assert_close(named["z"].ranks, found["z"].ranks)
    placed = calibrate(two, both, same, same.unsqueeze(-1), data={"x": 0, "y": 1}, simulations=40, seed=1)
    assert_close(placed["z"].ranks, found["z"].ranks)


def test_a_record_speaks_in_numbers_and_figures():
    read, find, x, memory = lookups()
    calibration = calibrate(read, find, x, memory, simulations=30)
    assert isinstance(calibration, Calibration)
    told = json.loads(json.dumps(calibration.to_dict()))
    assert told["sites"]["a"]["ranks"] == 240
    assert sum(told["sites"]["a"]["histogram"]) == 240
    assert_close(told["sites"]["a"]["coverage_90"], calibration["a"].coverage()[0])
    for record in (calibration, calibration["a"], calibration["a"].reliability):
        assert record.plot().get_xlabel()
    plt.close("all")


def test_the_difference_is_that_of_distributions():
    ranks = torch.tensor([0.1, 0.255, 0.6, 0.9]).double().reshape(4, 1, 1)
    difference = SiteCalibration(ranks, torch.zeros(2, 99).double()).difference[0]
    assert_close(difference[24].item(), 0.25 - 0.25)  # at 0.25 one of four
    assert_close(difference[25].item(), 0.5 - 0.26)
    assert_close(GRID[24].item(), 0.25)
