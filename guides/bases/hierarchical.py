"""The guide of the base model of several stochastic layers."""

from __future__ import annotations

from collections.abc import Sequence

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor, nn

from pyro_memory.gate import checked
from pyro_memory.guides.bases.base import BaseGuide
from pyro_memory.nets import Context, GaussianHead, ImagePyramid, Linear, with_code


@checked
class HierarchicalBaseGuide(BaseGuide):
    """Encodes an image layer by layer from the top: ``q(zl | x, z(l+1), c)``.

    Args:
        shape, latent_dims, code_dim, channels: as the model's.
        hidden: width of the layer in which image, layer above and context meet; the head sees the image beside it.

    References: Towards a Neural Statistician (Edwards & Storkey, 2017), https://arxiv.org/abs/1606.02185
    """

    def __init__(
        self, shape: Sequence[int], *, latent_dims: Sequence[int] = (24, 16, 8), code_dim: int = 0,
        channels: Sequence[int] = (16, 24, 32), hidden: int = 128, name: str | None = None,
    ) -> None:  # fmt: skip
        super().__init__(name)
        if not latent_dims:
            raise ValueError("`latent_dims` must name at least one layer; got none")
        self.layers = len(latent_dims)
        self.features = ImagePyramid(shape, channels)
        seen, above = self.features.out_features, [*latent_dims[1:], 0]
        self.hidden = nn.ModuleList(Linear(seen + up + code_dim, hidden, takes="context") for up in above)
        self.heads = nn.ModuleList(GaussianHead(hidden + seen, dim) for dim in latent_dims)

    def z_dist(
        self,
        layer: int,
        features: Float[Tensor, "*image feature"],
        above: Float[Tensor, "*batch latent"] | None,
        context: Context,
    ) -> dist.Distribution:
        """q(z_layer | x, z_(layer+1), c), from the coarsest features of x."""
        if not 1 <= layer <= self.layers:
            raise ValueError(f"`layer` must be from 1 to {self.layers}; got {layer}")
        met = with_code(features if above is None else with_code(features, Context(above)), context)
        hidden = torch.relu(self.hidden[layer - 1](met))
        return self.heads[layer - 1](with_code(hidden, Context(features)))

    def infer(self, x: Float[Tensor, "*batch channel height width"], context: Context) -> None:
        features = self.features(x)[-1].flatten(-3)
        above = None
        for layer in range(self.layers, 0, -1):
            above = pyro.sample(f"z{layer}", self.z_dist(layer, features, above, context))
