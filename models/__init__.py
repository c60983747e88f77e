"""Generative models with a memory."""

from pyro_memory.models.addressed import Addressed
from pyro_memory.models.base import BaseModel, VAEBase
from pyro_memory.models.consolidation import ConsolidationModel
from pyro_memory.models.diffusion import DiffusionBase
from pyro_memory.models.hierarchical import HierarchicalBase
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
from pyro_memory.models.vsm import VSM

__all__ = [
    "VAE",
    "VMA",
    "VSM",
    "Addressed",
    "BaseModel",
    "ConsolidationModel",
    "DLinear",
    "DiffusionBase",
    "HierarchicalBase",
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
    "VAEBase",
]
