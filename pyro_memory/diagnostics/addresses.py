"""How an address was used."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pyro_memory.diagnostics.tables import Record, Rows
from pyro_memory.distributions import NearestCategorical, StreamedCategorical, log_prior_row
from pyro_memory.gate import checked
from pyro_memory.stores import SlotMemory

ADDRESSES = (torch.distributions.Categorical, StreamedCategorical, NearestCategorical)


@checked
@dataclass(frozen=True, repr=False)
class AddressInformation(Record):
    """How an address was used.

    Attributes:
        slots: how many addresses there are, filled or not.
        ceiling: mean of ``-log min p(a)`` over filled slots, the most nats a lookup can be worth.
        effective_slots: mean of ``exp H(q(a|x))``.
        mutual_information, marginal_kl: the two parts of the mean KL, I(n; a) + KL(q(a) || p(a)) (Hoffman &
            Johnson, 2016, http://approximateinference.org/accepted/HoffmanJohnson2016.pdf); None with ``reason``.
        usage: the mean address distribution q(a), and ``dead``: filled slots with under 1% of their prior share.
        data: N, how many lookups there were; the mutual information cannot exceed log N either.
    """

    slots: int
    ceiling: float
    effective_slots: float
    data: int
    reason: str = ""
    mutual_information: float | None = None
    marginal_kl: float | None = None
    usage: Float[Tensor, " slot"] | None = None
    dead: Bool[Tensor, " slot"] | None = None

    def _shown(self) -> tuple[str, Rows, Sequence[str]]:
        head, *more = self.lines("site")
        return head, (), more

    def lines(self, name: str) -> list[str]:
        """Says it in words."""
        lines = [
            f"address {name}: {self.slots} slots, ceiling {self.ceiling:.3f} nats/lookup, "
            f"effective slots {self.effective_slots:.2f} (mean over lookups)"
        ]
        if self.usage is None:
            return [*lines, f"  mutual information and usage not defined: {self.reason}"]
        return [
            *lines,
            f"  mutual information {self.mutual_information:.3f} nats/lookup (at most log N = "
            f"{math.log(self.data):.3f}), marginal KL {self.marginal_kl:.3f}, of N = {self.data} lookups; "
            f"dead slots {int(self.dead.sum())}",
        ]


def address_information(q: Any, p: Any, lookups: int, args: tuple, kwargs: dict) -> AddressInformation:
    """Describes the use of an address site with so many cells."""
    slots = q.slots if hasattr(q, "slots") else q.probs.shape[-1]
    memories = [m for m in [*args, *kwargs.values()] if isinstance(m, SlotMemory)]
    owned = [m for m in memories if m.batch_dim is not None and slots in (m.slots, m.slots + 1)]  # one more is "none"
    reason = "each datum has a memory of its own" if owned else ""
    try:
        prior = log_prior_row(p, slots).double().exp()
    except ValueError:
        prior = p.probs.reshape(-1, slots).double()
        if torch.allclose(prior, prior[:1].expand_as(prior)):
            prior = prior[0]
        else:
            reason = reason or "the data do not share one prior over addresses"
    entropy = q.entropy().double().flatten()
    least = prior.masked_fill(prior == 0, math.inf).amin(-1)
    facts = {
        "slots": slots, "data": lookups,
        "ceiling": -least.log().mean().item(), "effective_slots": entropy.exp().mean().item(),
    }  # fmt: skip
    if reason:
        return AddressInformation(**facts, reason=reason)
    usage = q.usage().double() if hasattr(q, "usage") else q.probs.reshape(-1, slots).double().mean(0)
    return AddressInformation(
        **facts, usage=usage, dead=(usage < 0.01 * prior) & (prior > 0), **_split(entropy, prior, usage)
    )


def _split(
    entropy: Float[Tensor, " datum"], prior: Float[Tensor, " slot"], usage: Float[Tensor, " slot"]
) -> dict[str, float]:
    """Splits the mean KL(q || p) into I(n; a) = H(q(a)) - E H(q(a | x)) and KL(q(a) || p(a))."""
    negative_entropy = torch.special.xlogy(usage, usage)
    marginal = (negative_entropy - torch.special.xlogy(usage, prior)).sum()
    return {"mutual_information": (-negative_entropy.sum() - entropy.mean()).item(), "marginal_kl": marginal.item()}
