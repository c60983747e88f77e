"""The likelihood of data that depend on an address alone, for all slots by one matrix product."""

from __future__ import annotations

import copy
import math
from abc import abstractmethod
from collections.abc import Sequence

import pyro.distributions as dist
import torch
from jaxtyping import Float, Int, Shaped
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.nn import functional

from pyro_memory.gate import check_least, check_places, checked

NOT_INFINITE = constraints.less_than(math.inf)  # -inf is the logarithm of 0


@checked
class AddressedLikelihood(TorchDistribution):
    """Is a distribution of data whose parameters are those of the slot at an address.

    A subclass says what it is at given addresses (``_at``), and what all slots make of each datum (``_scores``): the
    addresses, of whatever shape, pick from these.
    """

    has_enumerate_support = False

    def __init__(self, a: Tensor, slots: int, event_shape: torch.Size, validate_args: bool | None) -> None:
        check_places("a", a, slots, "the slots")
        self.a = a
        super().__init__(a.shape, event_shape, validate_args=validate_args)

    @abstractmethod
    def _at(self, a: Int[Tensor, "*batch"]) -> dist.Distribution:
        """Gives the distribution that reads the slots at ``a`` one by one."""

    @abstractmethod
    def _scores(self, value: Shaped[Tensor, "datum *event"]) -> Float[Tensor, "datum slot"]:
        """Computes the log-probability of each datum under each slot."""

    @property
    def mean(self) -> Tensor:
        return self._at(self.a).mean

    def expand(self, batch_shape: Sequence[int], _instance: TorchDistribution | None = None) -> AddressedLikelihood:
        new = copy.copy(self)
        new.a = self.a.expand(torch.Size(batch_shape))
        new._batch_shape = new.a.shape
        return new

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        with torch.no_grad():
            return self._at(self.a).sample(torch.Size(sample_shape))

    def log_prob(self, value: Shaped[Tensor, "*batch *event"]) -> Float[Tensor, "*batch"]:
        lead = value.shape[: value.dim() - len(self.event_shape)]
        if value.shape[len(lead) :] != self.event_shape:
            raise ValueError(
                f"`value` must end with {list(self.event_shape)}, as the slots' parameters do; got "
                f"{list(value.shape)}. All data share the slots here: with a memory for each datum (batch_dim) give "
                "what was read to a plain distribution"
            )
        if self._validate_args:
            self._validate_sample(value)
        with torch.autocast(value.device.type, enabled=False):
            scores = self._scores(value.reshape(lead.numel(), *self.event_shape))
        a, data, slots = self.a, *(torch.arange(n, device=scores.device) for n in scores.shape)
        if a.dim() > len(lead) and len(a) == len(slots) and bool((a == slots.reshape(-1, *[1] * (a.dim() - 1))).all()):
            every = scores.mT.reshape(a.shape[:1] + (1,) * (a.dim() - 1 - len(lead)) + lead)  # enumerated: no copy
            return every.expand(torch.broadcast_shapes(every.shape, a.shape))
        return scores[data.reshape(lead), a]


def _product(value: Tensor, log_weight: Tensor) -> Tensor:
    """``value @ log_weight.T`` with events in one, where nothing times -inf is nothing."""
    log_weight = log_weight.flatten(1)
    value = value.to(log_weight.dtype).reshape(len(value), log_weight.shape[1])
    never = log_weight == -math.inf
    scores = value @ log_weight.masked_fill(never, 0.0).mT
    return scores.masked_fill(value @ never.to(value.dtype).mT > 0, -math.inf) if never.any() else scores


def _log_factorials(value: Tensor, like: Tensor) -> Tensor:
    """The sum of ``log x!`` over each datum's counts, ``[datum, 1]``."""
    return torch.lgamma(value.to(like.dtype) + 1).flatten(1).sum(-1, keepdim=True)


def _check_slots(name: str, table: Tensor) -> None:
    if table.dim() < 2:
        raise ValueError(f"`{name}` must be [slot, *event], one dimension or more of an event; got {list(table.shape)}")


@checked
class AddressedBernoulli(AddressedLikelihood):
    r"""Independent pixels whose logits are those of the slot at an address.

    .. math:: \log p(x | a) = \sum_i x_i l_{ai} - \log(1 + e^{l_{ai}})

    It is ``Bernoulli(logits=logits[a]).to_event()`` with another way to the same number: the scores of all slots are
    one product ``x @ logits.T``, and an address picks from them. Enumerating M addresses of B data then costs O(M B D)
    multiply-adds in a matrix product and O(M B) memory, not O(M B D) of memory traffic. It pays where addresses are
    enumerated, or drawn more often than there are slots.

    Args:
        logits: one set for each slot, ``[slot, *event]``, such as ``decoder(memory.values)``; -inf for never.
        a: addresses of any shape: sampled, with particles, or enumerated. All data share the slots: a memory for each
            datum (``batch_dim``) is refused.

    Example::

        a = pyro.sample("a", memory.prior(), infer={"enumerate": "parallel"})
        pyro.sample("x", AddressedBernoulli(decoder(memory.values), a), obs=x)
    """

    arg_constraints = {"logits": NOT_INFINITE}  # noqa: RUF012

    def __init__(
        self, logits: Float[Tensor, "slot *event"], a: Int[Tensor, "*batch"], *, validate_args: bool | None = None
    ) -> None:
        _check_slots("logits", logits)
        self.logits = logits
        super().__init__(a, len(logits), logits.shape[1:], validate_args)

    @property
    def support(self) -> constraints.Constraint:
        return constraints.independent(constraints.unit_interval, len(self.event_shape))  # grey levels are allowed

    def _at(self, a: Int[Tensor, "*batch"]) -> dist.Distribution:
        return dist.Bernoulli(logits=self.logits[a], validate_args=False).to_event(len(self.event_shape))

    def _scores(self, value: Shaped[Tensor, "datum *event"]) -> Float[Tensor, "datum slot"]:
        return _product(value, self.logits) - functional.softplus(self.logits.flatten(1)).sum(-1)


@checked
class AddressedPoisson(AddressedLikelihood):
    r"""Independent counts whose rates are those of the slot at an address.

    .. math:: \log p(x | a) = \sum_i x_i \log \lambda_{ai} - \lambda_{ai} - \log x_i!

    It is ``Poisson(log_rate.exp()[a]).to_event()`` at the price of one matrix product, see ``AddressedBernoulli``.

    Args:
        log_rate: one set for each slot, ``[slot, *event]``; -inf for a rate of 0.
        a: addresses of any shape, of slots that all data share.

    Example::

        a = pyro.sample("a", memory.prior(), infer={"enumerate": "parallel"})
        pyro.sample("x", AddressedPoisson(memory.values, a), obs=counts)
    """

    arg_constraints = {"log_rate": NOT_INFINITE}  # noqa: RUF012

    def __init__(
        self, log_rate: Float[Tensor, "slot *event"], a: Int[Tensor, "*batch"], *, validate_args: bool | None = None
    ) -> None:
        _check_slots("log_rate", log_rate)
        self.log_rate = log_rate
        super().__init__(a, len(log_rate), log_rate.shape[1:], validate_args)

    @property
    def support(self) -> constraints.Constraint:
        return constraints.independent(constraints.nonnegative_integer, len(self.event_shape))

    def _at(self, a: Int[Tensor, "*batch"]) -> dist.Distribution:
        return dist.Poisson(self.log_rate[a].exp(), validate_args=False).to_event(len(self.event_shape))

    def _scores(self, value: Shaped[Tensor, "datum *event"]) -> Float[Tensor, "datum slot"]:
        total = self.log_rate.flatten(1).exp().sum(-1)
        return _product(value, self.log_rate) - total - _log_factorials(value, self.log_rate)


@checked
class AddressedMultinomial(AddressedLikelihood):
    r"""Counts of categories, as of words, whose probabilities are those of the slot at an address.

    .. math:: \log p(x | a) = \sum_i x_i \log p_{ai} + \log n! - \sum_i \log x_i!, \quad p_a = \mathrm{softmax}(l_a)

    It is ``Multinomial(n, logits=logits[a])`` at the price of one matrix product, see ``AddressedBernoulli``.

    Args:
        logits: one set for each slot, ``[slot, category]``; -inf for never.
        a: addresses of any shape, of slots that all data share.
        total_count: n. Without it each datum is scored given its own sum, so that data may differ in it; a draw and
            the mean need it.
    """

    arg_constraints = {"logits": NOT_INFINITE}  # noqa: RUF012

    def __init__(
        self,
        logits: Float[Tensor, "slot category"],
        a: Int[Tensor, "*batch"],
        total_count: int | None = None,
        *,
        validate_args: bool | None = None,
    ) -> None:
        check_least(0, total_count=total_count)
        self.logits, self.total_count = logits, total_count
        super().__init__(a, len(logits), logits.shape[1:], validate_args)

    @property
    def support(self) -> constraints.Constraint:
        if self.total_count is None:
            return constraints.independent(constraints.nonnegative_integer, 1)
        return constraints.multinomial(self.total_count)

    def _at(self, a: Int[Tensor, "*batch"]) -> dist.Distribution:
        if self.total_count is None:
            raise ValueError(
                "`total_count` must be given where counts are drawn, or their mean is asked for; got None. Give the "
                "number of counts of each datum"
            )
        return dist.Multinomial(self.total_count, logits=self.logits[a], validate_args=False)

    def _scores(self, value: Shaped[Tensor, "datum *event"]) -> Float[Tensor, "datum slot"]:
        total = torch.lgamma(value.to(self.logits.dtype).sum(-1, keepdim=True) + 1)
        return _product(value, self.logits.log_softmax(-1)) + total - _log_factorials(value, self.logits)


@checked
class AddressedCategorical(AddressedLikelihood):
    r"""Independent classes, one at each position, whose logits are those of the slot at an address.

    .. math:: \log p(x | a) = \sum_i \log p_{a i x_i}, \quad p_{ai} = \mathrm{softmax}(l_{ai})

    It is ``Categorical(logits=logits[a]).to_event()`` at the price of one matrix product with the data's one-hot
    codes, see ``AddressedBernoulli``.

    Args:
        logits: one set for each slot and position, ``[slot, *event, class]``; -inf for never.
        a: addresses of any shape, of slots that all data share.
    """

    arg_constraints = {"logits": NOT_INFINITE}  # noqa: RUF012

    def __init__(
        self, logits: Float[Tensor, "slot *event category"], a: Int[Tensor, "*batch"], *,
        validate_args: bool | None = None,
    ) -> None:  # fmt: skip
        self.logits = logits
        super().__init__(a, len(logits), logits.shape[1:-1], validate_args)

    @property
    def support(self) -> constraints.Constraint:
        return constraints.independent(
            constraints.integer_interval(0, self.logits.shape[-1] - 1), len(self.event_shape)
        )

    def _at(self, a: Int[Tensor, "*batch"]) -> dist.Distribution:
        return dist.Categorical(logits=self.logits[a], validate_args=False).to_event(len(self.event_shape))

    def _scores(self, value: Shaped[Tensor, "datum *event"]) -> Float[Tensor, "datum slot"]:
        chosen = functional.one_hot(value.long(), self.logits.shape[-1])
        return _product(chosen, self.logits.log_softmax(-1))
