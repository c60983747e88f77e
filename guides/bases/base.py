"""What the guides of base generative models have in common."""

from __future__ import annotations

import pyro
from jaxtyping import Float
from pyro.nn import PyroModule
from torch import Tensor

from pyro_memory.checks import check_images
from pyro_memory.gate import checked
from pyro_memory.naming import unique_name
from pyro_memory.nets import Context
from pyro_memory.stores import SlotMemory


@checked
class BaseGuide(PyroModule):
    """Infers a base model's own latents; a memory model's guide calls it inside its plates.

    Built with ``code_dim=0`` it is the guide of the model without memory.

    Attributes:
        encodes: whether it looks at the context.
    """

    encodes = True

    def __init__(self, name: str | None = None) -> None:
        super().__init__(name or unique_name(self))

    def infer(self, x: Float[Tensor, "*batch channel height width"], context: Context) -> None:
        """Samples the base model's latents within the caller's plates."""
        raise NotImplementedError(f"{type(self).__name__} must define `infer`")

    def forward(self, x: Float[Tensor, "batch channel height width"], memory: SlotMemory | None = None) -> None:
        check_images(x)
        with pyro.plate("batch", len(x)):
            self.infer(x, Context())
