"""The conversion of episodes to concepts as a generative model."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float, Int
from pyro.nn import PyroModule
from torch import Tensor

from pyro_memory.gate import checked
from pyro_memory.naming import unique_name
from pyro_memory.recall import conversion_prior, conversion_scores
from pyro_memory.stores import ConceptMemory


@checked
class ConsolidationModel(PyroModule):
    r"""Says where an episode's embedding came from, and with it where the episode may go.

    .. code-block:: text

        r ~ p(r | age)        keep, concept 1..K, or new; an old episode is likelier to be converted
        e ~ p(e | r)          a fixed wide density, the concept's predictive, an empty concept's predictive

    The embedding is known as ``N(loc, diag variance)`` and enters by its expected log density, site ``"e"``. Stores and
    embeddings are data: nothing here has parameters, and its guide's training moves only the guide.

    Args:
        timescale: the age, in episodes, at which the prior chance of conversion is 1 - 1/e.

    ``forward(concepts, loc, variance, ages)``: loc and variance ``[episode, dim]``, ages ``[episode]``.
    """

    def __init__(self, timescale: float = 48.0, *, name: str | None = None) -> None:
        super().__init__(name or unique_name(self))
        self.timescale = timescale

    def forward(
        self,
        concepts: ConceptMemory,
        loc: Float[Tensor, "episode dim"],
        variance: Float[Tensor, "episode dim"],
        ages: Int[Tensor, " episode"],
    ) -> None:
        loc, variance = loc.detach(), variance.detach()
        log_prior = conversion_prior(concepts, ages, self.timescale)
        scores = conversion_scores(concepts, loc, variance)
        with pyro.plate("episodes", len(loc)):
            r = pyro.sample("r", dist.Categorical(logits=log_prior))
            pyro.factor("e", scores[torch.arange(len(loc), device=loc.device), r])
