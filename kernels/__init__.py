"""Accelerated public functions; torch alone, and Triton where there is a CUDA device."""

from pyro_memory.kernels.addressing import AddressRead, fused_address, nearest_slots

__all__ = ["AddressRead", "fused_address", "nearest_slots"]
