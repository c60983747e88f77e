"""The likelihood of data that depend on an address alone, for all slots by one matrix product."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.nn import functional

from pyro_memory.gate import checked


@checked
class AddressedBernoulli(TorchDistribution):
    r"""Independent pixels whose logits are those of the slot at an address.

    .. math:: \log p(x | a) = \sum_i x_i l_{ai} - \log(1 + e^{l_{ai}})

    It is ``Bernoulli(logits=logits[a]).to_event()`` with another way to the same number: the scores of all slots are
    one product ``x @ logits.T``, and an address picks from them. Enumerating M addresses of B data then costs O(M B D)
    multiply-adds in a matrix product and O(M B) memory, not O(M B D) of memory traffic. It pays where addresses are
    enumerated, or drawn more often than there are slots.

    Args:
        logits: one set for each slot, ``[slot, *event]``, such as ``decoder(memory.values)``.
        a: addresses of any shape: sampled, with particles, or enumerated.

    Example::

        a = pyro.sample("a", memory.prior(), infer={"enumerate": "parallel"})
        pyro.sample("x", AddressedBernoulli(decoder(memory.values), a), obs=x)
    """

    arg_constraints = {"logits": constraints.real}  # noqa: RUF012
    has_enumerate_support = False

    def __init__(
        self, logits: Float[Tensor, "slot *event"], a: Int[Tensor, "*batch"], *, validate_args: bool | None = None
    ) -> None:
        if logits.dim() < 2 or a.is_floating_point():
            raise ValueError(
                f"`logits` must be [slot, *event] and `a` integers; got {list(logits.shape)} and {a.dtype}"
            )
        self.logits, self.a = logits, a
        super().__init__(a.shape, logits.shape[1:], validate_args=validate_args)

    @property
    def support(self) -> constraints.Constraint:
        return constraints.independent(constraints.unit_interval, len(self.event_shape))  # grey levels are allowed

    @property
    def mean(self) -> Tensor:
        return self.logits[self.a].sigmoid()

    def expand(self, batch_shape: Sequence[int], _instance: TorchDistribution | None = None) -> AddressedBernoulli:
        return AddressedBernoulli(self.logits, self.a.expand(batch_shape), validate_args=False)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        with torch.no_grad():
            return torch.bernoulli(self.mean.expand(self._extended_shape(torch.Size(sample_shape))))

    def log_prob(self, value: Float[Tensor, "*batch *event"]) -> Float[Tensor, "*batch"]:
        if self._validate_args:
            self._validate_sample(value)
        flat = self.logits.flatten(1)
        lead = value.shape[: value.dim() - len(self.event_shape)]
        with torch.autocast(flat.device.type, enabled=False):
            scores = value.reshape(-1, flat.shape[1]) @ flat.mT - functional.softplus(flat).sum(-1)
        if self._enumerates(lead):
            return scores.mT.reshape(self.a.shape[:1] + (1,) * (self.a.dim() - 1 - len(lead)) + lead)
        datum = torch.arange(len(scores), device=scores.device).reshape(lead)
        return scores[datum, self.a]

    def _enumerates(self, lead: torch.Size) -> bool:
        """Whether the address runs over all slots in order, in a dimension left of the data's."""
        a, slots = self.a, len(self.logits)
        first = a.dim() > len(lead) and len(a) == slots
        return first and a.numel() == slots and torch.equal(a.flatten(), torch.arange(slots, device=a.device))
