"""What a call of ``neural_memory`` is given: refused where it does not fit, and brought to one form where it does."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from pyro_memory.kernels.dispatch import transforming
from pyro_memory.kernels.memory.definition import NORM_EPS, Layers, check_activation


def prepared(
    tokens: tuple[Tensor, ...], weights: Sequence[Tensor], momentum_state: Sequence[Tensor] | None,
    gates: Sequence[Tensor | Sequence[Tensor]], *, chunk_size: int, activation: str = "gelu",
    residual_norm: bool = False, norm_weight: Tensor | None = None, norm_bias: Tensor | None = None,
    norm_eps: float = NORM_EPS, rest: Sequence[Tensor] | None = None, lengths: Tensor | None = None,
    anchor: Sequence[Tensor] | None = None, position: Tensor | None = None,
    check_values: bool | None = None,
) -> tuple[tuple[Any, ...], dict[str, Any]]:  # fmt: skip
    """Refuses what does not fit; gives tokens, weights, momentum and anchor for each sequence, gates for each layer,
    and options, as ``run_memory`` takes them. An anchor that is given is ``stale``, who runs picks where it counts."""
    if chunk_size < 1:
        raise ValueError(f"`chunk_size` must be at least 1; got {chunk_size}. Use 1 for the fully online rule")
    check_activation(activation)
    if not 0 < norm_eps < math.inf:
        raise ValueError(f"`norm_eps` must be positive and finite; got {norm_eps}")
    *_, k, v = tokens
    _check_tokens(k, v)
    weights = _per_sequence("weights", weights, k)
    _check_layers(weights, k.shape[-1], v.shape[-1])
    if momentum_state is None:
        momentum_state = tuple(torch.zeros_like(w) for w in weights)
    momentum_state = _like_weights("momentum_state", momentum_state, k, weights)
    if anchor is not None and position is None:
        raise ValueError("`anchor` is the open chunk's: give `position` too, the tokens that the chunk has had")
    stale = anchor is not None
    anchor = weights if anchor is None else _like_weights("anchor", anchor, k, weights)
    rest = None if rest is None else _like_weights("rest", rest, k, weights)
    named = zip(("lr", "momentum", "decay"), gates, strict=True)
    gates = [_per_layer(name, gate, k, weights) for name, gate in named]
    if check_values is None:
        check_values = k.device.type == "cpu"
    looks = check_values and not torch.compiler.is_compiling() and not transforming()  # which would break a graph
    if looks and k.numel():
        _check_gates(*gates)
    if position is not None:
        _check_counts("position", position, k, chunk_size - 1, looks)
    if lengths is not None:
        _check_counts("lengths", lengths, k, k.shape[2], looks)
        there = (torch.arange(k.shape[2], device=k.device) < lengths[:, None])[:, None, :, None]
        tokens = tuple(x.masked_fill(~there, 0) for x in tokens)
    norm_weight, norm_bias = _check_norm(weights, residual_norm, norm_weight, norm_bias)
    options = {
        "chunk_size": chunk_size, "activation": activation, "residual_norm": residual_norm, "lengths": lengths,
        "position": position, "stale": stale, "norm_weight": norm_weight, "norm_bias": norm_bias,
        "norm_eps": norm_eps, "rest": rest,
    }  # fmt: skip
    return (tokens, weights, momentum_state, anchor, gates), options


def _per_sequence(name: str, tensors: Sequence[Tensor], like: Tensor) -> tuple[Tensor, ...]:
    """Gives each sequence of the batch its own layers, ``[batch, head, in, out]``."""
    if isinstance(tensors, Tensor) or not len(tensors):
        raise ValueError(f"`{name}` must be a tuple with one tensor for each layer; got {_what(tensors)}")
    batch, heads = like.shape[:2]
    layers = tuple(w.expand(batch, *w.shape) if w.dim() == 3 else w for w in tensors)
    for w in layers:
        if w.dim() != 4 or w.shape[:2] != (batch, heads) or not w.is_floating_point():
            raise ValueError(
                f"`{name}` must hold floating-point tensors [batch, head, in, out] = [{batch}, {heads}, in, out], or "
                f"[head, in, out]; got {w.dtype} of shape {list(w.shape)}"
            )
    return layers


def _like_weights(name: str, tensors: Sequence[Tensor], like: Tensor, weights: Layers) -> Layers:
    layers = _per_sequence(name, tensors, like)
    if [s.shape for s in layers] != [w.shape for w in weights]:
        raise ValueError(
            f"`{name}` must have the shapes of `weights`, {[list(w.shape) for w in weights]}; got "
            f"{[list(s.shape) for s in layers]}"
        )
    return layers


def _what(value: object) -> str:
    return f"a tensor of shape {list(value.shape)}" if isinstance(value, Tensor) else repr(value)


def _check_tokens(k: Tensor, v: Tensor) -> None:
    for name, tensor in (("k", k), ("v", v)):
        if tensor.dim() != 4 or not tensor.is_floating_point():
            raise ValueError(
                f"`{name}` must be floating point, [batch, head, time, dim]; got {tensor.dtype} of shape "
                f"{list(tensor.shape)}"
            )
    if v.shape[:3] != k.shape[:3]:
        raise ValueError(f"`v` must start with {list(k.shape[:3])}, as `k` does; got shape {list(v.shape)}")
    if not k.shape[2]:
        raise ValueError("`k` must hold at least one token; got time 0. Skip the call, the state stays as it is")


def _check_layers(weights: tuple[Tensor, ...], key_dim: int, value_dim: int) -> None:
    widths = [key_dim, *(w.shape[-1] for w in weights[:-1]), value_dim]
    wanted = list(pairwise(widths))
    if [tuple(w.shape[-2:]) for w in weights] != wanted:
        raise ValueError(
            f"`weights` must lead from keys of {key_dim} to values of {value_dim} dimensions, each layer taking what "
            f"the one before gives; got [in, out] = {[list(w.shape[-2:]) for w in weights]}"
        )


def _per_layer(
    name: str, gate: Tensor | Sequence[Tensor], k: Tensor, weights: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    if not isinstance(gate, (Tensor, Sequence)):
        shape = list(k.shape[:3])
        raise TypeError(
            f"`{name}` must be a tensor [batch, head, time] = {shape}, or a tuple with one for each layer; got {gate!r}"
            f". For one number everywhere give torch.full({shape}, number)"
        )
    gates = (gate,) * len(weights) if isinstance(gate, Tensor) else tuple(gate)
    if len(gates) != len(weights):
        raise ValueError(f"`{name}` must be one tensor, or one for each of the {len(weights)} layers; got {len(gates)}")
    for g, w in zip(gates, weights, strict=True):
        channels = tuple(k.shape[:3]) + (w.shape[-1],)
        if not g.is_floating_point():
            raise ValueError(f"`{name}` must be floating point; got {g.dtype}. Convert it: {name}.float()")
        if tuple(g.shape) != channels[:3] and (name != "decay" or tuple(g.shape) != channels):
            also = f", or {list(channels)} for each channel," if name == "decay" else ""
            raise ValueError(
                f"`{name}` must be [batch, head, time] = {list(channels[:3])}{also} for each layer; got shape "
                f"{list(g.shape)}"
            )
    return gates


def _check_gates(lr: tuple[Tensor, ...], momentum: tuple[Tensor, ...], decay: tuple[Tensor, ...]) -> None:
    kinds = {"lr": (lr, "at least 0 and finite"), "momentum": (momentum, "in [0, 1]"), "decay": (decay, "in [0, 1]")}
    known = {name: list({id(g): g.detach() for g in gates}.values()) for name, (gates, _) in kinds.items()}
    ends = torch.stack([end.double() for gates in known.values() for g in gates for end in g.aminmax()])
    ends = iter(ends.view(-1, 2).tolist())  # one transfer from the device
    for name, gates in known.items():
        upper = torch.finfo(gates[0].dtype).max if name == "lr" else 1.0
        for _ in gates:
            low, high = next(ends)
            if not (low >= 0 and high <= upper):  # also where it is NaN
                raise ValueError(f"`{name}` must be {kinds[name][1]}; got values from {low:.4g} to {high:.4g}")


def _check_counts(name: str, counts: Tensor, k: Tensor, most: int, looks: bool) -> None:
    if counts.dtype != torch.long or counts.shape != k.shape[:1]:
        raise ValueError(
            f"`{name}` must be integers (torch.long), one for each of the {len(k)} sequences; got {counts.dtype} of "
            f"shape {list(counts.shape)}"
        )
    if looks and bool(((counts < 0) | (counts > most)).any()):
        what = f"the {most} tokens given" if name == "lengths" else f"`chunk_size` - 1 = {most}"
        raise ValueError(f"`{name}` must lie between 0 and {what}; got {counts.tolist()}")


def _check_norm(
    weights: tuple[Tensor, ...], residual_norm: bool, norm_weight: Tensor | None, norm_bias: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    heads, width, out = weights[0].shape[1], weights[0].shape[-2], weights[-1].shape[-1]
    if residual_norm and width != out:
        raise ValueError(f"`residual_norm` adds keys to values: both must have one width; got {width} and {out}")
    for name, tensor in (("norm_weight", norm_weight), ("norm_bias", norm_bias)):
        if tensor is None:
            continue
        if not residual_norm:
            raise ValueError(f"`{name}` belongs to LN: give it with residual_norm=True only")
        if tuple(tensor.shape) not in ((out,), (heads, out)):
            raise ValueError(
                f"`{name}` must be [out] or [head, out] = [{heads}, {out}]; got shape {list(tensor.shape)}"
            )
    return tuple(None if t is None else t.expand(heads, out) for t in (norm_weight, norm_bias))
