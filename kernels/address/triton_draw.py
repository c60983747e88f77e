"""Exact samples of an address, in levels, from the log-sum-exps that the Triton kernel of the forward pass leaves."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from pyro_memory.kernels.dispatch import on_device_of
from pyro_memory.kernels.triton_parts import FUSED, block, place

TOGETHER = 16  # draws of a program


@triton.jit
def gumbel(seed, i, j, width):
    """Noise at [i, j] in rows of ``width``, at each place its own: there may be more than 2^32.

    It is -log of -log(1 - u), by its series where u is small, so that large noise is as finely divided as small.
    """
    u = tl.rand(seed, place(i, j, width)) + 2.3e-10
    return -tl.log(tl.where(u < 1.0e-3, u + u * u * (0.5 + u / 3), -tl.log(tl.maximum(1 - u, 3.0e-8))))


@triton.jit
def _largest(best, which):
    """The largest of each row and where it lies; the first of them where none is a number."""
    top = tl.max(best, 1)
    return top, tl.min(tl.where(best == top[:, None], which, 2**31 - 1), 1)


@triton.jit
def _stretch(p_lse, parent, first, count, stop, i_b, batch, seed, i_draw, width, N: tl.constexpr):
    """Draws one of ``count`` log-sum-exps from ``first`` on, before ``stop``: its perturbed log weight, and which."""
    which = first[:, None] + tl.zeros([1, N], tl.int32)
    best = tl.full(which.shape, float("-inf"), parent.dtype)
    for start in range(0, count, N):
        n = start + tl.arange(0, N)[None, :]
        i = first[:, None] + n
        log_p = tl.load(p_lse + place(i, i_b, batch), mask=(n < count) & (i < stop), other=float("-inf"))
        x = log_p - parent[:, None] + gumbel(seed, i_draw, i, width)
        best, which = tl.where(x > best, x, best), tl.where(x > best, i, which)
    return _largest(best, which)


@triton.jit(do_not_specialize=("batch", "slots", "samples", "seed", "splits", "stretches"))
def _draw(
    p_query, p_key, p_mask, p_total, p_lse, p_drawn, p_maxima,
    batch, slots, dim, span, samples, seed, splits, stretches,
    P: tl.constexpr, N: tl.constexpr, T: tl.constexpr, M: tl.constexpr, D: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """P draws by Gumbel-max: of the spans, of the blocks of M slots in the one drawn, of the slots in that block.

    Each level is drawn given the one before, so a slot has its own probability. N of ``stretches``, which are spans and
    then blocks, and T slots are looked at together.
    """
    i_draw = place(tl.program_id(0), tl.arange(0, P), P)  # [P]
    i_b = i_draw % batch
    live, width = i_draw < place(samples, 0, batch), stretches + M
    total = tl.load(p_total + i_b)
    zero = tl.zeros([P], tl.int32)
    top, i = _stretch(p_lse, total, zero, splits, splits, i_b[:, None], batch, seed, i_draw[:, None], width, N)
    tl.store(p_maxima + i_draw, total + top, mask=live)
    parent, first = tl.load(p_lse + place(i, i_b, batch)), splits + i * (span // M)
    _, i = _stretch(p_lse, parent, first, span // M, stretches, i_b[:, None], batch, seed, i_draw[:, None], width, N)
    parent, first = tl.load(p_lse + place(i, i_b, batch)), (i - splits) * M
    d = tl.arange(0, D)[None, None, :]
    q = tl.load(p_query + place(i_b[:, None, None], d, dim), mask=d < dim, other=0.0).to(total.dtype)  # [P, 1, D]
    which = first[:, None] + tl.zeros([1, T], tl.int32)
    best = tl.full([P, T], float("-inf"), total.dtype)
    for start in range(0, M, T):
        n = start + tl.arange(0, T)[None, :]
        i_slot = first[:, None] + n
        inside = i_slot < slots
        if MASKED:
            inside = inside & (tl.load(p_mask + i_slot, mask=inside, other=0) != 0)
        o = place(i_slot[:, :, None], d, dim)
        k = tl.load(p_key + o, mask=inside[:, :, None] & (d < dim), other=0.0).to(total.dtype)  # [P, T, D]
        x = tl.sum(q * k, 2) - parent[:, None] + gumbel(seed, i_draw[:, None], stretches + n, width)
        x = tl.where(inside, x, float("-inf"))
        best, which = tl.where(x > best, x, best), tl.where(x > best, i_slot, which)
    _, drawn = _largest(best, which)
    tl.store(p_drawn + i_draw, drawn, mask=live)


def draw(
    query: Tensor, key: Tensor, mask: Tensor | None, total: Tensor, block_lse: Tensor, span: int, M: int,
    samples: int, generator: torch.Generator | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Samples and their maxima, ``[samples, B]``, from ``block_lse``: of spans of slots, then of blocks of M."""
    (batch, dim), slots, stretches = query.shape, len(key), len(block_lse)
    drawn = torch.empty(samples, batch, dtype=torch.long, device=query.device)
    maxima = total.new_empty(samples, batch)
    device = "cpu" if generator is None else generator.device
    seed = int(torch.randint(2**31 - 2, (), generator=generator, device=device))
    slots_together = min(M, max(1, 2**15 // (TOGETHER * block(dim) * total.itemsize)))  # keys in 32 KB of registers
    with on_device_of(query):
        _draw[(triton.cdiv(samples * batch, TOGETHER),)](
            query, key, query if mask is None else mask, total, block_lse, drawn, maxima,
            batch, slots, dim, span, samples, seed, triton.cdiv(slots, span), stretches,
            P=TOGETHER, N=64, T=slots_together, M=M, D=block(dim), MASKED=mask is not None, **FUSED,
        )  # fmt: skip
    return drawn, maxima
