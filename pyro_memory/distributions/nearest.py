"""A distribution over addresses whose mass lies on a few of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.kl import register_kl

from pyro_memory.distributions.streamed import StreamedCategorical, log_prior_row
from pyro_memory.gate import check_least, check_places, checked


@checked
class NearestCategorical(TorchDistribution):
    r"""Is a distribution over all slots whose mass lies on k candidates, but for a share ``epsilon``.

    .. math::
        q(a) = (1 - \epsilon)\, \mathrm{softmax}(s)_a \text{ for the candidates}, \qquad
        q(a) = \epsilon / (n - k) \text{ for the other filled slots}

    Args:
        best: the candidates' addresses, ``[*batch, k]``, distinct.
        scores: their unnormalised log weights, ``[*batch, k]``.
        slots: the number of slots, filled or not.
        mask: which slots are filled, ``[slot]`` or, for a memory per datum, ``[*batch, slot]``.
        epsilon: the share of the other filled slots; without effect where there are none.

    Cost: O(batch x k); O(slots) more for the KL with ``epsilon``, and for sampling with ``epsilon`` and a mask.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012
    has_enumerate_support = True

    def __init__(
        self,
        best: Int[Tensor, "*batch k"],
        scores: Float[Tensor, "*batch k"],
        slots: int,
        mask: Bool[Tensor, "*owner slot"] | None = None,
        *,
        epsilon: float = 0.0,
        validate_args: bool | None = None,
    ) -> None:
        check_least(1, slots=slots)
        check_places("best", best, slots, "the slots")
        if not 0 <= epsilon < 1:
            raise ValueError(f"`epsilon` must lie in [0, 1), a share of the probability; got {epsilon}")
        self.best, self.log_weights = best, scores.log_softmax(-1)
        self.slots, self.epsilon = slots, epsilon
        self.mask = mask  # type: ignore[assignment]  # Pyro's distributions have a method of that name
        super().__init__(best.shape[:-1], validate_args=validate_args)

    @property
    def support(self) -> constraints.Constraint:
        """The addresses 0 to slots - 1."""
        return constraints.integer_interval(0, self.slots - 1)

    @property
    def probs(self) -> Float[Tensor, "*batch slot"]:
        """The probability of every slot, dense: for small memories."""
        values = torch.arange(self.slots, device=self.best.device)
        return self._log_prob(values.reshape((-1,) + (1,) * len(self.batch_shape))).movedim(0, -1).exp()

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> NearestCategorical:
        """Repeats it over more batch dimensions."""
        batch_shape = torch.Size(batch_shape)
        new = self._get_checked_instance(NearestCategorical, _instance)
        new.__dict__.update(self.__dict__)
        new.best = self.best.expand(batch_shape + self.best.shape[-1:])
        new.log_weights = self.log_weights.expand(batch_shape + self.best.shape[-1:])
        TorchDistribution.__init__(new, batch_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def _others(self) -> tuple[Tensor, Tensor]:
        """How many filled slots are no candidates, and the log-probability of each of them."""
        filled = torch.tensor(self.slots, device=self.best.device) if self.mask is None else self.mask.sum(-1)
        count = filled - self.best.shape[-1]
        share = torch.where(count > 0, self.epsilon, 0.0).to(self.log_weights.dtype)
        return count, share.log() - count.clamp(min=1).log()

    def _log_weights(self) -> Float[Tensor, "*batch k"]:
        """The log-probabilities of the candidates."""
        count, _ = self._others()
        return self.log_weights + torch.where(count > 0, math.log1p(-self.epsilon), 0.0).unsqueeze(-1)

    def sample(self, sample_shape: Sequence[int] = ()) -> Int[Tensor, "*sample *batch"]:
        """Draws addresses."""
        shape = torch.Size(sample_shape) + self.batch_shape
        with torch.no_grad():
            weights = self.log_weights.exp().reshape(-1, self.best.shape[-1])
            draws = torch.Size(sample_shape).numel()
            chosen = weights.multinomial(draws, replacement=True).mT.reshape(shape + (1,))
            drawn = self.best.expand(shape + self.best.shape[-1:]).gather(-1, chosen).squeeze(-1)
            if not self.epsilon:
                return drawn
            count, _ = self._others()
            uniform = torch.rand((2, *shape), device=drawn.device, dtype=torch.float64)
            rank = torch.minimum((uniform[1] * count).long(), count - 1).clamp(min=0)
            return torch.where((uniform[0] < self.epsilon) & (count > 0), self._other(rank), drawn)

    def _other(self, rank: Int[Tensor, "*sample *batch"]) -> Int[Tensor, "*sample *batch"]:
        """The filled slot of that rank among those that are no candidates."""
        order = None if self.mask is None else self.mask.cumsum(-1)
        taken = (self.best if order is None else _take(order, self.best) - 1).sort(-1).values
        gaps = taken - torch.arange(taken.shape[-1], device=taken.device)  # others before each candidate
        rank = (rank + (gaps <= rank.unsqueeze(-1)).sum(-1)).unsqueeze(-1)
        if order is not None:
            order = order if order.dim() == 1 else order.expand(rank.shape[:-1] + order.shape[-1:]).contiguous()
            rank = torch.searchsorted(order, rank + 1).clamp(max=self.slots - 1)
        return rank.squeeze(-1)

    def log_prob(self, value: Int[Tensor, "*address"]) -> Float[Tensor, "*lead"]:
        """Gives log q(a) in nats, exactly, for any slot."""
        if self._validate_args:
            self._validate_sample(value)
        return self._log_prob(value)

    def _log_prob(self, value: Int[Tensor, "*address"]) -> Float[Tensor, "*lead"]:
        match = value.unsqueeze(-1) == self.best
        _, other = self._others()
        if self.mask is not None:
            index, _ = torch.broadcast_tensors(value, self.best[..., 0])
            other = torch.where(_take(self.mask, index.unsqueeze(-1)).squeeze(-1), other, -math.inf)
        return torch.where(match.any(-1), torch.where(match, self._log_weights(), 0.0).sum(-1), other)

    def entropy(self) -> Float[Tensor, "*batch"]:
        """Gives the entropy in nats."""
        log_q, (count, other) = self._log_weights(), self._others()
        return -(log_q.exp() * log_q).sum(-1) - count * torch.special.xlogy(other.exp(), other.exp())

    def kl_to(self, prior: torch.distributions.Distribution) -> Float[Tensor, "*batch"]:
        """Gives KL(self || prior) in nats; with ``epsilon`` the sum of the log prior costs one pass over the slots.

        Raises:
            ValueError: if the prior has another number of slots.
        """
        try:
            log_p = log_prior_row(prior, self.slots)
        except ValueError:
            if isinstance(prior, StreamedCategorical) or prior.logits.shape[-1] != self.slots:
                raise
            log_p = prior.logits
        log_q, (count, other) = self._log_weights(), self._others()
        at_best = _take(log_p, self.best)
        inside = torch.where(log_q > -math.inf, log_q.exp() * (log_q - at_best), 0.0).sum(-1)
        if not self.epsilon:
            return inside
        total = log_p.sum(-1) if self.mask is None else log_p.masked_fill(~self.mask, 0.0).sum(-1)
        outside = other.exp() * (count * other - (total - at_best.sum(-1)))
        return torch.where(count > 0, inside + torch.where(outside.isnan(), math.inf, outside), inside)

    def usage(self) -> Float[Tensor, " slot"]:
        """Gives the mean of q over the batch, ``[slot]``, for a memory that all data share."""
        rows = self.best.numel() // self.best.shape[-1]
        level = self._others()[1].exp()
        filled = level.new_ones(self.slots) if self.mask is None else self.mask.to(level.dtype)
        extra = (self._log_weights().exp() - level).reshape(-1) / rows
        return (level * filled).scatter_add(-1, self.best.reshape(-1), extra)

    def enumerate_support(self, expand: bool = True) -> Int[Tensor, "slot *batch"]:
        """Lists all addresses: parallel enumeration reads every slot, whatever k is."""
        values = torch.arange(self.slots, device=self.best.device).reshape((-1,) + (1,) * len(self.batch_shape))
        return values.expand((-1, *self.batch_shape)) if expand else values


def _take(table: Tensor, index: Int[Tensor, "*batch k"]) -> Tensor:
    """Looks up in a table over slots that all data share, or that each has its own of."""
    if table.dim() == 1:
        return table[index]
    return table.expand(index.shape[:-1] + table.shape[-1:]).gather(-1, index)


@register_kl(NearestCategorical, torch.distributions.Categorical)
@register_kl(NearestCategorical, StreamedCategorical)
def _kl_nearest(q: NearestCategorical, p: torch.distributions.Distribution) -> Tensor:
    return q.kl_to(p)
