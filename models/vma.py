"""Variational memory addressing: the generative model."""

from __future__ import annotations

from collections.abc import Sequence

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float, Int
from pyro.nn import PyroModule
from torch import Tensor, nn

from pyro_memory.addressing import UniformPrior
from pyro_memory.checks import check_images, choose_slots, resolve_memory
from pyro_memory.gate import checked
from pyro_memory.inference import KeepFrozen
from pyro_memory.naming import unique_name
from pyro_memory.nets import (
    BernoulliImage,
    ContentPrior,
    ConvDecoder,
    Features,
    ImageMLP,
    ImagePyramid,
    MLPDecoder,
    SkipPyramid,
)
from pyro_memory.stores import SlotMemory, TemplateMemory


@checked
class VMA(PyroModule):
    r"""Draws each image after reading one slot of a memory.

    .. code-block:: text

        a ~ p(a | M)          which slot to read; uniform by default
        z ~ p(z | m_a)        what varies around the slot
        x ~ p(x | z, m_a)     the image

    Args:
        content: computes the features of a slot, ``m -> features``; once a slot where slots are fewer than reads.
        prior: maps features of m to the distribution of z.
        likelihood: maps z and features of m to the distribution of x.
        address_prior: maps a memory to the distribution of a; ``UniformPrior()`` by default.
        templates: learned contents, read where ``memory`` is None; the guide takes the same instance.
        none_slot: appends a slot of zeros that is always filled, so that an empty memory is legal; set it for both. The
            paper has none.

    The two networks on top of ``content`` share it (tied pyramids); ``convolutional(tied=False)`` unties them.
    ``forward(x, memory)`` takes ``x [batch, channel, height, width]``; sites ``a``, ``z``, ``x`` in plate ``batch``.

    Raises:
        ValueError: for an empty memory without a "none" slot, shapes that do not fit, images outside the support.

    References: Variational Memory Addressing in Generative Models (Bornschein et al., 2017),
    https://arxiv.org/abs/1709.07116
    """

    def __init__(
        self,
        content: nn.Module,
        prior: nn.Module,
        likelihood: nn.Module,
        *,
        address_prior: nn.Module | None = None,
        templates: TemplateMemory | None = None,
        none_slot: bool = False,
        name: str | None = None,
    ) -> None:
        super().__init__(name or unique_name(self))
        self.content = content
        self.prior = prior
        self.likelihood = likelihood
        self.address_prior = UniformPrior() if address_prior is None else address_prior
        self.templates = templates
        self.none_slot = none_slot

    @classmethod
    def convolutional(
        cls, shape: Sequence[int], latent_dim: int = 64, channels: Sequence[int] = (48, 48, 64), *,
        tied: bool = True, likelihood: type[nn.Module] = BernoulliImage, **options: object,
    ) -> VMA:  # fmt: skip
        """Builds it with convolutional pyramids, skip connections from the slot to the decoder."""
        content = SkipPyramid(shape, channels) if tied else TwoPyramids(shape, channels)
        decoder = ConvDecoder(shape, latent_dim, channels)
        return cls(content, ContentPrior(content.shapes[-1], latent_dim), likelihood(decoder), **options)

    @classmethod
    def mlp(
        cls, shape: Sequence[int], latent_dim: int = 32, hidden: Sequence[int] = (256, 128), *,
        likelihood: type[nn.Module] = BernoulliImage, **options: object,
    ) -> VMA:  # fmt: skip
        """Builds it with MLPs."""
        content = ImageMLP(shape, hidden)
        decoder = MLPDecoder(shape, latent_dim, content.shapes, hidden[::-1])
        return cls(content, ContentPrior(content.shapes[-1], latent_dim), likelihood(decoder), **options)

    def a_dist(self, memory: SlotMemory) -> dist.Distribution:
        """p(a | M)."""
        return self.address_prior(memory)

    def z_dist(self, content: Features) -> dist.Distribution:
        """p(z | m), from the features of m."""
        return self.prior(content)

    def x_dist(self, z: Float[Tensor, "*batch latent"], content: Features) -> dist.Distribution:
        """p(x | z, m), from z and the features of m."""
        return self.likelihood(z, content)

    def forward(self, x: Float[Tensor, "batch channel height width"], memory: SlotMemory | None = None) -> None:
        check_images(x, self.likelihood)
        memory = resolve_memory(self, x, memory)
        with pyro.plate("batch", len(x)):
            a = pyro.sample("a", self.a_dist(memory))
            content = memory.read(a, self.content)
            z = pyro.sample("z", self.z_dist(content))
            pyro.sample("x", self.x_dist(z, content), obs=x)

    @torch.no_grad()
    def generate(
        self, memory: SlotMemory | None = None, shape: Sequence[int] = (), a: Int[Tensor, "*batch"] | None = None
    ) -> Float[Tensor, "*batch channel height width"]:
        """Draws images, each after a lookup of its own; pixels are means of the last distribution, not draws of it.

        Args:
            memory: as of ``forward``.
            shape: how many, ``[*shape]`` of a shared memory, ``[*shape, batch]`` of one a datum.
            a: read these slots instead; without ``shape``.

        Raises:
            ValueError: as of ``forward``, and for both ``shape`` and ``a``.
        """
        with KeepFrozen():
            memory, a = choose_slots(self, memory, shape, a)
        content = memory.read(a, self.content)
        return self.x_dist(self.z_dist(content).sample(), content).mean


class TwoPyramids(nn.Module):
    """Untied content: the decoder's skips come from one pyramid, the features of p(z | m) from another."""

    def __init__(self, shape: Sequence[int], channels: Sequence[int]) -> None:
        super().__init__()
        self.skips, self.top = SkipPyramid(shape, channels), ImagePyramid(shape, channels)
        self.shapes = self.skips.shapes

    def forward(self, m: Float[Tensor, "*batch channel height width"]) -> Features:
        return (*self.skips(m), self.top(m)[-1])
