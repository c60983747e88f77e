"""Sequences cut anywhere: the tokens of a chunk that is not yet full wait beside the memory's weights.

A memory's weights change at the end of a chunk only. So a state holds the weights at the start of the open chunk and
its tokens; the next call puts those tokens before its own. Sequences of a batch may stand at different places.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_memory.models.titans.state import State

Step = Callable[..., tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]]


@dataclass(frozen=True, repr=False)
class FastWeights(State):
    """The weights of a neural memory at the start of the open chunk, and that chunk's tokens."""

    weights: tuple[Tensor, ...]  # [batch, head, in, out]
    momentum: tuple[Tensor, ...]  # the same shapes
    waiting: tuple[Tensor, ...]  # the chunk's keys, values and gates, [batch, head, chunk_size - 1, ...], then zeros
    counts: Tensor  # how many of them are tokens, [batch]


def run_through(
    step: Step, state: FastWeights, tokens: tuple[Tensor, ...], chunk_size: int, lengths: Tensor | None = None
) -> tuple[Tensor, FastWeights]:
    """Runs ``step`` over tokens that follow those waiting, whole chunks first and then the open one.

    Args:
        step: maps ``(tokens, weights, momentum, lengths, return_state)`` to ``(y, weights, momentum)``, by chunks from
            token 0; the state may be None where it is not asked for.
        tokens: ``[batch, head, time, ...]`` each; the queries first, which nobody waits for.
    """
    batch, _, time = tokens[0].shape[:3]
    counts = state.counts
    had = counts.tolist()
    new = [time] * batch if lengths is None else lengths.tolist()
    total = [a + b for a, b in zip(had, new, strict=True)]
    full = [n // chunk_size * chunk_size for n in total]
    rest = [n - f for n, f in zip(total, full, strict=True)]
    even = len(set(had)) == 1 and set(new) == {time}
    if not any(had):
        packed = tokens
    else:
        waiting = (torch.zeros_like(state.waiting[0]), *state.waiting)
        packed = tuple(_append(w, t, had, max(total), even) for w, t in zip(waiting, tokens, strict=True))

    device = counts.device

    def told(sizes: list[int]) -> Tensor | None:
        return None if even else torch.tensor(sizes, device=device)

    parts, weights, momentum = [], state.weights, state.momentum
    if max(full):
        y, weights, momentum = step(tuple(t[:, :, : max(full)] for t in packed), weights, momentum, told(full), True)
        parts.append(y)
    waiting = tuple(_window(t, full, rest, chunk_size - 1) for t in packed)
    if max(rest):
        now = tuple(t[:, :, : max(rest)] for t in waiting)
        parts.append(step(now, weights, momentum, told(rest), False)[0])
    y = torch.cat(parts, 2) if parts else torch.zeros_like(tokens[2])
    if even:
        y = y[:, :, had[0] :]
    else:
        # where the outputs of a sequence's new tokens stand: its whole chunks are followed by others' padding
        place = torch.arange(time, device=device) + counts[:, None]
        whole = torch.tensor(full, device=device)[:, None]
        place = torch.where(place < whole, place, place - whole + max(full))
        y = _take(y, place.clamp(max=y.shape[2] - 1))
        inside = torch.arange(time, device=device) < torch.tensor(new, device=device)[:, None]
        y = y.masked_fill(~inside[:, None, :, None], 0)
    return y, FastWeights(weights, momentum, waiting[1:], torch.tensor(rest, device=device))


def _append(waiting: Tensor, tokens: Tensor, had: list[int], size: int, even: bool) -> Tensor:
    """Puts each sequence's new tokens right behind those that wait."""
    if even:
        return torch.cat([waiting[:, :, : had[0]], tokens], 2)
    joined = torch.cat([waiting, tokens], 2)
    place = torch.arange(size, device=tokens.device)
    counts = torch.tensor(had, device=tokens.device)[:, None]
    place = torch.where(place < counts, place, place - counts + waiting.shape[2])
    return _take(joined, place.clamp(max=joined.shape[2] - 1))


def _window(tokens: Tensor, starts: list[int], sizes: list[int], width: int) -> Tensor:
    """The tokens from each sequence's start on, ``width`` places, zeros behind the last."""
    if len(set(starts)) == len(set(sizes)) == 1:
        window = tokens[:, :, starts[0] : starts[0] + sizes[0]]
        shape = (*window.shape[:2], width - sizes[0], *window.shape[3:])
        return torch.cat([window, window.new_zeros(shape)], 2)
    place = torch.arange(width, device=tokens.device)
    begin = torch.tensor(starts, device=tokens.device)[:, None]
    window = _take(tokens, (place + begin).clamp(max=tokens.shape[2] - 1))
    inside = place < torch.tensor(sizes, device=tokens.device)[:, None]
    return window.masked_fill(~inside.view(len(sizes), 1, width, *[1] * (tokens.dim() - 3)), 0)


def _take(x: Tensor, place: Tensor) -> Tensor:
    """``x[b, :, place[b]]`` for each sequence b."""
    index = place.view(len(place), 1, place.shape[1], *[1] * (x.dim() - 3))
    return torch.take_along_dim(x, index, 2)
