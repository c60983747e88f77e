"""A slot memory whose slots are divided over the processes of a torch.distributed group."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import torch
import torch.distributed
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call

from pyro_memory.kernels import AddressRead, fused_address, nearest_slots
from pyro_memory.slots import SlotMemory, readable
from pyro_memory.streamed import StreamedCategorical

Group = Any


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
        self.shard, self.group = shard, group
        self.values, self.keys, self.mask, self.batch_dim = shard.values, shard.keys, shard.mask, None
        self.ages, self.seen = shard.ages, shard.seen
        masked = shard.mask is not None
        filled = int(shard.mask.sum()) if masked else shard.slots
        sizes = _all(torch.tensor([shard.slots, filled, int(masked)]), group)
        if (sizes[:, 1] == 0).any():
            raise ValueError(
                "`shard` must hold at least one filled slot in every process; filled slots by rank: "
                f"{sizes[:, 1].tolist()}. Divide the slots evenly, or use fewer processes"
            )
        rank = torch.distributed.get_rank(group)
        self.offset = int(sizes[:rank, 0].sum())
        self.total, self.total_filled, _ = sizes.sum(0).tolist()
        self.every_mask = None
        if sizes[:, 2].any():
            widest = int(sizes[:, 0].max())
            own = torch.zeros(widest, dtype=torch.uint8)
            own[: shard.slots] = shard.filled.cpu()
            parts = [part[: int(n)] for part, n in zip(_all(own, group), sizes[:, 0], strict=True)]
            self.every_mask = torch.cat(parts).bool().to(self.values.device)

    @property
    def slots(self) -> int:
        """The number of slots of all processes."""
        return self.total

    def gather(self, tensor: Tensor, a: Int[Tensor, "*address"]) -> Tensor:
        """Takes entries at addresses of all processes from a tensor that is divided like the values."""
        local, own = self.own(a)
        entries = self.shard.gather(tensor, local)
        own = own.reshape(own.shape + (1,) * (entries.dim() - own.dim()))
        return _Summed.apply(torch.where(own, entries, 0), self.group)

    def own(self, a: Int[Tensor, "*address"]) -> tuple[Tensor, Tensor]:
        """Gives addresses within this shard, and which of them it holds."""
        local = a - self.offset
        return local.clamp(0, self.shard.slots - 1), (local >= 0) & (local < self.shard.slots)

    def read(self, a: Int[Tensor, "*address"], f: Callable[[Tensor], Any]) -> Any:
        """Computes ``f(memory[a])``."""
        return f(self[a])

    def to(self, *args: Any, **kwargs: Any) -> ShardedMemory:
        """Moves this process's slots; every process must call it."""
        return ShardedMemory(self.shard.to(*args, **kwargs), self.group)

    def detach(self) -> ShardedMemory:
        """Cuts values and keys from the graph; every process must call it."""
        return ShardedMemory(self.shard.detach(), self.group)

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
        logits = torch.full((self.total,), -math.log(self.total_filled), dtype=dtype, device=self.values.device)
        if self.every_mask is not None:
            logits = logits.masked_fill(~self.every_mask, -math.inf)
        return dist.Categorical(logits=logits)

    def streamed(self, query: Float[Tensor, "*batch dim"], key: Float[Tensor, "slot dim"]) -> ShardedCategorical:
        """Gives ``softmax_a <query, key_a>`` over the slots of all processes, from this one's keys."""
        return ShardedCategorical(query, key, self)

    def embedder(self, network: nn.Module) -> Callable[[Tensor], Tensor]:
        """Gives the network, with the gradient of every process's slots reaching its parameters."""
        parameters = dict(network.named_parameters())
        if not parameters or not torch.is_grad_enabled():
            return network
        copies = dict(zip(parameters, _Copied.apply(self.group, *parameters.values()), strict=True))
        return lambda contents: functional_call(network, copies, (contents,))


class ShardedCategorical(StreamedCategorical):
    """Is a ``StreamedCategorical`` over the slots of all processes; this one holds the keys of its own slots.

    Every process must call the same methods in the same order. Samples are the same in all of them.
    """

    def __init__(
        self, query: Float[Tensor, "*batch dim"], key: Float[Tensor, "slot dim"], memory: ShardedMemory
    ) -> None:
        super().__init__(query, key, memory.mask)
        self.memory = memory

    @property
    def slots(self) -> int:
        """The number of slots of all processes."""
        return self.memory.total

    def _address(
        self, query: Float[Tensor, "row dim"], *, log_prior: Tensor | None = None, samples: int = 0
    ) -> AddressRead:
        memory = self.memory
        group, first = memory.group, memory.offset
        (query,) = _Copied.apply(group, query)
        own_prior = None if log_prior is None else log_prior[first : first + memory.shard.slots]
        generator = _own_stream(group, query.device) if samples else None
        local = fused_address(
            query, self.key, mask=self.mask, log_prior=own_prior, samples=samples, generator=generator
        )  # fmt: skip
        lse, entropy, kl = _Gathered.apply(torch.stack(local[:3]), group).unbind(1)  # [rank, row] each
        total = lse.logsumexp(0)
        log_share = lse - total
        share = log_share.exp()
        entropy = (share * (entropy - log_share)).sum(0)
        to_prior = (share * (kl + log_share)).sum(0)
        kl = math.log(memory.total_filled) - entropy if log_prior is None else to_prior
        drawn = maxima = None
        if samples:
            maxima, winner = _all(local.maxima, group).max(0)
            drawn = _all(local.samples + first, group).gather(0, winner.unsqueeze(0)).squeeze(0)
        return AddressRead(total, entropy, kl, None, drawn, maxima, None, None)

    def _scores(self, a: Int[Tensor, "*address"]) -> Float[Tensor, "*address"]:
        (query,) = _Copied.apply(self.memory.group, self.query)
        local, own = self.memory.own(a)
        scores = (query * self.key[local].to(query.dtype)).sum(-1)
        if self.mask is not None:
            scores = scores.masked_fill(~self.mask[local], -torch.inf)
        return _Summed.apply(torch.where(own, scores, 0.0), self.memory.group)

    def usage(self) -> Float[Tensor, " slot"]:
        """Gives the mean of p over the batch for the slots of all processes."""
        usage = super().usage()
        torch.distributed.all_reduce(usage, group=self.memory.group)
        return usage

    def nearest(self, slots: int) -> tuple[Int[Tensor, "*batch best"], Float[Tensor, "*batch best"]]:
        """Finds the likeliest slots of all processes, best first, and their scores."""
        group, rows = self.memory.group, self.query.reshape(-1, self.query.shape[-1])
        local = min(slots, self.memory.shard.slots if self.mask is None else int(self.mask.sum()))
        best = rows.new_zeros(len(rows), slots, dtype=torch.long)
        scores = rows.new_full((len(rows), slots), -torch.inf)
        with torch.no_grad():
            best[:, :local], scores[:, :local] = nearest_slots(rows, self.key, local, mask=self.mask)
        top = _all(scores, group).movedim(0, 1).flatten(1).topk(slots)
        best = _all(best + self.memory.offset, group).movedim(0, 1).flatten(1).gather(1, top.indices)
        best = best.reshape(self.query.shape[:-1] + (slots,)).expand(self.batch_shape + (slots,))
        return best, self._scores(best.movedim(-1, 0)).movedim(0, -1)

    def _log_row(self) -> Float[Tensor, " slot"]:
        raise ValueError(
            "`prior` of a sharded address must have all its logits in every process, as `memory.prior()` has; got one "
            "that is sharded too"
        )

    def dense(self) -> dist.Categorical:
        """Raises: no process has all keys."""
        raise NotImplementedError("A ShardedCategorical has no dense form: no process holds the keys of all slots")


def _all(tensor: Tensor, group: Group) -> Tensor:
    """Stacks every process's tensor, ``[rank, ...]``."""
    tensor = tensor.contiguous()
    parts = [torch.empty_like(tensor) for _ in range(torch.distributed.get_world_size(group))]
    torch.distributed.all_gather(parts, tensor, group=group)
    return torch.stack(parts)


def _own_stream(group: Group, device: torch.device) -> torch.Generator:
    """A random stream of this process's own, from one seed for all: equal streams would draw equal noise for all
    shards."""
    seed = torch.randint(2**62, ())
    seed = int(_all(seed, group)[0]) + torch.distributed.get_rank(group)
    return torch.Generator(device).manual_seed(seed)


class _Copied(torch.autograd.Function):
    """Gives tensors that every process has; their gradient is the sum of all processes'."""

    @staticmethod
    def forward(ctx, group, *tensors):
        ctx.group = group
        return tuple(t.view_as(t) for t in tensors)

    @staticmethod
    def backward(ctx, *grads):
        flat = torch.cat([g.reshape(-1) for g in grads])
        torch.distributed.all_reduce(flat, group=ctx.group)
        parts = flat.split([g.numel() for g in grads])
        return None, *(part.reshape(g.shape) for part, g in zip(parts, grads, strict=True))


class _Summed(torch.autograd.Function):
    """Sums over processes; each gets the gradient of the sum, which is the same in all."""

    @staticmethod
    def forward(ctx, tensor, group):
        total = tensor.clone(memory_format=torch.contiguous_format)
        torch.distributed.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx, grad):
        return grad, None


class _Gathered(torch.autograd.Function):
    """Stacks every process's tensor; each gets the gradient of its own part, which is the same in all."""

    @staticmethod
    def forward(ctx, tensor, group):
        ctx.rank = torch.distributed.get_rank(group)
        return _all(tensor, group)

    @staticmethod
    def backward(ctx, grad):
        return grad[ctx.rank], None
