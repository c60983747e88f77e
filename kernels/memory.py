"""The public function of the neural memory: checks, shapes, and the choice of a backend."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from pyro_memory.kernels.chunked import chunk_form, chunk_surprise
from pyro_memory.kernels.dispatch import check_backend, choose_backend
from pyro_memory.kernels.reference import ACTIVATIONS, Layers, token_rule


def neural_memory(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    weights: Sequence[Tensor],
    lr: Tensor | Sequence[Tensor],
    momentum: Tensor | Sequence[Tensor],
    decay: Tensor | Sequence[Tensor],
    *,
    chunk_size: int,
    momentum_state: Sequence[Tensor] | None = None,
    activation: str = "gelu",
    residual_norm: bool = False,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    lengths: Tensor | None = None,
    backend: str = "auto",
    checkpoint_chunks: int | None = None,
    return_state: bool = True,
    check_values: bool | None = None,
) -> tuple[Tensor, tuple[Tensor, ...] | None, tuple[Tensor, ...] | None]:
    r"""Writes keys and values into a memory by gradient descent at test time, and reads it after each token.

    .. code-block:: text

        S_t = eta_t S_{t-1} - theta_t grad ||M(k_t) - v_t||^2      gradient at the weights before the token's chunk
        W_t = (1 - alpha_t) W_{t-1} + S_t
        y_t = M_t(q_t)                                             read after write

    M is an MLP ``x @ W_1 -> act -> @ W_2 ...`` of any depth, or ``x + LN(MLP(x))`` with ``residual_norm``. All but the
    point of the gradient is per token, so ``chunk_size=1`` is the fully online rule. Sequences do not see each other.

    Args:
        q, k: queries and keys, ``[batch, head, time, in]``.
        v: values, ``[batch, head, time, out]``.
        weights: one ``[batch, head, in, out]`` a layer, or ``[head, in, out]`` for all sequences; applied as x @ W.
        lr: theta, at least 0: ``[batch, head, time]``, or a tuple with one for each layer.
        momentum: eta in [0, 1], likewise.
        decay: alpha in [0, 1], likewise; ``[batch, head, time, out]`` decays each output channel of a layer by its own.
        chunk_size: tokens that share the point of the gradient, counted from the first token given.
        momentum_state: S before the first token, like the weights; zero by default.
        activation: "gelu" (the exact one, x Phi(x)) or "silu".
        residual_norm: M(x) = x + LN(MLP(x)), eps 1e-5; needs in = out.
        norm_weight, norm_bias: of LN, ``[out]`` or ``[head, out]``; outer parameters, not written at test time.
        lengths: tokens of each sequence, ``[batch]``, 0 to time. The state returned is the one after each sequence's
            last token, outputs past it are zero, and what q, k, v hold there is ignored.
        backend: "auto", "triton" (the kernels), "torch" (the chunk form) or "reference" (token by token, the
            specification). "auto" is "triton" on CUDA for what its kernels take (see ``why_not_triton``), else "torch".
        checkpoint_chunks: keeps the weights of every n-th chunk for the backward pass and computes the others again:
            memory for weights falls n-fold, time rises by less than a third. By default all are kept.
        return_state: False saves the work of the last state, which is None then.
        check_values: whether the ranges of gates and lengths are looked at. By default on a CPU only: on a GPU every
            call would wait for the device, and none could be captured in a CUDA graph.

    Returns:
        ``(y, weights, momentum_state)``: y ``[batch, head, time, out]``, and the state after the last token. A sequence
        cut on a chunk boundary and resumed from that state gives the same result as the whole.

    float16 and bfloat16 are computed in float32: y has the dtype of ``q``, the state is float32. With "triton" products
    of bfloat16 tokens are bfloat16 ones, and those of float16 tokens tf32, summed in float32.

    Cost: O(time (depth in out + chunk_size (in + out))) operations a head. Weights exist once a chunk, never a token.

    Raises:
        ValueError: for shapes that do not fit, gates outside their range, no tokens, an unknown option.

    References: Titans: Learning to Memorize at Test Time (Behrouz et al., 2025), https://arxiv.org/abs/2501.00663; the
    chunk form follows Learning to (Learn at Test Time) (Sun et al., 2024), https://arxiv.org/abs/2407.04620, extended
    to momentum and decay.
    """
    check_backend(backend)
    if checkpoint_chunks is not None and checkpoint_chunks < 1:
        raise ValueError(f"`checkpoint_chunks` must be at least 1, or None to keep all; got {checkpoint_chunks}")
    if q.shape != k.shape:
        raise ValueError(f"`q` must have the shape of `k`, {list(k.shape)}; got {list(q.shape)}")
    tokens, states, gates, options = _checked(
        (q, k, v), weights, momentum_state, (lr, momentum, decay), chunk_size=chunk_size, activation=activation,
        residual_norm=residual_norm, norm_weight=norm_weight, norm_bias=norm_bias, lengths=lengths,
        check_values=check_values,
    )  # fmt: skip
    backend = choose_backend(backend, tokens[0], tokens[-1], states[0], gates[2], chunk_size)
    if backend != "reference":
        options["checkpoint_chunks"] = checkpoint_chunks
    if backend == "torch":
        options["return_state"] = return_state
    if backend != "triton":
        tokens = _cast(tokens, states[0][0].dtype)
    with torch.autocast(q.device.type, enabled=False):
        y, weights, momentum_state = _form(backend)(*tokens, *states, *gates, **options)
    return (y.to(q.dtype), weights, momentum_state) if return_state else (y.to(q.dtype), None, None)


def memory_surprise(
    k: Tensor,
    v: Tensor,
    weights: Sequence[Tensor],
    lr: Tensor | Sequence[Tensor],
    momentum: Tensor | Sequence[Tensor],
    decay: Tensor | Sequence[Tensor],
    *,
    momentum_state: Sequence[Tensor] | None = None,
    **options: Any,
) -> tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Measures how much each token surprises the memory, in the memory's own units, not nats.

    Takes the arguments of ``neural_memory`` but for the queries. Gives ``[batch, head, time, 2]``, the loss
    ``||M(k) - v||^2`` at the weights before the token's chunk and the norm of its gradient over all layers, then the
    state as ``neural_memory`` does. Nothing is differentiable. Cost: that of the writes.
    """
    tokens, states, gates, options = _checked((k, v), weights, momentum_state, (lr, momentum, decay), **options)
    k, v = _cast(tokens, states[0][0].dtype)
    with torch.autocast(k.device.type, enabled=False):
        return chunk_surprise(k, v, *states, *gates, **options)


def _checked(
    tokens: tuple[Tensor, ...], weights: Sequence[Tensor], momentum_state: Sequence[Tensor] | None,
    gates: tuple[Tensor | Sequence[Tensor], ...], *, chunk_size: int, activation: str = "gelu",
    residual_norm: bool = False, norm_weight: Tensor | None = None, norm_bias: Tensor | None = None,
    lengths: Tensor | None = None, check_values: bool | None = None,
) -> tuple[tuple[Tensor, ...], tuple[Layers, Layers], list[Layers], dict[str, Any]]:  # fmt: skip
    """Refuses what does not fit; gives tokens in their dtype, states for each sequence and gates for each layer."""
    if chunk_size < 1:
        raise ValueError(f"`chunk_size` must be at least 1; got {chunk_size}. Use 1 for the fully online rule")
    if activation not in ACTIVATIONS:
        raise ValueError(f'`activation` must be "gelu" or "silu"; got {activation!r}')
    *_, k, v = tokens
    _check_tokens(k, v)
    weights = per_sequence("weights", weights, k)
    _check_layers(weights, k.shape[-1], v.shape[-1])
    if momentum_state is None:
        momentum_state = tuple(torch.zeros_like(w) for w in weights)
    momentum_state = per_sequence("momentum_state", momentum_state, k)
    if [s.shape for s in momentum_state] != [w.shape for w in weights]:
        raise ValueError(
            f"`momentum_state` must have the shapes of `weights`, {[list(w.shape) for w in weights]}; got "
            f"{[list(s.shape) for s in momentum_state]}"
        )
    named = zip(("lr", "momentum", "decay"), gates, strict=True)
    gates = [_per_layer(name, gate, k, weights) for name, gate in named]
    if check_values is None:
        check_values = k.device.type == "cpu"
    looks = check_values and not torch.compiler.is_compiling()  # which would break a graph
    if looks and k.numel():
        _check_gates(*gates)
    if lengths is not None:
        _check_lengths(lengths, k, looks)
        there = (torch.arange(k.shape[2], device=k.device) < lengths[:, None])[:, None, :, None]
        tokens = tuple(x.masked_fill(~there, 0) for x in tokens)
    norm_weight, norm_bias = _check_norm(weights, residual_norm, norm_weight, norm_bias)
    others = (*weights, *momentum_state, *(g for gate in gates for g in gate))
    tokens_dtype = reduce(torch.promote_types, (t.dtype for t in tokens))
    dtype = reduce(torch.promote_types, (t.dtype for t in others), torch.promote_types(tokens_dtype, torch.float32))
    options = {"chunk_size": chunk_size, "activation": activation, "residual_norm": residual_norm, "lengths": lengths}
    options["norm_weight"], options["norm_bias"] = (
        None if t is None else t.to(dtype) for t in (norm_weight, norm_bias)
    )
    states = _cast(weights, dtype), _cast(momentum_state, dtype)
    return _cast(tokens, tokens_dtype), states, [_cast(gate, dtype) for gate in gates], options


def _cast(tensors: Sequence[Tensor], dtype: torch.dtype) -> tuple[Tensor, ...]:
    known = {id(t): t.to(dtype) for t in tensors}  # a gate shared by the layers stays one tensor
    return tuple(known[id(t)] for t in tensors)


def _form(backend: str) -> Callable[..., tuple[Tensor, Layers, Layers]]:
    if backend == "triton":
        from pyro_memory.kernels.memory_triton import triton_form  # only here: without a GPU nobody loads triton

        return triton_form
    return {"reference": token_rule, "torch": chunk_form}[backend]


def per_sequence(name: str, tensors: Sequence[Tensor], like: Tensor) -> tuple[Tensor, ...]:
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
    gates = (gate,) * len(weights) if isinstance(gate, Tensor) else tuple(gate)
    if len(gates) != len(weights):
        raise ValueError(f"`{name}` must be one tensor, or one for each of the {len(weights)} layers; got {len(gates)}")
    for g, w in zip(gates, weights, strict=True):
        channels = tuple(k.shape[:3]) + (w.shape[-1],)
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


def _check_lengths(lengths: Tensor, k: Tensor, looks: bool) -> None:
    if lengths.dtype != torch.long or lengths.shape != k.shape[:1]:
        raise ValueError(
            f"`lengths` must be integers (torch.long), one for each of the {len(k)} sequences; got {lengths.dtype} of "
            f"shape {list(lengths.shape)}"
        )
    if looks and bool(((lengths < 0) | (lengths > k.shape[2])).any()):
        raise ValueError(f"`lengths` must lie between 0 and the {k.shape[2]} tokens given; got {lengths.tolist()}")


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
