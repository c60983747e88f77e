import json
import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import ink, sharpen
from pyro.infer import TraceEnum_ELBO, config_enumerate
from torch.testing import assert_close

from pyro_memory import BoundEstimate, MemoryContribution, SlotMemory, importance_bound, memory_contribution
from pyro_memory.guides import VMAGuide
from pyro_memory.models import VMA

X = torch.tensor([0.3, -1.0, 2.0])


def model():
    with pyro.plate("batch", 3):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 0.8), obs=X)


def prior_guide():
    with pyro.plate("batch", 3):
        pyro.sample("z", dist.Normal(0.0, 1.0))


def posterior_guide():
    with pyro.plate("batch", 3):
        variance = 0.64 / 1.64
        pyro.sample("z", dist.Normal(X / 1.64, math.sqrt(variance)))


EVIDENCE = dist.Normal(0.0, math.sqrt(1.64)).log_prob(X)


def test_the_exact_posterior_gives_the_evidence_with_one_particle():
    estimate = importance_bound(model, posterior_guide, particles=1)
    assert_close(estimate.bound.float(), EVIDENCE)
    many = importance_bound(model, posterior_guide, particles=40)
    assert_close(many.effective_particles.float(), torch.full((3,), 40.0))


def test_proposals_from_the_prior_converge_to_the_evidence_within_their_own_error():
    estimate = importance_bound(model, prior_guide, particles=20_000, chunk_size=4_999)
    assert abs(estimate.mean - EVIDENCE.mean()) < 5 * estimate.monte_carlo_se
    assert estimate.monte_carlo_se < 0.02


def test_chunks_of_particles_change_nothing():
    torch.manual_seed(0)
    one = importance_bound(model, prior_guide, particles=64, chunk_size=64)
    torch.manual_seed(0)
    many = importance_bound(model, prior_guide, particles=64, chunk_size=16)
    assert one.particles == many.particles
    # a normal draw of 64 x 3 equals four of 16 x 3 from the same stream
    assert_close(one.bound, many.bound)
    assert_close(one.effective_particles, many.effective_particles)


def test_the_bound_of_a_vma_is_below_the_evidence_and_above_the_elbo(tiny_pair, shared_memory):
    x = ink(4, 1, 6, 6)
    model, guide = tiny_pair
    elbo = TraceEnum_ELBO(num_particles=200, vectorize_particles=True, max_plate_nesting=1)
    single = -elbo.loss(model, guide, x, shared_memory) / 4
    bounds = [importance_bound(model, guide, x, shared_memory, particles=k, chunk_size=100).mean for k in (10, 1000)]
    assert single < bounds[0] < bounds[1] + 0.5
    a = torch.arange(5).repeat_interleave(4000)
    content = model.content(shared_memory[a])
    z = model.z_dist(content).sample()
    likelihood = torch.stack([model.x_dist(z, content).log_prob(xi) for xi in x], -1)
    evidence = (likelihood.logsumexp(0) - math.log(len(a))).mean().item()
    assert bounds[1] < evidence + 0.3


def test_contributions_are_paired_by_datum(tiny_pair):
    x, memory = ink(6, 1, 6, 6), SlotMemory(ink(6, 3, 1, 6, 6), batch_dim=-1)
    other = SlotMemory(ink(6, 3, 1, 6, 6), batch_dim=-1)
    contribution = memory_contribution(*tiny_pair, x, memory, alternatives={"other": other}, particles=50)
    assert set(contribution.alternatives) == {"other", "shuffled"}
    gain, se = contribution.gain("other")
    difference = contribution.given.bound - contribution.alternatives["other"].bound
    assert gain == pytest.approx(difference.mean().item())
    assert se == pytest.approx((difference.std() / math.sqrt(6)).item())
    assert "other" in repr(contribution)
    assert json.loads(json.dumps(contribution.to_dict()))["other"]["lost"] == pytest.approx(gain)
    contribution.plot().figure.clear()


def test_emptied_is_offered_with_a_none_slot_and_is_the_bound_of_an_empty_memory():
    x = ink(8, 1, 6, 6)
    model, guide = (sharpen(c.mlp((1, 6, 6), 2, (16, 16), none_slot=True), 1.5) for c in (VMA, VMAGuide))
    contribution = memory_contribution(model, guide, x, SlotMemory(x), particles=2000)
    assert set(contribution.alternatives) == {"emptied"}
    direct = importance_bound(model, guide, x, SlotMemory.empty((1, 6, 6)), particles=2000)
    error = math.hypot(direct.monte_carlo_se, contribution.alternatives["emptied"].monte_carlo_se)
    assert abs(contribution.alternatives["emptied"].mean - direct.mean) < 5 * error
    assert abs(contribution.gain("emptied")[0]) > 10 * error


def test_estimates_of_batches_join_and_print():
    estimate = BoundEstimate.cat([importance_bound(model, prior_guide, particles=10) for _ in range(2)])
    assert len(estimate.bound) == 6
    assert "BoundEstimate of 6 data, 10 particles each" in repr(estimate)
    assert json.loads(json.dumps(estimate.to_dict()))["data"] == 6
    estimate.plot().figure.clear()
    with pytest.raises(ValueError, match="`parts` must be one or more"):
        BoundEstimate.cat([])
    assert MemoryContribution(estimate, {}).to_dict()["given"]["particles"] == 10


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="`particles`, `draws` and `chunk_size` must be at least 1; got 0"):
        importance_bound(model, prior_guide, particles=0)


def test_enumerated_guides_can_be_measured_as_they_are():
    estimate = importance_bound(model, config_enumerate(prior_guide), particles=10)
    assert estimate.bound.isfinite().all()


def regression(x, y, memory=None):
    with pyro.plate("batch", len(x)):
        a = pyro.sample("a", memory.prior(), infer={"enumerate": "parallel"})
        pyro.sample("y", dist.Normal(memory[a].squeeze(-1) * x, 0.5), obs=y)


def silent(x, y, memory=None):
    pass


SLOPES = SlotMemory(torch.tensor([[1.0], [-1.0]]))
WRONG = SlotMemory(torch.tensor([[5.0], [-4.0]]))


@pytest.mark.parametrize("which", [None, "memory", 2, -1])
def test_the_memory_is_any_argument_of_any_call(which):
    x = torch.linspace(-2, 2, 30)
    bounds = memory_contribution(
        regression, silent, x, x, SLOPES, alternatives={"wrong": WRONG}, memory=which, particles=1
    )
    log_p = dist.Normal(torch.stack([x, -x]), 0.5).log_prob(x).logsumexp(0) - math.log(2)
    assert_close(bounds.given.bound, log_p.double())
    named = memory_contribution(regression, silent, x, x, memory=SLOPES, alternatives={"wrong": WRONG}, particles=1)
    assert_close(named.differences("wrong"), bounds.differences("wrong"))
    assert bounds.gain("wrong")[0] > 5 * bounds.gain("wrong")[1]


def test_a_memory_that_is_not_clear_or_has_nothing_beside_it_is_told():
    x = torch.ones(3)
    call = partial(memory_contribution, regression, silent, x, x)
    with pytest.raises(ValueError, match="none of 'x', 'y', 'memory' is a store, such as SlotMemory"):
        call(alternatives={"wrong": WRONG})
    with pytest.raises(ValueError, match=r"`memory` must be the name of an argument.*position below 3; got 'nosuch'"):
        call(SLOPES, alternatives={"wrong": WRONG}, memory="nosuch")
    with pytest.raises(ValueError, match="`alternatives` must hold another memory"):
        call(SLOPES)
    with pytest.raises(ValueError, match="`alternatives` must not be called 'given'"):
        call(SLOPES, alternatives={"given": WRONG})
    with pytest.raises(AttributeError) as raised:
        call(SLOPES, alternatives={"other": torch.zeros(3)})
    assert "with the memory 'other' in place of the one given" in str(raised.value.__notes__)
    with pytest.raises(ValueError, match="'y', 'memory' are stores"):
        memory_contribution(regression, silent, x, WRONG, SLOPES, alternatives={"wrong": WRONG})
