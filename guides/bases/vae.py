"""The guide of the base with one latent code."""

from __future__ import annotations

from collections.abc import Sequence

import pyro
import pyro.distributions as dist
from jaxtyping import Float
from torch import Tensor

from pyro_memory.gate import checked
from pyro_memory.guides.bases.base import BaseGuide
from pyro_memory.nets import Context, GaussianHead, ImagePyramid, with_code


@checked
class VAEBaseGuide(BaseGuide):
    """Encodes an image beside its context: ``q(z | x, c)``.

    Args:
        shape, latent_dim, code_dim, channels: as the model's.
    """

    def __init__(
        self, shape: Sequence[int], *, latent_dim: int = 32, code_dim: int = 0,
        channels: Sequence[int] = (16, 24, 32), name: str | None = None,
    ) -> None:  # fmt: skip
        super().__init__(name)
        self.features = ImagePyramid(shape, channels)
        self.head = GaussianHead(self.features.out_features + code_dim, latent_dim)

    def z_dist(self, x: Float[Tensor, "*batch channel height width"], context: Context) -> dist.Distribution:
        """q(z | x, c); images are encoded once, whatever the number of particles of c."""
        return self.head(with_code(self.features(x)[-1].flatten(-3), context))

    def infer(self, x: Float[Tensor, "*batch channel height width"], context: Context) -> None:
        pyro.sample("z", self.z_dist(x, context))
