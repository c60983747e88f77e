import json
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import ink
from pyro.infer.autoguide import AutoDelta, AutoDiagonalNormal, AutoNormal
from pyro.nn import PyroModule, PyroSample
from torch import nn
from torch.testing import assert_close

from pyro_memory import SlotMemory, information_gain, rate_distortion

N, SLOTS = 6, 4
X = torch.zeros(N)


def discrete_pair(q_logits, p_logits=None):
    p_logits = torch.zeros(SLOTS) if p_logits is None else p_logits

    def model():
        with pyro.plate("batch", N):
            a = pyro.sample("a", dist.Categorical(logits=p_logits))
            pyro.sample("x", dist.Normal(a.float(), 1.0), obs=X)

    def guide():
        with pyro.plate("batch", N):
            pyro.sample("a", dist.Categorical(logits=q_logits))

    return model, guide


def test_an_address_is_exact_and_splits_into_mutual_information_and_marginal_kl():
    q_logits = 2 * torch.randn(N, SLOTS)
    gain = information_gain(*discrete_pair(q_logits))
    q = q_logits.softmax(-1).double()
    exact = (q * (q.log() + math.log(SLOTS))).sum(-1)
    assert_close(gain["a"].kl.double(), exact, atol=1e-6, rtol=1e-5)
    assert gain["a"].draws_se == 0
    address, usage = gain.addresses["a"], q.mean(0)
    information = (q * (q.log() - usage.log())).sum(-1).mean().item()
    marginal = (usage * (usage.log() + math.log(SLOTS))).sum().item()
    assert address.mutual_information == pytest.approx(information, rel=1e-5)
    assert address.marginal_kl == pytest.approx(marginal, rel=1e-5)
    assert information + marginal == pytest.approx(gain["a"].mean, rel=1e-5)
    assert address.ceiling == pytest.approx(math.log(SLOTS))
    assert address.effective_slots == pytest.approx((-(q * q.log()).sum(-1)).exp().mean().item(), rel=1e-5)
    assert information < math.log(N)


def test_a_perfect_lookup_reaches_the_ceiling_and_dead_slots_are_found():
    gain = information_gain(*discrete_pair(torch.full((N, SLOTS), -200.0).index_fill(1, torch.tensor([1]), 200.0)))
    assert gain["a"].mean == pytest.approx(math.log(SLOTS))
    address = gain.addresses["a"]
    assert address.mutual_information == pytest.approx(0, abs=1e-6)
    assert address.dead.tolist() == [True, False, True, True]


def test_masked_slots_count_neither_for_the_ceiling_nor_as_dead():
    masked = torch.tensor([0.0, 0.0, -math.inf, -math.inf])
    gain = information_gain(*discrete_pair(masked.expand(N, SLOTS), masked))
    assert gain["a"].mean == pytest.approx(0, abs=1e-6)
    assert gain.addresses["a"].ceiling == pytest.approx(math.log(2))
    assert not gain.addresses["a"].dead.any()


def test_the_split_is_withheld_with_the_reason():
    gain = information_gain(*discrete_pair(torch.randn(N, SLOTS), torch.randn(N, SLOTS)))
    assert gain.addresses["a"].mutual_information is None
    assert "do not share one prior" in gain.addresses["a"].reason


def test_memories_per_datum_withhold_it_too(tiny_pair):
    memory = SlotMemory(ink(3, 5, 1, 6, 6), batch_dim=-1)
    gain = information_gain(*tiny_pair, ink(3, 1, 6, 6), memory)
    assert "memory of its own" in gain.addresses["a"].reason
    assert gain.addresses["a"].usage is None


def test_a_normal_given_its_ancestors_is_closed_form_and_agrees_with_monte_carlo(tiny_pair, shared_memory):
    x = ink(4, 1, 6, 6)
    gain = information_gain(*tiny_pair, x, shared_memory, draws=2000)
    assert gain["z"].method == "closed form"
    model, guide = tiny_pair
    a = guide.a_dist(x, shared_memory).sample((2000,))
    m = shared_memory[a]
    q, p = guide.z_dist(x, m), model.z_dist(model.content(m))
    z = q.sample()
    difference = q.log_prob(z) - p.log_prob(z)
    se = (difference.std(0) / math.sqrt(2000)).square().mean().sqrt()
    assert abs(gain["z"].mean - difference.mean()) < 5 * (se**2 + gain["z"].draws_se ** 2).sqrt()
    assert gain.joint.mean == pytest.approx(gain["a"].mean + gain["z"].mean, rel=1e-5)


def test_a_pair_without_closed_form_is_sampled_with_its_error():
    def model():
        with pyro.plate("batch", N):
            z = pyro.sample("z", dist.StudentT(3.0, 0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=X)

    def guide():
        with pyro.plate("batch", N):
            pyro.sample("z", dist.Normal(1.0, 0.5))

    gain = information_gain(model, guide, draws=20_000)
    grid = torch.linspace(-5, 7, 100_001)
    q, p = dist.Normal(1.0, 0.5), dist.StudentT(3.0, 0.0, 1.0)
    exact = torch.trapezoid(q.log_prob(grid).exp() * (q.log_prob(grid) - p.log_prob(grid)), grid)
    assert gain["z"].method == "Monte Carlo"
    assert 0 < gain["z"].draws_se < 0.01
    assert abs(gain["z"].mean - exact) < 5 * gain["z"].draws_se


def test_a_discrete_pair_without_closed_form_is_enumerated():
    def model():
        with pyro.plate("batch", N):
            k = pyro.sample("k", dist.Binomial(3, torch.tensor(0.5)))
            pyro.sample("x", dist.Normal(k, 1.0), obs=X)

    def guide():
        with pyro.plate("batch", N):
            pyro.sample("k", dist.BetaBinomial(2.0, 1.0, 3))

    q = dist.BetaBinomial(2.0, 1.0, 3).log_prob(torch.arange(4.0))
    p = dist.Binomial(3, torch.tensor(0.5)).log_prob(torch.arange(4.0))
    gain = information_gain(model, guide)
    assert gain["k"].method == "enumerated"
    assert_close(gain["k"].kl, (q.exp() * (q - p)).sum().expand(N))


def test_a_global_latent_is_reported_per_data_set():
    def model():
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("batch", N):
            z = pyro.sample("z", dist.Normal(w, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=X)

    def guide():
        pyro.sample("w", dist.Normal(1.0, 1.0))
        with pyro.plate("batch", N):
            pyro.sample("z", dist.Normal(0.5, 1.0))

    gain = information_gain(model, guide)
    assert gain["w"].unit == "data set"
    assert_close(gain["w"].kl, torch.tensor([0.5]))
    assert gain["z"].unit == "datum"
    assert gain["z"].kl.shape == (N,)
    assert gain.joint.unit == "data set"


def reversed_pair(dependent):
    """The model draws u before v, the guide v before u."""

    def model():
        with pyro.plate("batch", N):
            u = pyro.sample("u", dist.Normal(0.0, 1.0))
            v = pyro.sample("v", dist.Normal(u if dependent else 0.0, 1.0))
            pyro.sample("x", dist.Normal(u + v, 1.0), obs=X)

    def guide():
        with pyro.plate("batch", N):
            v = pyro.sample("v", dist.Normal(0.3, 1.0))
            pyro.sample("u", dist.Normal(0.5 * v, 0.7))

    return model, guide


def test_a_site_whose_parent_comes_later_has_no_kl_of_its_own():
    gain = information_gain(*reversed_pair(dependent=True), draws=20_000)
    assert gain["v"].kl is None
    assert gain["u"].kl is not None
    assert any("site v has no KL" in note for note in gain.notes)
    # v = .3 + e, u = .5 v + .7 d: E log q(v)q(u|v) - E log p(u)p(v|u)
    mean_u, var_u = 0.15, 0.25 + 0.49
    mean_d, var_d = 0.15, 0.25 + 0.49  # of v - u
    entropy = -(1 + math.log(2 * math.pi)) - math.log(0.7)
    exact = entropy + math.log(2 * math.pi) + 0.5 * (mean_u**2 + var_u + mean_d**2 + var_d)
    assert abs(gain.joint.mean - exact) < 5 * gain.joint.draws_se
    assert "joint only" in repr(gain)


def test_the_order_does_not_matter_where_nothing_depends():
    gain = information_gain(*reversed_pair(dependent=False))
    assert gain["v"].mean == pytest.approx(0.3**2 / 2, rel=1e-5)
    assert not gain.notes


def test_plates_inside_a_datum_are_summed():
    def model():
        with pyro.plate("batch", N, dim=-1):
            with pyro.plate("part", 3, dim=-2):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z.sum(-2, keepdim=True), 1.0), obs=torch.zeros(1, N))

    def guide():
        with pyro.plate("batch", N, dim=-1), pyro.plate("part", 3, dim=-2):
            pyro.sample("z", dist.Normal(2.0, 1.0))

    gain = information_gain(model, guide)
    assert_close(gain["z"].kl, torch.full((N,), 6.0))


def test_the_record_prints_exports_and_plots(tiny_pair, shared_memory):
    gain = information_gain(*tiny_pair, ink(4, 1, 6, 6), shared_memory)
    text = repr(gain)
    for part in ("InformationGain of 4 data", "closed form", "address a: 5 slots, ceiling 1.609", "log N"):
        assert part in text
    assert json.loads(json.dumps(gain.to_dict()))["sites"]["a"]["mean"] == pytest.approx(gain["a"].mean)
    ax = gain.plot()
    assert len(ax.patches) == 2
    ax.figure.clear()


def test_a_figure_writes_each_number_beside_what_it_is_of(tiny_pair, shared_memory):
    gain = information_gain(*tiny_pair, ink(4, 1, 6, 6), shared_memory)
    ax = gain.plot()
    for bar, label, name in zip(ax.patches, ax.get_yticklabels(), gain.sites, strict=True):
        assert bar.get_width() == pytest.approx(gain[name].mean)
        assert bar.get_y() < label.get_position()[1] < bar.get_y() + bar.get_height()
        assert label.get_text() == f"{name}\n{gain[name].mean:.2f} nats/datum"
    (ceiling,) = ax.texts
    assert ceiling.get_text().strip() == "ceiling 1.61"
    assert ceiling.xy[0] == gain.addresses["a"].ceiling
    assert set(ax.lines[-1].get_xdata()) == {gain.addresses["a"].ceiling}
    ax.figure.clear()


def test_bad_arguments_are_refused():
    model, guide = discrete_pair(torch.zeros(N, SLOTS))
    with pytest.raises(ValueError, match="`draws` must be at least 1"):
        information_gain(model, guide, draws=0)
    with pytest.raises(ValueError, match="missing: a"):
        information_gain(model, lambda: None)


class Global(PyroModule):
    """A real and a positive latent outside the plate."""

    def forward(self, x):
        w = pyro.sample("w", dist.Normal(torch.zeros(2), 2.0).to_event(1))
        s = pyro.sample("s", dist.LogNormal(torch.zeros(()), 1.0))
        with pyro.plate("batch", len(x)):
            pyro.sample("x", dist.Normal(w.sum(-1, keepdim=True), s[..., None]), obs=x)


def test_an_automatic_guide_s_latents_have_the_information_of_what_they_are_made_from():
    model = Global()
    guide = AutoNormal(model, init_scale=0.3)
    guide(X)
    gain = information_gain(model, guide, X, draws=4000)
    q = {name: dist.Normal(getattr(guide.locs, name).detach(), getattr(guide.scales, name).detach()) for name in "ws"}
    exact = torch.distributions.kl_divergence(q["w"], dist.Normal(torch.zeros(2), 2.0)).sum()
    assert gain["w"].method == "closed form"
    assert_close(gain["w"].kl, exact.reshape(1))
    exact = torch.distributions.kl_divergence(q["s"], dist.Normal(torch.zeros(()), 1.0)).item()
    assert gain["s"].method == "Monte Carlo"
    assert abs(gain["s"].mean - exact) < 5 * gain["s"].draws_se


@pytest.mark.parametrize("guide", [AutoDelta, AutoDiagonalNormal])
def test_a_guide_without_a_density_for_each_latent_is_refused(guide):
    model = Global()
    with pytest.raises(ValueError, match=r"a density; w is a point there, or drawn together .* Use AutoNormal"):
        information_gain(model, guide(model), X)


def test_a_prior_that_underflows_does_not_make_the_gain_infinite():
    """Both addresses are all but certain: log p is -200 where q has e^-90."""

    def program(other):
        with pyro.plate("batch", 2):
            pyro.sample("a", dist.Categorical(logits=torch.tensor([0.0, other])))

    gain = information_gain(lambda: program(-200.0), lambda: program(-90.0), max_plate_nesting=1)
    assert_close(gain["a"].kl, torch.zeros(2), atol=1e-30, rtol=0)
    gain = information_gain(lambda: program(-200.0), lambda: program(0.0), max_plate_nesting=1)
    assert_close(gain["a"].kl, torch.full((2,), 0.5 * 200 - torch.tensor(2.0).log().item()))
    gain = information_gain(lambda: program(-float("inf")), lambda: program(0.0), max_plate_nesting=1)
    assert gain["a"].kl.isinf().all()


def test_global_weights_of_a_linear_layer_are_measured_draw_by_draw():
    """A layer takes weights of two dimensions: all draws at once would put theirs in front."""
    layer = PyroModule[nn.Linear](3, 1)
    layer.weight = PyroSample(dist.Normal(torch.zeros(1, 3), 1.0).to_event(2))
    x, y = torch.randn(20, 3), torch.randn(20)

    def program():
        mean = layer(x).squeeze(-1)
        with pyro.plate("batch", 20):
            pyro.sample("y", dist.Normal(mean, 0.5), obs=y)

    guide = AutoNormal(program)
    guide()
    gain = information_gain(program, guide, draws=4)
    posterior = dist.Normal(guide.locs.weight, guide.scales.weight)
    exact = torch.distributions.kl_divergence(posterior, dist.Normal(torch.zeros(1, 3), 1.0)).sum()
    assert gain["weight"].unit == "data set"
    assert gain.draws == 4
    assert gain["weight"].mean == pytest.approx(exact.item(), rel=1e-4)
    parts = rate_distortion(program, guide, draws=4)
    assert parts.rate.mean == pytest.approx(exact.item(), rel=1e-4)
    assert len(parts.rates) == 4
