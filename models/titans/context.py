"""Memory as context: what the memory recalls stands before each segment of the sequence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pyro_memory.gate import checked
from pyro_memory.kernels import chosen, may_look
from pyro_memory.models.titans.attention import Heads
from pyro_memory.models.titans.neural_memory import MemoryState
from pyro_memory.models.titans.state import Lengths, State, mask_past, resolve
from pyro_memory.models.titans.variants import Mixer, Product


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
        y_t = S_t + Attn([p] || h_t || S_t) within the segment
        M_t = M_{t-1} updated with y_t
        o_t = y_t (x) M(y_t)                a (x) b = (silu(norm(a)) * silu(norm(b))) W

    The residual is how we read "in all blocks, we use residual connections" (preprint, section 4.4); no equation has
    it. Without it tokens reach the memory through attention only, and four pairs are recalled in half of cases where
    with it all are (docs/titans.md).

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
        keys, values, counts = empty, empty.clone(), memory.position.clone()
        return ContextState(memory, tuple(w.clone() for w in memory.weights), keys, values, counts)

    def forward(
        self, x: Float[Tensor, "batch time dim"], state: ContextState | None = None, lengths: Lengths = None
    ) -> tuple[Float[Tensor, "batch time dim"], ContextState]:
        starts = [0] if state is None else state.counts.tolist() if may_look(state.counts) else []
        x, state = resolve(self, x, state, lengths)
        time = x.shape[1]
        if lengths is None and (time == 1 or len(set(starts)) == 1):
            first = 1 if time == 1 else min(time, self.segment - starts[0])
            sizes = [first, *[self.segment] * ((time - first) // self.segment), (time - first) % self.segment]
            outputs = []
            for piece in x.split([size for size in sizes if size], 1):
                y, state = self._within_segment(piece, state, None)
                outputs.append(y)
            return torch.cat(outputs, 1), state
        return self._uneven(x, state, torch.full_like(state.counts, time) if lengths is None else lengths)

    def _uneven(self, x: Tensor, state: ContextState, total: Tensor) -> tuple[Tensor, ContextState]:
        """Where sequences stand at different places, or end at different ones: as many windows as any may need."""
        time, width = x.shape[1], min(self.segment, x.shape[1])
        token = torch.arange(time, device=x.device)
        outputs, done, place = [], torch.zeros_like(total), torch.zeros_like(token).expand(len(x), -1)
        for i in range(1 + -(-time // self.segment)):
            if may_look(done) and torch.equal(done, total):
                break
            sizes = torch.minimum(total - done, self.segment - state.counts)
            window = (done[:, None] + token[:width]).clamp(max=time - 1)
            y, state = self._within_segment(torch.take_along_dim(x, window[..., None], 1), state, sizes)
            outputs.append(y)
            place = torch.where(token >= done[:, None], token - done[:, None] + i * width, place)
            done = done + sizes
        if not outputs:
            return torch.zeros_like(x), state
        y = torch.cat(outputs, 1)
        y = torch.take_along_dim(y, place.clamp(max=y.shape[1] - 1)[..., None], 1)
        return mask_past(y, total), state

    def _within_segment(self, x: Tensor, state: ContextState, sizes: Tensor | None) -> tuple[Tensor, ContextState]:
        """Takes all tokens, or ``sizes [batch]`` of each sequence, none of which reaches into another segment."""
        width = x.shape[1]
        taken = torch.full_like(state.counts, width) if sizes is None else sizes
        index = torch.arange(width, device=x.device)
        position = state.counts[:, None] + index
        recalled = self.memory.retrieve(self.to_recall(x), state.before)
        new = [
            torch.stack(pair, 1).to(state.keys)  # whatever autocast made of them
            for pair in zip(*(self.heads.keys_values(t, position) for t in (recalled, x)), strict=True)
        ]
        if sizes is None and width == self.segment:
            keys, values = new
        else:  # what is past a sequence's tokens goes to a place of its own, which is cut off
            target = torch.where(index < taken[:, None], position, self.segment)
            keys, values = (_put(old, t, target) for old, t in zip((state.keys, state.values), new, strict=True))
        k, v = keys.flatten(1, 2), values.flatten(1, 2)
        visible = torch.arange(self.segment, device=x.device) <= position[..., None]
        visible = torch.cat([visible, visible], -1)
        if self.persistent is not None:
            always = self.heads.keys_values(self.persistent.unsqueeze(0), None)
            k, v = (torch.cat([p.expand(len(t), -1, -1, -1), t], 1) for p, t in zip(always, (k, v), strict=True))
            visible = nn.functional.pad(visible, (len(self.persistent), 0), value=True)
        y = x + self.heads.attend(self.heads.queries(x, position), k, v, visible)
        remembered, memory = self.memory(y, state.memory, sizes)
        now = state.counts + taken
        before = chosen(now == self.segment, memory.weights, state.before)
        return self.gate(y, remembered), ContextState(memory, before, keys, values, now % self.segment)


def _put(old: Tensor, new: Tensor, target: Tensor) -> Tensor:
    """Writes ``new [batch, 2, time, ...]`` to places ``target [batch, time]`` of the segment."""
    spare = torch.zeros_like(old[:, :, :1])
    index = target[:, None, :, None, None].expand_as(new)
    return torch.cat([old, spare], 2).scatter(2, index, new)[:, :, :-1].contiguous()
