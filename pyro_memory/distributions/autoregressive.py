"""Images whose pixels are given one after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor

from pyro_memory.gate import check_least, checked


@checked
class AutoregressiveImage(dist.TorchDistribution):
    """``prod_i p(x_i | x_1 ... x_(i-1))`` over the pixels of an image, as a network computes it.

    Args:
        log_prob: gives each image's log-probability, ``[*lead, channel, height, width] -> [*lead]``.
        draw: draws images of a leading shape.
        batch_shape, image_shape: of the distribution.
    """

    arg_constraints = {}  # noqa: RUF012
    support = dist.constraints.independent(dist.constraints.unit_interval, 3)

    def __init__(
        self, log_prob: Callable[[Tensor], Tensor], draw: Callable[[torch.Size], Tensor], batch_shape: Sequence[int],
        image_shape: Sequence[int],
    ) -> None:  # fmt: skip
        check_least(1, image_shape=image_shape)
        self._log_prob, self._draw = log_prob, draw
        self._weighed: tuple[Tensor, int, Tensor] | None = None
        super().__init__(torch.Size(batch_shape), torch.Size(image_shape), validate_args=False)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> AutoregressiveImage:
        fitting = torch.empty(self.batch_shape, device="meta").expand(batch_shape).shape
        wider = AutoregressiveImage(self._log_prob, self._draw, fitting, self.event_shape)
        wider._weighed = self._weighed
        return wider

    def weighed(
        self, value: Float[Tensor, "*lead channel height width"], log_prob: Float[Tensor, "*more"]
    ) -> AutoregressiveImage:
        """The same, with the log-probability of these images at hand: ``log_prob`` gives it while they stay as is."""
        known = self.expand(self.batch_shape)
        known._weighed = value, value._version, log_prob
        return known

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        return self._draw(torch.Size(sample_shape) + self.batch_shape)

    def log_prob(self, value: Float[Tensor, "*lead channel height width"]) -> Tensor:
        if value.shape[-3:] != self.event_shape:
            raise ValueError(f"`value` must end with {list(self.event_shape)}, an image; got {list(value.shape)}")
        known = self._weighed
        same = known is not None and value is known[0] and value._version == known[1]
        log_prob = known[2] if same else self._log_prob(value)
        return log_prob.expand(torch.broadcast_shapes(log_prob.shape, self.batch_shape))
