"""Generative models with a memory."""

from pyro_memory.models.titans import NeuralMemory, TitansAddressing, TitansLMM, TitansMAC, TitansMAG, TitansMAL
from pyro_memory.models.vae import VAE
from pyro_memory.models.vma import VMA

__all__ = ["VAE", "VMA", "NeuralMemory", "TitansAddressing", "TitansLMM", "TitansMAC", "TitansMAG", "TitansMAL"]
