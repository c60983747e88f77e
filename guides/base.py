"""What the guides of base generative models have in common, and that of the VAE."""

from __future__ import annotations

from collections.abc import Sequence

import pyro
import pyro.distributions as dist
from jaxtyping import Float
from pyro.nn import PyroModule
from torch import Tensor

from pyro_memory.checks import check_images
from pyro_memory.context import Context, with_code
from pyro_memory.naming import unique_name
from pyro_memory.nets import GaussianHead, ImagePyramid
from pyro_memory.slots import SlotMemory


class BaseGuide(PyroModule):
    """Infers a base model's own latents; a memory model's guide calls it inside its plates.

    Built with ``code_dim=0`` it is the guide of the model without memory.

    Attributes:
        encodes: whether it looks at the context.
    """

    encodes = True

    def __init__(self, name: str | None = None) -> None:
        super().__init__(name or unique_name(self))

    def infer(self, x: Float[Tensor, "*batch channel height width"], context: Context) -> None:
        """Samples the base model's latents within the caller's plates."""
        raise NotImplementedError(f"{type(self).__name__} must define `infer`")

    def forward(self, x: Float[Tensor, "batch channel height width"], memory: SlotMemory | None = None) -> None:
        check_images(x)
        with pyro.plate("batch", len(x)):
            self.infer(x, Context())


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
