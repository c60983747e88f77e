"""The linear recurrence h_t = a_t h_{t-1} + x_t along time, per channel.

Where is the thing that ...? ``definition``: a loop over the tokens. ``public``: ``decay_scan`` and its checks.
``torch_form`` joins stretches of tokens in log time steps; ``triton_form`` walks the time, a program a block of
channels. It may import torch, triton, and of ``pyro_memory.kernels`` ``dispatch`` and ``triton_parts``.
"""

from pyro_memory.kernels.scan.public import decay_scan

__all__ = ["decay_scan"]
