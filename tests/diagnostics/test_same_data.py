"""Whatever is added datum by datum looked at the same data; checked where the evidence is exact."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.testing import assert_close

from pyro_memory import VIMCO, SlotMemory, importance_bound, information_gain, memory_contribution, token_surprise
from pyro_memory.inference import LeaveOneOutELBO

N, SIZE, NOISE = 40, 8, 0.8
X = torch.linspace(-3, 3, N)
EVIDENCE = dist.Normal(0.0, math.sqrt(1 + NOISE**2)).log_prob(X)


def model(x=X, memory=None):
    with pyro.plate("batch", N, subsample_size=SIZE) as chosen:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, NOISE), obs=x[chosen])


def guide(x=X, memory=None):
    """The exact posterior, so that every weight is the evidence of the datum looked at."""
    with pyro.plate("batch", N, subsample_size=SIZE) as chosen:
        pyro.sample("z", dist.Normal(x[chosen] / (1 + NOISE**2), NOISE / math.sqrt(1 + NOISE**2)))


def prior_guide(x=X, memory=None):
    with pyro.plate("batch", N, subsample_size=SIZE):
        pyro.sample("z", dist.Normal(0.0, 1.0))


def test_chunks_of_particles_bound_the_evidence_of_one_subsample():
    estimate = importance_bound(model, guide, particles=60, chunk_size=5)
    assert len(estimate.bound) == SIZE
    gaps = (estimate.bound.float().unsqueeze(-1) - EVIDENCE).abs()  # each is the evidence of some datum
    assert gaps.amin(-1).max() < 1e-5
    assert len(gaps.argmin(-1).unique()) > SIZE / 2  # X is symmetric: two data share an evidence


def test_the_model_alone_may_subsample():
    def whole(x=X):
        with pyro.plate("batch", N, subsample=torch.arange(SIZE)):
            pyro.sample("z", dist.Normal(x[:SIZE] / (1 + NOISE**2), NOISE / math.sqrt(1 + NOISE**2)))

    def fixed(x=X):
        with pyro.plate("batch", N, subsample=torch.arange(SIZE)) as chosen:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, NOISE), obs=x[chosen])

    assert_close(importance_bound(fixed, whole, particles=20, chunk_size=4).bound.float(), EVIDENCE[:SIZE])


def test_particles_that_run_one_by_one_share_a_subsample():
    """With the exact posterior every bound is N/SIZE times the evidence of the eight, and never above the best."""
    best = EVIDENCE.max() * N
    for seed in range(20):
        pyro.set_rng_seed(seed)
        loss = VIMCO(30, vectorize_particles=False, max_plate_nesting=1).loss(model, guide)
        assert -loss < best - 1.0
    pyro.set_rng_seed(1)
    apart = VIMCO(3, vectorize_particles=False, max_plate_nesting=1).loss(model, guide)
    pyro.set_rng_seed(1)
    chosen = torch.randperm(N)[:SIZE]
    assert_close(-apart, EVIDENCE[chosen].sum().item() * N / SIZE, atol=1e-3, rtol=0)


def test_memories_are_compared_on_the_same_subsample():
    memory = SlotMemory(torch.zeros(2, 1))
    contribution = memory_contribution(
        model, guide, X, memory, alternatives={"same": memory}, particles=6, chunk_size=3
    )
    assert_close(contribution.given.bound, contribution.alternatives["same"].bound, atol=1e-5, rtol=0)
    assert contribution.gain("same")[1] < 1e-5


def noisy(x=X):
    with pyro.plate("batch", N):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, NOISE), obs=x + torch.randn(N))


def noisy_by_particle(x=X):
    with pyro.plate("batch", N):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, NOISE), obs=x + torch.randn_like(z))


def latent(x=X):
    with pyro.plate("batch", N):
        pyro.sample("z", dist.Normal(0.0, 1.0))


@pytest.mark.parametrize(
    ("call", "program"),
    [
        (lambda p: importance_bound(p, latent, particles=10, chunk_size=5), noisy),
        (lambda p: importance_bound(p, latent, particles=10, chunk_size=10), noisy_by_particle),
        (lambda p: VIMCO(3, vectorize_particles=False, max_plate_nesting=1).loss(p, latent), noisy),
        (lambda p: VIMCO(3, max_plate_nesting=1).loss(p, latent), noisy_by_particle),
        (lambda p: LeaveOneOutELBO(3, max_plate_nesting=1).loss(p, latent), noisy_by_particle),
    ],
)
def test_data_that_are_drawn_anew_in_each_pass_are_refused(call, program):
    with pytest.raises(ValueError, match="`model` must observe the same data at every call; the value of site `x`"):
        call(program)


def test_residuals_of_latents_are_data_like_any_other():
    def residual(x=X):
        with pyro.plate("batch", N):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("r", dist.Normal(0.0, NOISE), obs=x - z)

    estimate = importance_bound(residual, latent, particles=4000, chunk_size=400)
    assert abs(estimate.mean - EVIDENCE.mean()) < 5 * estimate.monte_carlo_se


def test_draws_of_a_surprise_look_at_the_same_sequences():
    sequences = torch.randn(N, 5)

    def program():
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("batch", N, subsample_size=SIZE) as chosen:
            pyro.sample("x", dist.Normal(0 * w + torch.zeros(SIZE, 5), 1.0).to_event(1), obs=sequences[chosen])

    nats = token_surprise(program, guide=lambda: pyro.sample("w", dist.Normal(0.0, 1.0)), draws=5).nats
    exact = -dist.Normal(0.0, 1.0).log_prob(sequences)
    assert (nats.unsqueeze(1) - exact).abs().amax(-1).amin(-1).max() < 1e-5


def test_the_joint_information_of_a_data_set_counts_a_subsample_for_all():
    def both(loc, observed=False):
        w = pyro.sample("w", dist.Normal(loc, 1.0))
        with pyro.plate("batch", N, subsample_size=SIZE):
            z = pyro.sample("z", dist.Normal(loc + 0 * w, 1.0))
            if observed:
                pyro.sample("x", dist.Normal(z, 1.0), obs=torch.zeros(SIZE))

    gain = information_gain(lambda: both(0.0, observed=True), lambda: both(1.0))
    assert gain.joint.unit == "data set"
    assert_close(gain.joint.kl, torch.tensor([0.5 + N * 0.5]))
    assert "InformationGain of 8 data" in repr(gain)
