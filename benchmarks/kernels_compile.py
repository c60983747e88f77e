"""Triton without a GPU: after ``install`` kernels compile for one that need not be here, and are not run.

A launch does what it does on such a GPU up to the last step, with tensors of the CPU, and fails where the kernel takes
more shared memory than a program has there. What is compiled stays in Triton's cache on disk, where a later launch on a
GPU finds it.
"""

import triton
from bare import load_kernels
from triton.backends.compiler import GPUTarget

load_kernels()

from pyro_memory.kernels.memory.limits import shared_memory  # noqa: E402


class Driver:
    """What Triton asks of a driver between a call and its launch."""

    def __init__(self, capability):
        self.target = GPUTarget("cuda", capability, 32)
        self.utils = self

    def get_current_target(self):
        return self.target

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0

    def get_device_properties(self, device):
        return {"max_shared_mem": 1024 * shared_memory(divmod(self.target.arch, 10))}

    def load_binary(self, name, binary, shared, device):
        module = function = registers = spills = 0
        return module, function, registers, spills, 1024

    def unload_module(self, module):
        pass

    def launcher_cls(self, source, metadata):
        return lambda *args: None


def install(capability):
    """Compiles for this compute capability (90 is an H100) from here on, in this process."""
    triton.runtime.driver.set_active(Driver(capability))
