"""Both stores at once: what a variational structured memory is given to read."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pyro.distributions as dist
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils._pytree import tree_map

from pyro_memory.gate import check_places, checked
from pyro_memory.stores.concepts import ConceptMemory
from pyro_memory.stores.episodes import EpisodicMemory

NONE_OF_THEM = 0.05  # against 1 for each image: enough to learn what to do without one, too little to be tempting


@checked
@dataclass(frozen=True, repr=False)
class StructuredMemory:
    """Holds a semantic and an episodic store; an argument of model and guide, so that either can be swapped or emptied.

    What can be read stands on pages: one an episode, with its images; one a concept, with its exemplars; and a last one
    with nothing on it.

    Attributes:
        concepts: what many episodes had in common.
        episodes: recent episodes, one by one.

    Raises:
        ValueError: if the stores do not share embedding size and number of concepts.
    """

    concepts: ConceptMemory
    episodes: EpisodicMemory

    def __repr__(self) -> str:
        concepts, episodes = int((self.concepts.counts > 0).sum()), int(self.episodes.filled.sum())
        return (
            f"StructuredMemory({concepts} of {self.concepts.concepts} concepts in use, {episodes} of "
            f"{self.episodes.slots} episodes filled, {self.concepts.dim} dimensions)"
        )

    def __post_init__(self) -> None:
        episodes = (self.episodes.loc.shape[-1], self.episodes.responsibilities.shape[-1])
        concepts = (self.concepts.dim, self.concepts.concepts)
        if episodes != concepts:
            raise ValueError(
                f"`episodes` must have the embedding size and number of concepts of `concepts`, {concepts}; got "
                f"{episodes}. Reserve both with the same numbers"
            )
        kept = self.concepts.exemplars
        if kept is not None and kept.values.shape[2:] != self.episodes.items.shape[2:]:
            raise ValueError(
                f"`concepts` must keep images of {list(self.episodes.items.shape[2:])}, as `episodes`; got exemplars "
                f"of {list(kept.values.shape[2:])}"
            )

    # --- what can be read

    @property
    def width(self) -> int:
        """Places of a page, filled or not."""
        kept = self.concepts.exemplars
        return max(self.episodes.items.shape[1], 0 if kept is None else kept.places)

    def page(self, k: Int[Tensor, "*concept"], j: Int[Tensor, "*episode"]) -> Int[Tensor, "*page"]:
        """Which page is read given concept k and episode j: the episode's, or, where j is "none", the concept's."""
        slots = self.episodes.slots
        check_places("j", j, slots + 1, "the episodes and none")
        check_places("k", k, self.concepts.concepts, "the concepts")
        return torch.where(j < slots, j, slots + k)

    def _counts(self) -> Int[Tensor, " page"]:
        """How many images each page has."""
        kept, episodes = self.concepts.exemplars, self.episodes.counts * self.episodes.filled
        concepts = torch.zeros_like(self.concepts.counts).long() if kept is None else kept.filled.sum(-1)
        return torch.cat([episodes, concepts, episodes.new_zeros(1)])

    def there(self, page: Int[Tensor, "*batch"]) -> Bool[Tensor, "*batch place"]:
        """Which places of each page hold an image."""
        check_places("page", page, self.episodes.slots + self.concepts.concepts + 1, "the pages")
        return torch.arange(self.width, device=page.device) < self._counts()[page].unsqueeze(-1)

    def which(self, page: Int[Tensor, "*batch"]) -> dist.Categorical:
        """The distribution over the images of each page, all alike, and "none of them", the last address, which has the
        weight of a twentieth of an image."""
        logits = torch.zeros(page.shape + (self.width + 1,), dtype=self.episodes.items.dtype, device=page.device)
        logits[..., -1] = math.log(NONE_OF_THEM)
        away = torch.nn.functional.pad(~self.there(page), (0, 1))
        return dist.Categorical(logits=logits.masked_fill(away, -math.inf))

    def images(self, page: Int[Tensor, "*page"], i: Int[Tensor, "*page"]) -> Float[Tensor, "*page *event"]:
        """Image i of each page; zeros for "none of them", i = ``width``, and where there is none."""
        episodes, kept = self.episodes.items, self.concepts.exemplars
        slots = episodes.shape[0]
        held = self._held(page, i)
        shown = episodes.new_zeros(*page.shape, *episodes.shape[2:])
        of_episode = held & (page < slots)
        shown[of_episode] = episodes[page[of_episode], i[of_episode]]
        if kept is not None:
            of_concept = held & (page >= slots)
            shown[of_concept] = kept.values[page[of_concept] - slots, i[of_concept]]
        return shown

    def _held(self, page: Int[Tensor, "*batch"], i: Int[Tensor, "*batch"]) -> Bool[Tensor, "*batch"]:
        check_places("i", i, self.width + 1, "the images and none")
        return i < self._counts()[page]

    def read(self, page: Int[Tensor, "*page"], i: Int[Tensor, "*image"], f: Callable[[Tensor], Any]) -> Any:
        """Computes ``f`` of image i of each page, once for each image that is read; "none" shows zeros.

        ``f`` works image by image and returns a tensor or a tuple of tensors.
        """
        page, i = torch.broadcast_tensors(page, i)
        base = self.width + 1
        address = torch.where(self._held(page, i), page * base + i, self.width)
        read, place = address.unique(return_inverse=True)
        return tree_map(lambda t: t[place], f(self.images(read // base, read % base)))

    # --- controls

    def without_concepts(self) -> StructuredMemory:
        """Empties the semantic store: one concept that knows nothing but the weak prior."""
        concepts = self.concepts.emptied(1)
        ones = torch.ones_like(self.episodes.responsibilities[:, :1])
        return StructuredMemory(concepts, self.episodes.replace_responsibilities(ones))

    def without_episodes(self) -> StructuredMemory:
        """Empties the episodic store."""
        return replace(self, episodes=self.episodes.free(torch.ones_like(self.episodes.filled)))

    def shuffled(self, seed: int = 0) -> StructuredMemory:
        """Gives every episode another one's items, its address unchanged: what is found is not what was looked for."""
        return replace(self, episodes=self.episodes.shuffle_items(seed))

    def shuffled_concepts(self, seed: int = 0) -> StructuredMemory:
        """Gives every concept in use another one's exemplars, its embedding and use unchanged."""
        kept = self.concepts.exemplars
        return replace(self, concepts=replace(self.concepts, exemplars=kept and kept.shuffle(seed)))

    def to(self, *args: Any, **kwargs: Any) -> StructuredMemory:
        """Moves both stores."""
        return StructuredMemory(self.concepts.to(*args, **kwargs), self.episodes.to(*args, **kwargs))

    def to_tensors(self) -> dict[str, Tensor]:
        """Gives the tensors that rebuild both stores, for saving."""
        concepts, episodes = self.concepts.to_tensors(), self.episodes.to_tensors()
        return {f"concepts.{k}": v for k, v in concepts.items()} | {f"episodes.{k}": v for k, v in episodes.items()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> StructuredMemory:
        """Rebuilds the stores from ``to_tensors``."""

        def part(name: str) -> dict[str, Tensor]:
            return {k.removeprefix(name): v for k, v in tensors.items() if k.startswith(name)}

        return cls(ConceptMemory.from_tensors(part("concepts.")), EpisodicMemory.from_tensors(part("episodes.")))
