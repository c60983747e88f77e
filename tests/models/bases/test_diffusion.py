"""The diffusion base."""

import copy

import pyro
import pyro.distributions as dist
import pytest
import torch
from base_pairs import SHAPE, at, diffusion, exact, posterior
from conftest import ink, sharpen
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from torch.nn.functional import logsigmoid, softplus
from torch.testing import assert_close

from pyro_memory import VIMCO, Context, importance_bound
from pyro_memory.distributions import CosineSchedule
from pyro_memory.guides import DiffusionBaseGuide
from pyro_memory.inference import Particles, weigh
from pyro_memory.models import DiffusionBase


@pytest.fixture
def schedule():
    return exact(CosineSchedule(6, 0.5))


def log_weights(model, guide, x, draws):
    """Log weights of the exact bound, ``[draws, batch]``."""
    model.eval(), guide.eval()
    with torch.no_grad():
        (traces,) = Particles(draws, vectorize_particles=True, max_plate_nesting=1).traces(model, guide, (x,), {})
    return weigh(*traces).log_weight


class Independent(torch.nn.Module):
    """A denoiser of pixels that are ink with probability ``p`` each, independently: the exact one."""

    def __init__(self, p):
        super().__init__()
        self.logits = torch.nn.Parameter(torch.as_tensor(p).logit())

    def forward(self, z, content=()):
        return self.logits.expand(z.shape[:-1] + self.logits.shape)


def independent(p, steps=4):
    model, guide = diffusion(tuple(p.shape), steps=steps, first=0.7)
    guide = DiffusionBaseGuide(steps, first=0.7)
    model.decoder = Independent(p)
    return model, guide


def test_the_log_odds_of_ink_are_bayes_rule_for_independent_pixels():
    p = torch.tensor([[[0.2, 0.7]]])
    model, _ = independent(p)
    xt, t = torch.randn(5, 1, 1, 2), at(2, 5)
    ones = torch.ones_like(xt)
    odds = p.logit() + model.schedule.marginal(ones, t).log_prob(xt) - model.schedule.marginal(-ones, t).log_prob(xt)
    assert_close(model.ink_logits(xt, t, Context()), odds)


def test_with_the_exact_denoiser_every_path_gives_the_exact_probability():
    p = torch.tensor([[[0.2, 0.7]]])
    model, guide = independent(p, steps=3)
    x = torch.tensor([[0.0, 1.0], [1.0, 1.0], [1.0, 0.0]]).reshape(3, 1, 1, 2)
    truth = dist.Bernoulli(p).log_prob(x).sum((-3, -2, -1))
    log_w = log_weights(model, guide, x, 200)
    assert (log_w - truth).abs().max() < 0.15  # of the prior of x_T, which is a little off q's
    assert (log_w.mean(0) - truth).abs().max() < 0.01


def one_pixel():
    model, guide = diffusion((1, 1, 1), steps=2, first=0.7)[0], DiffusionBaseGuide(2, first=0.7)
    return sharpen(model, 2.0), guide


def integral(model, x):
    """p(x) of the two-step model of one pixel, on a grid."""
    grid = torch.linspace(-7, 7, 701)
    cell = grid[1] - grid[0]
    pixel = grid.reshape(-1, 1, 1, 1)
    with torch.no_grad():
        p2 = dist.Normal(0.0, 1.0).log_prob(grid).exp()
        step = model.step_dist(pixel.unsqueeze(1), at(2, 701, 1), Context())  # a row for each x_2
        p1 = (p2 @ step.log_prob(pixel.expand(701, 701, 1, 1, 1)).exp()) * cell
        px = model.x_dist(pixel, Context()).log_prob(x.expand(701, 1, 1, 1)).exp()
    return (p1 * px).sum() * cell


def test_weights_average_to_the_probability_of_the_image():
    model, guide = one_pixel()
    x = torch.tensor([0.0, 1.0]).reshape(2, 1, 1, 1)
    truth = torch.stack([integral(model, one) for one in x])
    assert_close(truth.sum(), torch.tensor(1.0), atol=1e-4, rtol=0)
    assert (truth - 0.5).abs().max() > 0.05
    w = log_weights(model, guide, x, 20000).exp()
    assert ((w.mean(0) - truth) / (w.std(0) / 20000**0.5)).abs().max() < 5
    assert (w.std(0) / w.mean(0)).max() < 1  # else the standard error says little


def test_samples_have_the_model_s_probability():
    model, _ = one_pixel()
    truth = integral(model, torch.ones(1, 1, 1, 1)).item()
    means = model.generate(Context(), (20000,))
    assert abs(means.mean().item() - truth) < 5 * means.std().item() / 20000**0.5


@pytest.mark.parametrize("predicts", ["ink", "v", "epsilon"])
def test_a_random_step_has_the_path_s_mean_and_gradient(predicts):
    model, guide = diffusion((1, 3, 3), steps=4, predicts=predicts)
    sharpen(model, 1.2)
    x = ink(3, 1, 3, 3)
    exact = log_weights(model, guide, x, 8000)
    exact, exact_se = exact.mean(0), exact.std(0) / 8000**0.5
    model.train()
    rows = torch.stack([model.noisy_bound(x.expand(200, 3, 1, 3, 3), Context()).mean(0) for _ in range(60)]).detach()
    se = (rows.std(0).square() / 60 + exact_se.square()).sqrt()
    assert ((rows.mean(0) - exact) / se).abs().max() < 5
    assert (se / exact.abs()).max() < 0.05

    weight = model.decoder.out.weight

    def slope(loss):
        return torch.autograd.grad(loss, weight)[0]

    def path_slope():
        model.eval(), guide.eval()
        loss = Trace_ELBO(num_particles=200, vectorize_particles=True, max_plate_nesting=1).differentiable_loss
        return -slope(loss(model, guide, x))

    many = x.expand(200, 3, 1, 3, 3)
    noisy = torch.stack([slope(model.noisy_bound(many, Context()).mean(0).sum()) for _ in range(60)])
    path = torch.stack([path_slope() for _ in range(30)])
    se = (noisy.var(0) / 60 + path.var(0) / 30).sqrt()
    used = se > 0  # a filter's corner may see only padding
    assert ((noisy.mean(0) - path.mean(0)) / se)[used].abs().max() < 5
    assert (path.mean(0) / se)[used].abs().max() > 5


def test_a_random_step_s_times_are_uniform_and_spread_over_the_images():
    model, _ = diffusion(steps=5)
    seen = []
    model.ink_logits = lambda xt, t, context: seen.append(t) or torch.zeros_like(xt)
    for _ in range(300):
        model.noisy_bound(ink(10, *SHAPE), Context())
    t = torch.stack(seen)
    counts = torch.stack([(t == s).sum(1) for s in range(1, 6)], 1)
    assert ((counts >= 1) & (counts <= 3)).all()  # 10 images on 5 steps
    first = (t[:, 0].unsqueeze(1) == torch.arange(1, 6)).float().mean(0)
    assert ((first - 0.2) / (0.16 / 300) ** 0.5).abs().max() < 5


def test_v_epsilon_and_ink_say_the_same_of_one_image():
    x0, noise = (torch.rand(4, 1, 2, 2) * 1.8 - 0.9).double(), torch.randn(4, 1, 2, 2).double()
    t = torch.tensor([1, 2, 4, 5])
    models = {p: diffusion((1, 2, 2), predicts=p)[0].double() for p in ("ink", "v", "epsilon")}
    kept = models["v"].schedule.kept[t].reshape(4, 1, 1, 1)
    xt = kept.sqrt() * x0 + (1 - kept).sqrt() * noise
    out = {
        "v": kept.sqrt() * noise - (1 - kept).sqrt() * x0,
        "epsilon": noise,
        "ink": 2 * torch.atanh(x0) - 2 * kept.sqrt() * xt / (1 - kept),
    }
    for p, model in models.items():
        assert_close(torch.tanh(0.5 * model.as_ink(out[p], xt, t)), x0, rtol=1e-4, atol=1e-5)


def test_a_noisy_factor_is_refused_where_weights_are_averaged():
    model, guide = diffusion()
    x = ink(4, *SHAPE)
    for measure in (lambda: VIMCO(2).loss(model, guide, x), lambda: importance_bound(model, guide, x, particles=2)):
        with pytest.raises(ValueError, match="site `x` is marked as noisy"):
            measure()
    model.eval(), guide.eval()
    assert VIMCO(2).loss(model, guide, x) > 0
    assert importance_bound(model, guide, x, particles=2).mean < 0


def test_a_model_and_a_guide_in_different_modes_or_of_different_steps_are_refused():
    model, guide = diffusion()
    x = ink(4, *SHAPE)
    model.eval()
    with pytest.raises(ValueError, match="must sample every latent of the model; missing: path"):
        importance_bound(model, guide, x, particles=2, max_plate_nesting=1)
    model.train(), guide.eval()
    with pytest.raises(ValueError, match="`guide` samples what the model does not: path"):
        importance_bound(model, guide, x, particles=2, max_plate_nesting=1)
    model.eval()
    longer = poutine.trace(DiffusionBaseGuide(8).eval()).get_trace(x).nodes["path"]["value"]
    with pytest.raises(ValueError, match=r"a path must have the model's 5 steps; got 8\. Give `steps` to the guide"):
        model.path_dist(Context(), (4,)).log_prob(longer)


def test_the_exact_factor_trains_by_vimco():
    model, guide = (m.eval() for m in diffusion())
    before = copy.deepcopy(dict(model.named_parameters()))
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), VIMCO(2, max_plate_nesting=1))
    svi.step(ink(6, *SHAPE)), svi.step(ink(6, *SHAPE))
    assert not [n for n, p in model.named_parameters() if torch.equal(p, before[n])]


def test_ddim_at_eta_one_takes_the_ancestral_step_with_the_posterior_s_variance():
    model = sharpen(diffusion(steps=6)[0].double(), 1.5)
    xt = torch.randn(3, *SHAPE, dtype=torch.float64)
    for t in (2, 4, 6):
        step, ancestral = model.ddim_dist(xt, t, t - 1, 1.0, Context()), model.step_dist(xt, at(t, 3), Context())
        assert_close(step.mean, ancestral.mean, rtol=1e-4, atol=1e-5)  # the schedule's buffers are float32 at first
        assert_close(step.variance, model.schedule.posterior_variance[t].expand_as(xt), rtol=1e-4, atol=1e-6)


def test_ddim_s_deviation_is_in_proportion_to_eta():
    model, xt = diffusion(steps=6)[0], torch.randn(2, *SHAPE)
    half, whole = (model.ddim_dist(xt, 5, 2, eta, Context()).scale for eta in (0.5, 1.0))
    assert_close(half, 0.5 * whole)


def test_ddim_without_noise_follows_one_curve():
    model = sharpen(diffusion(steps=6)[0], 1.5)
    x0, noise = torch.ones(2, *SHAPE), torch.randn(2, *SHAPE)
    model.ink_logits = lambda xt, t, context: torch.full_like(xt, 60.0)
    kept = model.schedule.kept
    step = model.ddim_dist(kept[5].sqrt() * x0 + (1 - kept[5]).sqrt() * noise, 5, 2, 0.0, Context())
    assert_close(step.mean, kept[2].sqrt() * x0 + (1 - kept[2]).sqrt() * noise)
    assert (step.scale == 0).all()


@pytest.mark.parametrize(("steps", "eta"), [(1, 0.0), (2, 0.5), (4, 1.0)])
def test_ddim_draws_images(steps, eta):
    images = diffusion()[0].generate(Context(), (3,), ddim_steps=steps, eta=eta)
    assert images.shape == (3, *SHAPE)
    assert images.min() >= 0
    assert images.max() <= 1


def test_ddim_s_draws_have_the_distribution_of_ancestral_ones_where_the_denoiser_is_exact():
    p = torch.tensor([[[0.2, 0.7]]])
    model, _ = independent(p, steps=64)
    ancestral = model.generate(Context(), (4000,))
    ddim = model.generate(Context(), (4000,), ddim_steps=63)
    for images in (ancestral, ddim):
        assert (images.mean(0) - p).abs().max() < 0.03


def test_the_softplus_form_of_a_step_s_kl_is_that_of_its_distributions(schedule):
    """KL(q || p) of one pixel on a grid against the formula of ``noisy_bound``, by quadrature."""
    xt, t, logit = torch.tensor(0.3).double().reshape(1, 1, 1, 1), at(4, 1), 0.7
    grid = torch.linspace(-8, 8, 20001, dtype=torch.float64).reshape(-1, 1, 1, 1)
    for x0 in (-1.0, 1.0):
        q = posterior(schedule, torch.full_like(xt, x0), xt, t)
        p = schedule.reverse(torch.full_like(xt, logit), xt, t)
        log_q = q.log_prob(grid).flatten()
        kl = (log_q.exp() * (log_q - p.log_prob(grid))).sum() * (grid[1] - grid[0]).squeeze()
        e, gain = grid.flatten(), schedule.gain[4]
        density = dist.Normal(torch.zeros(()).double(), 1.0).log_prob(e).exp() * (e[1] - e[0])
        wrong = torch.tensor(-x0 * logit).double()
        after = (density * softplus(wrong - 2 * gain - 2 * gain.sqrt() * e)).sum()
        assert_close(kl, softplus(wrong) - after)
        assert_close(-logsigmoid(-wrong), softplus(wrong))  # at t = 1, where the gain is infinite


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DiffusionBase(SHAPE, predicts="x"), "`predicts` must be one of ink, v, epsilon; got 'x'"),
        (lambda: DiffusionBase(SHAPE, steps=1), "`steps` must be at least 2; got 1"),
        (lambda: diffusion()[0].generate(Context(), (2,), ddim_steps=5), "`ddim_steps` must be from 1 to 4"),
        (lambda: diffusion()[0].generate(Context(), (2,), ddim_steps=2, eta=2.0), r"`eta` must lie in \[0, 1\]"),
        (lambda: diffusion()[0](torch.full((2, *SHAPE), 0.5)), "`x` must be binary, 0 or 1"),
    ],
)
def test_bad_arguments_are_refused_with_the_remedy(make, message):
    with pytest.raises(ValueError, match=message):
        make()
