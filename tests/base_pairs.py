"""Small pairs of the base generative models, and a noise schedule in double precision."""

import pyro.distributions as dist
import torch

from pyro_memory.distributions import CosineSchedule, spread
from pyro_memory.guides import AutoregressiveBaseGuide, DiffusionBaseGuide, HierarchicalBaseGuide, VAEBaseGuide
from pyro_memory.models import AutoregressiveBase, DiffusionBase, HierarchicalBase, VAEBase

SHAPE = (1, 9, 7)  # odd sizes, so that up- and down-sampling must agree
CODE = 3


def vae(shape=SHAPE, **options):
    sizes = {"latent_dim": 3, "channels": (4, 5)}
    given = {"code_dim": options.get("code_dim", 0)}
    return VAEBase(shape, **sizes, **options), VAEBaseGuide(shape, **sizes, **given)


def hierarchical(shape=SHAPE, **options):
    sizes = {"latent_dims": (4, 3, 2), "channels": (4, 5), "hidden": 8}
    given = {"code_dim": options.get("code_dim", 0)}
    return HierarchicalBase(shape, **sizes, **options), HierarchicalBaseGuide(shape, **sizes, **given)


def diffusion(shape=SHAPE, steps=5, **options):
    return DiffusionBase(shape, steps=steps, channels=(4, 5), **options), DiffusionBaseGuide(steps)


def autoregressive(shape=SHAPE, **options):
    options = {"maps": 4, "layers": (1, 2), "looks": 1} | options
    return AutoregressiveBase(shape, **options), AutoregressiveBaseGuide()


def exact(schedule):
    """The same schedule with buffers of float64, not float32 made longer."""
    torch.set_default_dtype(torch.float64)
    try:
        return CosineSchedule(schedule.steps, (1 - schedule.kept[1]).sqrt().item())
    finally:
        torch.set_default_dtype(torch.float32)


def at(t, *shape):
    return torch.full(shape, t)


def posterior(schedule, x0, xt, t):
    return dist.Normal(schedule.posterior_mean(x0, xt, t), spread(schedule.posterior_variance[t]).sqrt())
