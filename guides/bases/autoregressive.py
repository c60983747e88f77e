"""The guide of the autoregressive model: there is nothing to infer."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from pyro_memory.gate import checked
from pyro_memory.guides.bases.base import BaseGuide
from pyro_memory.nets import Context


@checked
class AutoregressiveBaseGuide(BaseGuide):
    """Draws nothing and has no parameters: an autoregressive model has no latents of its own."""

    encodes = False

    def infer(self, x: Float[Tensor, "*batch channel height width"], context: Context) -> None:
        return None
