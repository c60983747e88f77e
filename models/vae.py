"""The baseline: the same networks without a memory."""

from __future__ import annotations

from collections.abc import Sequence

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float
from pyro.nn import PyroModule
from torch import Tensor, nn

from pyro_memory.checks import check_images
from pyro_memory.gate import checked
from pyro_memory.naming import unique_name
from pyro_memory.nets import BernoulliImage, ConvDecoder, MLPDecoder
from pyro_memory.stores import SlotMemory


@checked
class VAE(PyroModule):
    r"""Draws an image from a latent code alone.

    .. code-block:: text

        z ~ N(0, 1)
        x ~ p(x | z)

    Args:
        latent_dim: dimensions of z.
        likelihood: maps z to the distribution of x, event shape ``[channel, height, width]``.

    ``forward(x, memory=None)`` takes a memory and ignores it, so that the baseline runs on the same tasks.

    References: Auto-Encoding Variational Bayes (Kingma & Welling, 2014), https://arxiv.org/abs/1312.6114
    """

    def __init__(self, latent_dim: int, likelihood: nn.Module, *, name: str | None = None) -> None:
        super().__init__(name or unique_name(self))
        self.latent_dim = latent_dim
        self.likelihood = likelihood
        self.register_buffer("zero", torch.zeros(latent_dim), persistent=False)

    @classmethod
    def convolutional(
        cls, shape: Sequence[int], latent_dim: int = 64, channels: Sequence[int] = (48, 48, 64), *,
        likelihood: type[nn.Module] = BernoulliImage, name: str | None = None,
    ) -> VAE:  # fmt: skip
        """Builds it with a transposed-convolutional decoder."""
        return cls(latent_dim, likelihood(ConvDecoder(shape, latent_dim, channels)), name=name)

    @classmethod
    def mlp(
        cls, shape: Sequence[int], latent_dim: int = 32, hidden: Sequence[int] = (256, 128), *,
        likelihood: type[nn.Module] = BernoulliImage, name: str | None = None,
    ) -> VAE:  # fmt: skip
        """Builds it with an MLP decoder."""
        return cls(latent_dim, likelihood(MLPDecoder(shape, latent_dim, hidden=hidden[::-1])), name=name)

    def z_dist(self) -> dist.Distribution:
        """p(z)."""
        return dist.Normal(self.zero, torch.ones_like(self.zero)).to_event(1)

    def x_dist(self, z: Float[Tensor, "*batch latent"]) -> dist.Distribution:
        """p(x | z)."""
        return self.likelihood(z)

    def forward(self, x: Float[Tensor, "batch channel height width"], memory: SlotMemory | None = None) -> None:
        check_images(x, self.likelihood)
        with pyro.plate("batch", len(x)):
            z = pyro.sample("z", self.z_dist())
            pyro.sample("x", self.x_dist(z), obs=x)
