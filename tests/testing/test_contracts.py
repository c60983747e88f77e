"""Every model, guide, base, mixer and store of the package keeps its contract: one row each."""

from functools import partial

import pytest
import torch
from pyro.infer import Trace_ELBO

from pyro_memory import (
    ConceptMemory,
    EpisodicMemory,
    LearnedPrior,
    LeaveOneOutELBO,
    NearestAddress,
    Recall,
    SlotMemory,
    StructuredMemory,
    TemplateMemory,
)
from pyro_memory.guides import (
    AddressedGuide,
    ConsolidationGuide,
    DiffusionBaseGuide,
    EmptyGuide,
    HierarchicalBaseGuide,
    SoftAttentionVAEGuide,
    TitansAddressingGuide,
    VAEBaseGuide,
    VAEGuide,
    VMAGuide,
    VSMGuide,
)
from pyro_memory.models import (
    VAE,
    VMA,
    VSM,
    Addressed,
    ConsolidationModel,
    DiffusionBase,
    DLinear,
    HierarchicalBase,
    LSTMMixer,
    SequenceModel,
    SoftAttentionVAE,
    StudentTReadout,
    TitansAddressing,
    TitansLMM,
    TransformerMixer,
    VAEBase,
)
from pyro_memory.nets import Embedding, GaussianImage, ImageMLP
from pyro_memory.testing import check_pair

SHAPE = (1, 9, 7)  # odd sizes, so that up- and down-sampling must agree
SIZES = {"channels": (4, 5)}


def ink(*shape):
    return (torch.rand(*shape) < 0.3).float()


def images_and_slots(slots=2):
    return ink(3, *SHAPE), SlotMemory(ink(slots, *SHAPE))


def both(model, guide, shape=SHAPE, kind="convolutional", **options):
    sizes = {"latent_dim": 3, **SIZES} if kind == "convolutional" else {"latent_dim": 3, "hidden": (8, 8)}
    return tuple(getattr(c, kind)(shape, **sizes, **options) for c in (model, guide))


def learned_prior():
    prior = LearnedPrior(Embedding(ImageMLP(SHAPE, (8,)), 4), 4)
    torch.nn.init.normal_(prior.query)
    model, guide = both(VMA, VMAGuide, kind="mlp")
    model.address_prior = prior
    return model, guide


def nearest():
    model, guide = both(VMA, VMAGuide)
    guide.address = NearestAddress(guide.address, 2, epsilon=0.1)
    return model, guide


def gaussian():
    _, guide = both(VMA, VMAGuide)
    return VMA.convolutional(SHAPE, latent_dim=3, likelihood=GaussianImage, **SIZES), guide


BASES = {
    "vae": lambda **o: (
        VAEBase(SHAPE, latent_dim=3, **SIZES, **o),
        VAEBaseGuide(SHAPE, latent_dim=3, code_dim=o.get("code_dim", 0), **SIZES),
    ),
    "hierarchical": lambda **o: (
        HierarchicalBase(SHAPE, latent_dims=(3, 2), hidden=8, **SIZES, **o),
        HierarchicalBaseGuide(SHAPE, latent_dims=(3, 2), hidden=8, code_dim=o.get("code_dim", 0), **SIZES),
    ),
    "diffusion": lambda **o: (DiffusionBase(SHAPE, steps=4, **SIZES, **o), DiffusionBaseGuide(4)),
}


def addressed(name, **options):
    base, guide = BASES[name](reads=True)
    guide = AddressedGuide.convolutional(SHAPE, guide, matching_dim=4, **SIZES, **options)
    return Addressed(base, **options), guide


def structured(name):
    recall = Recall(SHAPE, dim=3, code_dim=4, channels=(4, 5), hidden=8, key_dim=4)
    base, guide = BASES[name](code_dim=4)
    return VSM(base, recall), VSMGuide(guide, recall)


def concepts():
    return ConceptMemory.reserve(2, 3).update(torch.randn(4, 3), torch.full((4, 3), 0.2), torch.eye(2).repeat(2, 1))


def stores():
    semantic = concepts()
    loc, variance = torch.randn(2, 3), torch.full((2, 3), 0.2)
    rho = semantic.responsibilities(loc, variance)
    episodes = EpisodicMemory.reserve(2, 1, SHAPE, 3, 2)
    episodes = episodes.write(loc, variance, ink(2, 1, *SHAPE), torch.tensor([1, 1]), rho)
    return StructuredMemory(semantic, episodes)


def task():
    mask = torch.tensor([[True, True], [True, False]])
    support = SlotMemory(ink(2, 2, *SHAPE) * mask.reshape(2, 2, 1, 1, 1), mask=mask, batch_dim=-2)
    return ink(2, 1, *SHAPE), support, stores()


def sequential():
    sizes = {"hidden": (8, 8), "matching_dim": 4}
    model = TitansAddressing.mlp((1, 3, 3), 8, heads=1, chunk_size=2, persistent=2, **sizes)
    return model, TitansAddressingGuide.mlp((1, 3, 3), **sizes)


LMM = partial(TitansLMM, heads=2, persistent=2, chunk_size=4)


def tokens(mixer):
    return SequenceModel.tokens(7, mixer, dim=8), EmptyGuide()


def series(**options):
    return SequenceModel.series(2, LMM, dim=8, **options), EmptyGuide()


likelihood, noisy = {"objective": Trace_ELBO()}, {"objective": LeaveOneOutELBO(2)}
PAIRS = {
    "VAE convolutional": (lambda: both(VAE, VAEGuide), lambda: (ink(3, *SHAPE),), {}),
    "VAE mlp": (lambda: both(VAE, VAEGuide, kind="mlp"), lambda: (ink(3, *SHAPE),), {}),
    "VMA convolutional": (lambda: both(VMA, VMAGuide), images_and_slots, {}),
    "VMA untied": (lambda: both(VMA, VMAGuide, tied=False), images_and_slots, {}),
    "VMA mlp": (lambda: both(VMA, VMAGuide, kind="mlp"), images_and_slots, {}),
    "VMA none slot": (lambda: both(VMA, VMAGuide, none_slot=True), images_and_slots, {}),
    "VMA templates": (
        lambda: both(VMA, VMAGuide, templates=TemplateMemory(2, SHAPE)),
        lambda: (ink(3, *SHAPE),),
        {},
    ),
    "VMA learned prior": (learned_prior, images_and_slots, {}),
    "VMA nearest": (nearest, lambda: images_and_slots(3), {}),
    "VMA gaussian": (gaussian, images_and_slots, {}),
    "soft attention": (lambda: both(SoftAttentionVAE, SoftAttentionVAEGuide), images_and_slots, {}),
    "Addressed vae": (lambda: addressed("vae"), images_and_slots, {}),
    "Addressed hierarchical": (lambda: addressed("hierarchical"), images_and_slots, {}),
    "Addressed diffusion": (lambda: addressed("diffusion"), images_and_slots, noisy),
    "VSM vae": (lambda: structured("vae"), task, {}),
    "VSM hierarchical": (lambda: structured("hierarchical"), task, {"combinations": 0}),
    "VSM diffusion": (lambda: structured("diffusion"), task, noisy | {"combinations": 0}),
    "consolidation": (
        lambda: (ConsolidationModel(), ConsolidationGuide(8)),
        lambda: (concepts(), torch.randn(3, 3), torch.full((3, 3), 0.1), torch.tensor([1, 9, 60])),
        {},
    ),
    "TitansAddressing": (sequential, lambda: (ink(2, 4, 1, 3, 3), SlotMemory(ink(2, 1, 3, 3))), {}),
    "SequenceModel of LMM": (lambda: tokens(LMM), lambda: (torch.randint(7, (3, 9)),), likelihood),
    "SequenceModel of attention": (
        lambda: tokens(partial(TransformerMixer, heads=2, window=5)),
        lambda: (torch.randint(7, (3, 9)),),
        likelihood,
    ),
    "SequenceModel of LSTM": (lambda: tokens(LSTMMixer), lambda: (torch.randint(7, (3, 9)),), likelihood),
    "SequenceModel of a series": (lambda: series(readout=StudentTReadout), lambda: (torch.randn(3, 6, 2),), likelihood),
    "DLinear": (
        lambda: (DLinear(10, 3, kernel=5), EmptyGuide()),
        lambda: (torch.randn(3, 5, 2), None, torch.randn(3, 1, 3)),
        likelihood,
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_a_pair_keeps_its_contract(name):
    make, args, options = PAIRS[name]
    check_pair(*make(), *args(), make=make, **options)
