"""Mixers to compare with, windowed attention and an LSTM, and a linear forecaster."""

from __future__ import annotations

from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from pyro_memory.gate import checked
from pyro_memory.models.titans.attention import WindowAttention, WindowState
from pyro_memory.models.titans.state import Lengths, State, resolve
from pyro_memory.naming import unique_name
from pyro_memory.nets import out_of_autocast


@checked
class TransformerMixer(WindowAttention):
    """Mixes by causal attention over the last ``window`` tokens, the token itself among them.

    ``mixer(x, state=None, lengths=None) -> (y, state)`` with x, y ``[batch, time, dim]``, and ``mixer.step``. Cost:
    O(time * window * dim); a step O(window * dim).

    Args:
        dim: of the tokens.
        heads: must divide ``dim``.
        window: how many tokens a token sees.

    References: Attention Is All You Need (Vaswani et al., 2017), https://arxiv.org/abs/1706.03762; Longformer (Beltagy
    et al., 2020), https://arxiv.org/abs/2004.05150
    """

    def step(
        self, token: Float[Tensor, "batch dim"], state: WindowState | None = None
    ) -> tuple[Float[Tensor, "batch dim"], WindowState]:
        """Takes one token of each sequence; the same as ``forward`` on a sequence of one."""
        y, state = self(token.unsqueeze(1), state)
        return y.squeeze(1), state


@dataclass(frozen=True, repr=False)
class LSTMState(State):
    """The cells' output and content, each ``[batch, hidden]``."""

    output: Tensor
    cell: Tensor


@checked
class LSTMMixer(nn.Module):
    """Mixes by an LSTM of ``hidden`` cells (by default ``dim``) and a projection back to ``dim``.

    ``mixer(x, state=None, lengths=None) -> (y, state)`` with x, y ``[batch, time, dim]``, and ``mixer.step``. Cost:
    O(time * hidden * (dim + hidden)).

    References: Long Short-Term Memory (Hochreiter & Schmidhuber, 1997), https://doi.org/10.1162/neco.1997.9.8.1735
    """

    def __init__(self, dim: int, *, hidden: int | None = None) -> None:
        super().__init__()
        self.dim = dim
        self.cells = nn.LSTM(dim, hidden or dim, batch_first=True)
        self.to_out = nn.Linear(hidden or dim, dim, bias=False)
        self.state_shapes = self.initial_state(1).shapes()

    def initial_state(self, batch: int) -> LSTMState:
        """Zeros."""
        zero = self.to_out.weight.new_zeros(batch, self.cells.hidden_size)
        return LSTMState(zero, zero)

    def forward(
        self, x: Float[Tensor, "batch time dim"], state: LSTMState | None = None, lengths: Lengths = None
    ) -> tuple[Float[Tensor, "batch time dim"], LSTMState]:
        x, state = resolve(self, x, state, lengths)
        start = (state.output.unsqueeze(0), state.cell.unsqueeze(0))
        if lengths is None:
            y, end = self._run(x, start)
            return self.to_out(y), _after(end, state)
        # Packing knows no empty sequence: give it one token, and take its state back.
        packed = pack_padded_sequence(x, lengths.clamp(min=1).cpu(), batch_first=True, enforce_sorted=False)
        y, end = self._run(packed, start)
        y = pad_packed_sequence(y, batch_first=True, total_length=x.shape[1])[0]
        y = y.masked_fill((lengths == 0)[:, None, None], 0)
        return self.to_out(y), _after(end, state).where(lengths > 0, state)

    def _run(self, x: Tensor | PackedSequence, start: tuple[Tensor, Tensor]) -> tuple:
        with torch.autocast("cpu", enabled=False):  # on a CPU torch's LSTM in bfloat16 wants AVX-512
            return self.cells(x.to(self.to_out.weight.dtype), start)

    def step(
        self, token: Float[Tensor, "batch dim"], state: LSTMState | None = None
    ) -> tuple[Float[Tensor, "batch dim"], LSTMState]:
        """Takes one token of each sequence; the same as ``forward`` on a sequence of one."""
        y, state = self(token.unsqueeze(1), state)
        return y.squeeze(1), state


@checked
def _after(end: tuple[Tensor, Tensor], state: LSTMState) -> LSTMState:
    """In the dtype of the state before, whatever autocast made of it: torch's LSTM takes no other."""
    return LSTMState(*(t.squeeze(0).to(state.output) for t in end))


@checked
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
        if past.shape[1] != self.trend.in_features:
            raise ValueError(
                f"`x` must hold {self.trend.in_features} values a sequence, the `past` the model was built for; got "
                f"shape {list(x.shape)}"
            )
        side = self.kernel // 2
        padded = functional.pad(past.unsqueeze(1), (side, side), mode="replicate")
        trend = functional.avg_pool1d(padded, self.kernel, stride=1).squeeze(1)
        loc = out_of_autocast(self.trend(trend) + self.rest(past - trend))
        return dist.Normal(loc, self.log_scale.exp()).to_event(1)

    def forward(
        self, x: Float[Tensor, "batch time feature"], mask: None = None,
        targets: Float[Tensor, "batch last horizon"] | None = None,
    ) -> None:  # fmt: skip
        if mask is not None or targets is None:
            raise ValueError("`mask` must be None and `targets` be given: DLinear forecasts")
        with pyro.plate("batch", len(x)):
            pyro.sample("x", self.next_dist(x), obs=targets.squeeze(1))
