"""Accelerated public functions; they import torch and triton only."""

from pyro_memory.kernels.memory import memory_surprise, neural_memory

__all__ = ["memory_surprise", "neural_memory"]
