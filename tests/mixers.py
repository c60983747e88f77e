"""The neural memory and the four Titans, small, in options that differ, and tokens for them."""

import torch

from pyro_memory.models import NeuralMemory, TitansLMM, TitansMAC, TitansMAG, TitansMAL

DIM = 12
MEMORY = {"heads": 2, "chunk_size": 4}
MIXERS = {
    "memory": lambda **o: NeuralMemory(DIM, **MEMORY, **o),
    "memory, decay by channel": lambda **o: NeuralMemory(DIM, channel_decay=True, **MEMORY, **o),
    "memory, linear": lambda **o: NeuralMemory(
        DIM, heads=2, chunk_size=5, depth=1, residual_norm=False, convolution=1, momentum=False, weight_decay=False, **o
    ),
    "memory, online": lambda **o: NeuralMemory(DIM, heads=2, chunk_size=1, depth=3, activation="silu", **o),
    "LMM": lambda **o: TitansLMM(DIM, persistent=6, **MEMORY, **o),
    "MAL": lambda **o: TitansMAL(DIM, persistent=6, window=7, **MEMORY, **o),
    "MAG": lambda **o: TitansMAG(DIM, persistent=6, window=7, **MEMORY, **o),
    "MAC": lambda **o: TitansMAC(DIM, persistent=6, segment=8, **MEMORY, **o),
    "MAC, nothing persistent": lambda **o: TitansMAC(DIM, persistent=0, segment=8, **MEMORY, **o),
}


def enlarged(name, **options):
    """In float64, with weights large enough that a wrong wiring shows."""
    module = MIXERS[name](**options).double()
    with torch.no_grad():
        for p in module.parameters():
            p.mul_(1.5)
    return module


def noise(batch, time, dim=DIM):
    return torch.randn(batch, time, dim, dtype=torch.float64)
