"""Causal attention over a window, with tokens that are always visible, that streams."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_memory.gate import checked
from pyro_memory.models.titans.state import Lengths, State, last_tokens, mask_past, resolve
from pyro_memory.naming import unique_name
from pyro_memory.nets import PlainModule


@dataclass(frozen=True, repr=False)
class WindowState(State):
    """The keys and values that the next tokens still see."""

    keys: Tensor  # [batch, window - 1, head, head_dim], the latest last
    values: Tensor
    position: Tensor  # tokens so far, [batch]


class Rotary(nn.Module):
    """Turns the first half of each head by a token's position, so that scores depend on distances.

    The other half carries content alone. A persistent token has no position: its key is zero in the first half.

    References: RoFormer (Su et al., 2021), https://arxiv.org/abs/2104.09864
    """

    def __init__(self, head_dim: int, base: float = 10_000.0) -> None:
        super().__init__()
        self.pairs = head_dim // 4
        frequencies = base ** (-torch.arange(self.pairs, dtype=torch.float64) / max(self.pairs, 1))
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(
        self, x: Float[Tensor, "batch time head dim"], position: Int[Tensor, "batch time"]
    ) -> Float[Tensor, "batch time head dim"]:
        angle = (position[..., None, None].double() * self.frequencies.double()).to(x.device)
        cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
        a, b, rest = x.split([self.pairs, self.pairs, x.shape[-1] - 2 * self.pairs], -1)
        return torch.cat([a * cos - b * sin, a * sin + b * cos, rest], -1)

    def unplaced(self, x: Tensor) -> Tensor:
        """Takes away what would turn."""
        return torch.cat([torch.zeros_like(x[..., : 2 * self.pairs]), x[..., 2 * self.pairs :]], -1)


class Heads(nn.Module):
    """Projects tokens to queries, keys and values of heads, and what attention gives back to tokens."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        if dim % heads or dim // heads < 4:
            raise ValueError(f"`heads` must divide `dim` {dim} into 4 dimensions or more; got {heads}")
        self.heads = heads
        self.to_q, self.to_out = nn.Linear(dim, dim, bias=False), nn.Linear(dim, dim, bias=False)
        self.to_kv = nn.Linear(dim, 2 * dim, bias=False)
        self.rotary = Rotary(dim // heads)

    def queries(self, x: Tensor, position: Tensor) -> Tensor:
        return self.rotary(self.to_q(x).unflatten(-1, (self.heads, -1)), position)

    def keys_values(self, x: Tensor, position: Tensor | None) -> tuple[Tensor, Tensor]:
        """``[batch, time, head, dim]``; without a position for tokens that are always visible."""
        k, v = self.to_kv(x).unflatten(-1, (2, self.heads, -1)).unbind(-3)
        return self.rotary.unplaced(k) if position is None else self.rotary(k, position), v

    def attend(self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
        """``[batch, time, dim]`` from ``[batch, time, head, dim]``; ``visible [batch or 1, queries, keys]``."""
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=visible.unsqueeze(1))
        return self.to_out(y.transpose(1, 2).flatten(2))


@checked
class WindowAttention(PlainModule):
    """Lets each token see itself, the ``window - 1`` tokens before it, and what is always visible.

    ``attention(x, state=None, lengths=None, persistent=None) -> (y, state)`` with x, y ``[batch, time, dim]`` and
    ``persistent [token, dim]``. The state has the size of a window. Blocks of queries see one window and one block, so
    the cost is O(time window dim), from no state on O((time min(time, window) + window) dim).
    """

    def __init__(self, dim: int, *, heads: int = 4, window: int = 64, name: str | None = None) -> None:
        super().__init__(name or unique_name(self))
        if window < 1:
            raise ValueError(f"`window` must be at least 1; got {window}")
        self.dim, self.window = dim, window
        self.heads = Heads(dim, heads)
        self.state_shapes = self.initial_state(1).shapes()

    def initial_state(self, batch: int) -> WindowState:
        weight = self.heads.to_q.weight
        empty = weight.new_zeros(batch, self.window - 1, self.heads.heads, self.dim // self.heads.heads)
        return WindowState(empty, empty, torch.zeros(batch, dtype=torch.long, device=weight.device))

    def forward(
        self,
        x: Float[Tensor, "batch time dim"],
        state: WindowState | None = None,
        lengths: Lengths = None,
        persistent: Float[Tensor, "token dim"] | None = None,
    ) -> tuple[Float[Tensor, "batch time dim"], WindowState]:
        begins = state is None
        x, state = resolve(self, x, state, lengths)
        (batch, time), before = x.shape[:2], self.window - 1
        position = state.position[:, None] + torch.arange(time, device=x.device)
        q = self.heads.queries(x, position)
        k, v = self.heads.keys_values(x, position)
        k, v = torch.cat([state.keys, k], 1), torch.cat([state.values, v], 1)
        kept = WindowState(
            last_tokens(k, before, lengths), last_tokens(v, before, lengths),
            state.position + (time if lengths is None else lengths),
        )  # fmt: skip

        size = min(self.window, time)
        blocks = -(-time // size)
        reach = 0 if begins and blocks == 1 else before  # tokens before a block that it sees
        k, v = k[:, before - reach :], v[:, before - reach :]
        padding = blocks * size - time
        if padding:
            q, k, v = (F.pad(t, (0, 0, 0, 0, 0, padding)) for t in (q, k, v))
        q = q.unflatten(1, (blocks, size)).flatten(0, 1)
        k, v = (t.unfold(1, reach + size, size).movedim(-1, 2).flatten(0, 1) for t in (k, v))
        row, column = torch.arange(size, device=x.device)[:, None], torch.arange(reach + size, device=x.device)
        visible = (column >= row + reach - before) & (column <= row + reach)
        start = torch.arange(blocks, device=x.device)[:, None] * size
        there = column + start >= (reach - state.position)[:, None, None]  # what was before the first token is not
        visible = visible & there.flatten(0, 1).unsqueeze(1)
        if persistent is not None:
            always = self.heads.keys_values(persistent.unsqueeze(0), None)
            k, v = (torch.cat([p.expand(len(t), -1, -1, -1), t], 1) for p, t in zip(always, (k, v), strict=True))
            visible = F.pad(visible, (len(persistent), 0), value=True)
        y = self.heads.attend(q, k, v, visible)
        y = y.unflatten(0, (batch, blocks)).flatten(1, 2)[:, :time]
        return mask_past(y, lengths), kept
