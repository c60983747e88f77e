"""Expectations of Student-t distributions."""

from __future__ import annotations

from functools import cache

import numpy as np
import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor

from pyro_memory.gate import checked


@checked
def expected_log_prob(
    predictive: dist.Independent, loc: Float[Tensor, "*batch dim"], variance: Float[Tensor, "*batch dim"]
) -> Float[Tensor, "*lead"]:
    """``E_{N(e; loc, diag variance)} log p(e)`` of independent Student-ts, by Gauss-Hermite quadrature of 20 points."""
    nodes, weights = (torch.from_numpy(t).to(loc) for t in _quadrature())
    t = predictive.base_dist
    z = (loc.unsqueeze(-1) + variance.sqrt().unsqueeze(-1) * nodes - t.loc.unsqueeze(-1)) / t.scale.unsqueeze(-1)
    # Only this part of the density depends on e: the normaliser is computed once for each concept.
    with torch.autocast(z.device.type, enabled=False):
        tail = torch.log1p(z.square() / t.df.unsqueeze(-1)) @ weights
    constant = t.log_prob(t.loc)
    return (constant - 0.5 * (t.df + 1) * tail).sum(-1)


@cache
def _quadrature() -> tuple[np.ndarray, np.ndarray]:
    """As numpy arrays: a tensor kept here could have been made in inference mode, and is anyone's to write on."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(20)
    return nodes, weights / weights.sum()
