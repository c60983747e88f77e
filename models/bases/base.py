"""What the base generative models have in common."""

from __future__ import annotations

from collections.abc import Sequence

import pyro
from jaxtyping import Float
from pyro.nn import PyroModule
from torch import Tensor, nn

from pyro_memory.checks import check_images
from pyro_memory.gate import checked
from pyro_memory.naming import unique_name
from pyro_memory.nets import Context, SkipPyramid
from pyro_memory.stores import SlotMemory


@checked
class BaseModel(PyroModule):
    """Generates an image from a context; a memory model calls it inside its plates.

    A subclass writes ``explain``. Built with ``code_dim=0`` it needs no context and is a model of its own,
    ``forward(x, memory=None)``: the baseline without memory.

    Attributes:
        likelihood: has ``support``, the range of a pixel.
        content: computes features of an image read from memory, or None if the model reads none.
        code_dim: dimensions of the context's code that it must be told; 0 for none.
        whole_page: whether it looks at all images of the page that an image was read from.
    """

    content: nn.Module | None  # no default here: it would hide the module that a subclass sets
    code_dim: int = 0
    whole_page: bool = False

    def __init__(self, name: str | None = None) -> None:
        super().__init__(name or unique_name(self))

    def explain(self, x: Float[Tensor, "*batch channel height width"] | None, context: Context) -> None:
        """Samples the model's own latents and observes ``x``, site ``"x"``, within the caller's plates."""
        raise NotImplementedError(f"{type(self).__name__} must define `explain`")

    def generate(self, context: Context, shape: Sequence[int] = ()) -> Float[Tensor, "*batch channel height width"]:
        """Draws images; pixels are means of the last distribution, not draws of it.

        Args:
            shape: the batch shape, against which the context's broadcasts.
        """
        raise NotImplementedError(f"{type(self).__name__} must define `generate`")

    def forward(self, x: Float[Tensor, "batch channel height width"], memory: SlotMemory | None = None) -> None:
        check_images(x, self.likelihood)
        with pyro.plate("batch", len(x)):
            self.explain(x, Context())


def number_of_slots(base: BaseModel, memory: SlotMemory) -> Tensor | None:
    """ln of how many slots are filled, ``[*plates, 1]``: the code of a base that is told one number; else None."""
    return -memory.prior().logits.max(-1, keepdim=True).values if base.code_dim else None


def content_network(
    shape: Sequence[int], channels: Sequence[int], reads: bool | None, code_dim: int
) -> SkipPyramid | None:
    """The network for what is read from memory, of a model that reads; by default one that is told a code does."""
    return SkipPyramid(shape, channels) if (reads is None and code_dim) or reads else None
