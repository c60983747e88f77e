"""The simplest base generative model: one latent code."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor, nn

from pyro_memory.gate import checked
from pyro_memory.models.bases.base import BaseModel, content_network
from pyro_memory.nets import BernoulliImage, Context, ConvDecoder, GaussianHead, with_code


@checked
class VAEBase(BaseModel):
    r"""Draws an image from one latent code and the context.

    .. code-block:: text

        z ~ p(z | c, m)       a normal distribution; standard without either
        x ~ p(x | z, c, m)    m: what was read from an episode

    Args:
        shape: channels, height, width.
        latent_dim: dimensions of z.
        code_dim: dimensions of c; 0 for the model without memory.
        channels: maps at each of the coarser resolutions.
        reads: whether the decoder sees the image read from memory, by skip connections at each resolution; by default
            where there is a c.

    References: Auto-Encoding Variational Bayes (Kingma & Welling, 2014), https://arxiv.org/abs/1312.6114
    """

    def __init__(
        self, shape: Sequence[int], *, latent_dim: int = 32, code_dim: int = 0,
        channels: Sequence[int] = (16, 24, 32), reads: bool | None = None,
        likelihood: type[nn.Module] = BernoulliImage, name: str | None = None,
    ) -> None:  # fmt: skip
        super().__init__(name)
        self.latent_dim = latent_dim
        self.code_dim = code_dim
        self.content = content_network(shape, channels, reads, code_dim)
        self.read_dim = math.prod(self.content.shapes[-1]) if self.content else 0
        told = self.read_dim + code_dim
        self.prior = GaussianHead(told, latent_dim) if told else None
        self.likelihood = likelihood(ConvDecoder(shape, latent_dim + code_dim, channels))
        self.register_buffer("zero", torch.zeros(latent_dim), persistent=False)

    def z_dist(self, context: Context) -> dist.Distribution:
        """p(z | c, m)."""
        if self.prior is None:
            return dist.Normal(self.zero, torch.ones_like(self.zero)).to_event(1)
        read = context.content[-1].flatten(-3) if context.content else self.zero.new_zeros(self.read_dim)
        return self.prior(with_code(read, context))

    def x_dist(self, z: Float[Tensor, "*batch latent"], context: Context) -> dist.Distribution:
        """p(x | z, c, m)."""
        return self.likelihood(with_code(z, context), context.content)

    def explain(self, x: Float[Tensor, "*batch channel height width"] | None, context: Context) -> None:
        z = pyro.sample("z", self.z_dist(context))
        pyro.sample("x", self.x_dist(z, context), obs=x)

    @torch.no_grad()
    def generate(self, context: Context, shape: Sequence[int] = ()) -> Float[Tensor, "*batch channel height width"]:
        prior = self.z_dist(context)
        lead = torch.broadcast_shapes(tuple(shape), prior.batch_shape)
        return self.x_dist(prior.expand(lead).sample(), context).mean
