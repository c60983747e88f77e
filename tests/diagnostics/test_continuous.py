"""Continuous latents: KL by dimension, active units, mutual information and marginal KL."""

import json
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import ink
from linear_gaussian import EXACT, OFF, SQUARES, WEIGHTS, S, data, model
from pyro import poutine
from pyro.infer.autoguide import AutoNormal
from torch.testing import assert_close

from pyro_memory import LatentInformation, information_gain
from pyro_memory.diagnostics import continuous, standard_error

GUIDES = {"exact": EXACT, "off": OFF}


def use(model, guide, *args, site="z", **options):
    return information_gain(model, guide, *args, **options).latents[site]


@pytest.mark.parametrize("name", GUIDES)
def test_kl_by_dimension_and_active_units_are_closed_form(name):
    guide, x = GUIDES[name], data(400)
    gain = information_gain(model, guide, x, draws=2)
    latent = gain.latents["z"]
    assert_close(latent.kl_by_dimension, guide.kl(x).mean(0))
    assert latent.kl_by_dimension.sum().item() == pytest.approx(gain["z"].mean, rel=1e-9)
    assert_close(latent.mean_variance, guide.loc(x).var(0))
    assert latent.active.tolist() == [True, True, False]
    # A guide that is off pays for the third dimension too, though nothing is in it.
    assert latent.informative.tolist() == [True, True, name == "off"]
    assert (latent.dims, latent.data, latent.unit, latent.reason) == (3, 400, "datum", "")


@pytest.mark.parametrize("name", GUIDES)
def test_mutual_information_and_marginal_kl_are_those_of_many_data(name):
    guide = GUIDES[name]
    latent = use(model, guide, data(2000), draws=2)
    assert latent.mutual_information_se < 0.03
    assert latent.marginal_kl_se < 0.03
    assert abs(latent.mutual_information - guide.mutual_information()) < 5 * latent.mutual_information_se
    assert abs(latent.marginal_kl - guide.marginal_kl()) < 5 * latent.marginal_kl_se


def two_places(scale=0.7, shape=(), plates=1):
    """Half of the data at 1, half at -1: q(z) is a mixture of two, and a datum's terms differ by draws only."""
    place = torch.tensor([1.0, -1.0]).double().repeat(20)
    place = place.reshape(4, 10) if plates == 2 else place

    def program(loc, scale, observed):
        with pyro.plate("batch", place.shape[-1], dim=-1):
            if plates == 2:
                with pyro.plate("task", 4, dim=-2):
                    pyro.sample("z", dist.Normal(loc, scale))
                    if observed:
                        pyro.sample("x", dist.Normal(0.0, 1.0), obs=torch.zeros(4, 10).double())
            else:
                pyro.sample("z", dist.Normal(loc, scale))
                if observed:
                    pyro.sample("x", dist.Normal(0.0, 1.0), obs=torch.zeros(40).double())

    return (lambda: program(torch.zeros(()).double(), 1.0, True)), (lambda: program(place, scale, False))


def exact_split(scale=0.7):
    grid = torch.linspace(-9, 9, 200_001).double()
    q = dist.Normal(torch.tensor([[1.0], [-1.0]]).double(), scale).log_prob(grid)
    mixture, p = q.logsumexp(0) - math.log(2), dist.Normal(0.0, 1.0).log_prob(grid)
    information = torch.trapezoid((q.exp() * (q - mixture)).mean(0), grid).item()
    return information, torch.trapezoid(mixture.exp() * (mixture - p), grid).item()


@pytest.mark.parametrize("plates", [1, 2])
def test_both_parts_agree_with_quadrature_for_the_data_at_hand(plates):
    latent = use(*two_places(plates=plates), draws=100)
    information, marginal = exact_split()
    assert latent.data == 40
    assert latent.mutual_information_se < 0.01
    assert abs(latent.mutual_information - information) < 5 * latent.mutual_information_se
    assert abs(latent.marginal_kl - marginal) < 5 * latent.marginal_kl_se


def test_the_standard_errors_are_what_repetitions_spread():
    pair = two_places()
    runs = [use(*pair, draws=10) for _ in range(40)]
    for name in ("mutual_information", "marginal_kl"):
        spread = torch.tensor([getattr(r, name) for r in runs]).std().item()
        told = sum(getattr(r, f"{name}_se") for r in runs) / len(runs)
        assert 0.6 < told / spread < 1.7


def test_the_standard_error_is_that_of_the_means_of_data():
    cell = (torch.arange(5)[:, None] + torch.arange(3)) % 5
    terms = torch.randn(5, 3).double()
    means = torch.stack([terms[cell == n].mean() for n in range(5)])
    assert continuous._mean_and_error(terms, cell, 5) == pytest.approx((means.mean().item(), standard_error(means)))


def test_the_mutual_information_never_exceeds_log_n():
    latent = use(*two_places(scale=1e-3), draws=20)  # two heaps of 20 equal data
    assert latent.mutual_information == pytest.approx(math.log(2), rel=1e-6)
    places = torch.arange(6.0)

    def program(loc, scale):
        with pyro.plate("batch", 6):
            pyro.sample("z", dist.Normal(loc, scale))

    latent = use(lambda: program(torch.zeros(6), 1.0), lambda: program(places, 1e-3), max_plate_nesting=1)
    assert latent.mutual_information == pytest.approx(math.log(6), rel=1e-6)
    assert latent.mutual_information <= math.log(6) + 1e-9


def test_more_data_than_fit_are_sampled_evenly_and_chunks_change_nothing(monkeypatch):
    x, runs = data(300), []
    x = x[x.square().sum(-1).argsort()]  # those that come first say least
    for rows, elements in ((4096, 2**22), (4096, 1), (120, 2**22)):
        monkeypatch.setattr(continuous, "ROWS", rows)
        monkeypatch.setattr(continuous, "ELEMENTS", elements)
        torch.manual_seed(3)
        runs.append(use(model, OFF, x, draws=4))
    assert runs[0].mutual_information == pytest.approx(runs[1].mutual_information, rel=1e-9)
    assert runs[0].mutual_information_se == pytest.approx(runs[1].mutual_information_se, rel=1e-9)
    assert runs[2].mutual_information_se > 1.5 * runs[0].mutual_information_se
    assert abs(runs[2].mutual_information - runs[0].mutual_information) < 5 * runs[2].mutual_information_se


def test_a_plate_inside_a_datum_holds_dimensions():
    x = data(300)

    def of(loc, scale, observed):
        with pyro.plate("batch", len(x), dim=-1):
            with pyro.plate("part", 3, dim=-2):
                z = pyro.sample("z", dist.Normal(loc, scale))
            if observed:
                mean = (WEIGHTS @ z.expand(z.shape[:-2] + (3, len(x)))).mT
                pyro.sample("x", dist.Normal(mean.unsqueeze(-3), S).to_event(1), obs=x)

    variance = OFF.variance.sqrt()[:, None]
    latent = use(lambda: of(torch.zeros(3, 1).double(), 1.0, True), lambda: of(OFF.loc(x).T, variance, False), draws=4)
    assert_close(latent.kl_by_dimension, OFF.kl(x).mean(0))
    assert_close(latent.mean_variance, OFF.loc(x).var(0))
    assert abs(latent.mutual_information - OFF.mutual_information()) < 5 * latent.mutual_information_se


def test_a_posterior_that_is_no_product_has_no_kl_by_dimension():
    x = data(300)

    def guide(x):
        with pyro.plate("batch", len(x)):
            pyro.sample("z", dist.MultivariateNormal(EXACT.loc(x), EXACT.variance.diag()))

    latent = use(model, guide, x, draws=4)
    assert latent.kl_by_dimension is latent.informative is None
    assert latent.active.tolist() == [True, True, False]
    assert abs(latent.mutual_information - EXACT.mutual_information()) < 5 * latent.mutual_information_se
    assert repr(latent).startswith("latent site: 3 dimensions, 2 active (variance of the posterior mean > 0.01)\n")


def plain(q=lambda: dist.Normal(torch.arange(4.0), 1.0), p=lambda: dist.Normal(0.0, 1.0), first=None, mask=True):
    """Four data; what comes first, if anything, is a latent that q or p depend on."""

    def program(own, observed):
        with pyro.plate("batch", 4), poutine.mask(mask=mask):
            a = () if first is None else (pyro.sample("a", first),)
            pyro.sample("z", own(*a) if own.__code__.co_argcount else own())
            if observed:
                pyro.sample("x", dist.Normal(0.0, 1.0), obs=torch.zeros(4))

    return (lambda: program(p, True)), (lambda: program(q, False))


COIN = dist.Bernoulli(0.5)
WITHHELD = {
    "q depends on latents": plain(q=lambda a: dist.Normal(a, 1.0), first=COIN),
    "its prior depends on latents": plain(p=lambda a: dist.Normal(a, 1.0), first=COIN),
    "do not share one prior": plain(p=lambda: dist.Normal(0.0, 1 + torch.arange(4.0))),
    "site is masked": plain(mask=torch.arange(4) < 2),
    "the site is masked": plain(q=lambda: dist.Normal(torch.arange(4.0), 1.0).mask(torch.arange(4) < 2)),
    "no density at the values of other data": plain(q=lambda: dist.Uniform(torch.arange(4.0), 1 + torch.arange(4.0))),
}


@pytest.mark.parametrize("reason", WITHHELD)
def test_the_split_is_withheld_with_the_reason(reason):
    latent = use(*WITHHELD[reason], draws=20)
    assert reason in latent.reason
    assert latent.mutual_information is latent.marginal_kl is latent.active is latent.mean_variance is None
    assert latent.kl_by_dimension.shape == (1,)
    assert f"mutual information and active units not defined: {latent.reason}" in repr(latent)


def test_one_draw_and_one_datum_say_what_they_miss(tiny_pair, shared_memory):
    assert "two draws" in use(*plain(), draws=1).reason
    assert "two data" in use(model, EXACT, data(1)).reason
    assert "q depends on latents" in use(*tiny_pair, ink(4, 1, 6, 6), shared_memory).reason


def test_beside_a_latent_of_the_whole_data_set_no_use_over_data_is_told():
    """Draws of global latents are measured one by one, and a use is seen over several."""

    def program(scale):
        pyro.sample("w", dist.Normal(torch.zeros(2), scale).to_event(1))
        with pyro.plate("batch", 4):
            pyro.sample("z", dist.Normal(torch.arange(4.0), 1.0))
            if scale == 1.0:
                pyro.sample("x", dist.Normal(0.0, 1.0), obs=torch.zeros(4))

    gain = information_gain(lambda: program(1.0), lambda: program(0.5))
    assert gain.latents == {}
    assert list(gain.sites) == ["w", "z"]


def test_an_automatic_guide_of_a_positive_latent_gives_the_split_without_a_posterior_mean():
    torch.manual_seed(0)

    def positive():
        with pyro.plate("batch", 4):
            s = pyro.sample("s", dist.LogNormal(torch.zeros(()), 1.0))
            pyro.sample("x", dist.Normal(0.0, s), obs=torch.ones(4))

    guide = AutoNormal(positive, init_scale=0.5)
    guide()
    guide.locs.s.data.copy_(torch.tensor([0.5, 0.5, -0.5, -0.5]))
    latent = use(positive, guide, draws=400, site="s")
    grid = torch.linspace(-9, 9, 200_001).double()  # information is the same for the logarithm
    q = dist.Normal(torch.tensor([[0.5], [-0.5]]).double(), 0.5).log_prob(grid)
    mixture = q.logsumexp(0) - math.log(2)
    exact = torch.trapezoid((q.exp() * (q - mixture)).mean(0), grid).item()
    assert abs(latent.mutual_information - exact) < 5 * latent.mutual_information_se < 0.1
    assert latent.active is None


def test_the_record_prints_exports_and_plots():
    gain = information_gain(model, OFF, data(50), draws=3)
    latent, text = gain.latents["z"], repr(gain)
    assert "latent z: 3 dimensions, 3 with KL > 0.01 nats, 2 active (variance of the posterior mean > 0.01)" in text
    assert (
        f"mutual information {latent.mutual_information:.3f} nats/datum, se {latent.mutual_information_se:.3f}" in text
    )
    assert f"(at most log N = {math.log(50):.3f}), marginal KL {latent.marginal_kl:.3f}, se" in text
    assert "of N = 50 data" in text
    out = json.loads(json.dumps(gain.to_dict()))["latents"]["z"]
    assert out["active"] == [True, True, False]
    assert out["mutual_information"] == latent.mutual_information
    assert "reason" not in out
    ax = latent.plot()
    assert [bar.get_height() for bar in ax.patches] == sorted(latent.kl_by_dimension.tolist(), reverse=True)
    assert len({bar.get_facecolor() for bar in ax.patches}) == 2
    ax.figure.clear()
    with pytest.raises(ValueError, match="no KL by dimension to draw: q or p is no product"):
        LatentInformation(3, 4).plot()


def test_the_numbers_of_the_model_are_what_they_are_said_to_be():
    """The closed forms above against the pair's own sums."""
    assert_close(EXACT.aggregate, torch.ones(3).double())
    assert EXACT.mutual_information() == pytest.approx(0.5 * (1 + SQUARES / S**2).log().sum().item())
    assert EXACT.marginal_kl() == pytest.approx(0, abs=1e-12)
    assert OFF.kl(data(200_000)).sum(-1).mean().item() == pytest.approx(
        OFF.mutual_information() + OFF.marginal_kl(), rel=0.02
    )
