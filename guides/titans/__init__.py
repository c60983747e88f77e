"""Guides of the models with a neural memory."""

from pyro_memory.guides.titans.addressing import TitansAddressingGuide
from pyro_memory.guides.titans.cached import CachedTitansGuide

__all__ = ["CachedTitansGuide", "TitansAddressingGuide"]
