"""The episodic store: a fixed number of slots that a model reads by address."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import pyro.distributions as dist
import torch
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor
from torch.utils._pytree import tree_map

from pyro_memory.distributions import StreamedCategorical
from pyro_memory.gate import check_places, checked
from pyro_memory.stores.tensors import check_finite, readable, saved
from pyro_memory.stores.writing import overwrite, place


@checked
class SlotMemory:
    r"""Holds items in slots; a model reads one by its address, ``memory[a]``.

    A memory is a value: reading changes nothing and ``write`` returns a new memory. It is an argument of model
    and guide, so that a user can swap, empty, shuffle or share it. Contents are ``[slot, *event]`` when all data
    share them, or ``[batch, slot, *event]`` with ``batch_dim``, one memory per cell of the plate at that dimension.

    Args:
        values: what a read returns, ``[slot, *event]`` or ``[batch, slot, *event]``.
        keys: what a content address compares with, if not the values: ``[slot, *key]`` or ``[batch, slot, *key]``.
        mask: which slots are filled; all of them by default.
        ages: how many writes ago each slot was filled; zero by default.
        seen: how many items were ever offered; by default as many as slots are filled.
        batch_dim: the plate dimension (-1, -2, ...) that owns the memories, or None for a shared memory.

    Raises:
        ValueError: if shapes do not fit one another, or values or keys are not finite.

    Example::

        memory = SlotMemory(torch.rand(32, 1, 28, 28))
        with pyro.plate("batch", len(x)):
            a = pyro.sample("a", memory.prior())
            m = memory[a]  # [batch, 1, 28, 28], also with particles or enumerated addresses to the left
    """

    divided = False  # whether the slots lie in several processes

    def __init__(
        self,
        values: Num[Tensor, "*batch slot *event"],
        keys: Num[Tensor, "*batch slot *key"] | None = None,
        mask: Bool[Tensor, "*batch slot"] | None = None,
        *,
        ages: Int[Tensor, "*batch slot"] | None = None,
        seen: Int[Tensor, "*batch"] | None = None,
        batch_dim: int | None = None,
    ) -> None:
        if batch_dim is not None and batch_dim >= 0:
            raise ValueError(
                f"`batch_dim` counts plate dimensions from the right and is negative, or None; got {batch_dim}"
            )
        lead = 1 if batch_dim is None else 2
        if values.dim() < lead:
            wanted = "[slot, *event]" if batch_dim is None else "[batch, slot, *event]"
            raise ValueError(f"`values` must be {wanted}; got shape {list(values.shape)}")
        shape = values.shape[:lead]
        for name, tensor in (("keys", keys), ("mask", mask), ("ages", ages)):
            if tensor is not None and tensor.shape[:lead] != shape:
                raise ValueError(
                    f"`{name}` must start with {list(shape)}, as `values` do; got shape {list(tensor.shape)}"
                )
        for name, tensor in (("values", values), ("keys", keys)):
            if tensor is not None:
                check_finite(name, tensor, "slot" if lead == 1 else "memory", "Clean the items before writing them")
        self.values = values
        self.keys = keys
        self.mask = mask
        self.ages = values.new_zeros(shape, dtype=torch.long) if ages is None else ages
        self.seen = self._filled_counts() if seen is None else seen
        self.batch_dim = batch_dim

    @classmethod
    def empty(cls, event_shape: Sequence[int], **kwargs: Any) -> SlotMemory:
        """Makes a shared memory of no slots, for a model with a "none" slot."""
        return cls(torch.zeros(0, *event_shape, **kwargs))

    @classmethod
    def reserve(cls, slots: int, event_shape: Sequence[int], **kwargs: Any) -> SlotMemory:
        """Makes a shared memory of ``slots`` unfilled slots, to be written."""
        if slots < 1:
            raise ValueError(f"`slots` must be at least 1; got {slots}")
        values = torch.zeros(slots, *event_shape, **kwargs)
        return cls(values, mask=torch.zeros(slots, dtype=torch.bool, device=values.device))

    @property
    def _slot_axis(self) -> int:
        return 0 if self.batch_dim is None else 1

    @property
    def slots(self) -> int:
        """The number of slots, filled or not."""
        return self.values.shape[self._slot_axis]

    @property
    def event_shape(self) -> torch.Size:
        """The shape of one item."""
        return self.values.shape[self._slot_axis + 1 :]

    @property
    def filled(self) -> Bool[Tensor, "*batch slot"]:
        """Which slots hold an item."""
        return torch.ones_like(self.ages, dtype=torch.bool) if self.mask is None else self.mask

    def _filled_counts(self) -> Int[Tensor, "*batch"]:
        return self.filled.sum(-1)

    def __len__(self) -> int:
        return self.slots

    def __iter__(self) -> NoReturn:
        raise TypeError("a memory is read by addresses, `memory[a]`; to loop over its slots, loop over `memory.values`")

    def __repr__(self) -> str:
        owner = "shared" if self.batch_dim is None else f"{self.values.shape[0]} memories at plate dim {self.batch_dim}"
        counts = self._filled_counts()
        filled = f"{counts.float().mean():.4g}" if counts.numel() else "0"
        return f"{type(self).__name__}({owner}, slots={self.slots}, filled={filled}, event={list(self.event_shape)})"

    # --- reading

    def align(self, tensor: Tensor) -> Tensor:
        """Lays a tensor ``[batch, slot, ...]`` out against the plates: ``[batch, 1, ..., 1, slot, ...]``."""
        if self.batch_dim is None:
            return tensor
        return tensor.reshape(tensor.shape[:1] + (1,) * (-self.batch_dim - 1) + tensor.shape[1:])

    def gather(self, tensor: Tensor, a: Int[Tensor, "*address"]) -> Tensor:
        """Takes entries at addresses ``a`` from a tensor laid out like the values, any shape of ``a``."""
        check_places("a", a, self.slots, "the slots")
        if self.batch_dim is None:
            return tensor[a]
        owner = torch.arange(tensor.shape[0], device=tensor.device)
        return tensor[owner.reshape((-1,) + (1,) * (-self.batch_dim - 1)), a]

    def __getitem__(self, a: Int[Tensor, "*address"]) -> Tensor:
        """Reads the slots at addresses ``a``: sampled, with particles, enumerated, or these together."""
        return self.gather(self.values, a)

    def read(self, a: Int[Tensor, "*address"], f: Callable[[Tensor], Any]) -> Any:
        """Computes ``f(memory[a])`` on each slot or on each read, whichever is fewer.

        ``f`` works item by item and returns a tensor or a nest of tensors whose leading shape is its argument's.
        """
        reads = a.numel()
        if self.batch_dim is not None:
            shape = torch.broadcast_shapes(a.shape, self.values.shape[:1] + (1,) * (-self.batch_dim - 1))
            reads = math.prod(shape)
        if self.ages.numel() < reads:
            return tree_map(lambda t: self.gather(t, a), f(self.values))
        return f(self[a])

    def blend(self, weights: Float[Tensor, "*plates slot"]) -> Float[Tensor, "*plates *event"]:
        """Reads by soft attention: the sum of the slots, each times its weight."""
        values = self.values.flatten(self._slot_axis + 1) if self.event_shape else self.values.unsqueeze(-1)
        if self.batch_dim is None:
            return (weights @ values).reshape(weights.shape[:-1] + self.event_shape)
        blends = weights.unsqueeze(-2) @ self.align(values)
        return blends.squeeze(-2).reshape(blends.shape[:-2] + self.event_shape)

    def prior(self) -> dist.Categorical:
        """Gives the uniform distribution over filled slots; an unfilled one has probability zero.

        Raises:
            ValueError: if a memory holds nothing.
        """
        self.check_filled()
        dtype = readable(self.values[:0]).dtype
        return dist.Categorical(logits=self.masked(self.align(torch.zeros_like(self.ages, dtype=dtype))))

    def masked(self, logits: Float[Tensor, "*plates slot"]) -> Float[Tensor, "*plates slot"]:
        """Sets the logits of unfilled slots to minus infinity."""
        return logits if self.mask is None else logits.masked_fill(~self.align(self.mask), -math.inf)

    def streamed(self, query: Float[Tensor, "*batch dim"], key: Float[Tensor, "slot dim"]) -> StreamedCategorical:
        """Gives ``softmax_a <query, key_a>`` over the filled slots of a shared memory, without a matrix of logits."""
        return StreamedCategorical(query, key, self.mask)

    def embedder(self, network: torch.nn.Module) -> Callable[[Tensor], Tensor]:
        """Gives what embeds the slots' contents: the network itself."""
        return network

    def check_filled(self) -> None:
        """Raises a ValueError if nothing can be read from some memory."""
        if self.slots and (self.mask is None or bool(self.mask.any(-1).all())):
            return
        raise ValueError(
            "`memory` must hold at least one item per datum; got "
            + ("no slots" if not self.slots else "a memory with all slots masked")
            + '. Write items first, or use a model and guide with a "none" slot (none_slot=True)'
        )

    # --- new memories from this one

    def with_none(self) -> SlotMemory:
        """Appends the "none" slot: always filled, its content all zeros, its address the last."""
        axis = self._slot_axis
        lead = self.values.shape[:axis]

        def append(tensor: Tensor | None, fill: float | bool) -> Tensor | None:
            if tensor is None:
                return None
            return torch.cat([tensor, tensor.new_full(lead + (1,) + tensor.shape[axis + 1 :], fill)], axis)

        return SlotMemory(
            append(self.values, 0), append(self.keys, 0), append(self.mask, True),
            ages=append(self.ages, 0), seen=self.seen, batch_dim=self.batch_dim,
        )  # fmt: skip

    def write(
        self,
        values: Num[Tensor, "*batch item *event"],
        keys: Num[Tensor, "*batch item *key"] | None = None,
        *,
        policy: str = "ring",
        generator: torch.Generator | None = None,
    ) -> SlotMemory:
        """Returns a new memory with the items written, one after the other.

        Args:
            values: the items, ``[item, *event]`` or ``[batch, item, *event]``.
            keys: their keys, required exactly where the memory has keys.
            policy: ``"ring"`` fills free slots, then replaces the oldest; ``"reservoir"`` keeps a uniform sample of
                all items ever offered (Vitter, 1985, https://doi.org/10.1145/3147.3165).
            generator: the randomness of the reservoir.

        Raises:
            ValueError: if the items do not fit the memory or the policy is unknown. Cost: O(items x slots).
        """
        axis = self._slot_axis
        if values.shape[:axis] != self.values.shape[:axis] or values.shape[axis + 1 :] != self.event_shape:
            wanted = list(self.values.shape)
            wanted[axis] = "item"
            raise ValueError(f"`values` must be {wanted}; got shape {list(values.shape)}")
        if (keys is None) != (self.keys is None):
            raise ValueError("`keys` must be given exactly where the memory has keys")
        if not self.slots:
            raise ValueError(
                "`write` needs slots; this memory has none. Start from SlotMemory.reserve(slots, event_shape)"
            )
        written = place(self.filled, self.ages, self.seen, values.shape[axis], policy, generator)
        return SlotMemory(
            overwrite(self.values, values, written.source),
            None if keys is None else overwrite(self.keys, keys, written.source),
            written.filled, ages=written.ages, seen=written.seen, batch_dim=self.batch_dim,
        )  # fmt: skip

    def select(self, indices: Int[Tensor, " datum"]) -> SlotMemory:
        """Takes the memories of some data (per-datum memories only); a permutation shuffles them."""
        if self.batch_dim is None:
            raise ValueError("`select` needs one memory per datum; this memory is shared by all data (batch_dim=None)")
        check_places("indices", indices, len(self.values), "the data")
        return self._map(lambda t: t[indices])

    def to(self, *args: Any, **kwargs: Any) -> SlotMemory:
        """Moves to a device, or casts values and keys to a floating dtype."""
        like = self.values.new_empty(0, dtype=torch.float32)
        return self._map(
            lambda t: t.to(*args, **kwargs) if t.is_floating_point() else t.to(like.to(*args, **kwargs).device)
        )

    def detach(self) -> SlotMemory:
        """Cuts values and keys from the graph."""
        return self._map(Tensor.detach)

    def to_tensors(self) -> dict[str, Tensor]:
        """Gives the tensors that rebuild the memory, for saving."""
        tensors = {n: getattr(self, n) for n in ("values", "keys", "mask", "ages", "seen")}
        tensors["batch_dim"] = torch.tensor(self.batch_dim or 0, device="cpu")
        return {name: tensor for name, tensor in tensors.items() if tensor is not None}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> SlotMemory:
        """Rebuilds a memory from ``to_tensors``; raises a ValueError if one is missing."""
        tensors = saved(tensors, "values", "ages", "seen", "batch_dim", also=("keys", "mask"))
        batch_dim = int(tensors.pop("batch_dim"))
        return cls(**tensors, batch_dim=batch_dim or None)

    def _map(self, f: Callable[[Tensor], Tensor]) -> SlotMemory:
        return SlotMemory(
            f(self.values),
            None if self.keys is None else f(self.keys),
            None if self.mask is None else f(self.mask),
            ages=f(self.ages), seen=f(self.seen) if self.seen.dim() else self.seen, batch_dim=self.batch_dim,
        )  # fmt: skip
