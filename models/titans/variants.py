"""The four ways of putting a neural memory into a sequence model: LMM, MAL, MAG, MAC."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_memory.gate import checked
from pyro_memory.models.titans.attention import WindowAttention, WindowState
from pyro_memory.models.titans.neural_memory import MemoryState, NeuralMemory
from pyro_memory.models.titans.state import Lengths, State, mask_past, resolve
from pyro_memory.naming import unique_name
from pyro_memory.nets import PlainModule


@dataclass(frozen=True, repr=False)
class HybridState(State):
    """A memory and a window of attention, in the middle of their sequences."""

    memory: MemoryState
    window: WindowState


@checked
class Mixer(PlainModule):
    """A sequence mixer with persistent tokens, learned vectors that stand before every sequence.

    ``mixer(x, state=None, lengths=None) -> (y, state)`` with x, y ``[batch, time, dim]``; ``mixer.step(token, state)``
    takes one token of each sequence, ``[batch, dim]``. Cuts anywhere, streaming and lengths as in ``NeuralMemory``.
    """

    def __init__(self, dim: int, heads: int, persistent: int, memory: dict[str, Any], name: str | None) -> None:
        super().__init__(name or unique_name(self))
        if persistent < 0:
            raise ValueError(f"`persistent` must not be negative; got {persistent}")
        self.dim = dim
        self.memory = NeuralMemory(dim, heads=heads, **memory)
        self.persistent = nn.Parameter(0.02 * torch.randn(persistent, dim)) if persistent else None

    def step(
        self, token: Float[Tensor, "batch dim"], state: State | None = None
    ) -> tuple[Float[Tensor, "batch dim"], State]:
        """Takes one token of each sequence; the same as ``forward`` on a sequence of one."""
        y, state = self(token.unsqueeze(1), state)
        return y.squeeze(1), state

    def memory_state(self, batch: int) -> MemoryState:
        """The memory after the persistent tokens, the first that it sees."""
        if self.persistent is None:
            return self.memory.initial_state(batch)
        _, state = self.memory(self.persistent.unsqueeze(0))
        return state.map(lambda t: t.repeat_interleave(batch, 0))


@checked
class TitansLMM(Mixer):
    """Mixes by the neural memory alone, which starts from the persistent tokens: ``o = M([p] || x)``.

    Args:
        dim: width of a token.
        heads: memories side by side.
        persistent: persistent tokens; 0 for none.
        memory: options of ``NeuralMemory``.

    References: Titans: Learning to Memorize at Test Time (Behrouz et al., 2025), https://arxiv.org/abs/2501.00663
    """

    def __init__(
        self, dim: int, *, heads: int = 4, persistent: int = 16, name: str | None = None, **memory: Any
    ) -> None:
        super().__init__(dim, heads, persistent, memory, name)
        self.state_shapes = self.memory.state_shapes

    def initial_state(self, batch: int) -> MemoryState:
        return self.memory_state(batch)

    def forward(
        self, x: Float[Tensor, "batch time dim"], state: MemoryState | None = None, lengths: Lengths = None
    ) -> tuple[Float[Tensor, "batch time dim"], MemoryState]:
        x, state = resolve(self, x, state, lengths)
        return self.memory(x, state, lengths)


@checked
class _Hybrid(Mixer):
    """A memory and a sliding window."""

    def __init__(
        self, dim: int, *, heads: int = 4, window: int = 64, persistent: int = 16, name: str | None = None,
        **memory: Any,
    ) -> None:  # fmt: skip
        super().__init__(dim, heads, persistent, memory, name)
        self.attention = WindowAttention(dim, heads=heads, window=window)
        self.state_shapes = HybridState(self.memory.initial_state(1), self.attention.initial_state(1)).shapes()

    def initial_state(self, batch: int) -> HybridState:
        return HybridState(self.memory_state(batch), self.attention.initial_state(batch))


@checked
class TitansMAL(_Hybrid):
    """Memory as a layer: the memory first, then attention over a window of what it gives.

    .. code-block:: text

        y = M([p] || x)
        o = y + SW-Attn(norm(x + y))  with p always visible

    Residuals around both layers and a norm between them, as in Samba, which the paper names as its likeness: how we
    read "in all blocks, we use residual connections" (preprint, section 4.4); no equation has them. Without y in o
    what the memory recalls must pass attention, and hardly learns to recall (docs/recall.md). Ours is what attention
    sees of p: p itself, always; read literally, the paper's sees what the memory gave at p's places.

    Args:
        dim: width of a token.
        heads: memories, and heads of the attention.
        window: tokens that a token sees, itself among them.
        persistent: persistent tokens p; 0 for none.
        memory: options of ``NeuralMemory``.

    References: Titans: Learning to Memorize at Test Time (Behrouz et al., 2025), https://arxiv.org/abs/2501.00663,
    equations 29 to 31
    """

    def __init__(self, dim: int, **options: Any) -> None:
        super().__init__(dim, **options)
        self.norm = nn.RMSNorm(dim, eps=1e-6)

    def forward(
        self, x: Float[Tensor, "batch time dim"], state: HybridState | None = None, lengths: Lengths = None
    ) -> tuple[Float[Tensor, "batch time dim"], HybridState]:
        begins = state is None
        x, state = resolve(self, x, state, lengths)
        remembered, memory = self.memory(x, state.memory, lengths)
        before = None if begins else state.window
        y, window = self.attention(self.norm(x + remembered), before, lengths, self.persistent)
        return remembered + y, HybridState(memory, window)


@checked
class TitansMAG(_Hybrid):
    """Memory as a gate: attention over a window beside the memory, one multiplied by the other.

    .. code-block:: text

        y = SW-Attn*([p] || x)        p always visible
        o = y (x) M([p] || x)         a (x) b = (silu(norm(a)) * silu(norm(b))) W

    The paper says that both sides are normalised with learned weights and a non-linearity follows; the form above is
    how we read that, W is ours, and so are the norms' biases, which start at one, so that either side can pass alone.

    Args:
        dim: width of a token.
        heads: memories, and heads of the attention.
        window: tokens that a token sees, itself among them.
        persistent: persistent tokens p; 0 for none.
        memory: options of ``NeuralMemory``.

    References: Titans: Learning to Memorize at Test Time (Behrouz et al., 2025), https://arxiv.org/abs/2501.00663,
    equations 26 to 28
    """

    def __init__(self, dim: int, **options: Any) -> None:
        super().__init__(dim, **options)
        self.gate = Product(dim)

    def forward(
        self, x: Float[Tensor, "batch time dim"], state: HybridState | None = None, lengths: Lengths = None
    ) -> tuple[Float[Tensor, "batch time dim"], HybridState]:
        begins = state is None
        x, state = resolve(self, x, state, lengths)
        remembered, memory = self.memory(x, state.memory, lengths)
        y, window = self.attention(x, None if begins else state.window, lengths, self.persistent)
        return mask_past(self.gate(y, remembered), lengths), HybridState(memory, window)


class Product(nn.Module):
    """Multiplies two sequences after a norm and a silu each, and projects: ``a (x) b``."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(dim) for _ in range(2)])
        for norm in self.norms:
            nn.init.ones_(norm.bias)
        self.to_out = nn.Linear(dim, dim, bias=False)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        first, second = (F.silu(norm(t)) for norm, t in zip(self.norms, (a, b), strict=True))
        return self.to_out(first * second)
