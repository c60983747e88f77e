"""Distributions over slots that are divided over the processes of a torch.distributed group."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
import torch.distributed
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pyro_memory.distributions.streamed import StreamedCategorical
from pyro_memory.gate import check_least, checked
from pyro_memory.kernels import AddressRead, fused_address, nearest_slots

Group = (torch.distributed.ProcessGroup if torch.distributed.is_available() else object) | None


@checked
@dataclass(frozen=True)
class Division:
    """Which of all slots this process holds: ``slots`` of them from ``first`` on, in the order of ranks.

    Attributes:
        group: the processes; None for all of them.
        total, total_filled: slots of all processes.
    """

    group: Group
    first: int
    slots: int
    total: int
    total_filled: int

    def __post_init__(self) -> None:
        check_least(0, first=self.first, slots=self.slots, total=self.total, total_filled=self.total_filled)
        if self.first + self.slots > self.total or self.total_filled > self.total:
            raise ValueError(
                f"`total` must be at least `first` + `slots` and `total_filled`; got {self.total}, with {self.first} + "
                f"{self.slots} and {self.total_filled}"
            )

    def own(self, a: Int[Tensor, "*address"]) -> tuple[Int[Tensor, "*address"], Bool[Tensor, "*address"]]:
        """Gives addresses within this process's slots, and which of them it holds."""
        local = a - self.first
        return local.clamp(0, self.slots - 1), (local >= 0) & (local < self.slots)


@checked
class ShardedCategorical(StreamedCategorical):
    """Is a ``StreamedCategorical`` over the slots of all processes; this one holds the keys of its own slots.

    Every process must call the same methods in the same order. Samples are the same in all of them.
    """

    def __init__(
        self,
        query: Float[Tensor, "*batch dim"],
        key: Float[Tensor, "slot dim"],
        mask: Bool[Tensor, " slot"] | None,
        division: Division,
    ) -> None:
        super().__init__(query, key, mask)
        self.division = division

    @property
    def slots(self) -> int:
        """The number of slots of all processes."""
        return self.division.total

    def _address(
        self, query: Float[Tensor, "row dim"], *, log_prior: Tensor | None = None, samples: int = 0, **_: Any
    ) -> AddressRead:
        group, first = self.division.group, self.division.first
        (query,) = Copied.apply(group, query)
        own_prior = None if log_prior is None else log_prior[first : first + self.division.slots]
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
        kl = math.log(self.division.total_filled) - entropy if log_prior is None else to_prior
        drawn = maxima = None
        if samples:
            maxima, winner = all_of(local.maxima, group).max(0)
            drawn = all_of(local.samples + first, group).gather(0, winner.unsqueeze(0)).squeeze(0)
        return AddressRead(total, entropy, kl, None, drawn, maxima, None, None)

    def _scores(self, a: Int[Tensor, "*address"]) -> Float[Tensor, "*address"]:
        (query,) = Copied.apply(self.division.group, self.query)
        local, own = self.division.own(a)
        scores = (query * self.key[local].to(query.dtype)).sum(-1)
        if self.mask is not None:
            scores = scores.masked_fill(~self.mask[local], -torch.inf)
        return Summed.apply(torch.where(own, scores, 0.0), self.division.group)

    def usage(self) -> Float[Tensor, " slot"]:
        """Gives the mean of p over the batch for the slots of all processes."""
        usage = super().usage()
        torch.distributed.all_reduce(usage, group=self.division.group)
        return usage

    def nearest(self, slots: int) -> tuple[Int[Tensor, "*batch best"], Float[Tensor, "*batch best"]]:
        """Finds the likeliest slots of all processes, best first, and their scores."""
        group, rows = self.division.group, self.query.reshape(-1, self.query.shape[-1])
        local = min(slots, self.division.slots if self.mask is None else int(self.mask.sum()))
        best = rows.new_zeros(len(rows), slots, dtype=torch.long)
        scores = rows.new_full((len(rows), slots), -torch.inf)
        with torch.no_grad():
            best[:, :local], scores[:, :local] = nearest_slots(rows, self.key, local, mask=self.mask)
        top = all_of(scores, group).movedim(0, 1).flatten(1).topk(slots)
        best = all_of(best + self.division.first, group).movedim(0, 1).flatten(1).gather(1, top.indices)
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


@checked
def all_of(tensor: Tensor, group: Group) -> Tensor:
    """Stacks every process's tensor, ``[rank, ...]``."""
    tensor = tensor.contiguous()
    parts = [torch.empty_like(tensor) for _ in range(torch.distributed.get_world_size(group))]
    torch.distributed.all_gather(parts, tensor, group=group)
    return torch.stack(parts)


def _own_stream(group: Group, device: torch.device) -> torch.Generator:
    """A random stream of this process's own, from one seed for all: equal streams would draw equal noise for all
    shards."""
    common = int(all_of(torch.randint(2**62, (), device="cpu"), group)[0])
    return torch.Generator(device).manual_seed(common + torch.distributed.get_rank(group))


class Copied(torch.autograd.Function):
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


class Summed(torch.autograd.Function):
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
        return all_of(tensor, group)

    @staticmethod
    def backward(ctx, grad):
        return grad[ctx.rank], None
