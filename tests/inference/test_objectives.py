import math
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from mixture import DATA, SLOTS, Mixture, gradients, mean_gradient
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceEnum_ELBO
from torch.testing import assert_close

from pyro_memory import VIMCO, LeaveOneOutELBO, importance_bound
from pyro_memory.inference import leave_one_out_bound


@pytest.mark.parametrize("baseline", ["geometric", "arithmetic"])
@pytest.mark.parametrize("particles", [2, 3])
def test_the_mean_gradient_is_that_of_the_exact_multi_sample_bound(baseline, particles):
    toy = Mixture()
    (-toy.exact_bound(particles)).backward()
    exact = gradients(toy)
    mean, se = mean_gradient(VIMCO(particles, baseline=baseline, max_plate_nesting=1))
    assert ((mean - exact).abs() < 5 * se + 1e-9).all()
    assert se.max() < 0.1 * exact.abs().max()  # a test that can fail


def test_the_quadrature_behind_it_is_converged():
    toy = Mixture()
    assert_close(toy.exact_bound(2, nodes=12), toy.exact_bound(2, nodes=20), atol=1e-3, rtol=0)


def test_every_objective_stays_below_the_log_evidence_and_more_particles_come_closer():
    toy = Mixture()
    evidence = toy.log_evidence().item()
    bounds = [toy.exact_bound(k, nodes=8).item() for k in (1, 2, 3)]
    assert bounds[0] < bounds[1] < bounds[2] < evidence
    copies = 4000
    many = Mixture(copies)

    for elbo, exact in [(Trace_ELBO(), bounds[0]), (VIMCO(2, max_plate_nesting=1), bounds[1])]:
        values = torch.tensor([-elbo.loss(many.model, many.guide) / copies for _ in range(10)])
        se = values.std().item() / math.sqrt(10)
        assert abs(values.mean().item() - exact) < 5 * se
        assert se < 0.05
    with torch.no_grad():  # near the prior the weights are bounded, and many particles reach the evidence
        toy.logits.zero_()
        toy.loc.copy_(toy.means.expand(DATA, SLOTS))
    close = importance_bound(toy.model, toy.guide, particles=200_000, chunk_size=20_000).bound.sum().item()
    assert_close(close, evidence, atol=0.02, rtol=0)


def test_the_enumerated_gradient_has_no_address_noise():
    toy = Mixture()
    objective = TraceEnum_ELBO(max_plate_nesting=1)

    def guide():
        with pyro.plate("batch", DATA):
            pyro.sample("a", dist.Categorical(logits=toy.logits), infer={"enumerate": "parallel"})

    def model():
        with pyro.plate("batch", DATA):
            a = pyro.sample("a", dist.Categorical(logits=torch.zeros(SLOTS, dtype=torch.float64)))
            pyro.sample("x", dist.Normal(toy.means[a], toy.noise), obs=toy.x)

    rows = []
    for _ in range(3):
        toy.zero_grad()
        objective.differentiable_loss(model, guide).backward()
        rows.append(torch.cat([toy.logits.grad.reshape(-1), toy.means.grad]))
    assert_close(rows[0], rows[1], atol=0, rtol=0)
    assert_close(rows[0], rows[2], atol=0, rtol=0)


def test_particles_one_by_one_give_the_vectorised_bound():
    together, apart = VIMCO(2, max_plate_nesting=1), VIMCO(2, max_plate_nesting=1, vectorize_particles=False)
    (mean, se), (other, other_se) = mean_gradient(together), mean_gradient(apart)
    assert ((mean - other).abs() < 5 * (se**2 + other_se**2).sqrt() + 1e-9).all()


def test_the_value_of_the_differentiable_loss_is_the_loss():
    toy, objective = Mixture(), VIMCO(4, max_plate_nesting=1)
    torch.manual_seed(1)
    value = objective.loss(toy.model, toy.guide)
    torch.manual_seed(1)
    assert_close(objective.differentiable_loss(toy.model, toy.guide).item(), value)


@pytest.mark.parametrize("baseline", ["geometric", "arithmetic"])
def test_leaving_one_out_matches_the_formula_and_survives_extreme_weights(baseline):
    log_weight = torch.randn(5, 7, dtype=torch.float64)
    out = leave_one_out_bound(log_weight, baseline)
    for k in range(5):
        others = [log_weight[j] for j in range(5) if j != k]
        mean = sum(others) / 4 if baseline == "geometric" else (sum(o.exp() for o in others) / 4).log()
        assert_close(out[k], ((sum(o.exp() for o in others) + mean.exp()) / 5).log())
    extreme = torch.tensor([0.0, -2000.0, -2001.0])
    assert_close(
        leave_one_out_bound(extreme, "arithmetic")[0], torch.tensor([-2000.0, -2001.0]).logsumexp(0) - math.log(2)
    )


def subsampled(size=None):
    toy = Mixture()

    def model():
        with pyro.plate("batch", DATA if size is None else 10, subsample=None if size is None else torch.arange(DATA)):
            toy_a = pyro.sample("a", dist.Categorical(logits=torch.zeros(SLOTS, dtype=torch.float64)))
            pyro.sample("x", dist.Normal(toy.means[toy_a], toy.noise), obs=toy.x)

    def guide():
        with pyro.plate("batch", DATA if size is None else 10, subsample=None if size is None else torch.arange(DATA)):
            pyro.sample("a", dist.Categorical(logits=toy.logits))

    return model, guide


def test_the_scale_of_a_subsample_stays_outside_the_logarithm():
    objective = VIMCO(3, max_plate_nesting=1)
    torch.manual_seed(0)
    whole = objective.loss(*subsampled())
    torch.manual_seed(0)
    assert_close(objective.loss(*subsampled(10)), whole * 10 / DATA)


def test_a_scale_common_to_all_sites_stays_outside_too():
    toy, objective = Mixture(), VIMCO(3, max_plate_nesting=1)
    torch.manual_seed(0)
    plain = objective.loss(toy.model, toy.guide)
    torch.manual_seed(0)
    assert_close(objective.loss(poutine.scale(toy.model, 0.1), poutine.scale(toy.guide, 0.1)), 0.1 * plain)


def test_plates_inside_a_datum_are_summed_and_masks_heeded():
    x, mask = torch.randn(4, DATA), torch.rand(4, DATA) < 0.5

    def model():
        with pyro.plate("batch", DATA, dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with pyro.plate("pixel", 4, dim=-2), poutine.mask(mask=mask):
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide():
        with pyro.plate("batch", DATA, dim=-1):
            pyro.sample("z", dist.Normal(0.5, 1.0))

    torch.manual_seed(0)
    loss = VIMCO(3, max_plate_nesting=2).loss(model, guide)
    torch.manual_seed(0)
    z = pyro.sample("z", dist.Normal(0.5, 1.0).expand([3, 1, DATA]))
    log_w = dist.Normal(0.0, 1.0).log_prob(z)[:, 0] - dist.Normal(0.5, 1.0).log_prob(z)[:, 0]
    log_w = log_w + (dist.Normal(z, 1.0).log_prob(x) * mask).sum(1)
    assert_close(torch.tensor(loss), -(log_w.logsumexp(0) - math.log(3)).sum())


def outside(x=None):
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("batch", 3):
        pyro.sample("x", dist.Normal(w, 1.0), obs=torch.zeros(3))


def test_a_noisy_factor_is_refused():
    def model():
        with pyro.plate("batch", 3):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("f", dist.Unit(z), obs=torch.zeros(3, 0), infer={"noisy": True})

    def guide():
        with pyro.plate("batch", 3):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match="site `f` is marked as noisy"):
        VIMCO(2, max_plate_nesting=1).loss(model, guide)


def test_a_subsampled_plate_inside_a_datum_is_refused():
    def model():
        with pyro.plate("batch", 3, dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with pyro.plate("pixel", 10, subsample_size=4, dim=-2):
                pyro.sample("x", dist.Normal(z, 1.0), obs=torch.zeros(4, 3))

    def guide():
        with pyro.plate("batch", 3, dim=-1):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match="plate `pixel` lies inside a datum and is subsampled"):
        VIMCO(2, max_plate_nesting=2).loss(model, guide)


def test_a_guide_with_other_sites_is_refused():
    def model():
        with pyro.plate("batch", 3):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    def guide():
        with pyro.plate("batch", 3):
            pyro.sample("y", dist.Normal(0.0, 1.0))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # Pyro warns as well
        with pytest.raises(ValueError, match="must sample every latent of the model; missing: z"):
            VIMCO(2, max_plate_nesting=1).loss(model, guide)
        with pytest.raises(ValueError, match="samples what the model does not: y"):
            VIMCO(2, max_plate_nesting=1).loss(lambda: None, guide)


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match=r"`num_particles` must be at least 2.*got 1.*TraceGraph_ELBO"):
        VIMCO(1)
    with pytest.raises(ValueError, match="`baseline` must be one of"):
        VIMCO(2, baseline="harmonic")


@pytest.mark.parametrize("particles", [2, 3])
def test_leave_one_out_has_the_mean_gradient_and_value_of_the_exact_bound_of_one_sample(particles):
    toy = Mixture()
    bound = toy.exact_bound(1)
    (-bound).backward()
    exact = gradients(toy)
    mean, se = mean_gradient(LeaveOneOutELBO(particles, max_plate_nesting=1))
    assert ((mean - exact).abs() < 5 * se + 1e-9).all()
    assert se.max() < 0.1 * exact.abs().max()
    many = Mixture(20_000)
    loss = LeaveOneOutELBO(particles, max_plate_nesting=1).loss(many.model, many.guide) / 20_000
    assert abs(loss + bound.item()) < 0.05


def test_leave_one_out_takes_a_noisy_factor_whose_common_noise_cancels():
    """A factor with noise that all particles share moves no gradient of the guide, and its mean is what counts."""
    toy = Mixture(300)
    common = torch.randn(600, dtype=torch.float64) * 1000

    def noisy():
        with pyro.plate("batch", 600):
            a = pyro.sample("a", dist.Categorical(logits=torch.zeros(SLOTS, dtype=torch.float64)))
            z = pyro.sample("z", dist.Normal(toy.means[a], torch.ones_like(toy.noise)))
            pyro.sample("x", dist.Normal(z + toy.shift[a], toy.noise), obs=toy.x[toy.index])
            factor = dist.Unit(common)
            pyro.sample("noise", factor, obs=factor.sample(), infer={"noisy": True})

    rows = []
    for model in (toy.model, noisy):
        pyro.set_rng_seed(0)
        toy.zero_grad()
        LeaveOneOutELBO(2, max_plate_nesting=1).loss_and_grads(model, toy.guide)
        rows.append(gradients(toy))
    assert_close(*rows)
    with pytest.raises(ValueError, match="marked as noisy"):
        VIMCO(2, max_plate_nesting=1).loss(noisy, toy.guide)


def test_leave_one_out_needs_two_particles():
    with pytest.raises(ValueError, match="`num_particles` must be at least 2"):
        LeaveOneOutELBO(1)


@pytest.mark.parametrize("nesting", [0.5, -1, 10**9])
def test_a_nesting_that_is_no_number_of_plates_is_refused(nesting):
    pair = (lambda: None, lambda: None)
    with pytest.raises(ValueError, match="`max_plate_nesting` must be a whole number of plates below 60"):
        VIMCO(2, max_plate_nesting=nesting).loss(*pair)
