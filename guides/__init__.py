"""Amortised guides, one file per model, same site names."""

from pyro_memory.guides.addressed import AddressedGuide
from pyro_memory.guides.base import BaseGuide, VAEBaseGuide
from pyro_memory.guides.consolidation import ConsolidationGuide
from pyro_memory.guides.diffusion import DiffusionBaseGuide
from pyro_memory.guides.empty import EmptyGuide
from pyro_memory.guides.hierarchical import HierarchicalBaseGuide
from pyro_memory.guides.soft_attention import SoftAttentionVAEGuide
from pyro_memory.guides.titans import TitansAddressingGuide
from pyro_memory.guides.vae import VAEGuide
from pyro_memory.guides.vma import VMAGuide
from pyro_memory.guides.vsm import VSMGuide

__all__ = [
    "AddressedGuide",
    "BaseGuide",
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
