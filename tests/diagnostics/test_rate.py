"""Rate and distortion."""

import json
import math

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import ink
from linear_gaussian import EXACT, OFF, data, evidence, model
from torch.testing import assert_close

from pyro_memory import RateDistortion, importance_bound, information_gain, rate_distortion
from pyro_memory.diagnostics import plot_rate_distortion, standard_error

GUIDES = {"exact": EXACT, "off": OFF}


@pytest.mark.parametrize("name", GUIDES)
def test_rate_and_distortion_are_closed_form(name):
    guide, x = GUIDES[name], data(200)
    found = rate_distortion(model, guide, x, draws=200)
    assert_close(found.rates, guide.kl(x).sum(-1).expand(200, -1))
    assert found.rate.draws_se == 0
    assert 0 < found.distortion.draws_se < 0.02
    exact = guide.distortion(x)
    assert abs(found.distortion.mean - exact.mean()) < 5 * found.distortion.draws_se
    # Datum by datum as well: the draws of one datum are independent.
    error = found.distortions.mean(0) - exact
    assert (error.abs() < 5 * found.distortions.std(0) / math.sqrt(200)).all()


def test_an_exact_guide_reaches_the_evidence_and_one_that_is_off_does_not():
    x = data(200)
    found = {name: rate_distortion(model, guide, x, draws=200).elbo for name, guide in GUIDES.items()}
    assert abs(found["exact"].mean - evidence(x).mean()) < 5 * found["exact"].draws_se
    assert found["off"].mean < evidence(x).mean() - 20 * found["off"].draws_se


def test_errors_are_paired_over_data_and_over_draws():
    rates, distortions = torch.randn(2, 5, 40, dtype=torch.float64) + 3
    found = RateDistortion(rates, distortions)
    for estimate, values in ((found.rate, rates), (found.distortion, distortions), (found.elbo, -rates - distortions)):
        assert estimate.mean == pytest.approx(values.mean().item())
        assert estimate.se == pytest.approx(standard_error(values.mean(0)))
        assert estimate.draws_se == pytest.approx(standard_error(values.mean(1)))
    against = RateDistortion(rates, 5 - rates).elbo  # what one gains the other loses
    assert against == pytest.approx((-5, 0, 0), abs=1e-9)


def test_the_error_of_draws_is_what_repetitions_spread():
    x = data(20)
    runs = [rate_distortion(model, OFF, x, draws=10).distortion for _ in range(40)]
    spread = torch.tensor([r.mean for r in runs]).std().item()
    assert 0.6 < sum(r.draws_se for r in runs) / len(runs) / spread < 1.7


def test_it_agrees_with_information_gain_and_the_bound_of_one_particle(tiny_pair, shared_memory):
    x = ink(4, 1, 6, 6)
    torch.manual_seed(1)
    gain = information_gain(*tiny_pair, x, shared_memory, draws=2000)
    torch.manual_seed(1)
    found = rate_distortion(*tiny_pair, x, shared_memory, draws=2000)
    assert_close(found.rates.mean(0), gain.joint.kl, rtol=1e-4, atol=1e-4)
    one = importance_bound(*tiny_pair, x.repeat(2000, 1, 1, 1), shared_memory, particles=1)  # one particle: the ELBO
    assert abs(found.elbo.mean - one.mean) < 5 * math.hypot(found.elbo.draws_se, one.se)


def test_without_a_kl_of_each_site_the_rate_is_that_of_the_draws():
    """The model draws u before v, the guide v before u."""

    def pair(observed):
        with pyro.plate("batch", 6):
            if observed:
                u = pyro.sample("u", dist.Normal(torch.zeros(()).double(), 1.0))
                v = pyro.sample("v", dist.Normal(u, 1.0))
                pyro.sample("x", dist.Normal(u + v, 1.0), obs=torch.zeros(6).double())
            else:
                v = pyro.sample("v", dist.Normal(torch.tensor(0.3).double(), 1.0))
                pyro.sample("u", dist.Normal(0.5 * v, 0.7))

    found = rate_distortion(lambda: pair(True), lambda: pair(False), draws=4000)
    rate = -(1 + math.log(2 * math.pi)) - math.log(0.7) + math.log(2 * math.pi) + 0.15**2 + 0.25 + 0.49
    assert abs(found.rate.mean - rate) < 5 * found.rate.draws_se
    sum_mean, sum_variance = 0.45, 1.5**2 + 0.49  # of u + v = 1.5 v + .7 d
    distortion = 0.5 * math.log(2 * math.pi) + 0.5 * (sum_mean**2 + sum_variance)
    assert abs(found.distortion.mean - distortion) < 5 * found.distortion.draws_se


def subsampled(observed):
    """A latent of the data set, and one a datum, of which half are looked at."""
    pyro.sample("w", dist.Normal(0.0 if observed else 1.0, 1.0))
    with pyro.plate("batch", 8, subsample_size=4):
        pyro.sample("z", dist.Normal(0.0 if observed else 2.0, 1.0))
        if observed:
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=torch.zeros(4))


def test_a_global_latent_makes_it_per_data_set_and_a_subsample_speaks_for_all():
    found = rate_distortion(lambda: subsampled(True), lambda: subsampled(False), draws=3)
    assert found.unit == "data set"
    assert_close(found.rates, torch.full((3, 1), 0.5 + 8 * 2.0))
    assert_close(found.distortions, torch.full((3, 1), 8 * 0.5 * math.log(2 * math.pi)))
    assert "nats/data set" in repr(found)
    assert "RateDistortion of 1 data set, 3 draws" in repr(found)


def test_a_latent_of_a_task_makes_it_per_task():
    def program(loc, observed):
        with pyro.plate("task", 2, dim=-2):
            pyro.sample("a", dist.Normal(loc, 1.0))
            with pyro.plate("item", 3, dim=-1):
                pyro.sample("z", dist.Normal(loc, 1.0))
                if observed:
                    pyro.sample("x", dist.Normal(0.0, 1.0), obs=torch.zeros(2, 3))

    found = rate_distortion(lambda: program(0.0, True), lambda: program(1.0, False), draws=3)
    assert found.unit == "task"
    assert_close(found.rates, torch.full((3, 2), 4 * 0.5))
    assert_close(found.distortions, torch.full((3, 2), 1.5 * math.log(2 * math.pi)))


def test_a_model_without_latents_has_no_rate():
    def bare():
        with pyro.plate("batch", 6):
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=torch.zeros(6))

    found = rate_distortion(bare, lambda: None, draws=2)
    assert found.rate.mean == 0
    assert found.distortion.mean == pytest.approx(0.5 * math.log(2 * math.pi))


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="`draws` must be at least 1; got 0"):
        rate_distortion(model, EXACT, data(3), draws=0)
    with pytest.raises(ValueError, match=r"`model` must observe data, .* observes nothing. Give it its data by obs="):
        rate_distortion(
            lambda: pyro.sample("z", dist.Normal(0.0, 1.0)), lambda: pyro.sample("z", dist.Normal(0.0, 1.0))
        )
    one = RateDistortion(torch.rand(2, 3), torch.rand(2, 3))
    with pytest.raises(ValueError, match="`estimates` must hold one or more records, of the same unit"):
        plot_rate_distortion({})
    with pytest.raises(ValueError, match="of the same unit"):
        plot_rate_distortion({"one": one, "other": RateDistortion(one.rates, one.distortions, "task")})


def test_the_record_prints_exports_and_plots():
    found = rate_distortion(model, OFF, data(30), draws=4)
    lines = repr(found).splitlines()
    assert lines[0] == "RateDistortion of 30 data, 4 draws"
    assert lines[1].split() == ["nats/datum", "se", "of", "draws"]
    for line, name in zip(lines[2:], ("rate", "distortion", "elbo"), strict=True):
        assert line.split()[1:] == [f"{value:.3f}" for value in getattr(found, name)]
    out = json.loads(json.dumps(found.to_dict()))
    assert out["elbo"] == found.elbo._asdict()
    assert (out["data"], out["draws"], out["unit"]) == (30, 4, "datum")
    ax = found.plot()
    assert ax.get_legend().get_texts()[0].get_text() == f"ELBO {found.elbo.mean:.2f}"
    plt.close(ax.figure)


def test_points_stand_where_they_are_and_levels_say_their_elbo():
    records = {"VAE": (20.0, 80.0), "VMA": (26.0, 70.0)}
    records = {n: RateDistortion(torch.full((2, 9), r), torch.full((2, 9), d)) for n, (r, d) in records.items()}
    ax = plot_rate_distortion(records)
    points = [(line.get_xdata()[0], line.get_ydata()[0]) for line in ax.lines if len(line.get_xdata()) == 1]
    assert {(20.0, 80.0), (26.0, 70.0)} <= set(points)
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["VAE: ELBO -100.00", "VMA: ELBO -96.00"]
    (x0, x1), (y0, y1) = ax.get_xlim(), ax.get_ylim()
    assert x1 - x0 == pytest.approx(y1 - y0)
    labels = [t for t in ax.texts if t.get_text().startswith("ELBO")]
    assert labels
    for label in labels:  # a label lies on its own line
        x, y = label.get_position()
        assert -(x + y) == pytest.approx(float(label.get_text().replace("−", "-").split()[1]), abs=0.05 * (x1 - x0))
    plt.close(ax.figure)


def test_error_bars_lie_along_their_own_axis():
    rates = torch.tensor([10.0, 10.0, 10.0]).expand(2, 3)
    ax = plot_rate_distortion({"one": RateDistortion(rates, rates + torch.tensor([-3.0, 0.0, 3.0]))})
    error = 2 * standard_error(torch.tensor([7.0, 10.0, 13.0]))
    (_, _, (across, along)) = ax.containers[0].lines
    assert across.get_segments()[0].tolist() == [[10, 10], [10, 10]]
    assert along.get_segments()[0][:, 1].tolist() == pytest.approx([10 - error, 10 + error])
    plt.close(ax.figure)
