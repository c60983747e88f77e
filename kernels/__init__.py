"""Accelerated public functions; torch alone, and Triton where there is a CUDA device."""

from pyro_memory.kernels.addressing import AddressRead, fused_address, nearest_slots
from pyro_memory.kernels.decay_scan import decay_scan
from pyro_memory.kernels.dispatch import why_not_triton
from pyro_memory.kernels.memory import memory_surprise, neural_memory
from pyro_memory.kernels.reference import apply_memory

__all__ = [
    "AddressRead",
    "apply_memory",
    "decay_scan",
    "fused_address",
    "memory_surprise",
    "nearest_slots",
    "neural_memory",
    "why_not_triton",
]
