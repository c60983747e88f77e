import logging
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule, PyroSample
from scipy.special import logsumexp
from torch import nn

from pyro_memory import posterior_to_arviz
from pyro_memory.guides import EmptyGuide

arviz = pytest.importorskip("arviz", reason="the extra `arviz` is not installed")
X = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)


def normal_model(x, scale=1.0):
    """z ~ N(0, 1), x ~ N(z, 1): the posterior is N(x / 2, 1/2)."""
    with pyro.plate("batch", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
        pyro.sample("x", dist.Normal(z, scale), obs=x)


def normal_guide(x, scale=1.0):
    with pyro.plate("batch", len(x)):
        pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))


def drawn(**options):
    return posterior_to_arviz(normal_model, normal_guide, X, **{"draws": 4000, "chunk_size": 1000} | options)


def wide_guide(x, scale=3.0):
    """The posterior of the model with that deviation."""
    with pyro.plate("batch", len(x)):
        pyro.sample("z", dist.Normal(x / (1 + scale**2), (1 + scale**-2) ** -0.5))


def groups(data):
    return data.groups() if callable(data.groups) else [name.strip("/") for name in data.groups]


def test_the_posterior_is_the_guides():
    z = drawn()["posterior"]["z"]
    assert z.dims == ("chain", "draw", "batch")
    assert z.shape == (4, 1000, 3)
    np.testing.assert_allclose(z.mean(("chain", "draw")), X / 2, atol=5 * 0.5**0.5 / 4000**0.5)
    np.testing.assert_allclose(z.var(("chain", "draw")), 0.5, rtol=5 * (2 / 4000) ** 0.5)


def test_the_log_likelihood_is_of_the_same_draws():
    data = drawn(draws=8, chunk_size=3)
    z = torch.as_tensor(data["posterior"]["z"].values)
    np.testing.assert_allclose(data["log_likelihood"]["x"].values, dist.Normal(z, 1.0).log_prob(X), rtol=1e-12)
    np.testing.assert_array_equal(data["observed_data"]["x"].values, X)


def test_draws_of_one_pass_and_of_many_have_one_shape():
    shapes = {drawn(draws=4, chunk_size=size)["posterior"]["z"].shape for size in (1, 3, 4)}
    assert shapes == {(4, 1, 3)}


def test_predictions_are_those_of_the_posterior_and_of_the_prior():
    """x' given x is N(x / 2, 3/2); of the model alone it is N(0, 2)."""
    data = drawn(predictive=True)
    for group, loc, variance in (("posterior_predictive", X / 2, 1.5), ("prior_predictive", 0.0, 2.0)):
        x = data[group]["x"]
        np.testing.assert_allclose(
            x.mean(("chain", "draw")), np.broadcast_to(loc, 3), atol=5 * (variance / 4000) ** 0.5
        )
        np.testing.assert_allclose(x.var(("chain", "draw")), variance, rtol=5 * (2 / 4000) ** 0.5)
    np.testing.assert_allclose(data["prior"]["z"].var(("chain", "draw")), 1.0, rtol=5 * (2 / 4000) ** 0.5)
    seen = data["posterior_predictive"]["x"] - data["posterior"]["z"]
    np.testing.assert_allclose(seen.var(("chain", "draw")), 1.0, rtol=5 * (2 / 4000) ** 0.5)


def nested_model(x):
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    with pyro.plate("channel", x.shape[1], dim=-1), pyro.plate("batch", 10, subsample_size=4, dim=-2) as chosen:
        z = pyro.sample("z", dist.Normal(torch.zeros(5), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z.sum(-1), scale), obs=x[chosen.tolist()])
        pyro.factor("nudge", -z.square().sum(-1))


def nested_guide(x):
    pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    with pyro.plate("channel", x.shape[1], dim=-1), pyro.plate("batch", 10, subsample_size=4, dim=-2):
        pyro.sample("z", dist.Normal(torch.zeros(5), 1.0).to_event(1))


def test_dimensions_have_the_plates_names_and_coordinates_of_the_chosen_data():
    x = torch.arange(20.0).reshape(10, 2)
    data = posterior_to_arviz(nested_model, nested_guide, x, draws=6, chains=2, chunk_size=4, predictive=True)
    assert data["posterior"]["scale"].dims == ("chain", "draw")
    assert data["posterior"]["z"].dims == ("chain", "draw", "batch", "channel", "z_dim_0")
    assert data["posterior"]["z"].shape == (2, 3, 4, 2, 5)
    assert set(data["log_likelihood"].data_vars) == {"x"}
    chosen = data["log_likelihood"]["x"]["batch"].values
    assert len(set(chosen.tolist())) == 4
    np.testing.assert_array_equal(data["observed_data"]["x"].values, x[chosen.tolist()])
    np.testing.assert_array_equal(data["prior_predictive"]["x"]["batch"].values, chosen)


def test_a_model_without_latents_has_its_log_likelihood():
    data = posterior_to_arviz(
        lambda x: pyro.sample("x", dist.Normal(0.0, 1.0).expand([3]).to_event(1), obs=x), EmptyGuide(), X, draws=4
    )
    assert "posterior" not in groups(data)
    assert data["log_likelihood"]["x"].shape == (4, 1)


def test_dimensions_that_no_plate_holds_are_left_out():
    def model(x):
        with pyro.plate("batch", 3):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x.reshape(1, 3))

    data = posterior_to_arviz(model, normal_guide, X, draws=1, chains=1)
    assert data["log_likelihood"]["x"].shape == (1, 1, 3)
    np.testing.assert_array_equal(data["observed_data"]["x"].values, X)


@pytest.mark.parametrize("size", [1, 4])
def test_what_follows_from_the_draws_is_no_observed_data(size):
    def residual(x):
        with pyro.plate("batch", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("residual", dist.Normal(x.new_zeros(()), 1.0), obs=x - z)

    data = posterior_to_arviz(residual, normal_guide, X, draws=4, chunk_size=size)
    assert data["log_likelihood"]["residual"].shape == (4, 1, 3)
    assert "observed_data" not in groups(data)


def test_arviz_summarises_and_plots_what_it_is_given(tiny_pair, shared_memory, caplog):
    data = posterior_to_arviz(*tiny_pair, shared_memory.values[:3], shared_memory, draws=200)
    assert set(data["posterior"].data_vars) == {"a", "z"}
    with caplog.at_level(logging.WARNING):
        table = arviz.summary(data, var_names=["z"])
    assert not caplog.records, "ArviZ found something missing"
    assert len(table) == 3 * 2
    arviz.plot_forest(data, var_names=["z"])
    arviz.plot_rank(data, var_names=["z"])


def test_loo_of_exact_draws_is_the_evidence_of_each_datum():
    """Latents of a datum know nothing of the others: p(x_i | x_-i) = p(x_i) = N(x_i; 0, 10) for a deviation of 3.

    Weights 1 / p(x | z) have finite variance there, and the delta method holds.
    """
    data = posterior_to_arviz(normal_model, wide_guide, X, 3.0, draws=4000, chunk_size=1000)
    loo = arviz.loo(data, pointwise=True)
    elpd = np.asarray(loo.elpd_i if hasattr(loo, "elpd_i") else loo.loo_i)
    negative = -data["log_likelihood"]["x"].values.reshape(4000, 3)
    weights = np.exp(negative - logsumexp(negative, axis=0))
    error = np.sqrt((weights**2).sum(0) - 1 / 4000)
    np.testing.assert_array_less(np.abs(elpd - dist.Normal(0.0, 10**0.5).log_prob(X).numpy()), 5 * error)


@pytest.mark.filterwarnings("ignore:The inplace keyword")  # of pandas, which ArviZ 0.x uses
def test_arviz_compares_models():
    both = {
        name: posterior_to_arviz(normal_model, wide_guide, X, scale, draws=1000, chunk_size=1000)
        for name, scale in (("too wide", 20.0), ("wide", 3.0))
    }
    assert list(arviz.compare(both).index) == ["wide", "too wide"]


def test_it_is_written_and_read_back(tmp_path):
    pytest.importorskip("h5netcdf", reason="the extra `arviz` is not installed")
    data = drawn(draws=8, predictive=True)
    data.to_netcdf(tmp_path / "draws.nc")
    again = arviz.from_netcdf(tmp_path / "draws.nc")
    for group in ("posterior", "log_likelihood", "observed_data", "posterior_predictive", "prior", "prior_predictive"):
        assert again[group].equals(data[group]), group


def test_a_slash_in_a_name_becomes_a_dot(tmp_path):
    def model(x):
        with pyro.plate("rows/all", len(x)):
            z = pyro.sample("net/z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x)

    def guide(x):
        with pyro.plate("rows/all", len(x)):
            pyro.sample("net/z", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    data = posterior_to_arviz(model, guide, X.float(), draws=4)
    assert data["posterior"]["net.z"].dims == ("chain", "draw", "rows.all", "net.z_dim_0")
    data.to_netcdf(tmp_path / "draws.nc")


@pytest.mark.parametrize("wrong", [{"draws": 10, "chains": 4}, {"draws": 0}, {"chains": 0}, {"chunk_size": 0}])
def test_draws_must_be_dealt_evenly(wrong):
    with pytest.raises(ValueError, match="`draws`, `chains` and `chunk_size` must be at least 1"):
        drawn(**wrong)


def test_names_of_arvizs_dimensions_are_refused():
    def model(x):
        with pyro.plate("draw", len(x)):
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    with pytest.raises(ValueError, match="`draw` is a dimension of ArviZ's; name the model's site or plate otherwise"):
        posterior_to_arviz(model, EmptyGuide(), X, draws=4)


def test_what_the_model_enumerates_and_layers_with_random_weights_are_drawn():
    layer = PyroModule[nn.Linear](2, 1, bias=False)
    layer.weight = PyroSample(dist.Normal(torch.zeros(1, 2), 1.0).to_event(2))
    x, y = torch.randn(6, 2), torch.randn(6)

    def program():
        mean = layer(x).squeeze(-1)
        with pyro.plate("batch", 6):
            a = pyro.sample("a", dist.Bernoulli(0.3), infer={"enumerate": "parallel"})
            pyro.sample("y", dist.Normal(mean + 3 * a, 0.5), obs=y)

    def weights():
        pyro.sample("weight", dist.Normal(torch.zeros(1, 2), 0.01).to_event(2))

    torch.manual_seed(0)
    drawn = posterior_to_arviz(program, weights, draws=400, chains=4)["posterior"]
    assert drawn["weight"].shape == (4, 100, 1, 2)
    assert drawn["a"].shape == (4, 100, 6)
    exact = torch.sigmoid(math.log(0.3 / 0.7) + dist.Normal(3.0, 0.5).log_prob(y) - dist.Normal(0.0, 0.5).log_prob(y))
    error = (exact * (1 - exact) / 400).sqrt()
    assert (
        (torch.as_tensor(drawn["a"].values).mean((0, 1)) - exact).abs() < 5 * error + 0.03
    ).all()  # weights are near 0
