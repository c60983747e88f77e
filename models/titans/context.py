"""Memory as context: what the memory recalls stands before each segment of the sequence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pyro_memory.gate import checked
from pyro_memory.kernels import refuse_transforms
from pyro_memory.models.titans.attention import Heads
from pyro_memory.models.titans.neural_memory import MemoryState
from pyro_memory.models.titans.state import State, resolve
from pyro_memory.models.titans.variants import Lengths, Mixer, Product


@dataclass(frozen=True, repr=False)
class ContextState(State):
    """A memory in the middle of its sequences, and the open segment."""

    memory: MemoryState
    before: tuple[Tensor, ...]  # the memory's weights before the segment
    keys: Tensor  # of what was recalled for the segment's tokens and of the tokens, [batch, 2, segment, head, head_dim]
    values: Tensor
    counts: Tensor  # tokens in the segment, [batch]


@checked
class TitansMAC(Mixer):
    r"""Memory as context: attention over a segment, what the memory recalls for it, and persistent tokens.

    .. code-block:: text

        h_t = M_{t-1}(S_t W_Q)              recalled for each token from the memory before the segment
        y_t = Attn([p] || h_t || S_t)       within the segment
        M_t = M_{t-1} updated with y_t
        o_t = y_t (x) M(y_t)                a (x) b = (silu(norm(a)) * silu(norm(b))) W

    The mask is ours. Read literally, the paper's equations leak the future: h_t holds what was recalled for all tokens
    of the segment and stands before all of them, and o_t reads the memory at the segment's end. Here token i sees p,
    what was recalled for tokens up to i, and tokens up to i; and o_i reads the memory after the write of y_i. Ours
    too: what is recalled for a token has its place in the rotary code, one vector a token, where the camera-ready
    paper has 256 memory tokens, and the memory never sees p.

    Args:
        dim: width of a token.
        heads: memories, and heads of the attention.
        segment: tokens of a segment, a multiple of the memory's ``chunk_size``.
        persistent: persistent tokens p; 0 for none.
        memory: options of ``NeuralMemory``.

    Raises:
        ValueError: for a segment that is no multiple of the chunk size.

    Cost: O(time (segment + persistent) dim), and that of the memory.

    References: Titans: Learning to Memorize at Test Time (Behrouz et al., 2025), https://arxiv.org/abs/2501.00663,
    equations 21 to 25
    """

    def __init__(
        self, dim: int, *, heads: int = 4, segment: int = 64, persistent: int = 16, name: str | None = None,
        **memory: Any,
    ) -> None:  # fmt: skip
        super().__init__(dim, heads, persistent, memory, name)
        if segment < 1 or segment % self.memory.chunk_size:
            raise ValueError(
                f"`segment` must be a multiple of `chunk_size` {self.memory.chunk_size}, so that a segment ends where "
                f"a chunk does; got {segment}"
            )
        self.segment = segment
        self.heads = Heads(dim, heads)
        self.to_recall = nn.Linear(dim, heads * self.memory.head_dim, bias=False)
        self.gate = Product(dim)
        self.state_shapes = self.initial_state(1).shapes()

    def initial_state(self, batch: int) -> ContextState:
        memory = self.memory.initial_state(batch)
        empty = memory.tail.new_zeros(batch, 2, self.segment, self.heads.heads, self.dim // self.heads.heads)
        return ContextState(memory, memory.weights, empty, empty, memory.position)

    def forward(
        self, x: Float[Tensor, "batch time dim"], state: ContextState | None = None, lengths: Lengths = None
    ) -> tuple[Float[Tensor, "batch time dim"], ContextState]:
        refuse_transforms("TitansMAC")
        x, state = resolve(self, x, state, lengths)
        batch, time = x.shape[:2]
        counts = state.counts.tolist()
        left = [time] * batch if lengths is None else lengths.tolist()
        done = [0] * batch
        outputs: list[Tensor] = []
        place: list[list[int]] = [[] for _ in left]
        while any(left):
            sizes = [min(n, self.segment - c) for n, c in zip(left, counts, strict=True)]
            width, offset = max(sizes), sum(y.shape[1] for y in outputs)
            y, state = self._within_segment(_window(x, done, width), state, counts, sizes)
            outputs.append(y)
            for b, n in enumerate(sizes):
                place[b] += range(offset, offset + n)
                counts[b] = (counts[b] + n) % self.segment
                left[b], done[b] = left[b] - n, done[b] + n
        if not outputs:
            return torch.zeros_like(x), state
        y = torch.cat(outputs, 1)
        if all(len(p) == time for p in place) and y.shape[1] == time:
            return y, state
        zero = y.shape[1]
        index = torch.tensor([p + [zero] * (time - len(p)) for p in place], device=x.device)
        y = torch.cat([y, torch.zeros_like(y[:, :1])], 1)
        return torch.take_along_dim(y, index[..., None], 1), state

    def _within_segment(
        self, x: Tensor, state: ContextState, counts: list[int], sizes: list[int]
    ) -> tuple[Tensor, ContextState]:
        """Takes the next ``sizes`` tokens of each sequence, none of which reaches into another segment."""
        even, width = len(set(sizes)) == 1, x.shape[1]
        sizes_, index = torch.tensor(sizes, device=x.device), torch.arange(width, device=x.device)
        position = state.counts[:, None] + index
        recalled = self.memory.retrieve(self.to_recall(x), state.before)
        new = [
            torch.stack(pair, 1).to(state.keys)  # whatever autocast made of them
            for pair in zip(*(self.heads.keys_values(t, position) for t in (recalled, x)), strict=True)
        ]
        if not any(counts) and even and width == self.segment:
            keys, values = new
        else:  # what is past a sequence's tokens goes to a place of its own, which is cut off
            target = torch.where(index < sizes_[:, None], position, self.segment)
            keys, values = (_put(old, t, target) for old, t in zip((state.keys, state.values), new, strict=True))
        k, v = keys.flatten(1, 2), values.flatten(1, 2)
        visible = torch.arange(self.segment, device=x.device) <= position[..., None]
        visible = torch.cat([visible, visible], -1)
        if self.persistent is not None:
            always = self.heads.keys_values(self.persistent.unsqueeze(0), None)
            k, v = (torch.cat([p.expand(len(t), -1, -1, -1), t], 1) for p, t in zip(always, (k, v), strict=True))
            visible = nn.functional.pad(visible, (len(self.persistent), 0), value=True)
        y = self.heads.attend(self.heads.queries(x, position), k, v, visible)
        remembered, memory = self.memory(y, state.memory, None if even else sizes_)
        now = state.counts + sizes_
        ended = now == self.segment
        before = tuple(
            torch.where(ended[:, None, None, None], new, old)
            for new, old in zip(memory.weights, state.before, strict=True)
        )
        return self.gate(y, remembered), ContextState(memory, before, keys, values, now % self.segment)


def _window(x: Tensor, starts: list[int], width: int) -> Tensor:
    """``width`` tokens of each sequence from its start on."""
    if len(set(starts)) == 1:
        return x[:, starts[0] : starts[0] + width]
    place = torch.tensor(starts, device=x.device)[:, None] + torch.arange(width, device=x.device)
    return torch.take_along_dim(x, place.clamp(max=x.shape[1] - 1)[..., None], 1)


def _put(old: Tensor, new: Tensor, target: Tensor) -> Tensor:
    """Writes ``new [batch, 2, time, ...]`` to places ``target [batch, time]`` of the segment."""
    spare = torch.zeros_like(old[:, :, :1])
    index = target[:, None, :, None, None].expand_as(new)
    return torch.cat([old, spare], 2).scatter(2, index, new)[:, :, :-1]
