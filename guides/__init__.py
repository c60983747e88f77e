"""Amortised guides, one file per model, same site names."""

from pyro_memory.guides.soft_attention import SoftAttentionVAEGuide
from pyro_memory.guides.titans import TitansAddressingGuide
from pyro_memory.guides.vae import VAEGuide
from pyro_memory.guides.vma import VMAGuide

__all__ = ["SoftAttentionVAEGuide", "TitansAddressingGuide", "VAEGuide", "VMAGuide"]
