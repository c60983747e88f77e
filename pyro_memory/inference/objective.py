"""What the objectives of this package have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from pyro.infer.util import is_validation_enabled
from pyro.util import warn_if_nan
from torch import Tensor

from pyro_memory.gate import checked
from pyro_memory.inference.particles import Particles


@checked
class Objective(Particles):
    """A Pyro objective given by its differentiable loss alone."""

    @abstractmethod
    def differentiable_loss(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> Tensor:
        """Estimates the negative bound by a tensor whose gradient estimates the bound's gradient."""

    def loss(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> float:
        """Estimates the negative bound, summed over the data."""
        with torch.no_grad():
            return self._checked(self.differentiable_loss(model, guide, *args, **kwargs))

    def loss_and_grads(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> float:
        """Estimates the negative bound and adds its gradient to the parameters' ``grad``."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward(retain_graph=self.retain_graph)
        return self._checked(loss)

    @staticmethod
    def _checked(loss: Tensor) -> float:
        value = loss.item()
        if is_validation_enabled():
            warn_if_nan(value, "loss")
        return value
