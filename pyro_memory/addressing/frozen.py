"""An address by keys that were embedded beforehand."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor, nn

from pyro_memory.addressing.content import ContentAddress
from pyro_memory.distributions import StreamedCategorical
from pyro_memory.gate import checked
from pyro_memory.stores import SlotMemory, readable


@checked
class FrozenAddress(nn.Module):
    """Looks data up among keys that were embedded beforehand: for a large memory whose key network no longer moves.

    The memory carries them: ``SlotMemory(values, keys=address.embed(memory))``, or a ``MappedMemory`` with keys, which
    may be in half precision and larger than RAM.

    Args:
        address: the ``ContentAddress`` that made the keys; it embeds the queries.
        sharpness: what scores are multiplied by. An address trained among few slots spreads over too many of a larger
            memory; a sharpness chosen on held-out data gathers it again. Bounds stay bounds.

    Raises:
        ValueError: if ``sharpness`` is not positive, or the memory has no keys ``[slot, dim]`` of the queries' size.

    Cost: O(batch x slots x dim) for the scores, in one pass over the keys.
    """

    def __init__(self, address: ContentAddress, *, sharpness: float = 1.0) -> None:
        super().__init__()
        if not sharpness > 0:
            raise ValueError(f"`sharpness` must be positive; got {sharpness}")
        self.address, self.sharpness = address, sharpness

    def forward(self, x: Float[Tensor, "*batch *event"], memory: SlotMemory) -> StreamedCategorical:
        memory.check_filled()
        query, keys = self.query_for(x), self.embed(memory)
        if keys.shape[-1] != query.shape[-1]:
            raise ValueError(
                f"`memory` must hold keys of the queries' dimension, {query.shape[-1]}; got {keys.shape[-1]}. Embed it "
                "with this address"
            )
        return memory.streamed(query, keys)

    def query_for(self, x: Float[Tensor, "*batch *event"]) -> Float[Tensor, "*batch dim"]:
        """Gives what the score multiplies with a key of the memory."""
        return self.sharpness * self.address.query_for(x)

    def keys_for(self, memory: SlotMemory, slots: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch dim"]:
        """Gives the keys of some slots."""
        return readable(self.embed(memory)[slots])

    def key_tensors(self) -> dict[str, Tensor]:
        """Gives what keys depend on beside the memory: nothing."""
        return {}

    def embed(self, memory: SlotMemory) -> Float[Tensor, "slot dim"]:
        """Gives the keys that the memory carries."""
        if memory.keys is None or memory.keys.dim() != 2 or memory.batch_dim is not None:
            raise ValueError(
                "`memory` must carry embedded keys, [slot, dim], shared by all data; got "
                f"{'none' if memory.keys is None else list(memory.keys.shape)}. Make them with "
                "`SlotMemory(values, keys=address.embed(memory))`"
            )
        return memory.keys
