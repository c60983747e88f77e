"""Where an episode may go: the prior over outcomes, the evidence for each, and the exact posterior."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pyro_memory.distributions import expected_log_prob
from pyro_memory.gate import checked
from pyro_memory.stores import ConceptMemory

BREADTH = 1.1  # how much wider than an empty concept's predictive the base measure of kept episodes is


@checked
def conversion_prior(
    concepts: ConceptMemory, ages: Int[Tensor, " episode"], timescale: float
) -> Float[Tensor, "episode outcome"]:
    r"""``log p(r)`` over the outcomes keep, concept 1..K, new: an older episode is likelier to be converted.

    .. math::
        p(keep) = 1 - h, \quad p(k) = h \pi_k, \quad p(new) = h \sum_{k empty} \pi_k, \quad h = 1 - e^{-age/timescale}

    An empty concept is only reached as "new", which opens it; without one "new" has probability zero.

    Raises:
        ValueError: if ``timescale`` is not positive (``math.inf`` converts nothing).
    """
    return outcome_prior(concepts, hazard_of(ages.to(concepts.loc), timescale))


def hazard_of(ages: Tensor, timescale: float) -> Tensor:
    """The chance of conversion at each age: h = 1 - exp(-age / timescale)."""
    if not timescale > 0:
        raise ValueError(f"`timescale` must be positive, in episodes; got {timescale}")
    return -torch.expm1(-ages / timescale)


def outcome_prior(concepts: ConceptMemory, hazard: Float[Tensor, " episode"]) -> Float[Tensor, "episode outcome"]:
    """log p(r) for a chance of conversion h."""
    h, pi, empty = hazard.unsqueeze(-1), concepts.prior().probs, concepts.counts == 0
    return torch.cat([1 - h, h * pi.masked_fill(empty, 0.0), h * pi[empty].sum()], -1).log()


@checked
def conversion_scores(
    concepts: ConceptMemory, loc: Float[Tensor, "episode dim"], variance: Float[Tensor, "episode dim"]
) -> Float[Tensor, "episode outcome"]:
    """``E_{N(e; loc, diag variance)} log p(e | r)`` of each outcome, nats: the base measure of kept episodes, each
    concept's predictive, an empty concept's. Cost: O(episodes x concepts x dim)."""
    new = concepts.new_predictive()
    base = new.base_dist
    wide = type(base)(base.df, base.loc, BREADTH * base.scale).to_event(1)
    ends = [expected_log_prob(d, loc, variance).unsqueeze(-1) for d in (wide, new)]
    return torch.cat([ends[0], concepts.expected_log_predictive(loc, variance), ends[1]], -1)


@checked
def exact_posterior(
    concepts: ConceptMemory,
    loc: Float[Tensor, "episode dim"],
    variance: Float[Tensor, "episode dim"],
    ages: Int[Tensor, " episode"],
    timescale: float = 48.0,
) -> Float[Tensor, "episode outcome"]:
    """Probabilities of the outcomes keep, concept 1..K, new, given the episode: K + 2 densities each."""
    return (conversion_prior(concepts, ages, timescale) + conversion_scores(concepts, loc, variance)).softmax(-1)
