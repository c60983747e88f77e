import gzip
import os
import struct

import jaxtyping
import pyro
import pytest
import torch
import typechecks

typechecks.install()

from pyro_memory import SlotMemory
from pyro_memory.guides import VMAGuide
from pyro_memory.models import VMA

torch.set_num_threads(1)  # the suite runs a process a core
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # Triton decides at its first import, whichever test that comes from


@pytest.fixture(autouse=True)
def checked_shapes(request):
    """Shapes are checked in each call, but in a test marked ``unchecked``."""
    jaxtyping.config.update("jaxtyping_disable", request.node.get_closest_marker("unchecked") is not None)


@pytest.fixture(autouse=True)
def fresh_pyro():
    """Each test starts with its own parameter store and random stream, and with checks of values, which torch.compile
    turns off for the whole process."""
    torch.distributions.Distribution.set_default_validate_args(True)
    pyro.clear_param_store()
    pyro.set_rng_seed(0)


def ink(*shape, density=0.3):
    return (torch.rand(*shape) < density).float()


def sharpen(module, factor=4.0):
    """Enlarges the weights, so that a wrong wiring shows in the numbers."""
    with torch.no_grad():
        for p in module.parameters():
            p.mul_(factor)
    return module


@pytest.fixture
def shared_memory():
    return SlotMemory(ink(5, 1, 6, 6))


@pytest.fixture
def tiny_pair():
    """A VMA on 6x6 images whose latents matter."""
    model = sharpen(VMA.mlp((1, 6, 6), latent_dim=2, hidden=(8, 8)), 2.0)
    guide = sharpen(VMAGuide.mlp((1, 6, 6), latent_dim=2, hidden=(8, 8), matching_dim=4), 2.0)
    return model, guide


def write_idx(path, array, kind=8):
    """Writes an array as an MNIST file."""
    header = struct.pack(f">{1 + array.ndim}I", 256 * kind + array.ndim, *array.shape)
    path.write_bytes(gzip.compress(header + array.tobytes()))
