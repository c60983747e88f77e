"""Mixers to compare with, windowed attention and an LSTM, and a linear forecaster."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Self

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Bool, Float, Int
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from pyro_memory.naming import unique_name


class TensorState:
    """A state whose fields are tensors: a value to keep, save and go on from."""

    def detach(self) -> Self:
        """Gives the same state without its gradient."""
        return type(self)(**{name: t.detach() for name, t in self.to_tensors().items()})

    def to_tensors(self) -> dict[str, Tensor]:
        """Gives the tensors by name, as safetensors saves them."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> Self:
        """Gives the state that ``to_tensors`` took apart."""
        return cls(**tensors)


@dataclass(frozen=True, eq=False)
class WindowState(TensorState):
    """The last ``window`` keys and values ``[batch, head, window, head_dim]``, and which of them are of tokens."""

    keys: Float[Tensor, "batch head window head_dim"]
    values: Float[Tensor, "batch head window head_dim"]
    filled: Bool[Tensor, "batch window"]


class TransformerMixer(nn.Module):
    """Mixes by causal attention over the last ``window`` tokens, the token itself among them.

    Rotary positions are counted within the window, so that a stream may be of any length. Cost: O(time * window), in
    blocks of ``window`` queries over twice as many keys; a step O(window).

    Args:
        dim: of the tokens.
        heads: must divide ``dim`` into head dimensions that are even.
        window: how many tokens a token sees.

    References: Attention Is All You Need (Vaswani et al., 2017), https://arxiv.org/abs/1706.03762; Longformer (Beltagy
    et al., 2020), https://arxiv.org/abs/2004.05150; RoFormer (Su et al., 2021), https://arxiv.org/abs/2104.09864
    """

    state_type = WindowState

    def __init__(self, dim: int, *, heads: int = 4, window: int = 64) -> None:
        super().__init__()
        if heads < 1 or dim % (2 * heads):
            raise ValueError(f"`heads` must divide dim = {dim} into even parts; got {heads}")
        if window < 1:
            raise ValueError(f"`window` must be at least 1; got {window}")
        self.heads = heads
        self.window = window
        self.project = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)
        rates = 10_000.0 ** (-torch.arange(0, dim // heads, 2) / (dim // heads))
        self.register_buffer("angles", torch.arange(2 * window)[:, None] * rates, persistent=False)

    def forward(
        self,
        x: Float[Tensor, "batch time dim"],
        state: WindowState | None = None,
        lengths: Int[Tensor, " batch"] | None = None,
    ) -> tuple[Float[Tensor, "batch time dim"], WindowState]:
        window, time = self.window, x.shape[1]
        q, k, v = self._heads(x)
        state = self._empty(k) if state is None else state
        k, v = torch.cat([state.keys, k], 2), torch.cat([state.values, v], 2)
        filled = functional.pad(state.filled, (0, time), value=True)
        y = self._attend(q, k, v, filled)
        ends = torch.full((len(x),), time, device=x.device) if lengths is None else lengths
        kept = ends[:, None] + torch.arange(window, device=x.device)
        rows = kept[:, None, :, None].expand(-1, self.heads, -1, k.shape[-1])
        return y, WindowState(k.gather(2, rows), v.gather(2, rows), filled.gather(1, kept))

    def step(
        self, token: Float[Tensor, "batch dim"], state: WindowState | None
    ) -> tuple[Float[Tensor, "batch dim"], WindowState]:
        """Mixes one token in, at constant cost."""
        q, k, v = self._heads(token.unsqueeze(1))
        state = self._empty(k) if state is None else state
        keys = torch.cat([state.keys[:, :, 1:], k], 2)
        values = torch.cat([state.values[:, :, 1:], v], 2)
        filled = functional.pad(state.filled[:, 1:], (0, 1), value=True)
        angles = self.angles[: self.window]
        y = functional.scaled_dot_product_attention(
            _turn(q, angles[-1:]), _turn(keys, angles), values, attn_mask=filled[:, None, None]
        )
        return self.out(y.flatten(1)), WindowState(keys, values, filled)

    def _heads(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.project(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)

    def _empty(self, like: Tensor) -> WindowState:
        cache = like.new_zeros((*like.shape[:2], self.window, like.shape[-1]))
        return WindowState(cache, cache, torch.zeros(len(like), self.window, dtype=torch.bool, device=like.device))

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, filled: Tensor) -> Tensor:
        """Attention of each block of queries over its own and the previous block of keys."""
        batch, time, window = len(q), q.shape[2], self.window
        blocks = -(-time // window)
        spare = blocks * window - time
        q = functional.pad(q, (0, 0, 0, spare)).unflatten(2, (blocks, window)).transpose(1, 2).flatten(0, 1)
        k, v = (
            functional.pad(t, (0, 0, 0, spare)).unfold(2, 2 * window, window).permute(0, 2, 1, 4, 3).flatten(0, 1)
            for t in (k, v)
        )
        seen = functional.pad(filled, (0, spare), value=True).unfold(1, 2 * window, window).flatten(0, 1)
        behind = torch.arange(window, device=q.device)[:, None] + window - torch.arange(2 * window, device=q.device)
        mask = ((behind >= 0) & (behind < window)) & seen[:, None, None]
        y = functional.scaled_dot_product_attention(
            _turn(q, self.angles[window:]), _turn(k, self.angles), v, attn_mask=mask
        )
        return self.out(y.unflatten(0, (batch, blocks)).permute(0, 1, 3, 2, 4).flatten(3).flatten(1, 2)[:, :time])


def _turn(x: Float[Tensor, "*batch time dim"], angles: Float[Tensor, "time half"]) -> Float[Tensor, "*batch time dim"]:
    """Rotates pairs of coordinates by their position's angles."""
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], -1)


@dataclass(frozen=True, eq=False)
class LSTMState(TensorState):
    """The cell's output and its content, each ``[layer, batch, hidden]``."""

    output: Float[Tensor, "layer batch hidden"]
    cell: Float[Tensor, "layer batch hidden"]


class LSTMMixer(nn.Module):
    """Mixes by an LSTM of ``hidden`` cells (by default ``dim``) and a projection back to ``dim``.

    References: Long Short-Term Memory (Hochreiter & Schmidhuber, 1997), https://doi.org/10.1162/neco.1997.9.8.1735
    """

    state_type = LSTMState

    def __init__(self, dim: int, *, hidden: int | None = None) -> None:
        super().__init__()
        self.cell = nn.LSTM(dim, hidden or dim, batch_first=True)
        self.out = nn.Linear(hidden or dim, dim, bias=False)

    def forward(
        self,
        x: Float[Tensor, "batch time dim"],
        state: LSTMState | None = None,
        lengths: Int[Tensor, " batch"] | None = None,
    ) -> tuple[Float[Tensor, "batch time dim"], LSTMState]:
        start = None if state is None else (state.output, state.cell)
        if lengths is None:
            y, end = self.cell(x, start)
        else:
            packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
            y, end = self.cell(packed, start)
            y = pad_packed_sequence(y, batch_first=True, total_length=x.shape[1])[0]
        return self.out(y), LSTMState(*end)

    def step(
        self, token: Float[Tensor, "batch dim"], state: LSTMState | None
    ) -> tuple[Float[Tensor, "batch dim"], LSTMState]:
        """Mixes one token in."""
        y, state = self(token.unsqueeze(1), state)
        return y.squeeze(1), state


class DLinear(PyroModule):
    r"""Forecasts by two linear maps, of a window's moving average and of what that leaves.

    .. code-block:: text

        trend = average of x over 25 times, its ends repeated
        y ~ N(A trend + B (x - trend), scale)

    ``forward(x, mask, targets)`` is called like a ``SequenceModel`` that forecasts: ``x [batch, time, feature]`` is the
    past in patches, ``targets [batch, 1, horizon]``. ``mask`` must be None.

    References: Are Transformers Effective for Time Series Forecasting? (Zeng et al., 2023),
    https://arxiv.org/abs/2205.13504
    """

    def __init__(self, past: int, horizon: int, *, kernel: int = 25, name: str | None = None) -> None:
        super().__init__(name or unique_name(self))
        if kernel < 1 or kernel % 2 == 0:
            raise ValueError(f"`kernel` must be odd, so that the average is centred; got {kernel}")
        self.kernel = kernel
        self.trend = nn.Linear(past, horizon)
        self.rest = nn.Linear(past, horizon)
        self.log_scale = nn.Parameter(torch.zeros(horizon))

    def next_dist(self, x: Float[Tensor, "batch time feature"]) -> dist.Independent:
        """p(future | past)."""
        past = x.flatten(1)
        side = self.kernel // 2
        padded = functional.pad(past.unsqueeze(1), (side, side), mode="replicate")
        trend = functional.avg_pool1d(padded, self.kernel, stride=1).squeeze(1)
        return dist.Normal(self.trend(trend) + self.rest(past - trend), self.log_scale.exp()).to_event(1)

    def forward(self, x: Tensor, mask: None = None, targets: Tensor | None = None) -> None:
        if mask is not None or targets is None:
            raise ValueError("`mask` must be None and `targets` be given: DLinear forecasts")
        with pyro.plate("batch", len(x)):
            pyro.sample("x", self.next_dist(x), obs=targets.squeeze(1))
