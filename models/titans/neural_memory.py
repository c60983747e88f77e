"""Titans' neural memory: an MLP a head that learns its sequence at test time."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pyro
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_memory.gate import check_least, checked
from pyro_memory.kernels import anchored_token, apply_memory, chosen, run_memory, run_surprise
from pyro_memory.models.titans.state import Lengths, State, last_tokens, resolve
from pyro_memory.naming import unique_name
from pyro_memory.nets import PlainLinear, PlainModule


@dataclass(frozen=True, repr=False)
class MemoryState(State):
    """A neural memory in the middle of its sequences."""

    weights: tuple[Tensor, ...]  # W after the last token, [batch, head, in, out]
    momentum: tuple[Tensor, ...]  # S, the same shapes
    anchor: tuple[Tensor, ...]  # the weights that the open chunk began with, where its gradients are taken
    position: Tensor  # tokens that the open chunk has had, [batch]
    tail: Tensor  # the last projections before the convolutions, [batch, convolution - 1, 3 heads head_dim]


@checked
class NeuralMemory(PlainModule):
    r"""Mixes a sequence through memories that are trained on it while it passes.

    .. code-block:: text

        q, k, v = conv(x W_Q), conv(x W_K), conv(x W_V)        causal, depthwise; q and k of unit length, per head
        S_t = eta_t S_{t-1} - theta_t grad ||M(k_t) - v_t||^2  the gradient at the weights before the token's chunk
        W_t = (1 - alpha_t) W_{t-1} + S_t
        y_t = (norm(M_t(q_t)) * silu(x_t W_G)) W_O             read after write

    The memory of the camera-ready paper is the default, ``M(x) = x + LN(W_1 gelu(W_2 x))``, with theta, eta and alpha
    of each token, head and layer. Other than there, alpha is one number a head and layer unless ``channel_decay``;
    other than in the preprint, no SiLU follows q, k and v, and no pointwise half the depthwise convolution.

    What the paper leaves open: the gates are sigmoids of x, bounded by

    .. code-block:: text

        eta_t <= max_momentum    alpha_t <= max_decay / chunk_size    theta_t <= max_lr (1 - max_momentum) / chunk_size

    Proved: a linear memory (depth 1, no ``residual_norm``) without momentum cannot diverge at ``max_lr <= 1/2``,
    whatever the keys and gates: a chunk multiplies the weights by ``beta - 2 sum_i theta_i (beta/beta_i) k_i^T k_i``,
    whose eigenvalues lie in [-1, 1] as the keys are of unit length. With momentum, depth or LN nothing is proved. For
    the linear memory with momentum a search over keys and gates switched within a chunk found no growth at
    ``max_lr = 1/2``, and growth by a factor of 1.1 to 1.7 a chunk where theta is bounded by 1 - eta_t instead.

    Weights that decay to nothing make LN divide by ever less: gradients through deep memories and very narrow heads
    grow from chunk to chunk, and a deep memory that forgot all learns no more. These are ``steady``, as any may be:

    .. code-block:: text

        W_t = (1 - alpha_t) W_{t-1} + alpha_t W_0 + S_t      what is forgotten gives way to the initial weights
        LN(z) = (z - mean(z)) / sqrt(var(z) + 1)             never longer than z
        theta_t <= the above times min(1, 2 / depth)         and times 2 / inputs from the second layer on
        v <- v / max(1, |v| / sqrt(head_dim))                no longer than what LN can give

    That gradients hardly grow then is measured, not proved: 25 times over 256 times the length at ``max_lr = 1/2``
    whatever the gates, at 4 as the gates start, where a pass teaches nearly as much as by the plain rule
    (docs/titans.md, "Depth"). By the plain rule they explode with decay at its bound, or under very large tokens.

    Args:
        dim: width of a token.
        heads, head_dim: memories side by side, and the width of their keys and values; dim / heads by default.
        depth, expansion: layers of the memory, and how many times wider than the keys its inside is.
        chunk_size: tokens that share the point of the gradient; 1 is the fully online rule.
        activation: "gelu" or "silu".
        residual_norm: x + LN(.) around the memory's MLP.
        convolution: taps of the depthwise convolutions; 1 for none.
        momentum, weight_decay: False for the ablations, eta = 0 and alpha = 0.
        channel_decay: an alpha for each output channel of a layer, not one a layer.
        max_lr, max_momentum, max_decay: the bounds above. Decay starts at sigmoid(-8) of its own: half of what is
            written is left after 2,070 ``chunk_size / max_decay`` tokens.
        steady: the rule for deep memories; by default from depth 3 on, and with LN in heads narrower than 4.
        surprise: also records ``NAME.surprise [batch, time, 2]`` as a Pyro deterministic site, where Pyro is tracing:
            the inner loss of each token and the norm of its gradient, in units of their own, not nats. Costs one more
            pass of writes.
        checkpoint_chunks, backend: as in ``pyro_memory.kernels.neural_memory``.

    ``memory(x, state=None, lengths=None) -> (y, state)`` with x, y ``[batch, time, dim]``; ``step(token, state)``
    takes one token of each sequence, ``[batch, dim]``: a gradient at the anchor, an update, a read, whatever the chunk
    size. A sequence may be cut anywhere, and goes on from the state as if whole. The state's size is three times that
    of the weights, whatever came before. With ``lengths`` the state is the one after each sequence's last token, and
    outputs past it are zero.

    Raises:
        ValueError: for options out of range, an x that does not fit, a state of other shapes.
        NotImplementedError: for a second or a forward derivative, but of ``backend="reference"``.

    Cost: O(time (heads head_dim^2 expansion depth + dim heads head_dim)). ``torch.compile`` takes it whole; what that
    gains, and takes to start, stands in docs/titans.md.

    References: Titans: Learning to Memorize at Test Time (Behrouz, Zhong & Mirrokni, 2025),
    https://arxiv.org/abs/2501.00663
    """

    def __init__(
        self,
        dim: int,
        *,
        heads: int = 4,
        head_dim: int | None = None,
        depth: int = 2,
        expansion: int = 4,
        chunk_size: int = 16,
        activation: str = "gelu",
        residual_norm: bool = True,
        convolution: int = 4,
        momentum: bool = True,
        weight_decay: bool = True,
        channel_decay: bool = False,
        max_lr: float = 0.5,
        max_momentum: float = 0.8,
        max_decay: float = 1.0,
        steady: bool | None = None,
        surprise: bool = False,
        checkpoint_chunks: int | None = None,
        backend: str = "auto",
        name: str | None = None,
    ) -> None:
        super().__init__(name or unique_name(self))
        check_least(
            1, dim=dim, heads=heads, head_dim=head_dim, depth=depth, expansion=expansion, chunk_size=chunk_size,
            convolution=convolution,
        )  # fmt: skip
        if head_dim is None and dim % heads:
            raise ValueError(f"`heads` must divide `dim` {dim}, or give `head_dim`; got {heads}")
        if not 0 < max_decay <= chunk_size:
            raise ValueError(
                f"`max_decay` must lie in (0, {chunk_size}], alpha being up to max_decay / chunk_size; got {max_decay}"
            )
        if not 0 < max_momentum < 1 or not max_lr > 0:
            raise ValueError(f"`max_momentum` must lie in (0, 1), `max_lr` be positive; got {max_momentum}, {max_lr}")
        self.dim, self.heads, self.depth, self.chunk_size = dim, heads, depth, chunk_size
        self.head_dim = dim // heads if head_dim is None else head_dim
        needed = depth > 2 or (residual_norm and self.head_dim < 4)
        if needed and steady is False:
            raise ValueError(
                "`steady` may be False up to depth 2 in heads of 4 dimensions or more, beyond gradients explode; got "
                f"depth {depth} and {self.head_dim} dimensions. Leave it out"
            )
        self.steady = needed if steady is None else steady
        self._moves_to_rest = self.steady and weight_decay
        self.max_momentum = max_momentum if momentum else 0.0
        self.max_lr, self.max_decay = max_lr * (1 - self.max_momentum) / chunk_size, max_decay / chunk_size
        self.surprise = surprise
        self.options: dict[str, Any] = {"activation": activation, "residual_norm": residual_norm}
        self.run_options = {"chunk_size": chunk_size, "checkpoint_chunks": checkpoint_chunks, "backend": backend}
        inner, hidden = heads * self.head_dim, expansion * self.head_dim
        widths = [self.head_dim, *[hidden] * (depth - 1), self.head_dim]
        self.shapes = list(pairwise(widths))
        self.to_qkv = nn.Linear(dim, 3 * inner, bias=False)
        self.taps, groups = convolution, {"groups": 3 * inner, "bias": False}
        self.convolution = nn.Conv1d(3 * inner, 3 * inner, convolution, **groups) if convolution > 1 else None
        self.to_lr = PlainLinear(dim, depth * heads)
        self.to_momentum = PlainLinear(dim, depth * heads) if momentum else None
        channels = sum(widths[1:]) if channel_decay else depth
        self.to_decay = PlainLinear(dim, channels * heads) if weight_decay else None
        share = min(1, 2 / depth)
        self.lr_shares = [share if layer == 0 else share * 2 / a for layer, (a, _) in enumerate(self.shapes)]
        self.to_gate = nn.Linear(dim, inner, bias=False)
        self.to_out = PlainLinear(inner, dim, bias=False)
        self.read_norm = nn.Parameter(torch.ones(inner))
        if self.to_decay is not None:
            nn.init.constant_(self.to_decay.bias, -8.0)
        for layer, (a, b) in enumerate(self.shapes):
            # keys are of unit length, what comes after of unit variance, of which an activation leaves half
            scale = 1 if layer == 0 else ((2 if self.steady else 1) / a) ** 0.5
            setattr(self, f"initial_{layer}", nn.Parameter(scale * torch.randn(heads, a, b)))
        if residual_norm:
            self.memory_norm_weight = nn.Parameter(torch.ones(heads, self.head_dim))
            self.memory_norm_bias = nn.Parameter(torch.zeros(heads, self.head_dim))
        self.state_shapes = self.initial_state(1).shapes()

    def forward(
        self, x: Float[Tensor, "batch time dim"], state: MemoryState | None = None, lengths: Lengths = None
    ) -> tuple[Float[Tensor, "batch time dim"], MemoryState]:
        start = 0 if state is None else None
        x, state = resolve(self, x, state, lengths)
        watched = self.surprise and pyro.poutine.runtime.am_i_wrapped()
        if start is None and x.shape[1] == 1 and lengths is None and not watched and self._is_usual(x, state):
            return self._token(x.squeeze(1), state)
        projected = torch.cat([state.tail, self.to_qkv(x)], 1)
        q, k, v = self._qkv(projected)
        memory = state.weights, state.momentum, state.anchor, self._gates(x)
        options = self._memory() | {"position": state.position, "lengths": lengths}
        if self._moves_to_rest:
            options["rest"] = tuple(w.expand(len(x), *w.shape) for w in self._initial())
        if watched:
            self._record(run_surprise((k, v), *memory, chunk_size=self.chunk_size, **options)[0])
        y, *after = run_memory((q, k, v), *memory, start=start, **(options | self.run_options))
        y = self.to_out(self._normed(y) * F.silu(self.to_gate(x)))
        return y, MemoryState(*after, last_tokens(projected, self.taps - 1, lengths))

    def step(
        self, token: Float[Tensor, "batch dim"], state: MemoryState | None = None
    ) -> tuple[Float[Tensor, "batch dim"], MemoryState]:
        """Takes one token of each sequence; the same as ``forward`` on a sequence of one."""
        y, state = self(token.unsqueeze(1), state)
        return y.squeeze(1), state

    def _is_usual(self, x: Tensor, state: MemoryState) -> bool:
        """Whether a token may take the short way: all of it in one dtype, on a CPU."""
        held = (x, *state.weights, *state.momentum, *state.anchor, state.tail, self.read_norm)
        alike = x.dtype.itemsize > 2 and all(t.dtype == x.dtype and t.is_cpu for t in held)
        special = torch.is_autocast_enabled("cpu") or self.run_options["backend"] not in ("auto", "torch")
        return alike and not special

    def _token(self, x: Tensor, state: MemoryState) -> tuple[Tensor, MemoryState]:
        """``forward`` of one token, ``x [batch, dim]``."""
        projected = torch.cat([state.tail, self.to_qkv(x).unsqueeze(1)], 1)
        given = *self._qkv(projected), state.weights, state.momentum, *self._gates(x.unsqueeze(1))
        rest = self._initial() if self._moves_to_rest else None
        y, weights, momentum = anchored_token(*given, anchor=state.anchor, rest=rest, **self._memory())
        position = (state.position + 1) % self.chunk_size
        anchor = chosen(position == 0, weights, state.anchor)
        y = self.to_out(self._normed(y).squeeze(1) * F.silu(self.to_gate(x))).unsqueeze(1)
        return y, MemoryState(weights, momentum, anchor, position, last_tokens(projected, self.taps - 1, None))

    def retrieve(
        self, q: Float[Tensor, "batch time inner"], weights: tuple[Tensor, ...]
    ) -> Float[Tensor, "batch time dim"]:
        """Reads ``[batch, head, in, out]`` weights with given queries and writes nothing; no convolution, no gate."""
        q = F.normalize(q.unflatten(-1, (self.heads, self.head_dim)).transpose(1, 2), dim=-1, eps=1e-6)
        return self.to_out(self._normed(apply_memory(weights, q, **self._memory())))

    def initial_state(self, batch: int) -> MemoryState:
        """The state before the first token: the learned initial weights, no momentum."""
        weights, anchor = (tuple(w.repeat(batch, 1, 1, 1) for w in self._initial()) for _ in range(2))
        tail = weights[0].new_zeros(batch, self.taps - 1, 3 * self.heads * self.head_dim)
        position = torch.zeros(batch, dtype=torch.long, device=tail.device)
        return MemoryState(weights, tuple(torch.zeros_like(w) for w in weights), anchor, position, tail)

    def _initial(self) -> tuple[Tensor, ...]:
        return tuple(getattr(self, f"initial_{layer}") for layer in range(self.depth))

    def _qkv(self, projected: Tensor) -> tuple[Tensor, ...]:
        mixed = projected if self.convolution is None else self._convolve(projected)
        batch, time, _ = mixed.shape
        qkv = mixed.reshape(batch, time, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4).contiguous()
        unit, v = qkv[:2], qkv[2]
        q, k = (unit / torch.linalg.vector_norm(unit, dim=-1, keepdim=True).clamp_min(1e-6)).unbind(0)
        if self.steady:
            v = v / (v.norm(dim=-1, keepdim=True) / self.head_dim**0.5).clamp_min(1)
        return q, k, v

    def _convolve(self, x: Tensor) -> Tensor:
        """Mixes each channel's last ``convolution`` tokens; a convolution costs one token, or a compiler, more."""
        if x.shape[1] == self.taps:
            return (x * self.convolution.weight.squeeze(1).t()).sum(1, keepdim=True)
        if torch.compiler.is_compiling():
            return (x.unfold(1, self.taps, 1) * self.convolution.weight.squeeze(1)).sum(-1)
        image = x.unsqueeze(2).permute(0, 3, 1, 2)  # one of channels last, so nothing is copied
        mixed = F.conv2d(image, self.convolution.weight.unsqueeze(3), groups=x.shape[2])
        return mixed.permute(0, 2, 3, 1).squeeze(2)

    def _gates(self, x: Tensor) -> list[tuple[Tensor, ...]]:
        """theta, eta and alpha, each of every layer; all by one product."""
        kinds = (self.to_lr, self.max_lr), (self.to_momentum, self.max_momentum), (self.to_decay, self.max_decay)
        linears = [linear for linear, _ in kinds if linear is not None]
        weight, bias = torch.cat([m.weight for m in linears]), torch.cat([m.bias for m in linears])
        every = iter(F.linear(x, weight, bias).sigmoid_().split_with_sizes([m.out_features for m in linears], -1))
        gates = []
        for linear, bound in kinds:
            if linear is None:
                gates.append((x.new_zeros(1).expand(len(x), self.heads, x.shape[1]),) * self.depth)
                continue
            g = (bound * next(every)).view(*x.shape[:2], self.heads, -1).transpose(1, 2)
            gates.append(g.split([b for _, b in self.shapes], -1) if g.shape[-1] > self.depth else g.unbind(-1))
        if self.steady:
            gates[0] = tuple(share * theta for share, theta in zip(self.lr_shares, gates[0], strict=True))
        return gates

    def _memory(self) -> dict[str, Any]:
        """What M(x) is, in options of ``apply_memory``."""
        if not self.options["residual_norm"]:
            return self.options
        norm = {"norm_weight": self.memory_norm_weight, "norm_bias": self.memory_norm_bias}
        return self.options | norm | ({"norm_eps": 1.0} if self.steady else {})

    def _normed(self, y: Tensor) -> Tensor:
        """From heads to ``[batch, time, inner]``, each head of unit mean square times a learned weight."""
        return F.rms_norm(y.transpose(1, 2), (self.head_dim,), eps=1e-6).flatten(2) * self.read_norm

    def _record(self, surprise: Tensor) -> None:
        loss, norm = surprise.unbind(-1)
        value = torch.stack([loss.sum(1), norm.square().sum(1).sqrt()], -1)
        pyro.deterministic(f"{self._pyro_name}.surprise", value.detach(), event_dim=value.dim())
