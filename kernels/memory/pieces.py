"""A call that begins or ends inside a chunk, as pieces: the rest of the open chunk, whole chunks, a new open chunk.

A memory's gradients are taken at the anchor, the weights that a chunk began with. So a sequence goes on from its
weights and momentum, the anchor and its position, how many tokens the open chunk has had. Sequences of a batch may
stand at different places.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from pyro_memory.kernels.dispatch import chosen, may_look
from pyro_memory.kernels.memory.definition import Layers

# maps (tokens, weights, momentum_state, anchor or None, lengths) to (what each token gives, weights, momentum_state)
Form = Callable[[tuple[Tensor, ...], Layers, Layers, Layers | None, Tensor | None], tuple[Tensor, Layers, Layers]]
Place = tuple[Layers, Tensor]  # anchor and position


def in_pieces(
    form: Form, tokens: tuple[Tensor, ...], weights: Layers, momentum_state: Layers, anchor: Layers, position: Tensor,
    chunk_size: int, lengths: Tensor | None, start: int | None = None,
) -> tuple[Tensor, Layers, Layers, Layers, Tensor]:  # fmt: skip
    """Runs ``form``, which takes a chunk's tokens at an anchor or any number of tokens from a chunk's start on.

    Args:
        tokens: ``[batch, head, time, ...]`` each: whatever there is one of a token, gates too.
        start: the position of all sequences, where that is known.
    """
    time = tokens[0].shape[2]
    if start is None and may_look(position) and len(set(position.tolist())) == 1:
        start = int(position[0])
    if lengths is None and (time == 1 or start is not None):
        head = 1 if time == 1 else min(time, (chunk_size - start) % chunk_size)
        return _even(form, tokens, weights, momentum_state, anchor, position, chunk_size, head)
    total = torch.full_like(position, time) if lengths is None else lengths
    left = (chunk_size - position) % chunk_size
    head = torch.minimum(left, total)
    body = (total - head) // chunk_size * chunk_size
    tail = total - head - body
    outputs = []
    windows = zip((head, body, tail), (0 * head, head, head + body), strict=True)
    ends = min(chunk_size - 1, time)
    for i, (count, start) in enumerate(windows):
        size = time // chunk_size * chunk_size if i == 1 else ends
        if size:
            window = _each(partial(_window, start=start, size=size), tokens)
            y, weights, momentum_state = form(window, weights, momentum_state, None if i else anchor, count)
            outputs.append(y)
        if i == 1:
            closed = head == left
            anchor = chosen(closed, weights, anchor)
    token = torch.arange(time, device=position.device)
    head, whole = head[:, None], (head + body)[:, None]
    place = torch.where(token < head, token, token - head + ends)
    place = torch.where(token < whole, place, token - whole + ends + time // chunk_size * chunk_size)
    y = torch.cat(outputs, 2)
    y = _take(y, place.clamp(0, y.shape[2] - 1))
    y = y.masked_fill((token >= total[:, None])[:, None, :, None], 0)
    return y, weights, momentum_state, anchor, torch.where(closed, tail, position + head.squeeze(1))


def _even(
    form: Form, tokens: tuple[Tensor, ...], weights: Layers, momentum_state: Layers, anchor: Layers, position: Tensor,
    chunk_size: int, head: int,
) -> tuple[Tensor, Layers, Layers, Layers, Tensor]:  # fmt: skip
    """The same where the open chunk of all sequences takes ``head`` tokens."""
    time = tokens[0].shape[2]
    body = (time - head) // chunk_size * chunk_size
    outputs = []
    for part, (start, size) in enumerate(((0, head), (head, body), (head + body, time - head - body))):
        if size:
            window = tokens if size == time else _each(partial(torch.narrow, dim=2, start=start, length=size), tokens)
            y, weights, momentum_state = form(window, weights, momentum_state, None if part else anchor, None)
            outputs.append(y)
        if part < 2:
            anchor = chosen((position + head) % chunk_size == 0, weights, anchor)
    y = outputs[0] if len(outputs) == 1 else torch.cat(outputs, 2)
    return y, weights, momentum_state, anchor, (position + time) % chunk_size


def _each(f: Callable[[Tensor], Tensor], tokens: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Applies f to each once: a gate that layers share stays one tensor."""
    known = {id(t): f(t) for t in {id(t): t for t in tokens}.values()}
    return tuple(known[id(t)] for t in tokens)


def _window(x: Tensor, start: Tensor, size: int) -> Tensor:
    """``size`` tokens of each sequence from its start on; what lies past the end is any of its tokens."""
    place = start[:, None] + torch.arange(size, device=x.device)
    return _take(x, place.clamp(max=x.shape[2] - 1))


def _take(x: Tensor, place: Tensor) -> Tensor:
    """``x[b, :, place[b]]`` for each sequence b."""
    return torch.take_along_dim(x, place.view(len(place), 1, place.shape[1], *[1] * (x.dim() - 3)), 2)
