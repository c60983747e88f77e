"""An address that keeps the nearest slots of another one."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from pyro_memory.addressing.builds import Then, key_tensors
from pyro_memory.addressing.index import SlotIndex
from pyro_memory.distributions import NearestCategorical, StreamedCategorical
from pyro_memory.gate import checked
from pyro_memory.stores import SlotMemory


@checked
class NearestAddress(nn.Module):
    r"""Keeps the ``nearest`` likeliest slots of another address, and spreads ``epsilon`` evenly over the rest.

    Its log q(a) is exact, so a bound with it as the guide stays a lower bound. Without ``epsilon`` that bound converges
    to log p(x, a among the nearest), not to log p(x), as particles grow; an ``epsilon`` above 0 lets it reach log p(x)
    and keeps the importance weights bounded. With ``epsilon`` and a prior that is not uniform, the exact KL costs one
    pass over the slots.

    Args:
        address: ``ContentAddress`` or ``FrozenAddress``; any address without an ``index``.
        nearest: k, the slots kept.
        epsilon: the share of all other filled slots together, in [0, 1).
        index: finds the slots; without one every slot is scored. It may miss some of the nearest: the result is then a
            distribution over other candidates, whose log q(a) is exact all the same.

    With an index and a ``ContentAddress`` the candidates are embedded anew in training mode, so that the key network
    learns; in evaluation mode, and without gradients, the index's own keys are used. Then the index is always that of
    the memory and the weights as they are: it is built anew where either has changed. In training it may be stale
    within its limit, as far as weights are concerned; measuring in between leaves it as it was, and the weights that it
    was built from are part of the address's state, so that training goes on from a checkpoint with the same index. A
    memory whose slots learn changes at every step, and with it the index: leave it out there.

    Raises:
        ValueError: for ``nearest`` below 1 or above the filled slots, ``epsilon`` outside [0, 1), and an index with a
            memory per datum.

    Cost: with an index, its search and O(batch x k) scores; without, O(batch x slots) scores.
    """

    def __init__(
        self, address: nn.Module, nearest: int, *, epsilon: float = 0.0, index: SlotIndex | None = None
    ) -> None:
        super().__init__()
        if nearest < 1:
            raise ValueError(f"`nearest` must be at least 1 slot; got {nearest}")
        if not 0 <= epsilon < 1:
            raise ValueError(f"`epsilon` must lie in [0, 1); got {epsilon}")
        self.address, self.nearest, self.epsilon, self.index = address, nearest, epsilon, index
        self.then = None if index is None else self._then()

    def forward(self, x: Float[Tensor, "*batch *event"], memory: SlotMemory) -> NearestCategorical:
        memory.check_filled()
        mask = memory.every_mask if memory.divided else memory.mask
        fewest = memory.slots if mask is None else int(mask.sum(-1).min())
        if self.nearest > fewest:
            raise ValueError(
                f"`nearest` must be at most the filled slots of the memory, {fewest}; got {self.nearest}. Lower it, or "
                "use the address without NearestAddress"
            )
        best, scores = self._looked_up(x, memory) if self.index is None else self._found(x, memory)
        mask = None if mask is None else memory.align(mask)
        return NearestCategorical(best, scores, memory.slots, mask, epsilon=self.epsilon)

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *args: Any) -> None:
        if self.then is None:  # the file's index is not needed
            for name in [name for name in state if name.startswith(f"{prefix}then.")]:
                del state[name]
        super()._load_from_state_dict(state, prefix, *args)

    def _then(self) -> Then | None:
        tensors = key_tensors(self.address)
        return Then(tensors) if tensors and not any(map(is_lazy, tensors.values())) else None

    def _looked_up(self, x: Tensor, memory: SlotMemory) -> tuple[Tensor, Tensor]:
        address = self.address(x, memory)
        if isinstance(address, StreamedCategorical):
            return address.nearest(self.nearest)
        top = address.logits.topk(self.nearest, dim=-1)
        return top.indices, top.values

    def _found(self, x: Tensor, memory: SlotMemory) -> tuple[Tensor, Tensor]:
        if memory.batch_dim is not None or memory.divided:
            kind = "divided over processes" if memory.divided else "per datum"
            raise ValueError(f"`index` needs a memory that all data share, in one process; got one {kind}")
        learning = self.training and torch.is_grad_enabled()
        tensors = key_tensors(self.address)
        if learning and any(t.requires_grad for t in tensors.values()):
            self.then = self._then() if self.then is None else self.then  # the index came later
            self.index.follow(self.address, memory, self.then)
        else:
            self.index.settle(self.address, memory)
        query = self.address.query_for(x)
        rows = query.reshape(-1, query.shape[-1])
        best = self.index.search(rows.detach(), self.nearest)
        key = self.address.keys_for(memory, best) if learning else self.index.keys[best].to(query.dtype)
        scores = (key * rows.unsqueeze(-2)).sum(-1)
        shape = query.shape[:-1] + (self.nearest,)
        return best.reshape(shape), scores.reshape(shape)
