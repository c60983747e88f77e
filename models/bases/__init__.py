"""Base generative models: what draws an image, given what a memory told."""

from pyro_memory.models.bases.autoregressive import AutoregressiveBase
from pyro_memory.models.bases.base import BaseModel, content_network
from pyro_memory.models.bases.diffusion import DiffusionBase
from pyro_memory.models.bases.hierarchical import HierarchicalBase
from pyro_memory.models.bases.vae import VAEBase

__all__ = ["AutoregressiveBase", "BaseModel", "DiffusionBase", "HierarchicalBase", "VAEBase", "content_network"]
