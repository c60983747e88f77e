"""Generative models with a memory."""

from pyro_memory.models.soft_attention import SoftAttentionVAE
from pyro_memory.models.titans import NeuralMemory, TitansAddressing, TitansLMM, TitansMAC, TitansMAG, TitansMAL
from pyro_memory.models.vae import VAE
from pyro_memory.models.vma import VMA

__all__ = [
    "VAE",
    "VMA",
    "NeuralMemory",
    "SoftAttentionVAE",
    "TitansAddressing",
    "TitansLMM",
    "TitansMAC",
    "TitansMAG",
    "TitansMAL",
]
