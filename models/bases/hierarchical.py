"""A base model of several stochastic layers."""

from __future__ import annotations

from collections.abc import Sequence

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor, nn

from pyro_memory.gate import checked
from pyro_memory.models.bases.base import BaseModel, content_network
from pyro_memory.nets import BernoulliImage, Context, ConvDecoder, GaussianMLP, broadcast_cat, with_code


@checked
class HierarchicalBase(BaseModel):
    r"""Draws an image from a chain of latent codes, each beside the context; the decoder sees all of them.

    .. code-block:: text

        zL ~ p(zL | c)                       a normal distribution; standard without context
        zl ~ p(zl | z(l+1), c)               l = L-1 ... 1
        x  ~ p(x | z1 ... zL, c, m)          skip connections from every layer

    Args:
        shape: channels, height, width.
        latent_dims: dimensions of z1 ... zL.
        code_dim: dimensions of c; 0 for the model without memory.
        channels: maps at each of the coarser resolutions.
        hidden: width of the layer inside each conditional.
        reads: whether the decoder sees the image read from memory, by skip connections at each resolution; by default
            where there is a c.

    In the line of: Towards a Neural Statistician (Edwards & Storkey, 2017), https://arxiv.org/abs/1606.02185, with the
    context of this package in place of its own.
    """

    def __init__(
        self, shape: Sequence[int], *, latent_dims: Sequence[int] = (24, 16, 8), code_dim: int = 0,
        channels: Sequence[int] = (16, 24, 32), hidden: int = 128, reads: bool | None = None,
        likelihood: type[nn.Module] = BernoulliImage, name: str | None = None,
    ) -> None:  # fmt: skip
        super().__init__(name)
        if not latent_dims:
            raise ValueError("`latent_dims` must name at least one layer; got none")
        self.latent_dims = tuple(latent_dims)
        above = [*self.latent_dims[1:], 0]
        self.priors = nn.ModuleList(
            GaussianMLP(up + code_dim, hidden, dim) if up + code_dim else nn.Identity()
            for dim, up in zip(self.latent_dims, above, strict=True)
        )
        self.code_dim = code_dim
        self.content = content_network(shape, channels, reads, code_dim)
        self.likelihood = likelihood(ConvDecoder(shape, sum(latent_dims) + code_dim, channels))
        self.register_buffer("zero", torch.zeros(self.latent_dims[-1]), persistent=False)

    @property
    def layers(self) -> int:
        """L."""
        return len(self.latent_dims)

    def z_dist(self, layer: int, above: Float[Tensor, "*batch latent"] | None, context: Context) -> dist.Distribution:
        """p(z_layer | z_(layer+1), c), layers counted from 1; ``above`` is None for the last."""
        if not 1 <= layer <= self.layers:
            raise ValueError(f"`layer` must be from 1 to {self.layers}; got {layer}")
        if above is None and context.code is None:
            return dist.Normal(self.zero, torch.ones_like(self.zero)).to_event(1)
        return self.priors[layer - 1](context.code if above is None else with_code(above, context))

    def x_dist(self, codes: Sequence[Float[Tensor, "..."]], context: Context) -> dist.Distribution:
        """p(x | z1 ... zL, c, m)."""
        if not codes:
            raise ValueError("`codes` must hold z1 ... zL; got none")
        return self.likelihood(with_code(broadcast_cat(codes), context), context.content)

    def explain(self, x: Float[Tensor, "*batch channel height width"] | None, context: Context) -> None:
        codes: list[Tensor] = []
        for layer in range(self.layers, 0, -1):
            codes.insert(0, pyro.sample(f"z{layer}", self.z_dist(layer, codes[0] if codes else None, context)))
        pyro.sample("x", self.x_dist(codes, context), obs=x)

    @torch.no_grad()
    def generate(self, context: Context, shape: Sequence[int] = ()) -> Float[Tensor, "*batch channel height width"]:
        codes: list[Tensor] = []
        for layer in range(self.layers, 0, -1):
            prior = self.z_dist(layer, codes[0] if codes else None, context)
            codes.insert(0, prior.expand(torch.broadcast_shapes(tuple(shape), prior.batch_shape)).sample())
        return self.x_dist(codes, context).mean
