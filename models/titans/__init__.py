"""Sequence models whose mixer learns at test time, and the mixers to compare with."""

from pyro_memory.models.titans.baselines import DLinear, LSTMMixer, TransformerMixer
from pyro_memory.models.titans.readouts import NormalReadout, StudentTReadout, TokenReadout
from pyro_memory.models.titans.sequence import SequenceModel, SequenceState

__all__ = [
    "DLinear",
    "LSTMMixer",
    "NormalReadout",
    "SequenceModel",
    "SequenceState",
    "StudentTReadout",
    "TokenReadout",
    "TransformerMixer",
]
