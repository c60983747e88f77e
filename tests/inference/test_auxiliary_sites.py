"""Guides that draw more than the model's latents: automatic ones, against Trace_ELBO and exact evidence."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoDelta, AutoDiagonalNormal, AutoGuideList, AutoMultivariateNormal, AutoNormal
from torch.testing import assert_close

from pyro_memory import VIMCO, importance_bound, information_gain
from pyro_memory.inference import LeaveOneOutELBO

N, NOISE = 6, 0.8
X = torch.linspace(-2, 2, N)


def conjugate():
    """x = log s + noise, s log-normal: the evidence of log s normal."""
    with pyro.plate("batch", N):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        s = pyro.sample("s", dist.LogNormal(0.0, 0.5))
        pyro.sample("x", dist.Normal(z + s.log(), NOISE), obs=X)


EVIDENCE = dist.Normal(0.0, math.sqrt(1 + 0.25 + NOISE**2)).log_prob(X)


def without_plate():
    z = pyro.sample("z", dist.Normal(torch.zeros(N), 1.0).to_event(1))
    s = pyro.sample("s", dist.LogNormal(torch.zeros(N), 0.5).to_event(1))
    pyro.sample("x", dist.Normal(z + s.log(), NOISE).to_event(1), obs=X)


def automatic(kind, model):
    guide = kind(model, init_scale=0.6) if kind is not AutoDelta else kind(model)
    guide()
    return guide


def test_auto_normal_bounds_the_evidence_of_each_datum_and_reaches_it():
    estimate = importance_bound(conjugate, automatic(AutoNormal, conjugate), particles=20_000, chunk_size=2000)
    assert estimate.unit == "datum"
    error = (1 / estimate.effective_particles).sqrt()
    assert ((estimate.bound - EVIDENCE).abs() < 5 * error + 1e-3).all()
    assert error.max() < 0.1


@pytest.mark.parametrize("kind", [AutoDiagonalNormal, AutoMultivariateNormal, AutoNormal])
def test_without_plates_all_latents_may_be_drawn_together(kind):
    estimate = importance_bound(without_plate, automatic(kind, without_plate), particles=100_000, chunk_size=20_000)
    assert estimate.unit == "data set"
    assert "nats/data set" in repr(estimate)
    assert "BoundEstimate of 1 data set," in repr(estimate)
    assert abs(estimate.mean - EVIDENCE.sum()) < 5 * estimate.monte_carlo_se + 1e-3


@pytest.mark.parametrize(("kind", "model"), [(AutoNormal, conjugate), (AutoDiagonalNormal, without_plate)])
def test_objectives_have_the_value_and_the_mean_gradient_of_trace_elbo(kind, model):
    guide = automatic(kind, model)
    nesting = 1 if model is conjugate else 0

    def measured(objective, calls=40):
        values, rows = [], []
        for _ in range(calls):
            guide.zero_grad()
            values.append(objective.loss_and_grads(model, guide))
            rows.append(torch.cat([p.grad.flatten().clone() for p in guide.parameters()]))
        out = torch.cat([torch.tensor(values)[:, None], torch.stack(rows)], -1)
        return out.mean(0), out.std(0) / math.sqrt(calls)

    theirs, their_se = measured(Trace_ELBO(50, vectorize_particles=True, max_plate_nesting=nesting))
    ours, se = measured(LeaveOneOutELBO(50, max_plate_nesting=nesting))
    assert ((ours - theirs).abs() < 5 * (se**2 + their_se**2).sqrt() + 1e-6).all()
    tighter, _ = measured(VIMCO(50, max_plate_nesting=nesting), calls=10)
    assert -EVIDENCE.sum() - 0.2 < tighter[0] < theirs[0]


@pytest.mark.parametrize(
    "call",
    [
        lambda m, g: importance_bound(m, g, particles=10),
        lambda m, g: VIMCO(2, max_plate_nesting=1).loss(m, g),
        lambda m, g: LeaveOneOutELBO(2, max_plate_nesting=1).loss(m, g),
    ],
)
def test_guides_without_a_weight_per_datum_are_refused_with_what_to_use(call):
    """At a point the density of z and x exceeds the evidence of x: no bound."""
    with pytest.raises(ValueError, match=r"a density; z, s is a point there.* Use AutoNormal or a guide of your own"):
        call(conjugate, automatic(AutoDelta, conjugate))
    pyro.clear_param_store()
    mixed = AutoGuideList(conjugate)
    mixed.append(AutoNormal(poutine.block(conjugate, hide=["z"])))
    mixed.append(AutoDelta(poutine.block(conjugate, hide=["s"])))
    mixed()
    with pytest.raises(ValueError, match="a density; z is a point there"):
        call(conjugate, mixed)


def test_a_guide_that_draws_all_latents_together_bounds_the_data_set():
    bound = importance_bound(conjugate, automatic(AutoDiagonalNormal, conjugate), particles=1, draws=500)
    assert bound.unit == "data set"
    assert EVIDENCE.sum() - 4 < bound.mean < EVIDENCE.sum() + 5 * bound.monte_carlo_se


def test_a_point_of_a_discrete_latent_is_a_bound():
    def model():
        with pyro.plate("batch", N):
            a = pyro.sample("a", dist.Categorical(torch.tensor([0.3, 0.7])))
            pyro.sample("x", dist.Normal(a.float(), NOISE), obs=X)

    def guide():
        with pyro.plate("batch", N):
            pyro.sample("a", dist.Delta(torch.ones(N, dtype=torch.long)))

    exact = math.log(0.7) + dist.Normal(1.0, NOISE).log_prob(X)
    assert_close(importance_bound(model, guide, particles=3).bound.float(), exact)


def test_information_and_weights_agree_on_an_automatic_guide():
    guide = automatic(AutoNormal, conjugate)
    gain = information_gain(conjugate, guide, draws=2000)
    loc, scale = (getattr(guide, name).s.detach() for name in ("locs", "scales"))
    exact = torch.distributions.kl_divergence(dist.Normal(loc, scale), dist.Normal(torch.zeros(N), 0.5))
    assert gain["s"].unit == "datum"
    assert abs(gain["s"].mean - exact.mean()) < 5 * gain["s"].draws_se


def test_a_guide_says_what_it_draws_for_itself():
    def guide(**infer):
        with pyro.plate("batch", N):
            z, s = pyro.sample("z", dist.Normal(0.0, 1.0)), pyro.sample("s", dist.LogNormal(0.0, 0.5))
            pyro.sample("more", dist.Normal(z, s), infer=infer)

    with pytest.raises(ValueError, match=r'samples what the model does not: more.*infer=\{"is_auxiliary": True\}'):
        importance_bound(conjugate, guide, particles=3)


@pytest.mark.filterwarnings("ignore:Found")  # Pyro's own, which come first
@pytest.mark.parametrize("nesting", [math.inf, 1])
def test_a_pair_that_does_not_belong_together_is_told_why(nesting):
    def other_name():
        with pyro.plate("data", N):
            pyro.sample("z", dist.Normal(0.0, 1.0)), pyro.sample("s", dist.LogNormal(0.0, 0.5))

    def no_plate():
        pyro.sample("z", dist.Normal(torch.zeros(N), 1.0)), pyro.sample("s", dist.LogNormal(torch.zeros(N), 0.5))

    def latents():
        with pyro.plate("batch", N):
            pyro.sample("z", dist.Normal(0.0, 1.0)), pyro.sample("s", dist.LogNormal(0.0, 0.5))

    def bare():
        z = pyro.sample("z", dist.Normal(torch.zeros(N), 1.0))
        pyro.sample("x", dist.Normal(z, NOISE), obs=X)

    def of_bare():
        pyro.sample("z", dist.Normal(torch.zeros(N), 1.0))

    cases = [
        (conjugate, other_name, r'plate of another name, `data`.*Rename one of them: pyro.plate\("batch", ...\)'),
        (conjugate, no_plate, r"site `z` must lie in plates that hold its batch shape .*6 cells there. Put it in one"),
        (bare, of_bare, r"site `z` must lie in plates that hold its batch shape .*6 cells there. Put it in one"),
        (latents, conjugate, "`model` must be what observes data; .*Were model and guide swapped?"),
    ]
    for model, guide, message in cases:
        with pytest.raises(ValueError, match=message):
            importance_bound(model, guide, particles=4, chunk_size=2, max_plate_nesting=nesting)
