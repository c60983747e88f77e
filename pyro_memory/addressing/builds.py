"""What an index was built from, so that it is known when it no longer is the index of that."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from pyro_memory.stores import SlotMemory

BLOCK = 65_536  # keys handed to faiss at a time, so that a mapped file is never read as a whole


class Build:
    """Keys, what faiss made of them, and what they were made from."""

    def __init__(self, keys: Tensor, mask: Tensor | None) -> None:
        self.keys, self.mask = keys, mask
        self.slots = None if mask is None else mask.nonzero().squeeze(-1)
        self.count = len(keys) if self.slots is None else len(self.slots)
        self.faiss: Any = None
        self._state = states_of(keys, mask)
        self._memory: tuple[SlotMemory, Any] | None = None
        self._tensors: dict[str, Tensor] = {}
        self._digest: bytes | None = None

    @property
    def whole(self) -> bool:
        """Whether nobody has written on keys or mask since."""
        return self._state == states_of(self.keys, self.mask)

    @property
    def digest(self) -> bytes:
        """A fingerprint of keys and mask."""
        if self._digest is None:
            sha = hashlib.sha256()
            for tensor in (self.keys, self.mask):
                if tensor is not None:
                    sha.update(tensor.cpu().contiguous().view(torch.uint8).numpy())
            self._digest = sha.digest()
        return self._digest

    def block(self, places: Int[Tensor, " key"]) -> Any:
        """Some keys, as faiss takes them."""
        slots = places if self.slots is None else self.slots[places]
        return self.keys[slots].float().cpu().contiguous().numpy()

    def made_from(self, memory: SlotMemory, tensors: dict[str, Tensor]) -> None:
        """Notes it. The memory is held, so that no other tensor can take its place."""
        self._memory = memory, states_of(memory.values, memory.keys, memory.mask)
        self._tensors = {name: tensor.detach().clone() for name, tensor in tensors.items()}

    def holds(self, memory: SlotMemory) -> bool:
        """Whether the memory is the one that it was made from, and neither was written on since."""
        state = states_of(memory.values, memory.keys, memory.mask)
        return self._memory is not None and self._memory[1] == state and self.whole

    def is_of(self, memory: SlotMemory, tensors: dict[str, Tensor]) -> bool:
        """Whether the same memory and key network would make the same keys."""
        return self.holds(memory) and _equal(list(self._tensors.values()), list(tensors.values()))


class Then(nn.Module):
    """The key network's weights at the last build while learning, among the weights of the address.

    Attributes:
        calls: while learning, since then.
    """

    calls: Tensor

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        super().__init__()
        for i, tensor in enumerate(tensors.values()):
            self.register_buffer(f"weight_{i}", tensor.detach().clone())
        self.register_buffer("calls", torch.zeros((), dtype=torch.long, device="cpu"))
        self.register_buffer("print", torch.zeros(32, dtype=torch.uint8, device="cpu"))

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *args: Any) -> None:
        """A file may lack what an index adds; then there is no build that one could go on with."""
        if any(name.startswith(prefix) for name in state):
            super()._load_from_state_dict(state, prefix, *args)

    @property
    def weights(self) -> list[Tensor]:
        return [buffer for name, buffer in self.named_buffers() if name.startswith("weight_")]

    @property
    def digest(self) -> bytes:
        return self.print.cpu().numpy().tobytes()

    @property
    def known(self) -> bool:
        """Whether there was a build."""
        return any(self.digest)

    def keep(self, tensors: dict[str, Tensor], digest: bytes) -> None:
        """Notes a build."""
        for buffer, tensor in zip(self.weights, tensors.values(), strict=True):
            buffer.copy_(tensor)
        self.print.copy_(torch.tensor(list(digest), dtype=torch.uint8))
        self.calls.zero_()

    def far_from(self, tensors: dict[str, Tensor], share: float) -> bool:
        """Whether some weight has moved by more than a share of its length."""
        pairs = [(a, b) for a, b in zip(self.weights, tensors.values(), strict=True) if b.is_floating_point()]
        return any(bool((a - b).norm() > share * b.norm()) for a, b in pairs)


def key_tensors(address: nn.Module) -> dict[str, Tensor]:
    """All that an address's keys depend on beside the memory."""
    if hasattr(address, "key_tensors"):
        return address.key_tensors()
    return dict(address.named_parameters(remove_duplicate=False)) | dict(address.named_buffers(remove_duplicate=False))


def states_of(*tensors: Tensor | None) -> list[Any]:
    """What changes when a tensor is another one, or is written on in place."""
    return [None if t is None else _state(t) for t in tensors]


def _state(t: Tensor) -> tuple[Any, ...]:
    # A tensor made in inference mode counts no versions.
    version = t.double().sum().item() if t.is_inference() else t._version
    return t.data_ptr(), t.shape, t.stride(), t.dtype, t.device, version


def _equal(ones: list[Tensor], others: list[Tensor]) -> bool:
    return len(ones) == len(others) and all(
        a.dtype == b.dtype and a.device == b.device and torch.equal(a, b) for a, b in zip(ones, others, strict=True)
    )
