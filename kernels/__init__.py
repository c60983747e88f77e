"""Accelerated public functions; they import torch and triton only."""

from pyro_memory.kernels.decay_scan import decay_scan
from pyro_memory.kernels.dispatch import why_not_triton
from pyro_memory.kernels.memory import memory_surprise, neural_memory
from pyro_memory.kernels.reference import apply_memory

__all__ = ["apply_memory", "decay_scan", "memory_surprise", "neural_memory", "why_not_triton"]
