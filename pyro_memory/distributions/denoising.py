"""Gaussian diffusion of binary images in discrete time: the noise schedule, and paths of images as distributions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pyro.distributions as dist
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from pyro_memory.gate import check_least, check_places, checked


@checked
class CosineSchedule(nn.Module):
    r"""Says how much of an image is left after t of T steps of noise, and the distributions that follow from it.

    .. math::
        q(x_t | x_0) = N(\sqrt{\bar\alpha_t} x_0, 1 - \bar\alpha_t), \quad
        \bar\alpha_t = \cos^2\left(\theta_1 + \tfrac{t - 1}{T - 1} (\theta_T - \theta_1)\right)

    the cosine schedule, from a chosen first deviation ``sin(theta_1)`` to all but 1. Pixels that are -1 or 1 are told
    apart under a good deal of noise: smaller first steps than that would spend many steps, and nats that a denoiser of
    finite accuracy loses, on what ``p(x_0 | x_1)`` decides at once.

    Args:
        steps: T.
        first: the deviation of the noise in x_1.

    Attributes:
        kept: alpha-bar, ``[T + 1]``, from 1 at t = 0.
        beta: variances of single steps, ``[T + 1]``; the entry of t = 0 is unused.
        posterior_variance: of q(x_(t-1) | x_t, x_0), ``[T + 1]``; 0 at t = 1.
        gain: by how much the signal-to-noise ratio of x_(t-1) exceeds that of x_t, ``[T + 1]``; infinite at t = 1.

    Raises:
        ValueError: for T < 2 and a first deviation outside (0, 1).

    References: Improved Denoising Diffusion Probabilistic Models (Nichol & Dhariwal, 2021),
    https://arxiv.org/abs/2102.09672
    """

    def __init__(self, steps: int = 32, first: float = 0.4) -> None:
        super().__init__()
        if steps < 2:
            raise ValueError(f"`steps` must be at least 2; got {steps}")
        if not 0 < first < 0.99:
            raise ValueError(f"`first` must lie in (0, 0.99), the deviation of the noise in x_1; got {first}")
        self.steps = steps
        angles = torch.linspace(math.asin(first), math.acos(0.02), steps, dtype=torch.float64)
        kept = torch.cat([torch.ones(1, dtype=torch.float64), angles.cos().square()])
        before = torch.cat([kept[:1], kept[:-1]])
        beta = 1 - kept / before
        variance = torch.cat([torch.zeros(1, dtype=torch.float64), (beta * (1 - before))[1:] / (1 - kept[1:])])
        ratio = kept / (1 - kept)
        gain = torch.cat([torch.zeros(1, dtype=torch.float64), ratio[:-1] - ratio[1:]])
        for name, values in (("kept", kept), ("beta", beta), ("posterior_variance", variance), ("gain", gain)):
            self.register_buffer(name, values.to(torch.get_default_dtype()), persistent=False)

    def marginal(self, x0: Float[Tensor, "*lead channel height width"], t: Int[Tensor, "*batch"]) -> dist.Normal:
        """q(x_t | x_0)."""
        check_places("t", t, self.steps + 1, "the steps of the noise")
        kept = spread(self.kept[t])
        return dist.Normal(kept.sqrt() * x0, (1 - kept).sqrt())

    def posterior_mean(
        self,
        x0: Float[Tensor, "*lead channel height width"],
        xt: Float[Tensor, "*more channel height width"],
        t: Int[Tensor, "*batch"],
    ) -> Tensor:
        """Mean of q(x_(t-1) | x_t, x_0)."""
        check_places("t", t, self.steps + 1, "the steps of the noise")
        kept, before, beta = (spread(b) for b in (self.kept[t], self.kept[t - 1], self.beta[t]))
        return (before.sqrt() * beta * x0 + (1 - beta).sqrt() * (1 - before) * xt) / (1 - kept)

    def reverse(
        self,
        ink_logits: Float[Tensor, "*lead channel height width"],
        xt: Float[Tensor, "*more channel height width"],
        t: Int[Tensor, "*batch"],
    ) -> dist.Distribution:
        """p(x_(t-1) | x_t), t at least 2: the posteriors given ink and given paper, mixed pixel by pixel."""
        ends = torch.stack([torch.ones_like(xt), -torch.ones_like(xt)])
        means = self.posterior_mean(ends, xt, t).movedim(0, -1)
        deviation = spread(self.posterior_variance[t]).sqrt().unsqueeze(-1)
        which = dist.Categorical(logits=torch.stack([0.5 * ink_logits, -0.5 * ink_logits], -1), validate_args=False)
        parts = dist.Normal(means, deviation, validate_args=False)
        return dist.MixtureSameFamily(which, parts, validate_args=False).to_event(3)


@checked
def spread(t: Shaped[Tensor, "*batch"]) -> Tensor:
    """Lays one number an image out against its pixels."""
    return t.reshape(t.shape + (1, 1, 1))


@checked
class NoisingPath(dist.TorchDistribution):
    """``q(x_1 ... x_T | x_0)``: an image under more and more noise, ``[*batch, T, channel, height, width]``."""

    arg_constraints = {}  # noqa: RUF012
    support = dist.constraints.independent(dist.constraints.real, 4)
    has_rsample = True

    def __init__(self, x0: Float[Tensor, "*batch channel height width"], schedule: CosineSchedule) -> None:
        self.x0, self.schedule = x0, schedule
        super().__init__(x0.shape[:-3], torch.Size([schedule.steps, *x0.shape[-3:]]), validate_args=False)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> NoisingPath:
        return NoisingPath(self.x0.expand(torch.Size(batch_shape) + self.x0.shape[-3:]), self.schedule)

    def rsample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        x = self.x0.expand(torch.Size(sample_shape) + self.x0.shape)
        path = []
        for beta in self.schedule.beta[1:]:
            x = (1 - beta).sqrt() * x + beta.sqrt() * torch.randn_like(x)
            path.append(x)
        return torch.stack(path, -4)

    def log_prob(self, path: Float[Tensor, "*lead step channel height width"]) -> Tensor:
        before = torch.cat([self.x0.unsqueeze(-4).expand(path[..., :1, :, :, :].shape), path[..., :-1, :, :, :]], -4)
        beta = spread(self.schedule.beta[1:])
        return dist.Normal((1 - beta).sqrt() * before, beta.sqrt()).log_prob(path).sum((-4, -3, -2, -1))


@checked
class DenoisingPath(dist.TorchDistribution):
    """``p(x_T) prod_t p(x_(t-1) | x_t)`` for t = 2 ... T: a path drawn back from noise.

    Args:
        step: ``step(x_t, t)`` gives p(x_(t-1) | x_t) for images ``[*batch, ...]`` and one t each.
        schedule: of the noise.
        batch_shape, image_shape: of a path without its steps.
    """

    arg_constraints = {}  # noqa: RUF012
    support = dist.constraints.independent(dist.constraints.real, 4)

    def __init__(
        self, step: Callable[[Tensor, Tensor], dist.Distribution], schedule: CosineSchedule,
        batch_shape: Sequence[int], image_shape: Sequence[int],
    ) -> None:  # fmt: skip
        check_least(1, image_shape=image_shape)
        self.step, self.schedule = step, schedule
        super().__init__(torch.Size(batch_shape), torch.Size([schedule.steps, *image_shape]), validate_args=False)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> DenoisingPath:
        fitting = torch.empty(self.batch_shape, device="meta").expand(batch_shape).shape
        return DenoisingPath(self.step, self.schedule, fitting, self.event_shape[1:])

    def sample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        lead = torch.Size(sample_shape) + self.batch_shape
        kept = self.schedule.kept
        x = torch.randn(lead + self.event_shape[1:], device=kept.device, dtype=kept.dtype)
        path = [x]
        with torch.no_grad():
            for t in range(self.schedule.steps, 1, -1):
                x = self.step(x, torch.full(lead, t, device=x.device)).sample()
                path.insert(0, x)
        return torch.stack(path, -4)

    def log_prob(self, path: Float[Tensor, "*lead step channel height width"]) -> Tensor:
        """One pass of the denoiser a step, so that memory does not grow with T."""
        if path.shape[-4] != self.schedule.steps:
            raise ValueError(
                f"a path must have the model's {self.schedule.steps} steps; got {path.shape[-4]}. Give `steps` to the "
                "guide too"
            )
        total = dist.Normal(0.0, 1.0).log_prob(path[..., -1, :, :, :]).sum((-3, -2, -1))
        for t in range(self.schedule.steps, 1, -1):
            xt, before = path[..., t - 1, :, :, :], path[..., t - 2, :, :, :]
            total = total + self.step(xt, torch.full(xt.shape[:-3], t, device=xt.device)).log_prob(before)
        return total
