"""From concepts back to episodes: replay."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from pyro_memory.gate import check_least, checked
from pyro_memory.stores import ConceptMemory, EpisodicMemory


@checked
@torch.no_grad()
def replay(
    concepts: ConceptMemory,
    episodes: EpisodicMemory,
    generate: Callable[[Float[Tensor, "episode dim"], int], Tensor],
    *,
    count: int | None = None,
    items: int | None = None,
) -> EpisodicMemory:
    """Refills free slots by episodes imagined from concepts, flagged as replayed.

    A concept comes to mind by its expected number of episodes, a content s is drawn from its predictive, and the
    episode's embedding is s with no doubt left (variance 1e-3): an imagined episode is known by its own content.

    Args:
        generate: ``generate(s, items)`` draws the images, ``[episode, item, *event]``, such as
            ``VSM.decode_concepts``.
        count: how many slots to refill; all free ones by default.
        items: images an episode; a slot's width by default.

    Raises:
        ValueError: if no concept holds anything yet, ``count`` is more than the free slots, or ``items`` is below 1.
    """
    check_least(1, items=items)
    free = int((~episodes.filled).sum())
    count = free if count is None else count
    if not 0 <= count <= free:
        raise ValueError(
            f"`count` must be at most the {free} free slots; got {count}. Consolidate first, or free slots"
        )
    if not bool((concepts.counts > 0).any()):
        raise ValueError("`concepts` must hold at least one episode to replay; all are empty. Consolidate first")
    if not count:
        return episodes
    k = torch.distributions.Categorical(probs=concepts.counts).sample((count,))
    s = concepts.predictive(k).sample()
    images = generate(s, items or episodes.items.shape[1])
    variance = torch.full_like(s, 1e-3)
    counts = torch.full((count,), images.shape[1], device=s.device)
    return episodes.write(s, variance, images, counts, concepts.responsibilities(s, variance), replayed=True)
