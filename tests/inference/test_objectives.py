import itertools
import math
import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceEnum_ELBO
from torch.testing import assert_close

from pyro_memory import VIMCO, LeaveOneOutELBO, importance_bound
from pyro_memory.inference import leave_one_out_bound, weigh

SLOTS, DATA = 3, 2


class Mixture(torch.nn.Module):
    """a ~ Cat, z | a ~ N(m_a, 1), x | z, a ~ N(z + shift_a, 0.7); the guide has free parameters per datum.

    The plate holds ``copies`` of the data, each with draws of its own: many estimates in one pass.
    """

    def __init__(self, copies=1):
        super().__init__()
        generator = torch.Generator().manual_seed(3)

        def draw(*shape):
            return torch.nn.Parameter(torch.randn(*shape, generator=generator, dtype=torch.float64))

        self.means, self.shift = draw(SLOTS), draw(SLOTS)
        self.logits, self.loc = draw(DATA, SLOTS), draw(DATA, SLOTS)
        self.copies = copies
        self.index = torch.arange(DATA).repeat(copies)
        self.x = torch.tensor([0.4, -1.3], dtype=torch.float64)
        self.noise = torch.tensor(0.7, dtype=torch.float64)

    def model(self):
        with pyro.plate("batch", len(self.index)):
            a = pyro.sample("a", dist.Categorical(logits=torch.zeros(SLOTS, dtype=torch.float64)))
            z = pyro.sample("z", dist.Normal(self.means[a], torch.ones_like(self.noise)))
            pyro.sample("x", dist.Normal(z + self.shift[a], self.noise), obs=self.x[self.index])

    def guide(self):
        with pyro.plate("batch", len(self.index)):
            a = pyro.sample("a", dist.Categorical(logits=self.logits[self.index]))
            pyro.sample("z", dist.Normal(self.loc[self.index, a], self.noise))

    def log_weight(self, a, eps):
        """log w for addresses and standard normal draws that broadcast against the data."""
        index = torch.arange(DATA)
        loc = self.loc[index, a]
        z = loc + self.noise * eps
        log_p = -math.log(SLOTS) + dist.Normal(self.means[a], 1.0).log_prob(z)
        log_p = log_p + dist.Normal(z + self.shift[a], self.noise).log_prob(self.x)
        log_q = self.logits.log_softmax(-1)[index, a] + dist.Normal(loc, self.noise).log_prob(z)
        return log_p - log_q

    def exact_bound(self, particles, nodes=12):
        """E log mean_k w_k: every tuple of addresses, Gauss-Hermite quadrature over the normals."""
        points, mass = np.polynomial.hermite_e.hermegauss(nodes)
        points, mass = torch.tensor(points), torch.tensor(mass / mass.sum())
        grid = torch.cartesian_prod(*[points] * particles).reshape(-1, particles)
        weight = torch.cartesian_prod(*[mass] * particles).reshape(-1, particles).prod(-1)
        log_q = self.logits.log_softmax(-1)
        total = 0.0
        for addresses in itertools.product(range(SLOTS), repeat=particles):
            log_w = [
                self.log_weight(torch.full((DATA,), a), grid[:, k : k + 1].expand(-1, DATA))
                for k, a in enumerate(addresses)
            ]
            bound = torch.stack(log_w).logsumexp(0) - math.log(particles)
            chance = sum(log_q[:, a] for a in addresses).exp()
            total = total + (chance * (weight[:, None] * bound).sum(0)).sum()
        return total

    def log_evidence(self):
        scale = torch.sqrt(1 + self.noise**2)
        return (dist.Normal(self.means + self.shift, scale).log_prob(self.x[:, None]).logsumexp(-1)).sum() - DATA * (
            math.log(SLOTS)
        )


def gradients(module):
    return torch.cat([p.grad.reshape(-1).clone() for p in module.parameters()])


def mean_gradient(objective, calls=30, copies=300):
    """Mean and standard error of the gradient over calls, each the mean over copies of the data."""
    toy, rows = Mixture(copies), []
    for _ in range(calls):
        toy.zero_grad()
        objective.loss_and_grads(toy.model, toy.guide)
        rows.append(gradients(toy) / copies)
    rows = torch.stack(rows)
    return rows.mean(0), rows.std(0) / math.sqrt(calls)


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


def test_a_latent_outside_the_plate_is_refused_by_name():
    with pytest.raises(ValueError, match=r"site `w` lies outside plate `batch`.*Trace_ELBO"):
        VIMCO(2).loss(outside, lambda: pyro.sample("w", dist.Normal(0.0, 1.0)))


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


class Nested(torch.nn.Module):
    """a ~ Cat for a datum, b_n ~ Cat for each of its items, x_n ~ N(m[a, b_n], 0.6); a guide of free tables.

    ``late`` samples something after the items' plate that depends on them.
    """

    def __init__(self, copies=1, late=False, items=2):
        super().__init__()
        g = torch.Generator().manual_seed(5)
        self.means, self.logits_a, self.logits_b, self.logits_c = (
            torch.nn.Parameter(torch.randn(*shape, generator=g, dtype=torch.float64))
            for shape in ((2, SLOTS), (2,), (2, items, SLOTS), (SLOTS, 2))
        )
        self.copies, self.late = copies, late
        self.x = torch.linspace(0.7, -0.9, items, dtype=torch.float64)

    def _b_dist(self, a):
        return dist.Categorical(logits=self.logits_b[a, torch.arange(len(self.x))])

    def model(self):
        with pyro.plate("data", self.copies, dim=-2):
            a = pyro.sample("a", dist.Categorical(logits=torch.zeros(2, dtype=torch.float64)))
            with pyro.plate("item", len(self.x), dim=-1):
                b = pyro.sample("b", dist.Categorical(logits=torch.zeros(SLOTS, dtype=torch.float64)))
                pyro.sample("x", dist.Normal(self.means[a, b], 0.6), obs=self.x.expand(b.shape[-2:]))
            if self.late:
                logits = self.means[0, b].sum(-1, keepdim=True).unsqueeze(-1) * torch.tensor([1.0, -1.0])
                pyro.sample("c", dist.Categorical(logits=logits))

    def guide(self):
        with pyro.plate("data", self.copies, dim=-2):
            a = pyro.sample("a", dist.Categorical(logits=self.logits_a.expand(self.copies, 1, 2)))
            with pyro.plate("item", len(self.x), dim=-1):
                b = pyro.sample("b", self._b_dist(a))
            if self.late:
                pyro.sample("c", dist.Categorical(logits=self.logits_c[b].sum(-2, keepdim=True)))

    def exact_bound(self, particles):
        """E log mean_k w_k, or E log w for one particle: every tuple of latents."""
        terms = []
        latents = itertools.product(range(2), range(SLOTS), range(SLOTS), range(2 if self.late else 1))
        for a, b, d, c in latents:
            items = torch.tensor([b, d])
            log_q = self.logits_a.log_softmax(-1)[a]
            log_q = log_q + self.logits_b.log_softmax(-1)[a, torch.arange(2), items].sum()
            log_p = -math.log(2) - 2 * math.log(SLOTS)
            log_p = log_p + dist.Normal(self.means[a, items], 0.6).log_prob(self.x).sum()
            if self.late:
                log_q = log_q + self.logits_c[items].sum(0).log_softmax(-1)[c]
                log_p = log_p + (self.means[0, items].sum() * torch.tensor([1.0, -1.0])).log_softmax(-1)[c]
            terms.append((log_q, log_p - log_q))
        log_q, log_w = map(torch.stack, zip(*terms, strict=True))
        tuples = torch.cartesian_prod(*[torch.arange(len(log_q))] * particles).reshape(-1, particles)
        bound = log_w[tuples].logsumexp(-1) - math.log(particles)
        return (log_q[tuples].sum(-1).exp() * bound).sum()


def nested_gradients(objective, late=False, calls=60, copies=1000, items=2):
    toy, rows = Nested(copies, late, items), []
    used = [p for name, p in toy.named_parameters() if late or name != "logits_c"]
    for _ in range(calls):
        toy.zero_grad()
        objective.loss_and_grads(toy.model, toy.guide)
        rows.append(torch.cat([p.grad.reshape(-1).clone() for p in used]) / copies)
    return torch.stack(rows)


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("kind", ["geometric", "arithmetic", "elbo"])
def test_sites_of_a_plate_inside_a_datum_get_unbiased_gradients(kind, late):
    toy = Nested(late=late)
    (-toy.exact_bound(1 if kind == "elbo" else 2)).backward()
    exact = torch.cat([p.grad.reshape(-1) for p in toy.parameters() if p.grad is not None])
    if kind == "elbo":
        objective = LeaveOneOutELBO(2, max_plate_nesting=2)
    else:
        objective = VIMCO(2, baseline=kind, max_plate_nesting=2)
    rows = nested_gradients(objective, late)
    mean, se = rows.mean(0), rows.std(0) / math.sqrt(len(rows))
    assert ((mean - exact).abs() < 5 * se + 1e-9).all()
    assert se.max() < 0.05 * exact.abs().max()


@pytest.mark.parametrize("objective", [VIMCO(2, max_plate_nesting=2), LeaveOneOutELBO(2, max_plate_nesting=2)])
def test_an_item_is_scored_by_its_own_share_of_the_weight(objective, monkeypatch):
    own = nested_gradients(objective, calls=40, copies=400, items=8).var(0)
    monkeypatch.setattr("pyro_memory.inference.weights._ends", lambda *args: False)
    whole = nested_gradients(objective, calls=40, copies=400, items=8).var(0)
    table = slice(2 * SLOTS + 2, None)  # the guide's, of b
    assert own[table].sum() < 0.5 * whole[table].sum()


def test_only_a_plate_that_ends_both_programs_is_scored_by_itself():
    for late, groups in ((False, 1), (True, 0)):
        toy = Nested(3, late)
        (traces,) = VIMCO(2, max_plate_nesting=2).traces(toy.model, toy.guide, (), {})
        weights = weigh(*traces)
        assert len(weights.local) == groups
        if groups:
            assert weights.local[0].log_weight.shape == (2, 3, 2)
            a = weigh(*traces).log_weight - weights.local[0].log_weight.sum(-1)
            guide_trace = traces[1]
            log_q = toy.logits_a.log_softmax(-1)[guide_trace.nodes["a"]["value"]].squeeze(-1)
            assert_close(a, -math.log(2) - log_q)


@pytest.mark.parametrize("objective", [VIMCO(2, max_plate_nesting=3), LeaveOneOutELBO(2, max_plate_nesting=3)])
def test_a_plate_inside_a_plate_inside_a_datum_is_scored_once(objective):
    """One address an item, one flag for each of its two parts; the reference sums all of them."""
    g = torch.Generator().manual_seed(8)
    table, flags, means = (torch.randn(*s, generator=g, dtype=torch.float64) for s in ((2, 3), (2, 3), (3, 2)))
    parameters = [torch.nn.Parameter(t) for t in (table, flags)]
    x, copies = torch.tensor([[0.5, -0.4], [1.1, 0.2]], dtype=torch.float64), 2000

    def guide():
        with pyro.plate("data", copies, dim=-3):
            pyro.sample("a", dist.Bernoulli(0.5))  # of the datum alone: items are inside
            with pyro.plate("item", 2, dim=-2):
                b = pyro.sample("b", dist.Categorical(logits=parameters[0].unsqueeze(1)))
                with pyro.plate("part", 2, dim=-1):
                    pyro.sample("f", dist.Bernoulli(logits=parameters[1][torch.arange(2).unsqueeze(-1), b]))

    def model():
        with pyro.plate("data", copies, dim=-3):
            pyro.sample("a", dist.Bernoulli(0.5))
            with pyro.plate("item", 2, dim=-2):
                b = pyro.sample("b", dist.Categorical(logits=torch.zeros(3, dtype=torch.float64)))
                with pyro.plate("part", 2, dim=-1):
                    f = pyro.sample("f", dist.Bernoulli(torch.tensor(0.3, dtype=torch.float64)))
                    pyro.sample("x", dist.Normal(means[b, f.long()], 0.7), obs=x)

    terms = []
    for b in itertools.product(range(3), repeat=2):
        for f in itertools.product((0, 1), repeat=4):
            items, flag = torch.tensor(b), torch.tensor(f).reshape(2, 2)
            log_q = parameters[0].log_softmax(-1)[torch.arange(2), items].sum()
            log_q = (
                log_q
                + dist.Bernoulli(logits=parameters[1][torch.arange(2), items].unsqueeze(-1))
                .log_prob(flag.double())
                .sum()
            )
            log_p = -2 * math.log(3) + dist.Bernoulli(0.3).log_prob(flag.float()).double().sum()
            terms.append((log_q, log_p + dist.Normal(means[items.unsqueeze(-1), flag], 0.7).log_prob(x).sum() - log_q))
    log_q, log_w = map(torch.stack, zip(*terms, strict=True))
    if isinstance(objective, VIMCO):
        pairs = torch.stack([log_w.unsqueeze(0).expand(144, 144), log_w.unsqueeze(1).expand(144, 144)]).logsumexp(0)
        exact = ((log_q.unsqueeze(0) + log_q.unsqueeze(1)).exp() * (pairs - math.log(2))).sum()
    else:
        exact = (log_q.exp() * log_w).sum()
    wanted = torch.cat([t.reshape(-1) for t in torch.autograd.grad(-exact, parameters)])
    rows = []
    for _ in range(30):
        loss = objective.differentiable_loss(model, guide) / copies
        rows.append(torch.cat([t.reshape(-1) for t in torch.autograd.grad(loss, parameters)]))
    rows = torch.stack(rows)
    se = rows.std(0) / math.sqrt(len(rows))
    assert ((rows.mean(0) - wanted).abs() < 5 * se + 1e-9).all()
    assert se.max() < 0.05 * wanted.abs().max()


def test_particles_one_by_one_score_items_alike():
    together, apart = (VIMCO(2, max_plate_nesting=2, vectorize_particles=v) for v in (True, False))
    one, other = nested_gradients(together, calls=40), nested_gradients(apart, calls=40)
    se = (one.var(0) / 40 + other.var(0) / 40).sqrt()
    assert ((one.mean(0) - other.mean(0)).abs() < 5 * se + 1e-9).all()


def test_a_share_that_has_no_mass_gives_no_nan():
    log_weight = torch.tensor([[0.0], [-math.inf]])
    part = torch.tensor([[[0.0]], [[-math.inf]]])
    out = leave_one_out_bound(log_weight, "arithmetic", part=part)
    assert not out.isnan().any()
    whole = torch.randn(4, 3, dtype=torch.float64)
    for baseline in ("geometric", "arithmetic"):
        same = leave_one_out_bound(whole, baseline, part=whole.unsqueeze(-1)).squeeze(-1)
        assert_close(same, leave_one_out_bound(whole, baseline))
