"""Amortised guides: the same site names and the same file names as the models'.

Where is the thing that ... looks up an address from the target (``VMAGuide``, ``AddressedGuide``); samples nothing, for
a model without latents (``EmptyGuide``); goes with a base (``VAEBaseGuide``, ``HierarchicalBaseGuide``,
``DiffusionBaseGuide``, ``AutoregressiveBaseGuide``); goes with any other model? It has the model's name, then Guide:
``VSMGuide``, ``VAEGuide``, ``SoftAttentionVAEGuide``, ``ConsolidationGuide``, ``TitansAddressingGuide``,
``CachedTitansGuide``. Imports:
``addressing``, ``distributions``, ``nets``, ``recall``, ``stores``.
"""

from pyro_memory.guides.addressed import AddressedGuide
from pyro_memory.guides.bases import (
    AutoregressiveBaseGuide,
    BaseGuide,
    DiffusionBaseGuide,
    HierarchicalBaseGuide,
    VAEBaseGuide,
)
from pyro_memory.guides.consolidation import ConsolidationGuide
from pyro_memory.guides.empty import EmptyGuide
from pyro_memory.guides.soft_attention import SoftAttentionVAEGuide
from pyro_memory.guides.titans import CachedTitansGuide, TitansAddressingGuide
from pyro_memory.guides.vae import VAEGuide
from pyro_memory.guides.vma import VMAGuide
from pyro_memory.guides.vsm import VSMGuide

__all__ = [
    "AddressedGuide",
    "AutoregressiveBaseGuide",
    "BaseGuide",
    "CachedTitansGuide",
    "ConsolidationGuide",
    "DiffusionBaseGuide",
    "EmptyGuide",
    "HierarchicalBaseGuide",
    "SoftAttentionVAEGuide",
    "TitansAddressingGuide",
    "VAEBaseGuide",
    "VAEGuide",
    "VMAGuide",
    "VSMGuide",
]
