"""Sequential addressing: which slot is read next is predicted from the sequence so far."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float, Int
from pyro.nn import PyroModule
from torch import Tensor, nn

from pyro_memory.addressing import ContentAddress
from pyro_memory.checks import check_owners
from pyro_memory.distributions import AddressedBernoulli
from pyro_memory.gate import checked
from pyro_memory.models.titans.variants import TitansLMM
from pyro_memory.naming import unique_name
from pyro_memory.nets import BernoulliImage, Embedding, Features, ImageMLP, MLPDecoder, out_of_autocast
from pyro_memory.stores import SlotMemory


@checked
class TitansAddressing(PyroModule):
    r"""Draws a sequence item by item, each after reading a slot that what came before has made likely.

    .. code-block:: text

        a_t ~ p(a_t | x_<t, M)      content address, its query the state of a neural memory that has read x_<t
        x_t ~ p(x_t | m_{a_t})

    An episodic memory holds what items look like, the neural memory learns within the sequence in which order they
    come. Given the data the addresses are independent, so ``TraceEnum_ELBO`` sums them out.

    Args:
        embed: maps items to vectors, ``[batch, time, *event] -> [batch, time, dim]``.
        mixer: a sequence mixer, ``[batch, time, dim] -> (y, state)``; None leaves the prior uniform.
        address: maps ``(h, memory)`` to the distribution of a_t, h the mixer's output, ``[batch, time, dim]``.
        content: computes the features of a slot, once a slot where slots are fewer than reads.
        likelihood: maps a code of zero dimensions and features to the distribution of x_t.
        dim: the width of embeddings.

    ``forward(x, memory)`` takes ``x [batch, time, *event]`` and a memory that is shared or one a sequence
    (``batch_dim=-2``); sites ``a`` and ``x`` in plates ``batch`` and ``time``.

    Raises:
        ValueError: for a memory that holds nothing or items of another shape.

    References: the address is that of Variational Memory Addressing in Generative Models (Bornschein et al., 2017),
    https://arxiv.org/abs/1709.07116, the neural memory that of Titans (Behrouz et al., 2025),
    https://arxiv.org/abs/2501.00663; their composition is ours.
    """

    def __init__(
        self,
        embed: nn.Module,
        mixer: nn.Module | None,
        address: nn.Module,
        content: nn.Module,
        likelihood: nn.Module,
        dim: int,
        *,
        name: str | None = None,
    ) -> None:
        super().__init__(name or unique_name(self))
        self.mixer, self.content, self.likelihood = mixer, content, likelihood
        if mixer is not None:
            self.embed, self.address, self.norm = embed, address, nn.RMSNorm(dim)
            self.start = nn.Parameter(torch.randn(dim))
        self.register_buffer("code", torch.zeros(0), persistent=False)

    @classmethod
    def mlp(
        cls, shape: Sequence[int], dim: int = 64, hidden: Sequence[int] = (256, 128), *, matching_dim: int = 64,
        sequential: bool = True, heads: int = 2, name: str | None = None, **memory: Any,
    ) -> TitansAddressing:  # fmt: skip
        """Builds it for images, with MLPs and a ``TitansLMM``; ``sequential=False`` is the uniform baseline."""
        content = ImageMLP(shape, hidden)
        return cls(
            Embedding(ImageMLP(shape, hidden), dim),
            TitansLMM(dim, heads=heads, **memory) if sequential else None,
            ContentAddress(nn.Linear(dim, matching_dim), Embedding(ImageMLP(shape, hidden), matching_dim)),
            content,
            BernoulliImage(MLPDecoder(shape, 0, content.shapes, hidden[::-1])),
            dim,
            name=name,
        )

    def a_dist(self, x: Float[Tensor, "batch time *event"], memory: SlotMemory) -> dist.Distribution:
        """p(a_t | x_<t, M) of every t at once."""
        if self.mixer is None:
            return memory.prior()
        past = torch.cat([self.start.expand(len(x), 1, -1), self.embed(x[:, :-1])], 1)
        mixed, _ = self.mixer(self.norm(past))
        return self.address(self.norm(past + mixed), memory)

    def x_dist(self, content: Features) -> dist.Distribution:
        """p(x_t | m), from the features of m."""
        return self.likelihood(self.code, content)

    def x_dist_at(self, a: Int[Tensor, "*address"], memory: SlotMemory) -> dist.Distribution:
        """p(x_t | m_{a_t}); binary images of a shared memory are scored at all slots by one product."""
        if memory.batch_dim is None and isinstance(self.likelihood, BernoulliImage):
            logits = self.likelihood.decoder(self.code, self.content(memory.values))
            return AddressedBernoulli(out_of_autocast(logits), a)
        return self.x_dist(memory.read(a, self.content))

    def forward(self, x: Float[Tensor, "batch time *event"], memory: SlotMemory) -> None:
        self._check(x, memory)
        with pyro.plate("batch", x.shape[0], dim=-2), pyro.plate("time", x.shape[1], dim=-1):
            a = pyro.sample("a", self.a_dist(x, memory))
            pyro.sample("x", self.x_dist_at(a, memory), obs=x)

    def log_evidence(self, x: Float[Tensor, "batch time *event"], memory: SlotMemory) -> Float[Tensor, "batch time"]:
        """Computes log p(x_t | x_<t, M) in nats, exactly. Cost: O(batch x time x slots)."""
        self._check(x, memory)
        slots = torch.arange(memory.slots, device=x.device).reshape(-1, 1, 1)
        likelihood = self.x_dist_at(slots, memory).log_prob(x)
        return (self.a_dist(x, memory).log_prob(slots) + likelihood).logsumexp(0)

    def _check(self, x: Tensor, memory: SlotMemory) -> None:
        memory.check_filled()
        if x.dim() < 3 or memory.event_shape != x.shape[2:]:
            raise ValueError(
                f"`memory` must hold items of the shape of those in `x`, [batch, time, *event] = {list(x.shape)}; got "
                f"{list(memory.event_shape)}"
            )
        check_owners("memory", memory, len(x), "sequences", -2)
