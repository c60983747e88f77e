"""The guide of the diffusion model: it adds noise."""

from __future__ import annotations

import pyro
from jaxtyping import Float
from torch import Tensor

from pyro_memory.distributions import CosineSchedule, NoisingPath
from pyro_memory.gate import checked
from pyro_memory.guides.bases.base import BaseGuide
from pyro_memory.nets import Context


@checked
class DiffusionBaseGuide(BaseGuide):
    """Draws the path ``q(x_1 ... x_T | x)`` in evaluation mode and nothing in training mode; it has no parameters.

    Args:
        steps, first: of the noise, as the model's.

    References: Denoising Diffusion Probabilistic Models (Ho et al., 2020), https://arxiv.org/abs/2006.11239
    """

    encodes = False

    def __init__(self, steps: int = 32, *, first: float = 0.4, name: str | None = None) -> None:
        super().__init__(name)
        self.schedule = CosineSchedule(steps, first)

    def infer(self, x: Float[Tensor, "*batch channel height width"], context: Context) -> None:
        if not self.training:
            pyro.sample("path", NoisingPath(2 * x - 1, self.schedule))
