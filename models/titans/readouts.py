"""Read-outs: what a sequence model's hidden vector says about the next element, as a distribution."""

from __future__ import annotations

import math

import pyro.distributions as dist
import torch
from jaxtyping import Float
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.nn import functional

from pyro_memory.gate import checked
from pyro_memory.nets import out_of_autocast


@checked
class Readout(PyroModule):
    """Maps hidden vectors by ``weight [size, dim]`` and ``bias [size]``; its ``forward`` gives a distribution.

    Either may be made random: ``readout.weight = PyroSample(dist.Normal(0.0, s).expand([size, dim]).to_event(2))``.
    Draws with dimensions to the left, as of vectorised particles, broadcast against the batch.
    """

    event_dim = 0

    def __init__(self, dim: int, size: int) -> None:
        super().__init__()
        if min(dim, size) < 1:
            raise ValueError(f"`dim` and `size` must be at least 1; got {dim} and {size}")
        self.size = size
        self.weight = nn.Parameter(torch.randn(size, dim) / math.sqrt(dim))
        self.bias = nn.Parameter(torch.zeros(size))

    def affine(self, hidden: Float[Tensor, "*batch time dim"]) -> Float[Tensor, "*lead time size"]:
        """``hidden @ weight.T + bias``."""
        bias = self.bias
        return out_of_autocast(hidden @ self.weight.mT) + (bias if bias.dim() == 1 else bias.unsqueeze(-2))


@checked
class TokenReadout(Readout):
    """Gives a Categorical over ``size`` tokens."""

    def forward(self, hidden: Float[Tensor, "*batch time dim"]) -> dist.Categorical:
        return dist.Categorical(logits=self.affine(hidden))

    @staticmethod
    def draw(next_dist: dist.Categorical, temperature: float) -> Tensor:
        """Draws a token from ``p^(1 / temperature)``; at 0, takes the likeliest."""
        if temperature == 0:
            return next_dist.logits.argmax(-1)
        return dist.Categorical(logits=next_dist.logits / temperature).sample()


@checked
class NormalReadout(Readout):
    """Gives a normal distribution of ``size`` values, each with one learned deviation (at first 1)."""

    event_dim = 1

    def __init__(self, dim: int, size: int) -> None:
        super().__init__(dim, size)
        self.log_scale = nn.Parameter(torch.zeros(size))

    def forward(self, hidden: Float[Tensor, "*batch time dim"]) -> dist.Independent:
        return dist.Normal(self.affine(hidden), self.log_scale.exp()).to_event(1)

    @staticmethod
    def draw(next_dist: dist.Independent, temperature: float) -> Tensor:
        """Draws values with ``temperature`` times their deviation; at 0, takes the location."""
        loc = next_dist.base_dist.loc
        return loc + temperature * (next_dist.sample() - loc)


@checked
class StudentTReadout(NormalReadout):
    """Gives Student's t, whose degrees of freedom are learned too (at first about 5; always above 2)."""

    def __init__(self, dim: int, size: int) -> None:
        super().__init__(dim, size)
        self.raw_df = nn.Parameter(torch.full((size,), 3.0))

    def forward(self, hidden: Float[Tensor, "*batch time dim"]) -> dist.Independent:
        df = 2 + functional.softplus(self.raw_df)
        return dist.StudentT(df, self.affine(hidden), self.log_scale.exp()).to_event(1)
