"""Guides of the models with a neural memory."""

from pyro_memory.guides.titans.addressing import TitansAddressingGuide

__all__ = ["TitansAddressingGuide"]
