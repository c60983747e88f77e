"""The guide of a model without memory."""

from __future__ import annotations

from collections.abc import Sequence

import pyro
import pyro.distributions as dist
from jaxtyping import Float
from pyro.nn import PyroModule
from torch import Tensor, nn

from pyro_memory.checks import check_images
from pyro_memory.gate import checked
from pyro_memory.naming import unique_name
from pyro_memory.nets import ImageMLP, ImagePyramid, PairEncoder
from pyro_memory.stores import SlotMemory


@checked
class VAEGuide(PyroModule):
    """Encodes an image: ``q(z | x)``.

    Args:
        encoder: maps x to the distribution of z.

    References: Auto-Encoding Variational Bayes (Kingma & Welling, 2014), https://arxiv.org/abs/1312.6114
    """

    def __init__(self, encoder: nn.Module, *, name: str | None = None) -> None:
        super().__init__(name or unique_name(self))
        self.encoder = encoder

    @classmethod
    def convolutional(
        cls, shape: Sequence[int], latent_dim: int = 64, channels: Sequence[int] = (48, 48, 64), *,
        name: str | None = None,
    ) -> VAEGuide:  # fmt: skip
        """Builds it with a convolutional pyramid."""
        return cls(PairEncoder(ImagePyramid(shape, channels), latent_dim), name=name)

    @classmethod
    def mlp(
        cls,
        shape: Sequence[int],
        latent_dim: int = 32,
        hidden: Sequence[int] = (256, 128),
        *,
        name: str | None = None,
    ) -> VAEGuide:
        """Builds it with an MLP."""
        return cls(PairEncoder(ImageMLP(shape, hidden), latent_dim), name=name)

    def z_dist(self, x: Float[Tensor, "*batch channel height width"]) -> dist.Distribution:
        """q(z | x)."""
        return self.encoder(x)

    def forward(self, x: Float[Tensor, "batch channel height width"], memory: SlotMemory | None = None) -> None:
        check_images(x)
        with pyro.plate("batch", len(x)):
            pyro.sample("z", self.z_dist(x))
