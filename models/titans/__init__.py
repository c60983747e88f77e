"""Titans: sequence mixers with a neural memory that learns at test time, mixers to compare with, and their model."""

from pyro_memory.models.titans.addressing import TitansAddressing
from pyro_memory.models.titans.attention import WindowAttention, WindowState
from pyro_memory.models.titans.baselines import DLinear, LSTMMixer, LSTMState, TransformerMixer
from pyro_memory.models.titans.context import ContextState, TitansMAC
from pyro_memory.models.titans.neural_memory import MemoryState, NeuralMemory
from pyro_memory.models.titans.readouts import NormalReadout, StudentTReadout, TokenReadout
from pyro_memory.models.titans.sequence import SequenceModel, SequenceState
from pyro_memory.models.titans.variants import HybridState, TitansLMM, TitansMAG, TitansMAL

__all__ = [
    "ContextState",
    "DLinear",
    "HybridState",
    "LSTMMixer",
    "LSTMState",
    "MemoryState",
    "NeuralMemory",
    "NormalReadout",
    "SequenceModel",
    "SequenceState",
    "StudentTReadout",
    "TitansAddressing",
    "TitansLMM",
    "TitansMAC",
    "TitansMAG",
    "TitansMAL",
    "TokenReadout",
    "TransformerMixer",
    "WindowAttention",
    "WindowState",
]
