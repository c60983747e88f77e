"""Guides of the base generative models, the same file names as theirs."""

from pyro_memory.guides.bases.autoregressive import AutoregressiveBaseGuide
from pyro_memory.guides.bases.base import BaseGuide
from pyro_memory.guides.bases.diffusion import DiffusionBaseGuide
from pyro_memory.guides.bases.hierarchical import HierarchicalBaseGuide
from pyro_memory.guides.bases.vae import VAEBaseGuide

__all__ = ["AutoregressiveBaseGuide", "BaseGuide", "DiffusionBaseGuide", "HierarchicalBaseGuide", "VAEBaseGuide"]
