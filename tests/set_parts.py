"""A small pair of a structured memory, its stores and supports, that tests share."""

import torch
from conftest import ink, sharpen

from pyro_memory import ConceptMemory, EpisodicMemory, Recall, SlotMemory, StructuredMemory
from pyro_memory.guides import (
    AutoregressiveBaseGuide,
    DiffusionBaseGuide,
    HierarchicalBaseGuide,
    VAEBaseGuide,
    VSMGuide,
)
from pyro_memory.models import VSM, AutoregressiveBase, DiffusionBase, HierarchicalBase, VAEBase

SHAPE, DIM, CODE, K, SLOTS = (1, 9, 7), 3, 4, 3, 4
SIZES = {"channels": (8, 8), "code_dim": CODE}


def bases(kind):
    if kind == "hierarchical":
        dims = {"latent_dims": (3, 2)}
        return HierarchicalBase(SHAPE, **dims, **SIZES), HierarchicalBaseGuide(SHAPE, **dims, **SIZES)
    if kind == "diffusion":
        return DiffusionBase(SHAPE, steps=4, **SIZES), DiffusionBaseGuide(4)
    if kind == "autoregressive":
        return AutoregressiveBase(SHAPE, maps=4, layers=(1, 2), looks=1, code_dim=CODE), AutoregressiveBaseGuide()
    return VAEBase(SHAPE, latent_dim=2, **SIZES), VAEBaseGuide(SHAPE, latent_dim=2, **SIZES)


def pair(kind="vae", factor=1.5):
    recall = Recall(SHAPE, dim=DIM, code_dim=CODE, channels=(4, 5), hidden=8)
    base, base_guide = bases(kind)
    return sharpen(VSM(base, recall), factor), VSMGuide(base_guide, recall)


def sets(counts, width=None):
    """A support a task, of given sizes."""
    width = max(counts) if width is None else width
    mask = torch.arange(width) < torch.tensor(counts).unsqueeze(-1)
    return SlotMemory(ink(len(counts), width, *SHAPE) * mask.reshape(*mask.shape, 1, 1, 1), mask=mask, batch_dim=-2)


def stores(slots=SLOTS):
    """Two concepts in use and one empty, a slot free."""
    g = torch.Generator().manual_seed(0)
    loc, variance = torch.randn(8, DIM, generator=g), torch.full((8, DIM), 0.2)
    concepts = ConceptMemory.reserve(K, DIM).update(loc, variance, torch.eye(K)[torch.arange(8) % 2])
    episodes = EpisodicMemory.reserve(slots, 3, SHAPE, DIM, K)
    rho = concepts.responsibilities(loc, variance)
    n = slots - 1
    episodes = episodes.write(loc[:n], variance[:n], ink(n, 3, *SHAPE), torch.full((n,), 3), rho[:n])
    return StructuredMemory(concepts, episodes)
