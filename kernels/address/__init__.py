"""The read of a large memory by content: one pass over the slots, for what a stochastic address needs.

Where is the thing that ...? ``definition``: the results from the whole matrix of scores, and ``AddressRead``, which
holds them. ``public``: ``fused_address``, ``nearest_slots`` and their checks. ``torch_form`` goes over chunks of slots;
``triton_form`` holds the kernels and what launches them, ``triton_draw`` those of samples. It may import torch, triton,
and of ``pyro_memory.kernels`` ``dispatch`` and ``triton_parts``.
"""

from pyro_memory.kernels.address.definition import AddressRead
from pyro_memory.kernels.address.public import fused_address, nearest_slots

__all__ = ["AddressRead", "fused_address", "nearest_slots"]
