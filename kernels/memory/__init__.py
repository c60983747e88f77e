"""The neural memory: written by gradient descent at test time, read after each token.

Where is the thing that ...? ``definition``: the rule, token by token. ``public``: ``neural_memory`` and
``memory_surprise``; ``arguments`` refuses what does not fit them, ``run`` casts and runs, ``forms`` chooses for a
piece, ``pieces`` cuts a call that begins or ends inside a chunk, ``limits`` says what the kernels take. The chunk form
in PyTorch: ``torch_anchored`` goes on in an open chunk, ``torch_operator`` makes one operator of a call, ``torch_form``
cuts a call into chunks, ``torch_chunks`` walks over them, ``torch_inner`` holds a chunk's pieces and
``torch_coefficients`` what its gates weigh. In Triton: ``triton_form`` packs a call and is the operator,
``triton_token`` runs one token without gradients, ``triton_launch`` launches, ``triton_linear``, ``triton_deep``,
``triton_deep_backward`` and ``triton_decode`` are the kernels, ``triton_gates`` weighs the gates before them,
``triton_loads`` and ``triton_layers`` are what they share. It may import torch, triton, and of ``pyro_memory.kernels``
``dispatch`` and ``triton_parts``.
"""

from pyro_memory.kernels.memory.definition import apply_memory
from pyro_memory.kernels.memory.limits import why_not_triton
from pyro_memory.kernels.memory.plan import how_triton
from pyro_memory.kernels.memory.public import memory_surprise, neural_memory
from pyro_memory.kernels.memory.run import run_memory, run_surprise
from pyro_memory.kernels.memory.torch_anchored import anchored_token as anchored_token

__all__ = [
    "apply_memory", "how_triton", "memory_surprise", "neural_memory", "run_memory", "run_surprise", "why_not_triton",
]  # fmt: skip
