"""Plates inside a datum: each cell is scored by its own share of the weight."""

import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from mixture import SLOTS
from torch.testing import assert_close

from pyro_memory import VIMCO, LeaveOneOutELBO
from pyro_memory.inference import leave_one_out_bound, weigh


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
    log_part = torch.tensor([[[0.0]], [[-math.inf]]])
    out = leave_one_out_bound(log_weight, "arithmetic", log_part=log_part)
    assert not out.isnan().any()
    whole = torch.randn(4, 3, dtype=torch.float64)
    for baseline in ("geometric", "arithmetic"):
        same = leave_one_out_bound(whole, baseline, log_part=whole.unsqueeze(-1)).squeeze(-1)
        assert_close(same, leave_one_out_bound(whole, baseline))
