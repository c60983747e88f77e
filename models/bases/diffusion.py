"""A diffusion model as a base model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import softplus

from pyro_memory.distributions import CosineSchedule, DenoisingPath, spread
from pyro_memory.gate import check_places, checked
from pyro_memory.models.bases.base import BaseModel, content_network
from pyro_memory.nets import Context, ConvDecoder, Features, SkipPyramid, broadcast_cat, out_of_autocast, with_code

TIME_DIM = 32
PREDICTS = ("ink", "v", "epsilon")


@checked
class DiffusionBase(BaseModel):
    r"""Draws a binary image by taking noise away step by step, each step beside the context.

    .. code-block:: text

        path = x_1 ... x_T ~ N(x_T; 0, 1) prod_{t=2}^T p(x_(t-1) | x_t, c, m)
        x                  ~ Bernoulli(x; f(x_1, 1, c, m))

    ``f`` is the denoiser's probability of ink for each pixel. A step guesses a pixel and then goes where noise would
    have come from: ``p(x_(t-1) | x_t) = sum_{x_0 = -1, 1} f(x_0 | x_t) q(x_(t-1) | x_t, x_0)``, of two Gaussians.
    For independent pixels and a perfect ``f`` it is exact whatever T is, which no single Gaussian is.

    The mode of model and guide says which bound they give:

    - ``eval()``: ``path`` is a latent site, which the guide draws by adding noise. Weights are unbiased estimates of
      ``p(x | c, m)``, and the nats compare with any other model's.
    - ``train()``: a random step of each image, times T, stands in for the whole path. The mean is the same bound; site
      ``x`` is a factor marked as noisy, which serves objectives that are linear in log weights: ``Trace_ELBO``, and
      beside discrete latents ``LeaveOneOutELBO``. ``VIMCO`` and ``importance_bound`` refuse it, since the logarithm of
      a mean of noisy weights is no bound. Call ``eval()`` on both before measuring; ``fit`` does so for its own
      measurements.

    Args:
        shape: channels, height, width of binary images.
        steps: T.
        predicts: what the network gives: ``"ink"``, the log-odds of ink beside those that a pixel of x_t alone gives,
            ``2 sqrt(alpha-bar) x_t / (1 - alpha-bar)``; ``"v"``, ``sqrt(alpha-bar) epsilon - sqrt(1 - alpha-bar) x_0``;
            or ``"epsilon"``, the noise.
        code_dim: dimensions of c; 0 for the model without memory.
        channels: maps of the denoiser, a U-Net.
        reads: whether the denoiser sees the image read from memory, at each resolution; by default where there is a c.
        first: the deviation of the noise in x_1; see ``CosineSchedule``.

    Cost: one pass of the denoiser an image in training, T in evaluation and to draw (fewer by ``ddim_steps``).

    Raises:
        ValueError: for images that are not binary, an unknown ``predicts``, and a schedule that there is not.

    References: Denoising Diffusion Probabilistic Models (Ho et al., 2020), https://arxiv.org/abs/2006.11239;
    Progressive Distillation (v; Salimans & Ho, 2022), https://arxiv.org/abs/2202.00512; Structured Denoising Diffusion
    Models (steps that guess x_0; Austin et al., 2021), https://arxiv.org/abs/2107.03006
    """

    support = (0.0, 1.0)

    def __init__(
        self, shape: Sequence[int], *, steps: int = 32, predicts: str = "ink", code_dim: int = 0,
        channels: Sequence[int] = (16, 24, 32), reads: bool | None = None, first: float = 0.4, name: str | None = None,
    ) -> None:  # fmt: skip
        super().__init__(name)
        if predicts not in PREDICTS:
            raise ValueError(f"`predicts` must be one of {', '.join(PREDICTS)}; got {predicts!r}")
        self.shape, self.predicts = tuple(shape), predicts
        self.schedule = CosineSchedule(steps, first)
        self.code_dim = code_dim
        self.content = content_network(shape, channels, reads, code_dim)
        self.encoder = SkipPyramid((shape[0] + 1, *shape[1:]), channels)  # the image, and how noisy it is
        self.decoder = ConvDecoder(shape, TIME_DIM + code_dim, channels)

    @property
    def likelihood(self) -> DiffusionBase:
        """What says which pixels can be explained: this model."""
        return self

    def ink_logits(
        self, xt: Float[Tensor, "*lead channel height width"], t: Int[Tensor, "*batch"], context: Context
    ) -> Tensor:
        """Log-odds of ink, pixel by pixel, given x_t and the context."""
        check_places("t", t, self.schedule.steps + 1, "the steps of the noise")
        level = spread((1 - self.schedule.kept[t]).sqrt())
        features = self.encoder(broadcast_cat([xt, level], -3))
        z = with_code(_time_embedding((t / self.schedule.steps).to(level)), context)
        return self.as_ink(out_of_autocast(self.decoder(z, _beside(features, context))), xt, t)

    def as_ink(
        self,
        out: Float[Tensor, "*one channel height width"],
        xt: Float[Tensor, "*lead channel height width"],
        t: Int[Tensor, "*batch"],
    ) -> Tensor:
        """Log-odds of ink from what the network predicts."""
        check_places("t", t, self.schedule.steps + 1, "the steps of the noise")
        kept = spread(self.schedule.kept[t])
        if self.predicts == "ink":
            return out + 2 * kept.sqrt() * xt / (1 - kept)
        if self.predicts == "v":
            guess = kept.sqrt() * xt - (1 - kept).sqrt() * out
        else:
            guess = (xt - (1 - kept).sqrt() * out) / kept.sqrt()
        return 2 * torch.atanh(guess.clamp(-0.999, 0.999))

    def step_dist(
        self, xt: Float[Tensor, "*lead channel height width"], t: Int[Tensor, "*batch"], context: Context
    ) -> dist.Distribution:
        """p(x_(t-1) | x_t, c, m), t at least 2."""
        return self.schedule.reverse(self.ink_logits(xt, t, context), xt, t)

    def path_dist(self, context: Context, shape: Sequence[int] = ()) -> DenoisingPath:
        """p(x_1 ... x_T | c, m)."""
        lead = _batch_shape(context, shape)
        return DenoisingPath(lambda xt, t: self.step_dist(xt, t, context), self.schedule, lead, self.shape)

    def x_dist(self, x1: Float[Tensor, "*batch channel height width"], context: Context) -> dist.Distribution:
        """p(x | x_1, c, m)."""
        first = torch.ones(x1.shape[:-3], dtype=torch.long, device=x1.device)
        return dist.Bernoulli(logits=self.ink_logits(x1, first, context), validate_args=False).to_event(3)

    def explain(self, x: Float[Tensor, "*batch channel height width"] | None, context: Context) -> None:
        if x is not None and not ((x == 0) | (x == 1)).all():
            raise ValueError("`x` must be binary, 0 or 1, for a diffusion model; got other values. Threshold it")
        if self.training and x is not None:
            factor = dist.Unit(self.noisy_bound(x, context))
            pyro.sample("x", factor, obs=factor.sample(), infer={"is_auxiliary": True, "noisy": True})
            return
        path = pyro.sample("path", self.path_dist(context, () if x is None else x.shape[:-3]))
        pyro.sample("x", self.x_dist(path[..., 0, :, :, :], context), obs=x)

    def noisy_bound(self, x: Float[Tensor, "*batch channel height width"], context: Context) -> Float[Tensor, "*lead"]:
        r"""An unbiased estimate of ``E log p(path, x) / q(path | x)`` from one step of each image.

        The step's KL is, pixel by pixel, what x_(t-1) tells the denoiser about x_0: with l the log-odds of the wrong
        colour and ``gain = snr(t-1) - snr(t)``,

        .. math::
            KL = softplus(l) - E_{e \sim N(0, 1)} softplus(l - 2 gain - 2 \sqrt{gain} e)

        taken at e and -e; at t = 1, where the gain is infinite, it is ``-log p(x_0 | x_1)``. All t are equally likely.
        """
        own, shape = x.shape[:-3], _batch_shape(context, x.shape[:-3])
        x0, steps = 2 * x - 1, self.schedule.steps
        # Spread evenly over the images and shuffled, each t is still uniform, and the sum over images less noisy. What
        # is drawn here is the same for all particles of a context: their differences do not suffer from it.
        ranks = torch.randperm(math.prod(own), device=x.device).reshape(own)
        t = 1 + ((ranks + torch.rand((), device=x.device)) / ranks.numel() * steps).long().clamp(max=steps - 1)
        xt = self.schedule.marginal(x0, t).sample()
        noise = torch.randn_like(xt)
        x0, xt, noise = (value.expand(shape + x.shape[-3:]) for value in (x0, xt, noise))
        t = t.expand(shape)
        wrong = -x0 * self.ink_logits(xt, t, context)
        gain = spread(self.schedule.gain[t].clamp(max=1e4))  # enough for softplus to vanish, and finite
        noise = 2 * gain.sqrt() * noise
        left = 0.5 * (softplus(wrong - 2 * gain - noise) + softplus(wrong - 2 * gain + noise))
        last = self.schedule.marginal(x0, torch.full(shape, steps, device=x.device))
        prior = torch.distributions.kl_divergence(last, dist.Normal(torch.zeros_like(x0), 1.0))
        return (steps * (left - softplus(wrong)) - prior).sum((-3, -2, -1))

    @torch.no_grad()
    def generate(
        self, context: Context, shape: Sequence[int] = (), *, ddim_steps: int | None = None, eta: float = 0.0
    ) -> Float[Tensor, "*batch channel height width"]:
        """Draws images: step by step, or in ``ddim_steps`` larger steps of DDIM, noise scaled by ``eta``.

        References: Denoising Diffusion Implicit Models (Song et al., 2021), https://arxiv.org/abs/2010.02502
        """
        path = self.path_dist(context, shape)
        if ddim_steps is None:
            return self.x_dist(path.sample()[..., 0, :, :, :], context).mean
        if not 1 <= ddim_steps < self.schedule.steps:
            raise ValueError(f"`ddim_steps` must be from 1 to {self.schedule.steps - 1}, T - 1; got {ddim_steps}")
        if not 0 <= eta <= 1:
            raise ValueError(f"`eta` must lie in [0, 1], from no noise to the posterior's; got {eta}")
        times = torch.linspace(1, self.schedule.steps, ddim_steps + 1, device="cpu").round().long().flip(0).tolist()
        kept = self.schedule.kept
        x = torch.randn(path.batch_shape + self.shape, device=kept.device, dtype=kept.dtype)
        for t, after in pairwise(times):
            x = self.ddim_dist(x, t, after, eta, context).sample()
        return self.x_dist(x, context).mean

    def ddim_dist(
        self, xt: Float[Tensor, "*lead channel height width"], t: int, after: int, eta: float, context: Context
    ) -> dist.Normal:
        """A step of DDIM from t to ``after``; at eta = 1 it has the variance of q(x_after | x_t, x_0)."""
        if not 0 <= after < t <= self.schedule.steps:
            raise ValueError(
                f"`after` must be from 0 to below `t`, and `t` at most {self.schedule.steps}; got {after} and {t}"
            )
        kept, then = self.schedule.kept[t], self.schedule.kept[after]
        guess = torch.tanh(0.5 * self.ink_logits(xt, torch.full(xt.shape[:-3], t, device=xt.device), context))
        noise = (xt - kept.sqrt() * guess) / (1 - kept).sqrt()
        variance = eta**2 * (1 - then) / (1 - kept) * (1 - kept / then)
        mean = then.sqrt() * guess + (1 - then - variance).clamp(min=0).sqrt() * noise
        return dist.Normal(mean, variance.sqrt(), validate_args=False)


def _batch_shape(context: Context, shape: Sequence[int]) -> torch.Size:
    code = () if context.code is None else context.code.shape[:-1]
    return torch.broadcast_shapes(tuple(shape), code, *(f.shape[:-3] for f in context.content))


def _time_embedding(t: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch dim"]:
    rates = torch.exp(torch.linspace(0, math.log(200.0), TIME_DIM // 2, device=t.device).to(t))
    angles = t.unsqueeze(-1) * rates
    return torch.cat([angles.sin(), angles.cos()], -1)


def _beside(features: Features, context: Context) -> Features:
    """What the noisy image adds to the decoder, and what was read from memory."""
    if not context.content:
        return features
    return tuple(own + read for own, read in zip(features, context.content, strict=True))
