"""The public functions of the neural memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from pyro_memory.gate import checked
from pyro_memory.kernels.dispatch import check_backend, refuse_transforms
from pyro_memory.kernels.memory.arguments import prepared
from pyro_memory.kernels.memory.definition import NORM_EPS
from pyro_memory.kernels.memory.run import run_memory, run_surprise


@checked
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
    anchor: Sequence[Tensor] | None = None,
    position: Tensor | None = None,
    activation: str = "gelu",
    residual_norm: bool = False,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    norm_eps: float = NORM_EPS,
    rest: Sequence[Tensor] | None = None,
    lengths: Tensor | None = None,
    backend: str = "auto",
    checkpoint_chunks: int | None = None,
    return_state: bool = True,
    check_values: bool | None = None,
) -> tuple[Any, ...]:
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
        chunk_size: tokens that share the point of the gradient, the anchor.
        momentum_state: S before the first token, like the weights; zero by default.
        anchor: the weights at the start of the open chunk, like the weights, which it is by default.
        position: how many tokens each sequence's open chunk has had, ``[batch]``, below ``chunk_size``. Give it, zeros
            at first, where a sequence is to go on inside a chunk; by default a chunk starts at the first token.
        activation: "gelu" (the exact one, x Phi(x)) or "silu".
        residual_norm: M(x) = x + LN(MLP(x)), (z - mean) / sqrt(var + norm_eps); needs in = out.
        norm_weight, norm_bias: of LN, ``[out]`` or ``[head, out]``; outer parameters, not written at test time.
        rest: what decay leads to, like ``weights``: W_t = (1 - alpha_t) W_{t-1} + alpha_t rest + S_t; zero by default.
        lengths: tokens of each sequence, ``[batch]``, 0 to time. The state returned is the one after each sequence's
            last token, outputs past it are zero, and what q, k, v hold there is ignored.
        backend: "auto", "triton" (the kernels), "torch" (the chunk form) or "reference" (token by token, the
            specification). "auto" is "triton" on CUDA for what its kernels take, else "torch"; ``why_not_triton`` and
            ``how_triton`` say more.
        checkpoint_chunks: keeps the weights of every n-th chunk for the backward pass and computes the others again:
            memory for weights falls n-fold, time rises by less than a third. By default all are kept, but "triton"
            keeps fewer where all would take more than 512 MB and than four times the bytes of q, k, v and y.
        return_state: False saves the work of the last state, which is None then.
        check_values: whether the ranges of gates and lengths are looked at. By default on a CPU only: on a GPU every
            call would wait for the device, and none could be captured in a CUDA graph.

    Returns:
        ``(y, weights, momentum_state)``: y ``[batch, head, time, out]``, and the state after the last token; with
        ``position`` also the anchor and the position then, five in all. A sequence resumed from these five gives the
        same result as the whole, wherever it was cut; without a position it may be cut where a chunk ends.

    float16 and bfloat16 are computed in float32: y has the dtype of ``q``, the state is float32. Autocast changes
    nothing, but for the way back through "reference", which is autograd's own. With "triton" products of bfloat16
    tokens are bfloat16 ones, and those of float16 tokens tf32, summed in float32.

    Cost: O(time (depth in out + chunk_size (in + out))) operations a head. Weights exist once a chunk, never a token.

    Raises:
        ValueError: for shapes that do not fit, gates outside their range, no tokens, an unknown option.
        NotImplementedError: for a second or a forward derivative, but of "reference".

    ``torch.compile(fullgraph=True)`` and ``torch.export`` take it, with any number of tokens, and so do grad and
    vmap of ``torch.func``, which go through what is mapped one by one. There the way back runs the call again.

    References: Titans: Learning to Memorize at Test Time (Behrouz et al., 2025), https://arxiv.org/abs/2501.00663; the
    chunk form follows Learning to (Learn at Test Time) (Sun et al., 2024), https://arxiv.org/abs/2407.04620, extended
    to momentum and decay.
    """
    check_backend(backend)
    if checkpoint_chunks is not None and checkpoint_chunks < 1:
        raise ValueError(f"`checkpoint_chunks` must be at least 1, or None to keep all; got {checkpoint_chunks}")
    if q.shape != k.shape:
        raise ValueError(f"`q` must have the shape of `k`, {list(k.shape)}; got {list(q.shape)}")
    call, options = prepared(
        (q, k, v), weights, momentum_state, (lr, momentum, decay), chunk_size=chunk_size, activation=activation,
        residual_norm=residual_norm, norm_weight=norm_weight, norm_bias=norm_bias, norm_eps=norm_eps,
        rest=rest, lengths=lengths, anchor=anchor, position=position, check_values=check_values,
    )  # fmt: skip
    return run_memory(*call, **options, backend=backend, checkpoint_chunks=checkpoint_chunks, return_state=return_state)


@checked
def memory_surprise(
    k: Tensor,
    v: Tensor,
    weights: Sequence[Tensor],
    lr: Tensor | Sequence[Tensor],
    momentum: Tensor | Sequence[Tensor],
    decay: Tensor | Sequence[Tensor],
    *,
    chunk_size: int,
    momentum_state: Sequence[Tensor] | None = None,
    anchor: Sequence[Tensor] | None = None,
    position: Tensor | None = None,
    activation: str = "gelu",
    residual_norm: bool = False,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    norm_eps: float = NORM_EPS,
    rest: Sequence[Tensor] | None = None,
    lengths: Tensor | None = None,
    check_values: bool | None = None,
) -> tuple[Any, ...]:
    """Measures how much each token surprises the memory, in the memory's own units, not nats.

    Takes the arguments of ``neural_memory`` but for the queries. Gives ``[batch, head, time, 2]``, the loss
    ``||M(k) - v||^2`` at the weights before the token's chunk and the norm of its gradient over all layers, then the
    state as ``neural_memory`` does. Nothing is differentiable. Cost: that of the writes.
    """
    refuse_transforms("memory_surprise")
    call, options = prepared(
        (k, v), weights, momentum_state, (lr, momentum, decay), chunk_size=chunk_size, activation=activation,
        residual_norm=residual_norm, norm_weight=norm_weight, norm_bias=norm_bias, norm_eps=norm_eps,
        rest=rest, lengths=lengths, anchor=anchor, position=position, check_values=check_values,
    )  # fmt: skip
    return run_surprise(*call, **options)
