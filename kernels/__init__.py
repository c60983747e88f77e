"""Accelerated public functions; they import torch and triton only."""

from pyro_memory.kernels.dispatch import why_not_triton
from pyro_memory.kernels.memory import neural_memory

__all__ = ["neural_memory", "why_not_triton"]
