"""Networks that end a conditional: they return a distribution."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from pyro_memory.gate import check_least, checked
from pyro_memory.nets.layers import Features, Linear, broadcast_cat, coarsest, out_of_autocast, scale_for_relu


@checked
class GaussianHead(nn.Module):
    """Maps the coarsest features to a diagonal normal distribution of ``latent_dim`` dimensions."""

    def __init__(self, in_features: int, latent_dim: int) -> None:
        super().__init__()
        check_least(1, in_features=in_features, latent_dim=latent_dim)
        self.project = nn.Linear(in_features, 2 * latent_dim)
        self.project = Linear(in_features, 2 * latent_dim, takes="features")

    def forward(self, features: Float[Tensor, "*batch feature"]) -> dist.Independent:
        loc, scale = out_of_autocast(self.project(features)).chunk(2, -1)
        return dist.Normal(loc, functional.softplus(scale) + 1e-4).to_event(1)


@checked
class GaussianMLP(nn.Module):
    """Maps a vector to a diagonal normal distribution through one hidden layer."""

    def __init__(self, in_features: int, hidden: int, latent_dim: int) -> None:
        super().__init__()
        check_least(1, in_features=in_features, hidden=hidden, latent_dim=latent_dim)
        self.hidden = nn.Linear(in_features, hidden)
        self.hidden = Linear(in_features, hidden, takes="features")
        scale_for_relu(self.hidden)
        self.head = GaussianHead(hidden, latent_dim)

    def forward(self, features: Float[Tensor, "*batch feature"]) -> dist.Independent:
        return self.head(torch.relu(self.hidden(features)))


@checked
class ContentPrior(nn.Module):
    """Gives p(z | m), a normal distribution, from the coarsest features of the content, of shape ``shape``."""

    def __init__(self, shape: Sequence[int], latent_dim: int) -> None:
        super().__init__()
        check_least(1, shape=shape, latent_dim=latent_dim)
        self.event_dim = len(shape)
        self.head = GaussianHead(math.prod(shape), latent_dim)

    def forward(self, content: Features) -> dist.Independent:
        if not content:
            raise ValueError("`content` must hold the features of what was read; got none")
        return self.head(content[-1].flatten(-self.event_dim))


@checked
class PairEncoder(nn.Module):
    """Gives q(z | x, m), a normal distribution, from features of the images laid over each other as channels.

    With ``m`` None it is the encoder of a model without memory, q(z | x).
    """

    def __init__(self, features: nn.Module, latent_dim: int) -> None:
        super().__init__()
        self.features = features
        self.head = GaussianHead(features.out_features, latent_dim)

    def forward(
        self,
        x: Float[Tensor, "*batch channel height width"],
        m: Float[Tensor, "*lead channels height width"] | None = None,
    ) -> dist.Independent:
        if m is not None:
            x = broadcast_cat([x, m], -3)
        return self.head(coarsest(self.features(x), x.dim() - 3))


@checked
class BernoulliImage(nn.Module):
    """Reads a decoder's output as the logits of independent pixels."""

    support = (0.0, 1.0)

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder = decoder
        self.shape = getattr(decoder, "shape", None)

    def forward(self, z: Float[Tensor, "*batch latent"], content: Features = ()) -> dist.Independent:
        # Grey levels in [0, 1] are allowed, as is usual for MNIST: their "log-probability" is a cross-entropy.
        return dist.Bernoulli(logits=out_of_autocast(self.decoder(z, content)), validate_args=False).to_event(3)


@checked
class GaussianImage(nn.Module):
    """Reads a decoder's output as the means of independent normal pixels with one learned deviation."""

    support = None

    def __init__(self, decoder: nn.Module, scale: float = 0.3) -> None:
        super().__init__()
        if not scale > 0:
            raise ValueError(f"`scale` must be positive, the deviation of a pixel; got {scale}")
        self.decoder = decoder
        self.shape = getattr(decoder, "shape", None)
        self.log_scale = nn.Parameter(torch.tensor(scale).log())

    def forward(self, z: Float[Tensor, "*batch latent"], content: Features = ()) -> dist.Independent:
        return dist.Normal(out_of_autocast(self.decoder(z, content)), self.log_scale.exp()).to_event(3)
