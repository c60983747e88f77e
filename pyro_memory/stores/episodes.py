"""The episodic store of a structured memory: recent episodes, one by one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pyro_memory.gate import checked
from pyro_memory.stores.slots import SlotMemory
from pyro_memory.stores.tensors import saved


@checked
@dataclass(frozen=True)
class EpisodicMemory:
    r"""Holds the posterior embedding and the images of recent episodes, a ring of slots; a value, as all stores are.

    An episode is a set of images of one class: its embedding's posterior ``N(loc, diag variance)``, its images, and its
    probabilities over the concepts of the semantic store. A full store gives up its oldest episode first.

    Attributes:
        store: the slots: values are images ``[slot, item, *event]``, padded with zeros; keys are
            ``[slot, 2 dim + concepts + 2]``: loc, variance, responsibilities, number of images, whether replayed.
        dim: dimensions of an embedding.

    Raises:
        ValueError: if shapes do not fit, or a value is not finite.
    """

    store: SlotMemory
    dim: int

    def __post_init__(self) -> None:
        keys, values = self.store.keys, self.store.values
        if self.dim < 1 or keys is None or keys.dim() != 2 or keys.shape[1] < 2 * self.dim + 3 or values.dim() < 2:
            got = [list(values.shape), None if keys is None else list(keys.shape)]
            raise ValueError(
                f"`store` must hold images [slot, item, *event] with keys [slot, 2 dim + concepts + 2] for dim "
                f"{self.dim}; got {got}. Start from EpisodicMemory.reserve"
            )
        wrong = self.filled & ((self.counts < 0) | (self.counts > values.shape[1]) | (self.variance < 0).any(-1))
        if bool(wrong.any()):
            at = int(wrong.nonzero()[0])
            raise ValueError(
                f"an episode must have from 0 to {values.shape[1]} images and variances that are not negative; slot "
                f"{at} has {int(self.counts[at])} and {self.variance[at].min().item():g}"
            )

    @classmethod
    def reserve(
        cls, slots: int, items: int, event_shape: Sequence[int], dim: int, concepts: int, **kwargs: Any
    ) -> EpisodicMemory:
        """Makes a store of ``slots`` unfilled slots of up to ``items`` images each."""
        if min(slots, items, dim, concepts) < 1:
            raise ValueError(
                f"`slots`, `items`, `dim` and `concepts` must be at least 1; got {slots}, {items}, {dim}, {concepts}"
            )
        values = torch.zeros(slots, items, *event_shape, **kwargs)
        keys = values.new_zeros(slots, 2 * dim + concepts + 2)
        return cls(SlotMemory(values, keys, torch.zeros(slots, dtype=torch.bool, device=values.device)), dim)

    # --- what a slot holds

    @property
    def slots(self) -> int:
        """The number of slots, filled or not."""
        return self.store.slots

    @property
    def filled(self) -> Bool[Tensor, " slot"]:
        """Which slots hold an episode."""
        return self.store.filled

    @property
    def ages(self) -> Int[Tensor, " slot"]:
        """How many episodes ago each was written."""
        return self.store.ages

    @property
    def loc(self) -> Float[Tensor, "slot dim"]:
        """Means of the embeddings."""
        return self.store.keys[:, : self.dim]

    @property
    def variance(self) -> Float[Tensor, "slot dim"]:
        """Variances of the embeddings; 1, the prior's, in an unfilled slot."""
        variance = self.store.keys[:, self.dim : 2 * self.dim]
        return torch.where(self.filled.unsqueeze(-1), variance, 1.0)

    @property
    def responsibilities(self) -> Float[Tensor, "slot concept"]:
        """Probabilities over concepts."""
        return self.store.keys[:, 2 * self.dim : -2]

    @property
    def counts(self) -> Int[Tensor, " slot"]:
        """How many images of each slot are real."""
        return self.store.keys[:, -2].long()

    @property
    def replayed(self) -> Bool[Tensor, " slot"]:
        """Which episodes were imagined from a concept."""
        return self.store.keys[:, -1] > 0.5

    @property
    def items(self) -> Float[Tensor, "slot item *event"]:
        """The images."""
        return self.store.values

    def __repr__(self) -> str:
        return (
            f"EpisodicMemory(slots={self.slots}, filled={int(self.filled.sum())}, "
            f"replayed={int((self.replayed & self.filled).sum())}, images of {list(self.items.shape[2:])})"
        )

    # --- new stores from this one

    def write(
        self,
        loc: Float[Tensor, "episode dim"],
        variance: Float[Tensor, "episode dim"],
        items: Float[Tensor, "episode item *event"],
        counts: Int[Tensor, " episode"],
        responsibilities: Float[Tensor, "episode concept"],
        *,
        replayed: bool = False,
    ) -> EpisodicMemory:
        """Returns a store with the episodes written, one after the other: free slots first, then the oldest.

        Embeddings and images are detached: a store is data. Cost: O(episodes x slots).
        """
        width = self.items.shape[1]
        if items.shape[1] > width:
            raise ValueError(
                f"`items` must be at most {width} an episode, the width of a slot; got {items.shape[1]}. Reserve a "
                "store of wider slots, or choose which images to keep"
            )
        if int(counts.max() if len(counts) else 0) > items.shape[1]:
            raise ValueError(
                f"`counts` must be at most the {items.shape[1]} images of an episode; got {int(counts.max())}"
            )
        padding = items.new_zeros(items.shape[0], width - items.shape[1], *items.shape[2:])
        real = torch.arange(width, device=items.device) < counts.unsqueeze(-1)
        values = torch.cat([items, padding], 1) * real.reshape(real.shape + (1,) * (items.dim() - 2))
        flag = torch.full_like(loc[:, :1], float(replayed))
        keys = torch.cat([loc, variance, responsibilities, counts.to(loc).unsqueeze(-1), flag], -1)
        if keys.shape[-1] != self.store.keys.shape[-1] or not torch.isfinite(keys).all():
            got = [t.shape[-1] for t in (loc, variance, responsibilities)]
            raise ValueError(
                f"`loc`, `variance` and `responsibilities` must be finite, of {self.dim}, {self.dim} and "
                f"{self.responsibilities.shape[-1]} columns; got {got}"
            )
        return EpisodicMemory(self.store.write(values.detach(), keys.detach()), self.dim)

    def free(self, which: Bool[Tensor, " slot"]) -> EpisodicMemory:
        """Returns a store with these slots empty."""
        keep = ~which
        values = self.items * keep.reshape((-1,) + (1,) * (self.items.dim() - 1))
        return self._with(values, self.store.keys * keep.unsqueeze(-1), self.filled & keep)

    def replace_responsibilities(self, responsibilities: Float[Tensor, "slot concept"]) -> EpisodicMemory:
        """Returns a store with other probabilities over concepts, for when the concepts have changed."""
        keys = torch.cat(
            [self.loc, self.store.keys[:, self.dim : 2 * self.dim], responsibilities, self.store.keys[:, -2:]], -1
        )
        return self._with(self.items, keys, self.filled)

    def shuffle_items(self, seed: int = 0) -> EpisodicMemory:
        """Returns a store in which every filled slot shows another filled slot's images, its address unchanged."""
        filled = self.filled.nonzero().squeeze(-1)
        generator = torch.Generator("cpu").manual_seed(seed)
        order = torch.randperm(len(filled), generator=generator, device="cpu").to(filled.device)
        source = torch.arange(self.slots, device=filled.device)
        source[filled[order]] = filled[order.roll(1)]
        keys = torch.cat([self.store.keys[:, :-2], self.store.keys[source, -2:]], -1)
        return self._with(self.items[source], keys, self.filled)

    def _with(self, values: Tensor, keys: Tensor, mask: Tensor) -> EpisodicMemory:
        return EpisodicMemory(SlotMemory(values, keys, mask, ages=self.ages, seen=self.store.seen), self.dim)

    def to(self, *args: Any, **kwargs: Any) -> EpisodicMemory:
        """Moves to a device, or casts to a floating dtype."""
        return EpisodicMemory(self.store.to(*args, **kwargs), self.dim)

    def to_tensors(self) -> dict[str, Tensor]:
        """Gives the tensors that rebuild the store, for saving."""
        return self.store.to_tensors() | {"dim": torch.tensor(self.dim, device="cpu")}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> EpisodicMemory:
        """Rebuilds a store from ``to_tensors``; raises a ValueError if one is missing."""
        tensors = saved(tensors, "values", "keys", "ages", "seen", "batch_dim", "dim", also=("mask",))
        dim = int(tensors.pop("dim"))
        return cls(SlotMemory.from_tensors(tensors), dim)
