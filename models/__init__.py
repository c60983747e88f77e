"""Generative models with a memory."""

from pyro_memory.models.soft_attention import SoftAttentionVAE
from pyro_memory.models.titans import (
    DLinear,
    LSTMMixer,
    NeuralMemory,
    NormalReadout,
    SequenceModel,
    SequenceState,
    StudentTReadout,
    TitansAddressing,
    TitansLMM,
    TitansMAC,
    TitansMAG,
    TitansMAL,
    TokenReadout,
    TransformerMixer,
)
from pyro_memory.models.vae import VAE
from pyro_memory.models.vma import VMA

__all__ = [
    "VAE",
    "VMA",
    "DLinear",
    "LSTMMixer",
    "NeuralMemory",
    "NormalReadout",
    "SequenceModel",
    "SequenceState",
    "SoftAttentionVAE",
    "StudentTReadout",
    "TitansAddressing",
    "TitansLMM",
    "TitansMAC",
    "TitansMAG",
    "TitansMAL",
    "TokenReadout",
    "TransformerMixer",
]
