"""The amortised guide of conversion."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float, Int
from pyro.nn import PyroModule
from torch import Tensor

from pyro_memory.gate import checked
from pyro_memory.naming import unique_name
from pyro_memory.nets import mlp, out_of_autocast
from pyro_memory.recall import BREADTH, conversion_prior
from pyro_memory.stores import ConceptMemory


@checked
class ConsolidationGuide(PyroModule):
    r"""Guesses where each episode goes: ``q(r | e, v, age, concepts) = softmax(log p(r | age) + network)``.

    One network scores each outcome from what the episode's embedding looks like beside it, dimension by dimension
    (how far in deviations, how uncertain, how wide, how surely wide), summed over dimensions: so the order of concepts
    and of dimensions does not matter. It learns the densities that the exact posterior computes, by any Pyro objective
    on a ``ConsolidationModel``, and is checked against it.

    Args:
        hidden: width of the network.
        timescale: as the model's.
    """

    def __init__(self, hidden: int = 32, timescale: float = 48.0, *, name: str | None = None) -> None:
        super().__init__(name or unique_name(self))
        self.timescale = timescale
        self.network = mlp([4, hidden, hidden, 1])

    def logits(
        self,
        concepts: ConceptMemory,
        loc: Float[Tensor, "episode dim"],
        variance: Float[Tensor, "episode dim"],
        ages: Int[Tensor, " episode"],
    ) -> Float[Tensor, "episode outcome"]:
        """log q(r) over keep, concept 1..K, new, up to a constant."""
        known, new = concepts.predictive().base_dist, concepts.new_predictive().base_dist
        places, widths, shapes = (
            torch.cat([first.unsqueeze(0), middle, last.unsqueeze(0)])
            for first, middle, last in (
                (new.loc, known.loc, new.loc),
                (BREADTH * new.scale, known.scale, new.scale),
                (new.df, known.df, new.df),
            )
        )
        distance = (loc.detach().unsqueeze(-2) - places) / widths
        doubt = variance.detach().unsqueeze(-2) / widths.square()
        features = [torch.asinh(distance.square()), torch.asinh(doubt), widths.log(), shapes.log()]
        lead = distance.shape
        scores = self.network(torch.stack([f.expand(lead) for f in features], -1))
        scores = out_of_autocast(scores).squeeze(-1).sum(-1)
        log_prior = conversion_prior(concepts, ages, self.timescale)
        return (log_prior + scores).masked_fill(log_prior == -torch.inf, -torch.inf)

    def probabilities(
        self,
        concepts: ConceptMemory,
        loc: Float[Tensor, "episode dim"],
        variance: Float[Tensor, "episode dim"],
        ages: Int[Tensor, " episode"],
    ) -> Float[Tensor, "episode outcome"]:
        """q(r): what ``consolidate(guide=...)`` asks for."""
        return self.logits(concepts, loc, variance, ages).softmax(-1)

    def forward(
        self,
        concepts: ConceptMemory,
        loc: Float[Tensor, "episode dim"],
        variance: Float[Tensor, "episode dim"],
        ages: Int[Tensor, " episode"],
    ) -> None:
        logits = self.logits(concepts, loc, variance, ages)
        with pyro.plate("episodes", len(loc)):
            pyro.sample("r", dist.Categorical(logits=logits), infer={"enumerate": "parallel"})
