"""The forecaster equals its formula, follows its past's units, and trains the mixer that it is given."""

from copy import deepcopy
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch.testing import assert_close

from pyro_memory import fit, token_surprise
from pyro_memory.guides import EmptyGuide
from pyro_memory.models import LSTMMixer, PatchForecaster, TitansLMM, TransformerMixer

LMM = partial(TitansLMM, heads=2, chunk_size=2, persistent=2)
MIXERS = {"none": None, "LMM": LMM, "transformer": partial(TransformerMixer, heads=2, window=3), "LSTM": LSTMMixer}


def enlarged(mixer=LMM, **options):
    """In float64, and every weight large enough to show."""
    torch.manual_seed(0)
    model = PatchForecaster(12, 3, mixer, **({"patch": 4, "dim": 8} | options)).double()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) / 4)
    return model


def pasts(batch=5):
    return 3 + 2 * torch.randn(batch, 3, 4, dtype=torch.double)


# Closed form


@pytest.mark.parametrize("mixer", [None, LMM])
def test_it_equals_its_formula(mixer):
    model, x = enlarged(mixer, eps=0.5, blocks=2), pasts()
    past = x.reshape(5, 12)
    mean = past.mean(1, keepdim=True)
    scale = ((past - mean).square().mean(1, keepdim=True) + 0.25).sqrt()
    loc = (past - mean) / scale @ model.linear.weight.T + model.linear.bias
    if mixer:
        hidden = model.embedding(((past - mean) / scale).reshape(5, 3, 4)) + model.places
        for block in model.blocks:
            hidden = hidden + block.mixer(block.mixer_norm(hidden))[0]
            hidden = hidden + block.mlp(block.mlp_norm(hidden))
        loc = loc + model.norm(hidden)[:, 2] @ model.head.weight.T
    future = model.next_dist(x)
    assert (future.batch_shape, future.event_shape) == ((5,), (3,))
    assert_close(future.base_dist.loc, mean + scale * loc)
    assert_close(future.base_dist.scale, scale * model.log_scale.exp())
    y = torch.randn(5, 1, 3, dtype=torch.double)
    expected = dist.Laplace(mean + scale * loc, scale * model.log_scale.exp()).log_prob(y[:, 0]).sum()
    loss = Trace_ELBO(max_plate_nesting=1).loss(model, EmptyGuide(), x, None, y)
    assert loss == pytest.approx(-expected.item())
    assert token_surprise(model, x, None, y).nats.sum().item() == pytest.approx(-expected.item(), rel=1e-5)


def test_at_first_it_expects_the_mean_of_the_past_and_deviates_as_that_does():
    x = torch.randn(4, 96, 1)
    future = PatchForecaster(96, 5, LMM).next_dist(x).base_dist
    assert_close(future.loc, x.mean((1, 2)).unsqueeze(-1).expand(4, 5))
    assert_close(future.scale, x.std((1, 2), correction=0).unsqueeze(-1).expand(4, 5), atol=1e-3, rtol=1e-3)


# Gradient


@pytest.mark.parametrize("mixer", MIXERS)
def test_the_loss_reaches_every_parameter(mixer):
    model = enlarged(MIXERS[mixer])
    loss = Trace_ELBO(max_plate_nesting=1).differentiable_loss
    loss(model, EmptyGuide(), pasts(), None, pasts()[:, :1, :3]).backward()
    still = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert still == []


def test_fit_teaches_it_what_a_linear_map_of_the_past_cannot_tell():
    """The future is the product of the two last signs: of a forecaster alone nothing is left to learn."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(512, 8, 1, generator=generator)
    y = (x[:, -1:] * x[:, -2:-1]).sign()
    after = {}
    for name, mixer in (("linear", None), ("LMM", LMM)):
        torch.manual_seed(0)
        model = PatchForecaster(8, 1, mixer, patch=2, dim=16)
        options = {"steps": 150, "learning_rate": 1e-2, "progress": False, "information_every": None}
        fit(model, EmptyGuide(), [(x, None, y)], Trace_ELBO(max_plate_nesting=1), **options)
        after[name] = (model.next_dist(x).mean - y[:, 0]).abs().mean().item()
    assert after["LMM"] < 0.5 < 0.9 < after["linear"]


# Invariance


@pytest.mark.parametrize("mixer", MIXERS)
def test_a_past_shifted_and_stretched_gives_a_prediction_that_is(mixer):
    model, x = enlarged(MIXERS[mixer], eps=0.0), pasts()
    plain, moved = model.next_dist(x).base_dist, model.next_dist(7 * x - 30).base_dist
    assert_close(moved.loc, 7 * plain.loc - 30)
    assert_close(moved.scale, 7 * plain.scale)
    level = torch.tensor(0.95, dtype=torch.double)
    assert_close(moved.icdf(level), 7 * plain.icdf(level) - 30)


def test_a_past_without_deviation_gives_a_prediction_near_it():
    future = enlarged().next_dist(torch.full((2, 12, 1), 4.0, dtype=torch.double)).base_dist
    assert_close(future.loc, torch.full_like(future.loc, 4.0), atol=0.1, rtol=0)
    assert future.scale.min() > 0


@pytest.mark.parametrize("mixer", MIXERS)
def test_a_batch_is_forecast_as_each_of_it_alone(mixer):
    model, x = enlarged(MIXERS[mixer]), pasts()
    whole = model.next_dist(x).base_dist
    for i, one in enumerate(x.split(1)):
        assert_close(model.next_dist(one).base_dist.loc, whole.loc[i : i + 1])
        assert_close(model.next_dist(one).base_dist.scale, whole.scale[i : i + 1])


def test_patches_may_be_cut_anyhow():
    model, x = enlarged(), pasts()
    for size in (1, 2, 12):
        assert_close(model.next_dist(x.reshape(5, -1, size)).mean, model.next_dist(x).mean)


def test_the_order_of_patches_counts():
    model, x = enlarged(), pasts()
    with torch.no_grad():
        model.linear.weight.zero_()
    assert not torch.allclose(model.next_dist(x).mean, model.next_dist(x.flip(1)).mean, rtol=1e-3)


def test_weights_make_the_same_forecaster_and_two_of_one_class_are_apart():
    model, x = enlarged(), pasts()
    again = PatchForecaster(12, 3, LMM, patch=4, dim=8).double()
    assert again._pyro_name != model._pyro_name
    again.load_state_dict(deepcopy(model.state_dict()))
    assert_close(again.next_dist(x).mean, model.next_dist(x).mean, rtol=0, atol=0)


def test_its_one_site_is_the_future_of_each_sequence():
    with pyro.poutine.trace() as seen:
        enlarged()(pasts(), None, torch.zeros(5, 1, 3, dtype=torch.double))
    assert seen.trace.stochastic_nodes == ["batch"]  # the plate
    assert seen.trace.observation_nodes == ["x"]
    assert [(f.name, f.size) for f in seen.trace.nodes["x"]["cond_indep_stack"]] == [("batch", 5)]


# Misuse


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: PatchForecaster(12, 3, LSTMMixer, patch=5), ValueError, "`patch` must divide `past` 12; got 5"),
        (lambda: PatchForecaster(12, 0), ValueError, "`horizon` must be at least 1; got 0"),
        (
            lambda: PatchForecaster(8, 3, eps=-1.0),
            ValueError,
            "`eps` must be at least 0 and finite, a deviation.*got -1",
        ),
        (lambda: PatchForecaster(12, 3, eps=0.0).next_dist(torch.ones(2, 12, 1)), ValueError, "constant past. Give an"),
        (lambda: PatchForecaster(8, 3, LSTMMixer(32)), TypeError, "`mixer` must make one a block.*LSTMMixer.*partial"),
        (lambda: enlarged().next_dist(pasts()[:, :2]), ValueError, "`x` must hold 12 values a sequence.*5, 2, 4"),
        (lambda: enlarged()(pasts()), ValueError, "`mask` must be None and `targets` be given"),
        (
            lambda: enlarged()(pasts(), None, pasts()[:, :1]),
            ValueError,
            r"`targets` must be \[5, 1, 3\]; got \[5, 1, 4\]",
        ),
    ],
)
def test_misuse_is_told(call, error, text):
    with pytest.raises(error, match=text):
        call()
