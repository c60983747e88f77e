"""Every pair of the package, small, and what it is called with: for tests of what a file keeps."""

from functools import partial

import base_pairs
import set_parts
import torch
from conftest import ink
from mixers import DIM, MEMORY, MIXERS
from torch import nn

from pyro_memory import (
    ContentAddress,
    Cosine,
    Dot,
    FrozenAddress,
    LearnedPrior,
    NearestAddress,
    Recall,
    Recognition,
    SlotIndex,
    SlotMemory,
    TemplateMemory,
)
from pyro_memory.guides import (
    AddressedGuide,
    CachedTitansGuide,
    ConsolidationGuide,
    EmptyGuide,
    SoftAttentionVAEGuide,
    TitansAddressingGuide,
    VAEGuide,
    VMAGuide,
)
from pyro_memory.models import (
    VAE,
    VMA,
    Addressed,
    Attended,
    CachedTitans,
    ConsolidationModel,
    DLinear,
    LSTMMixer,
    PatchForecaster,
    SequenceModel,
    SoftAttentionVAE,
    StudentTReadout,
    TitansAddressing,
    TitansLMM,
    TitansMAC,
    TitansMAG,
    TitansMAL,
    TransformerMixer,
)
from pyro_memory.nets import Embedding, GaussianImage, ImageMLP, PairEncoder

SHAPE = (1, 8, 8)
CONV = {"shape": SHAPE, "latent_dim": 3, "channels": (4, 5)}
DENSE = {"shape": SHAPE, "latent_dim": 3, "hidden": (8, 8)}


def looked_up(**options):
    return ink(3, *SHAPE), SlotMemory(ink(5, *SHAPE), **options)


def flat(dim=4):
    """A network of torch's own parts."""
    parts = nn.Flatten(-3), nn.Linear(64, 8, bias=False), nn.LayerNorm(8), nn.GELU("tanh"), nn.Linear(8, dim)
    return nn.Sequential(*parts)


def addressed(kind, none_slot=False):
    base, guide = getattr(base_pairs, kind)(SHAPE, reads=True, code_dim=0)
    address = ContentAddress(Embedding(ImageMLP(SHAPE, (8,)), 4))
    return Addressed(base, none_slot=none_slot), AddressedGuide(address, guide, none_slot=none_slot)


def tokens(mixer):
    return SequenceModel.tokens(7, mixer, dim=8, blocks=2), EmptyGuide()


def with_templates():
    templates = TemplateMemory(4, SHAPE, init=torch.rand(4, *SHAPE))
    return VMA.mlp(**DENSE, templates=templates), VMAGuide.mlp(**DENSE, templates=templates)


def by_hand():
    """Parts given one by one; the guide reads the model's own content."""
    model = VMA.convolutional(**CONV, likelihood=GaussianImage)
    net = flat()
    address = NearestAddress(ContentAddress(net, net, Cosine(0.2)), 2, epsilon=0.1, index=SlotIndex("brute"))
    return model, VMAGuide(address, PairEncoder(ImageMLP((2, 8, 8), (8,)), 3))


def shared_content():
    model = VMA(*(VMA.mlp(**DENSE)._modules[n] for n in ("content", "prior", "likelihood")))
    return model, VMAGuide(ContentAddress(Embedding(model.content, 4), similarity=Dot()), VMAGuide.mlp(**DENSE).encoder)


def learned_prior():
    parts = VMA.mlp(**DENSE)
    model = VMA(parts.content, parts.prior, parts.likelihood, address_prior=LearnedPrior(flat(), 4), none_slot=True)
    return model, VMAGuide.mlp(**DENSE, none_slot=True)


def frozen():
    guide = VMAGuide.mlp(**DENSE)
    address = FrozenAddress(ContentAddress(flat()), sharpness=1.5)
    return VMA.mlp(**DENSE), VMAGuide(address, guide.encoder)


def keyed():
    return ink(3, *SHAPE), SlotMemory(ink(5, *SHAPE), torch.rand(5, 4))


def sets(kind):
    return lambda: set_parts.pair(kind)


def tasks():
    return ink(2, 2, *set_parts.SHAPE), set_parts.sets([2, 1]), set_parts.stores()


def recognised():
    return Recognition(Recall(SHAPE, dim=3, code_dim=4, channels=(4, 5), hidden=8)), EmptyGuide()


def sequences():
    return (torch.randint(7, (2, 10)),)


def series(model):
    return lambda: (model(), EmptyGuide())


def cached():
    mixer = partial(TransformerMixer, heads=2, window=3)
    model = CachedTitans.tokens(7, mixer, dim=8, key_dim=4, segment=4, heads=2, chunk_size=2, none_slot=True)
    return model, CachedTitansGuide.mlp(model.states, 8, none_slot=True)


def consolidation():
    stores = set_parts.stores()
    loc, variance = torch.randn(4, set_parts.DIM), torch.full((4, set_parts.DIM), 0.2)
    return stores.concepts, loc, variance, torch.tensor([1, 9, 60, 3])


def values(*shape):
    return lambda: (torch.randn(*shape),)


PAIRS = {
    "VAE": (lambda: (VAE.convolutional(**CONV), VAEGuide.convolutional(**CONV)), looked_up),
    "VAE, dense": (lambda: (VAE.mlp(**DENSE), VAEGuide.mlp(**DENSE)), looked_up),
    "VMA": (lambda: (VMA.convolutional(**CONV), VMAGuide.convolutional(**CONV)), looked_up),
    "VMA, untied": (
        lambda: (VMA.convolutional(**CONV, tied=False), VMAGuide.convolutional(**CONV, tied=False)), looked_up,
    ),
    "VMA, with a none slot": (
        lambda: (VMA.mlp(**DENSE, none_slot=True), VMAGuide.mlp(**DENSE, none_slot=True)), looked_up,
    ),
    "VMA, templates": (with_templates, lambda: looked_up()[:1]),
    "VMA, by hand": (by_hand, looked_up),
    "VMA, shared content": (shared_content, looked_up),
    "VMA, learned prior": (learned_prior, looked_up),
    "VMA, frozen address": (frozen, keyed),
    "soft attention": (
        lambda: (
            SoftAttentionVAE.convolutional(**CONV, matching_dim=4),
            SoftAttentionVAEGuide.convolutional(**CONV, matching_dim=4),
        ),
        looked_up,
    ),
    "addressed vae": (lambda: addressed("vae", none_slot=True), looked_up),
    "addressed hierarchical": (lambda: addressed("hierarchical"), looked_up),
    "addressed diffusion": (lambda: addressed("diffusion"), looked_up),
    "addressed autoregressive": (lambda: addressed("autoregressive"), looked_up),
    "attended": (lambda: (Attended(base_pairs.autoregressive(SHAPE, reads=True)[0]), EmptyGuide()), looked_up),
    "VSM over vae": (sets("vae"), tasks),
    "VSM over hierarchical": (sets("hierarchical"), tasks),
    "VSM over diffusion": (sets("diffusion"), tasks),
    "VSM over autoregressive": (sets("autoregressive"), tasks),
    "recognition": (recognised, lambda: (ink(2, 2, *SHAPE), SlotMemory(ink(2, 3, *SHAPE), batch_dim=-2))),
    "titans addressing": (
        lambda: (
            TitansAddressing.mlp(SHAPE, 8, (8,), matching_dim=4, chunk_size=4),
            TitansAddressingGuide.mlp(SHAPE, (8,), matching_dim=4),
        ),
        lambda: (ink(2, 5, *SHAPE), SlotMemory(ink(4, *SHAPE))),
    ),
    "cached titans": (cached, lambda: (torch.randint(7, (2, 5)), torch.randint(7, (2, 8)))),
    "consolidation": (lambda: (ConsolidationModel(8.0), ConsolidationGuide(8, 8.0)), consolidation),
    "forecaster": (
        series(lambda: PatchForecaster(6, 2, LSTMMixer, patch=2, dim=8)),
        lambda: (torch.randn(3, 3, 2), None, torch.randn(3, 1, 2)),
    ),
    "DLinear": (
        series(lambda: DLinear(6, 2, kernel=3)), lambda: (torch.randn(3, 3, 2), None, torch.randn(3, 1, 2)),
    ),
    "series": (series(lambda: SequenceModel.series(3, LSTMMixer, dim=8)), values(2, 6, 3)),
    "series, Student": (
        series(lambda: SequenceModel.series(3, LSTMMixer, dim=8, readout=StudentTReadout)), values(2, 6, 3),
    ),
    **{
        f"tokens, {mixer.func.__name__}": (lambda mixer=mixer: tokens(mixer), sequences)
        for mixer in (
            partial(TitansLMM, **MEMORY), partial(TitansMAC, segment=8, persistent=2, **MEMORY),
            partial(TitansMAG, window=4, **MEMORY), partial(TitansMAL, window=4, **MEMORY),
            partial(TransformerMixer, heads=2, window=4),
        )
    },
    "tokens, LSTMMixer": (lambda: tokens(LSTMMixer), sequences),
    **{f"mixer, {name}": (lambda name=name: (MIXERS[name](), EmptyGuide()), values(2, 8, DIM)) for name in MIXERS},
}  # fmt: skip
