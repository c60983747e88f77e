"""Both stores at once: what a variational structured memory is given to read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pyro_memory.gate import checked
from pyro_memory.stores.concepts import ConceptMemory
from pyro_memory.stores.episodes import EpisodicMemory


@checked
@dataclass(frozen=True, repr=False)
class StructuredMemory:
    """Holds a semantic and an episodic store; an argument of model and guide, so that either can be swapped or emptied.

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
