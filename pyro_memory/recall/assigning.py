"""Several episodes taken in together: hypotheses about where each of them went, weighed once all are seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pyro.distributions as dist
import torch
from jaxtyping import Float, Int
from torch import Tensor

from pyro_memory.distributions import NormalGamma, expected_log_prob
from pyro_memory.gate import check_least, checked
from pyro_memory.stores import ConceptMemory


@checked
@torch.no_grad()
def assign(
    concepts: ConceptMemory,
    loc: Float[Tensor, "episode dim"],
    variance: Float[Tensor, "episode dim"],
    *,
    hypotheses: int = 64,
    went: Int[Tensor, " episode"] | None = None,
    opens: bool = True,
    items: Sequence[Float[Tensor, "item *event"]] | None = None,
) -> tuple[ConceptMemory, Float[Tensor, "episode concept"]]:
    r"""Takes episodes in under several hypotheses of who went where, and projects their mixture once, at the end.

    Assumed-density filtering (``ConceptMemory.update``) projects after each episode, concept by concept, and forgets
    that assignments hang together: if this episode was of concept 1, so was that one. Here each of some hypotheses is a
    whole history of sure assignments, drawn from its own predictive,

    .. math::
        r_n \sim p(r_n | r_{<n}, e_{\le n}) \propto (n_k + \gamma / K) \exp E \log p(e_n | k, r_{<n}), \quad
        w \leftarrow w \sum_k (n_k + \gamma / K) \exp E \log p(e_n | k, r_{<n})

    resampled where weights grow uneven; a Rao-Blackwellised particle filter. The store that comes back is the
    Normal-Gamma of the moments of all of them.

    Args:
        loc, variance: moments of the embeddings, the first first.
        hypotheses: how many histories; the error falls with their root.
        went: concepts that episodes are known to have gone to, -1 where it is not known, such as those that opened one.
        opens: whether an episode may go to a concept that is empty by then; if several are, and alike, hypotheses do
            not agree on which is which, and it is for ``went`` to say.
        items: images of each episode, of which a concept with exemplars keeps some.

    Returns:
        the store, and each episode's probabilities over concepts once all episodes are seen.

    Raises:
        ValueError: for fewer than one hypothesis.

    Cost: O(episodes x hypotheses x concepts x dim).

    References: Particle filters for mixture models with an unknown number of components (Fearnhead, 2004),
    https://doi.org/10.1023/B:STCO.0000009418.04621.cd
    """
    check_least(1, hypotheses=hypotheses)
    known = torch.full((len(loc),), -1) if went is None else went.cpu()
    held = NormalGamma(*(t.expand(hypotheses, *t.shape).clone() for t in concepts.posterior))
    counts = concepts.counts.expand(hypotheses, -1).clone()
    weights, each = counts.new_full((hypotheses,), 1 / hypotheses), torch.arange(hypotheses, device=loc.device)
    history = torch.zeros(hypotheses, len(loc), dtype=torch.long, device=loc.device)
    for n, (e, v) in enumerate(zip(loc, variance, strict=True)):
        if known[n] >= 0:
            k = torch.full_like(each, int(known[n]))
        else:
            log_p = _log_joint(concepts, held, counts, e, v, opens)
            weights = (weights.log() + log_p.logsumexp(-1)).softmax(-1)
            k = dist.Categorical(logits=log_p).sample()
        grown = NormalGamma(*(t[each, k] for t in held)).observed(e, v)
        for whole, part in zip(held, grown, strict=True):
            whole[each, k] = part
        counts[each, k] += 1
        history[:, n] = k
        if 1 / weights.square().sum() < hypotheses / 2:
            chosen = _resampled(weights)
            held, counts, history = NormalGamma(*(t[chosen] for t in held)), counts[chosen], history[chosen]
            weights = torch.full_like(weights, 1 / hypotheses)
    shares = torch.nn.functional.one_hot(history, concepts.concepts).to(loc)
    shares = (weights[:, None, None] * shares).sum(0)
    touched = (shares.sum(0) > 0).unsqueeze(-1)
    mean = held.mean(weights)
    posterior = [torch.where(touched, new.to(old), old) for old, new in zip(concepts.posterior, mean, strict=True)]
    kept = concepts.exemplars
    for n, seen in enumerate(items if kept is not None and items is not None else ()):
        kept = kept.take_in(seen, loc[n], variance[n], shares[n])
    given = NormalGamma(*posterior)._asdict()
    return replace(concepts, **given, counts=(weights.unsqueeze(-1) * counts).sum(0), exemplars=kept), shares


def _log_joint(concepts: ConceptMemory, held: NormalGamma, counts: Tensor, e: Tensor, v: Tensor, opens: bool) -> Tensor:
    """log p(r, e) of an episode under each hypothesis."""
    scale = (held.beta * (held.kappa + 1) / (held.alpha * held.kappa)).sqrt()
    predictive = dist.StudentT(2 * held.alpha, held.loc, scale, validate_args=False).to_event(1)
    prior = counts + concepts.concentration / concepts.concepts
    prior = prior if opens else prior * (counts > 0)
    return (prior / prior.sum(-1, keepdim=True)).log() + expected_log_prob(predictive, e, v)


def _resampled(weights: Tensor) -> Tensor:
    """Systematic resampling: one uniform number, evenly spaced from there."""
    places = (torch.rand((), device=weights.device) + torch.arange(len(weights), device=weights.device)) / len(weights)
    return torch.searchsorted(weights.cumsum(0), places.to(weights)).clamp(max=len(weights) - 1)
