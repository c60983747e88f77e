"""Generative models with a memory, one file a paper's model.

Where is the thing that ... reads a sampled slot (``VMA``), or attends to all of them (``SoftAttentionVAE``,
``Attended``); reads episodes and concepts (``VSM``, over a base: ``VAEBase``, ``HierarchicalBase``, ``DiffusionBase``,
``AutoregressiveBase``); puts an address before any base (``Addressed``); is the baseline without memory (``VAE``);
converts episodes to concepts (``ConsolidationModel``); learns at test time (``NeuralMemory``, in ``TitansMAC``,
``TitansMAG``, ``TitansMAL``, ``TitansLMM``), or is what those are compared with (``TransformerMixer``, ``LSTMMixer``,
``DLinear``); writes a sequence down with any of these (``SequenceModel`` and its readouts); forecasts a series
(``PatchForecaster``); predicts an address from those before (``TitansAddressing``); keeps states of a neural memory and
asks one of them (``StateCache``, ``CachedTitans``)? Imports: ``addressing``, ``distributions``, ``inference``,
``kernels``, ``nets``, ``recall``, ``stores``.
"""

from pyro_memory.models.addressed import Addressed
from pyro_memory.models.attended import Attended
from pyro_memory.models.bases import AutoregressiveBase, BaseModel, DiffusionBase, HierarchicalBase, VAEBase
from pyro_memory.models.consolidation import ConsolidationModel
from pyro_memory.models.soft_attention import SoftAttentionVAE
from pyro_memory.models.titans import (
    CachedTitans,
    DLinear,
    LSTMMixer,
    NeuralMemory,
    NormalReadout,
    PatchForecaster,
    SequenceModel,
    SequenceState,
    StateCache,
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
    "Attended",
    "AutoregressiveBase",
    "BaseModel",
    "CachedTitans",
    "ConsolidationModel",
    "DLinear",
    "DiffusionBase",
    "HierarchicalBase",
    "LSTMMixer",
    "NeuralMemory",
    "NormalReadout",
    "PatchForecaster",
    "SequenceModel",
    "SequenceState",
    "SoftAttentionVAE",
    "StateCache",
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
