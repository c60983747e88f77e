"""How a key is compared with a query."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import normalize

from pyro_memory.gate import checked


@checked
class NormalizedKey(nn.Module):
    r"""Scores by ``<k, q> / ||k||``: the key's length does not count, the query's is a learned inverse temperature.

    References: Variational Memory Addressing in Generative Models (Bornschein et al., 2017),
    https://arxiv.org/abs/1709.07116
    """

    def forward(self, query: Float[Tensor, "*batch dim"], key: Float[Tensor, "*slot dim"]):
        return query, normalize(key, dim=-1)


@checked
class Cosine(nn.Module):
    """Scores by the cosine of key and query over a learned temperature."""

    def __init__(self, temperature: float = 0.1) -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"`temperature` must be positive; got {temperature}")
        self.log_temperature = nn.Parameter(torch.tensor(math.log(temperature)))

    def forward(self, query: Float[Tensor, "*batch dim"], key: Float[Tensor, "*slot dim"]):
        return normalize(query, dim=-1) / self.log_temperature.exp(), normalize(key, dim=-1)


@checked
class Dot(nn.Module):
    """Scores by ``<k, q> / sqrt(dim)``, as attention does."""

    def forward(self, query: Float[Tensor, "*batch dim"], key: Float[Tensor, "*slot dim"]):
        return query / math.sqrt(query.shape[-1]), key
