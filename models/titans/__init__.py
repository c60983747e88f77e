"""Titans: sequence mixers with a neural memory that learns at test time, mixers to compare with, and their model.

neural_memory.py is the memory as a module; variants.py (LMM, MAL, MAG) and context.py (MAC) put it beside the window of
attention.py; baselines.py is what they are compared with. state.py is what a mixer carries from call to call. block.py,
sequence.py and readouts.py make a likelihood of any mixer, addressing.py an address, cached.py a memory of
memories.
"""

from pyro_memory.models.titans.addressing import TitansAddressing
from pyro_memory.models.titans.attention import WindowAttention, WindowState
from pyro_memory.models.titans.baselines import DLinear, LSTMMixer, LSTMState, TransformerMixer
from pyro_memory.models.titans.cached import CachedTitans
from pyro_memory.models.titans.context import ContextState, TitansMAC
from pyro_memory.models.titans.forecaster import PatchForecaster
from pyro_memory.models.titans.neural_memory import MemoryState, NeuralMemory
from pyro_memory.models.titans.readouts import NormalReadout, StudentTReadout, TokenReadout
from pyro_memory.models.titans.sequence import SequenceModel
from pyro_memory.models.titans.state import SequenceState
from pyro_memory.models.titans.states import StateCache
from pyro_memory.models.titans.variants import HybridState, TitansLMM, TitansMAG, TitansMAL

__all__ = [
    "CachedTitans",
    "ContextState",
    "DLinear",
    "HybridState",
    "LSTMMixer",
    "LSTMState",
    "MemoryState",
    "NeuralMemory",
    "NormalReadout",
    "PatchForecaster",
    "SequenceModel",
    "SequenceState",
    "StateCache",
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
