"""A slot memory whose slots are divided over the processes of a torch.distributed group."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import pyro.distributions as dist
import torch
import torch.distributed
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call

from pyro_memory.distributions import Copied, Division, Group, ShardedCategorical, Summed, all_of
from pyro_memory.gate import checked
from pyro_memory.stores.slots import SlotMemory
from pyro_memory.stores.tensors import readable


@checked
class ShardedMemory(SlotMemory):
    """Holds this process's part of a shared memory; addresses count the slots of all processes, in the order of ranks.

    Every process runs the same program on the same data: each scores its own slots, and log-sum-exp, samples, KL and
    reads are combined exactly. So are gradients: queries and networks get the whole gradient in every process, keys and
    values that of their own slots. (To divide data over processes instead, run ``fit`` under ``torchrun``.)

    Args:
        shard: this process's slots, a shared SlotMemory or MappedMemory.
        group: the processes; all of them by default. Addresses are drawn alike in all, whatever their random streams.

    Raises:
        ValueError: in every process, if some shard has no filled slot, or is a memory per datum.

    Cost: per lookup O(batch x slots / processes x dim), and messages of O(batch).
    """

    divided = True

    def __init__(self, shard: SlotMemory, group: Group = None) -> None:
        if shard.batch_dim is not None:
            raise ValueError("`shard` must be a memory that all data share (batch_dim=None); got one per datum")
        self.shard = shard
        self.values, self.keys, self.mask, self.batch_dim = shard.values, shard.keys, shard.mask, None
        self.ages, self.seen = shard.ages, shard.seen
        masked = shard.mask is not None
        filled = int(shard.mask.sum()) if masked else shard.slots
        sizes = all_of(torch.tensor([shard.slots, filled, int(masked)], device="cpu"), group)
        if (sizes[:, 1] == 0).any():
            raise ValueError(
                "`shard` must hold at least one filled slot in every process; filled slots by rank: "
                f"{sizes[:, 1].tolist()}. Divide the slots evenly, or use fewer processes"
            )
        rank = torch.distributed.get_rank(group)
        total, total_filled, _ = sizes.sum(0).tolist()
        self.division = Division(group, int(sizes[:rank, 0].sum()), shard.slots, total, total_filled)
        self.every_mask = None
        if sizes[:, 2].any():
            widest = int(sizes[:, 0].max())
            own = torch.zeros(widest, dtype=torch.uint8, device="cpu")
            own[: shard.slots] = shard.filled.cpu()
            parts = [part[: int(n)] for part, n in zip(all_of(own, group), sizes[:, 0], strict=True)]
            self.every_mask = torch.cat(parts).bool().to(self.values.device)

    @property
    def slots(self) -> int:
        """The number of slots of all processes."""
        return self.division.total

    def gather(self, tensor: Tensor, a: Int[Tensor, "*address"]) -> Tensor:
        """Takes entries at addresses of all processes from a tensor that is divided like the values."""
        local, own = self.division.own(a)
        entries = self.shard.gather(tensor, local)
        own = own.reshape(own.shape + (1,) * (entries.dim() - own.dim()))
        return Summed.apply(torch.where(own, entries, 0), self.division.group)

    def read(self, a: Int[Tensor, "*address"], f: Callable[[Tensor], Any]) -> Any:
        """Computes ``f(memory[a])``."""
        return f(self[a])

    def to(self, *args: Any, **kwargs: Any) -> ShardedMemory:
        """Moves this process's slots; every process must call it."""
        return ShardedMemory(self.shard.to(*args, **kwargs), self.division.group)

    def detach(self) -> ShardedMemory:
        """Cuts values and keys from the graph; every process must call it."""
        return ShardedMemory(self.shard.detach(), self.division.group)

    def to_tensors(self) -> dict[str, Tensor]:
        """Gives the tensors of this process's slots; each process saves its own."""
        return self.shard.to_tensors()

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> ShardedMemory:
        """Rebuilds from the tensors of this process's slots, over all processes; every process must call it."""
        return cls(SlotMemory.from_tensors(tensors))

    def write(self, *args: Any, **kwargs: Any) -> SlotMemory:
        """Raises: each process writes to its own slots."""
        raise ValueError("A ShardedMemory is not written to; write to each process's shard and divide it anew")

    def with_none(self) -> SlotMemory:
        """Raises: each process would add a slot."""
        raise ValueError(
            'A ShardedMemory has no room for a "none" slot; put a blank item in one shard, none_slot=False'
        )

    def prior(self) -> dist.Categorical:
        """Gives the uniform distribution over the filled slots of all processes."""
        dtype = readable(self.values[:0]).dtype
        logits = torch.full(
            (self.slots,), -math.log(self.division.total_filled), dtype=dtype, device=self.values.device
        )
        if self.every_mask is not None:
            logits = logits.masked_fill(~self.every_mask, -math.inf)
        return dist.Categorical(logits=logits)

    def streamed(self, query: Float[Tensor, "*batch dim"], key: Float[Tensor, "slot dim"]) -> ShardedCategorical:
        """Gives ``softmax_a <query, key_a>`` over the slots of all processes, from this one's keys."""
        return ShardedCategorical(query, key, self.mask, self.division)

    def embedder(self, network: nn.Module) -> Callable[[Tensor], Tensor]:
        """Gives the network, with the gradient of every process's slots reaching its parameters."""
        parameters = dict(network.named_parameters())
        if not parameters or not torch.is_grad_enabled():
            return network
        copies = dict(zip(parameters, Copied.apply(self.division.group, *parameters.values()), strict=True))
        return lambda contents: functional_call(network, copies, (contents,))
