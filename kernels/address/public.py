"""The public functions of the address: checks, and the choice of a form."""

import importlib.util

import torch
from torch import Tensor

from pyro_memory.gate import checked
from pyro_memory.kernels.address.definition import AddressRead
from pyro_memory.kernels.address.torch_form import StreamedAddress, best_slots
from pyro_memory.kernels.dispatch import own_precision, refuse_transforms

WIDEST, MOST_SAMPLES = 128, 128  # columns that a block of the Triton kernels holds, and draws of a query
MOST_ROWS = 2**30  # queries, and slots: the Triton kernels count them in 32 bits


@checked
def fused_address(
    query: Tensor,
    key: Tensor,
    *,
    value: Tensor | None = None,
    log_prior: Tensor | None = None,
    mask: Tensor | None = None,
    samples: int = 0,
    nearest: int = 0,
    chunk_size: int | None = None,
    generator: torch.Generator | None = None,
    backend: str = "auto",
) -> AddressRead:
    r"""Streams over the slots once and keeps what a stochastic address needs.

    With scores :math:`s_a = \langle q, k_a \rangle` and :math:`p_a = e^{s_a} / \sum_b e^{s_b}` it gives the
    log-sum-exp, the entropy of p, its KL to a prior, the soft read, exact samples and the slots of highest score. The
    gradient flows to queries, keys, values and the log prior; each chunk's scores are computed again for it. Autocast
    changes nothing: sums are taken in float32 at least.

    Samples are Gumbel-max: the maximum of ``s_a + noise`` over a chunk is ``logsumexp(chunk) + noise`` and independent
    of where it lies, so noise is drawn once a chunk, and a slot only where a chunk beats those before it. "triton" goes
    over blocks of slots, and draws afterwards: of all blocks, in two steps, then of the slots of the one drawn.

    Args:
        query: ``[B, dim]``.
        key: ``[slot, dim]``, of any floating dtype; a chunk at a time is brought to the query's (half precision is
            summed in float32). It may map a file that is larger than memory.
        value: ``[slot, value]``, for the soft read.
        log_prior: log probabilities ``[slot]`` for the KL; uniform over the slots that are not masked by default.
        mask: boolean ``[slot]``, False where a slot is empty and has probability zero.
        samples: addresses to draw for each query.
        nearest: how many slots of highest score to find for each query.
        chunk_size: slots of a chunk; by default as many as keep a chunk's scores in the cache. Ignored by "triton".
        generator: of the samples. "triton" waits for one on the GPU, to know its number; by default it uses the CPU's.
        backend: "torch", "triton" (CUDA; Linux; at most 2^30 rows, 128 columns, 128 samples), or "auto": Triton if it
            can.

    Raises:
        ValueError: if shapes do not fit one another, nothing is left to read, or ``nearest`` exceeds the filled slots.
        NotImplementedError: inside of ``torch.func``'s grad, vmap and the like.

    Cost: O(B x slots x dim) time; O(B x chunk) memory beside inputs and results, and B x slots / 16 to 128 numbers for
    samples of "triton"; the backward pass the same again. With a mask the call waits for the GPU to count the filled
    slots, and in each chunk of "torch" and of ``nearest``.

    References: Online normalizer calculation for softmax (Milakov & Gimelshein, 2018),
    https://arxiv.org/abs/1805.02867; A* Sampling (Maddison et al., 2014), https://arxiv.org/abs/1411.0030
    """
    refuse_transforms("fused_address")
    filled = _check(query, key, value, log_prior, mask, samples, nearest, chunk_size)
    if backend not in ("auto", "torch", "triton"):
        raise ValueError(f'`backend` must be "auto", "torch" or "triton"; got {backend!r}')
    rows, columns = max(len(query), len(key)), max(query.shape[-1], 0 if value is None else value.shape[-1])
    fits = columns <= WIDEST and samples <= MOST_SAMPLES and rows <= MOST_ROWS
    if backend == "auto":
        nvidia = query.is_cuda and torch.version.hip is None
        backend = "triton" if nvidia and fits and importlib.util.find_spec("triton") else "torch"
    if backend == "triton":
        if not fits:
            raise ValueError(
                f'for backend="triton" `query` and `key` must have at most {MOST_ROWS} rows, they and `value` at most '
                f"{WIDEST} columns, and `samples` be at most {MOST_SAMPLES}; got {rows} rows, {columns} columns and "
                f'{samples} samples. Use "auto" or "torch"'
            )
        from pyro_memory.kernels.address.triton_form import TritonAddress

    arguments = (query, key, value, log_prior, mask, filled, samples)
    with own_precision(query):
        if backend == "triton":
            parts = TritonAddress.apply(*arguments, generator)
        else:
            parts = StreamedAddress.apply(*arguments, chunk_size, generator)
        best = best_slots(query, key, nearest, mask, chunk_size) if nearest else (None, None)
    lse, entropy, kl, read, drawn, maxima = parts
    return AddressRead(lse, entropy, kl, read, drawn, maxima, *best)


@checked
def nearest_slots(
    query: Tensor, key: Tensor, nearest: int, *, mask: Tensor | None = None, chunk_size: int | None = None
) -> tuple[Tensor, Tensor]:
    """Finds the slots of highest score by looking at every one: their addresses and scores, ``[B, nearest]``.

    Arguments, errors and costs are those of ``fused_address``; the gradient of the scores reaches queries and keys.
    """
    _check(query, key, None, None, mask, 0, nearest, chunk_size)
    with own_precision(query):
        return best_slots(query, key, nearest, mask, chunk_size)


def _check(query, key, value, log_prior, mask, samples, nearest, chunk_size) -> int:
    """How many slots are filled; counted once, since a GPU is waited for."""
    for name, tensor in (("query", query), ("key", key)):
        if not tensor.is_floating_point():
            raise ValueError(f"`{name}` must be floating point; got {tensor.dtype}. Convert it: {name}.float()")
    if query.dim() != 2 or key.dim() != 2 or query.shape[-1] != key.shape[-1]:
        raise ValueError(
            f"`query` must be [batch, dim] and `key` [slot, dim] with one dim; got {list(query.shape)} and "
            f"{list(key.shape)}"
        )
    slots = len(key)
    wanted = {"value": (value, 2), "log_prior": (log_prior, 1), "mask": (mask, 1)}
    for name, (tensor, dims) in wanted.items():
        if tensor is not None and (tensor.dim() != dims or len(tensor) != slots):
            shape = "[slot, value]" if dims == 2 else "[slot]"
            raise ValueError(f"`{name}` must be {shape} with {slots} slots, as `key` has; got {list(tensor.shape)}")
    if mask is not None and mask.dtype != torch.bool:
        raise ValueError(f"`mask` must be boolean, True where a slot is filled; got {mask.dtype}: use `mask.bool()`")
    filled = slots if mask is None else int(mask.sum())
    if not filled:
        raise ValueError("`key` must hold at least one slot that is not masked; got none. Write items first")
    if samples < 0 or not 0 <= nearest <= filled:
        raise ValueError(
            f"`samples` must not be negative and `nearest` must lie between 0 and the {filled} filled slots; got "
            f"{samples} and {nearest}"
        )
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"`chunk_size` must be at least 1 slot; got {chunk_size}")
    return filled
