"""Triton without a GPU: with ``install``, ``kernel.warmup`` compiles for one that need not be here.

What it compiles it leaves in Triton's cache on disk, where a later launch on such a GPU finds it.
"""

import triton
from triton.backends.compiler import GPUTarget


class Driver:
    """What Triton asks of a driver before a launch."""

    def __init__(self, capability):
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_target(self):
        return self.target

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0


def install(capability):
    """Compiles for this compute capability (90 is an H100) from here on, in this process."""
    triton.runtime.driver.set_active(Driver(capability))
