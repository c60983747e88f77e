"""Titans: sequence mixers with a neural memory that learns at test time."""

from pyro_memory.models.titans.addressing import TitansAddressing
from pyro_memory.models.titans.attention import WindowAttention, WindowState
from pyro_memory.models.titans.context import ContextState, TitansMAC
from pyro_memory.models.titans.neural_memory import MemoryState, NeuralMemory
from pyro_memory.models.titans.variants import HybridState, TitansLMM, TitansMAG, TitansMAL

__all__ = [
    "ContextState",
    "HybridState",
    "MemoryState",
    "NeuralMemory",
    "TitansAddressing",
    "TitansLMM",
    "TitansMAC",
    "TitansMAG",
    "TitansMAL",
    "WindowAttention",
    "WindowState",
]
