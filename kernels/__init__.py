"""Accelerated public functions; torch alone, and Triton where there is a CUDA device.

Where is the thing that ...? In ``memory`` what the neural memory computes, in ``address`` the read of a large memory by
content, in ``scan`` the linear recurrence. In each room ``definition`` says in a few lines of PyTorch what is computed,
``public`` holds the public functions, ``torch_form`` and ``triton_form`` compute it; files that begin with ``triton_``
hold Triton source and load only where kernels are to run. Beside the rooms: ``dispatch``, what a choice of a form asks
for, and ``triton_parts``, what their kernels share. The rooms import torch, triton and these two, and not each other.
"""

from pyro_memory.kernels.address import AddressRead, fused_address, nearest_slots
from pyro_memory.kernels.memory import apply_memory, memory_surprise, neural_memory, why_not_triton
from pyro_memory.kernels.scan import decay_scan

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
