"""Accelerated public functions; torch alone, and Triton where there is a CUDA device.

Where is the thing that ... computes a neural memory (``neural_memory``, ``memory_surprise``, ``apply_memory``; room
memory), reads a large memory by content (``fused_address``, ``nearest_slots``; room address), runs a linear
recurrence (``decay_scan``; room scan), says why Triton is not used and how it is
(``why_not_triton``, ``how_triton``), refuses the transforms of
torch.func (``refuse_transforms``)? In each room definition.py says in a few lines of PyTorch what is computed,
public.py holds the public functions, torch_form.py and triton_form.py compute it; files named triton_* hold Triton
source and load only where kernels are to run. Beside the rooms: dispatch.py says what a choice of form asks for,
triton_parts.py is what kernels share. Imports: torch and triton; no room imports another.
"""

from pyro_memory.kernels.address import AddressRead, fused_address, nearest_slots
from pyro_memory.kernels.dispatch import chosen as chosen  # for models, as others not in __all__
from pyro_memory.kernels.dispatch import may_look as may_look
from pyro_memory.kernels.dispatch import refuse_transforms
from pyro_memory.kernels.memory import anchored_token as anchored_token
from pyro_memory.kernels.memory import apply_memory, how_triton, memory_surprise, neural_memory, why_not_triton
from pyro_memory.kernels.memory import run_memory as run_memory
from pyro_memory.kernels.memory import run_surprise as run_surprise
from pyro_memory.kernels.scan import decay_scan

__all__ = [
    "AddressRead",
    "apply_memory",
    "decay_scan",
    "fused_address",
    "how_triton",
    "memory_surprise",
    "nearest_slots",
    "neural_memory",
    "refuse_transforms",
    "why_not_triton",
]
