"""A distribution over the slots of a large memory that never holds a score for every datum and slot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from jaxtyping import Bool, Float, Int
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.kl import register_kl

from pyro_memory.gate import checked
from pyro_memory.kernels import AddressRead, fused_address, nearest_slots

STREAM_ABOVE = 16_384  # slots from which an address over a shared memory is streamed


@checked
class StreamedCategorical(TorchDistribution):
    r"""Is ``Categorical(logits=query @ key.T)`` without the logits: ``p(a) = softmax_a <q, k_a>``.

    Sampling, entropy and the KL to a prior take one pass over the slots, the log-probability of an address one score
    and a log-sum-exp that an earlier pass left. It is a Pyro site under sampling objectives such as ``VIMCO``, whose
    vectorised particles share a pass. It has no parallel enumeration, which needs the dense form: ``dense()``, or
    ``ContentAddress(..., stream=False)``.

    Args:
        query: ``[*batch, dim]``.
        key: ``[slot, dim]``, of any floating dtype, in memory or mapped from a file.
        mask: ``[slot]``, False where a slot is empty and has probability zero.

    Raises:
        ValueError: if shapes do not fit one another or no slot is filled.

    Cost: a pass is O(batch x slots x dim) in time; memory beside the keys does not grow with batch x slots.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012
    has_enumerate_support = False

    def __init__(
        self,
        query: Float[Tensor, "*batch dim"],
        key: Float[Tensor, "slot dim"],
        mask: Bool[Tensor, " slot"] | None = None,
        *,
        validate_args: bool | None = None,
    ) -> None:
        self.query, self.key = query, key
        self.mask = mask  # type: ignore[assignment]  # Pyro's distributions have a method of that name
        self._known: dict[str, Any] = {}  # results of passes, shared with expanded copies
        super().__init__(query.shape[:-1], validate_args=validate_args)

    @property
    def slots(self) -> int:
        """The number of slots, filled or not."""
        return len(self.key)

    @property
    def support(self) -> constraints.Constraint:
        """The addresses 0 to slots - 1."""
        return constraints.integer_interval(0, self.slots - 1)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> StreamedCategorical:
        """Repeats it over more batch dimensions; those to the left share its passes."""
        batch_shape, own = torch.Size(batch_shape), self.query.shape[:-1]
        new = self._get_checked_instance(type(self), _instance)
        new.__dict__.update(self.__dict__)
        if batch_shape[len(batch_shape) - len(own) :] != own:
            new.query, new._known = self.query.expand(batch_shape + self.query.shape[-1:]), {}
        TorchDistribution.__init__(new, batch_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    # --- what subclasses replace

    def _address(self, query: Float[Tensor, "row dim"], **options: Any) -> AddressRead:
        return fused_address(query, self.key, mask=self.mask, **options)

    def _scores(self, a: Int[Tensor, "*address"]) -> Float[Tensor, "*address"]:
        scores = (self.query * self.key[a].to(self.query.dtype)).sum(-1)
        return scores if self.mask is None else scores.masked_fill(~self.mask[a], -torch.inf)

    # --- passes

    def _pass(self, **options: Any) -> AddressRead:
        result = self._address(self.query.reshape(-1, self.query.shape[-1]), **options)
        self._known |= {"logsumexp": result.logsumexp, "entropy": result.entropy, "written": self._written()}
        return result

    def _written(self) -> list[int]:
        """How often query, keys and mask were written on; nobody counts for those made in inference mode."""
        tensors = [t for t in (self.query, self.key, self.mask) if isinstance(t, Tensor) and not t.is_inference()]
        return [t._version for t in tensors]

    def _statistic(self, name: str) -> Float[Tensor, "*batch"]:
        if self._known.get("written") != self._written():
            self._known.clear()  # someone wrote on what it was computed from
        known = self._known.get(name)
        needs_grad = torch.is_grad_enabled() and (self.query.requires_grad or self.key.requires_grad)
        if known is None or (needs_grad and not known.requires_grad):
            known = getattr(self._pass(), name)
        return self._laid_out(known)

    def _laid_out(self, rows: Float[Tensor, " row"]) -> Float[Tensor, "*batch"]:
        return rows.reshape(self.query.shape[:-1]).expand(self.batch_shape)

    def sample(self, sample_shape: Sequence[int] = ()) -> Int[Tensor, "*sample *batch"]:
        """Draws exact addresses, all of them in one pass."""
        own = self.query.shape[:-1]
        lead = torch.Size(sample_shape) + self.batch_shape[: len(self.batch_shape) - len(own)]
        if not lead.numel():
            return torch.empty(lead + own, dtype=torch.long, device=self.query.device)
        return self._pass(samples=lead.numel()).samples.reshape(lead + own)

    def log_prob(self, value: Int[Tensor, "*address"]) -> Float[Tensor, "*lead"]:
        """Gives log p(a) in nats, minus infinity for an empty slot."""
        if self._validate_args:
            self._validate_sample(value)
        value, _ = torch.broadcast_tensors(value, torch.empty(self.batch_shape, device=value.device))
        return self._scores(value) - self._statistic("logsumexp")

    def entropy(self) -> Float[Tensor, "*batch"]:
        """Gives the entropy in nats."""
        return self._statistic("entropy").clone()

    def kl_to(self, prior: torch.distributions.Distribution) -> Float[Tensor, "*batch"]:
        """Gives KL(self || prior) in nats; ``prior`` is a Categorical over the same slots, one for all data.

        Raises:
            ValueError: if the prior differs between data or has another number of slots.
        """
        return self._laid_out(self._pass(log_prior=log_prior_row(prior, self.slots)).kl)

    def usage(self) -> Float[Tensor, " slot"]:
        """Gives the mean of p over the batch, ``[slot]``: how often each slot is read."""
        with torch.enable_grad():  # the derivative of the mean KL by the log prior is minus the mean p
            level = self.query.new_zeros(self.slots, requires_grad=True)
            rows = self.query.detach().reshape(-1, self.query.shape[-1])
            return -torch.autograd.grad(self._address(rows, log_prior=level).kl.mean(), level)[0]

    def nearest(self, slots: int) -> tuple[Int[Tensor, "*batch best"], Float[Tensor, "*batch best"]]:
        """Finds the likeliest slots, best first, and their scores."""
        rows = self.query.reshape(-1, self.query.shape[-1])
        best, scores = nearest_slots(rows, self.key, slots, mask=self.mask)
        shape = self.batch_shape + (slots,)
        best, scores = (t.reshape(self.query.shape[:-1] + (slots,)).expand(shape) for t in (best, scores))
        return best, scores

    def _log_row(self) -> Float[Tensor, " slot"]:
        """The log-probabilities of the one distribution that it is for all data."""
        with torch.autocast(self.query.device.type, enabled=False):
            logits = self.query.flatten() @ self.key.to(self.query.dtype).mT
        logits = logits if self.mask is None else logits.masked_fill(~self.mask, -torch.inf)
        return logits - self._statistic("logsumexp").flatten()[0]

    def dense(self) -> dist.Categorical:
        """Gives the same distribution with all its logits, ``[*batch, slot]``."""
        with torch.autocast(self.query.device.type, enabled=False):  # as its passes are computed
            logits = (self.query @ self.key.to(self.query.dtype).mT).expand(self.batch_shape + (self.slots,))
        return dist.Categorical(logits=logits if self.mask is None else logits.masked_fill(~self.mask, -torch.inf))

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """Raises: parallel enumeration needs a score for every datum and slot."""
        raise NotImplementedError(
            f"A StreamedCategorical over {self.slots} slots has no parallel enumeration, which needs the dense form. "
            "Train with VIMCO, or build the address with stream=False (or call .dense()) where batch x slots is small"
        )


@checked
def log_prior_row(prior: torch.distributions.Distribution, slots: int) -> Float[Tensor, " slot"]:
    """Gives the log-probabilities of a prior over ``slots`` addresses that all data share.

    Raises:
        ValueError: if the prior differs between data or has another number of slots.
    """
    if isinstance(prior, StreamedCategorical):
        logits = prior._log_row() if prior.query.shape[:-1].numel() == 1 else None
    else:
        logits = prior.logits
        while logits is not None and logits.dim() > 1:
            logits = logits[0] if len(logits) == 1 or logits.stride(0) == 0 else None
    if logits is None or len(logits) != slots:
        raise ValueError(
            f"`prior` must be one distribution over the {slots} slots for all data; got {prior} of batch shape "
            f"{list(prior.batch_shape)}. Use the dense address (stream=False) for a prior per datum"
        )
    return logits


@register_kl(StreamedCategorical, torch.distributions.Categorical)
@register_kl(StreamedCategorical, StreamedCategorical)
def _kl_streamed(q: StreamedCategorical, p: torch.distributions.Distribution) -> Tensor:
    return q.kl_to(p)
