"""Mistakes of size: images, latents, codes, features and memories of other sizes than a network was built for."""

import torch
from conftest import ink
from mistakes.table import Mistakes
from pyro.infer import Trace_ELBO, TraceEnum_ELBO

from pyro_memory import (
    VIMCO,
    ConceptMemory,
    ContentAddress,
    EpisodicMemory,
    LearnedPrior,
    Recall,
    SlotMemory,
    StructuredMemory,
    TemplateMemory,
    fit,
    importance_bound,
)
from pyro_memory.guides import (
    AddressedGuide,
    AutoregressiveBaseGuide,
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
    AutoregressiveBase,
    BaseModel,
    DiffusionBase,
    DLinear,
    HierarchicalBase,
    SequenceModel,
    SoftAttentionVAE,
    TitansAddressing,
    TitansLMM,
    VAEBase,
)
from pyro_memory.nets import ConvDecoder, Embedding, GaussianHead, ImageMLP, ImagePyramid, MLPDecoder, SkipPyramid

SHAPE, SMALL, COLOUR = (1, 9, 7), (1, 8, 8), (3, 9, 7)
CONV, MLP = {"latent_dim": 3, "channels": (4, 5)}, {"latent_dim": 3, "hidden": (8, 8)}
MATCH = {"matching_dim": 4}
mistakes = Mistakes()
IMAGES = r"(`x`|`images`|`memory`).*\[1, 9, 7\]"


def train(model, guide, *args, objective=None):
    objective = objective or VIMCO(2)
    fit(model, guide, [args], objective, steps=1, progress=False, information_every=None)


BASES = {
    "vae": lambda shape=SHAPE, **o: (
        VAEBase(shape, latent_dim=3, channels=(4, 5), **o),
        VAEBaseGuide(shape, latent_dim=3, channels=(4, 5), code_dim=o.get("code_dim", 0)),
    ),
    "hierarchical": lambda shape=SHAPE, **o: (
        HierarchicalBase(shape, latent_dims=(3, 2), hidden=8, channels=(4, 5), **o),
        HierarchicalBaseGuide(shape, latent_dims=(3, 2), hidden=8, channels=(4, 5), code_dim=o.get("code_dim", 0)),
    ),
    "diffusion": lambda shape=SHAPE, **o: (DiffusionBase(shape, steps=4, channels=(4, 5), **o), DiffusionBaseGuide(4)),
    "autoregressive": lambda shape=SHAPE, **o: (
        AutoregressiveBase(shape, maps=4, layers=(1, 2), looks=1, **o),
        AutoregressiveBaseGuide(),
    ),
}


def vma(kind="convolutional", shape=SHAPE, **options):
    sizes = CONV if kind == "convolutional" else MLP
    return getattr(VMA, kind)(shape, **sizes, **options), getattr(VMAGuide, kind)(shape, **sizes, **MATCH, **options)


def addressed(base):
    model, guide = BASES[base](reads=True)
    return Addressed(model), AddressedGuide.convolutional(SHAPE, guide, channels=(4, 5), **MATCH)


def structured(base, **options):
    recall = Recall(SHAPE, dim=3, code_dim=4, channels=(4, 5), hidden=8, key_dim=4)
    model, guide = BASES[base](**{"code_dim": 4} | options)
    return VSM(model, recall), VSMGuide(guide, recall)


def soft():
    return (
        SoftAttentionVAE.convolutional(SHAPE, **CONV, **MATCH),
        SoftAttentionVAEGuide.convolutional(SHAPE, **CONV, **MATCH),
    )


def vae(kind):
    sizes = CONV if kind == "convolutional" else MLP
    return getattr(VAE, kind)(SHAPE, **sizes), getattr(VAEGuide, kind)(SHAPE, **sizes)


PAIRS = {
    "a VAE of convolutions": lambda: vae("convolutional"),
    "a VAE of MLPs": lambda: vae("mlp"),
    "a VMA of convolutions": vma,
    "a VMA of MLPs": lambda: vma("mlp"),
    "a VMA of two pyramids": lambda: vma(tied=False),
    "soft attention": soft,
    "an addressed VAE": lambda: addressed("vae"),
    "an addressed hierarchy": lambda: addressed("hierarchical"),
    "an addressed diffusion": lambda: addressed("diffusion"),
    "an addressed autoregressive model": lambda: addressed("autoregressive"),
    "a base VAE": lambda: BASES["vae"](),
    "a base hierarchy": lambda: BASES["hierarchical"](),
    "a base diffusion": lambda: BASES["diffusion"](),
    "a base autoregressive model": lambda: BASES["autoregressive"](),
}


def wrong_images(make, shape):
    objective = Trace_ELBO() if "diffusion" in str(make) else None
    model, guide = make()
    objective = Trace_ELBO() if any(isinstance(m, DiffusionBase) for m in model.modules()) else objective
    args = (ink(2, *shape),) if isinstance(model, (VAE, BaseModel)) else (
        ink(2, *shape), SlotMemory(ink(3, *shape)),
    )  # fmt: skip
    train(model, guide, *args, objective=objective)


for name, make in PAIRS.items():
    mistakes[f"images of another size for {name}"] = (lambda m=make: wrong_images(m, SMALL)), IMAGES, (ValueError,)
    mistakes[f"colours for {name}"] = (lambda m=make: wrong_images(m, COLOUR)), IMAGES, (ValueError,)


def stores(dim=3, shape=SHAPE):
    semantic = ConceptMemory.reserve(2, dim)
    return StructuredMemory(semantic, EpisodicMemory.reserve(2, 1, shape, dim, 2))


def wrong_task(base, shape=SMALL, **options):
    support = SlotMemory(ink(2, 2, *shape), batch_dim=-2)
    train(*structured(base, **options), ink(2, 1, *shape), support, stores())


for base in BASES:
    mistakes[f"tasks of another size over the {base} base"] = (lambda b=base: wrong_task(b)), IMAGES, (ValueError,)


@mistakes.told(r"`base`.*4 dimensions.*code_dim=5")
def a_base_of_another_code_than_recall():
    structured("vae", code_dim=5)


@mistakes.told(r"`code_dim`")
def a_base_without_a_code_under_recall():
    wrong_task("vae", SHAPE, code_dim=0)


@mistakes.told(r"`memory`.*3 dimensions.*got 5")
def stores_of_another_dimension_than_recall():
    train(*structured("vae"), ink(2, 1, *SHAPE), SlotMemory(ink(2, 2, *SHAPE), batch_dim=-2), stores(5))


@mistakes.told(r"`x`.*\[1, 3, 3\]|`images`.*\[1, 3, 3\]|`memory`")
def items_of_another_size_for_sequential_addressing():
    sizes = {"hidden": (8, 8), "matching_dim": 4}
    model = TitansAddressing.mlp((1, 3, 3), 8, heads=1, chunk_size=2, **sizes)
    guide = TitansAddressingGuide.mlp((1, 3, 3), **sizes)
    train(model, guide, ink(2, 4, 1, 4, 4), SlotMemory(ink(2, 1, 4, 4)), objective=TraceEnum_ELBO(max_plate_nesting=2))


@mistakes.told(IMAGES)
def a_model_for_other_images_than_its_guide():
    train(VAE.mlp(SHAPE, **MLP), VAEGuide.mlp(SMALL, **MLP), ink(2, *SMALL))


@mistakes.told(IMAGES)
def a_convolutional_model_for_other_images_than_its_guide():
    train(VMA.convolutional(SHAPE, **CONV), vma(shape=SMALL)[1], ink(2, *SMALL), SlotMemory(ink(3, *SMALL)))


OTHER = {"latent_dim": 5}
LATENTS = {
    "a VAE of MLPs": lambda: (VAE.mlp(SHAPE, **MLP), VAEGuide.mlp(SHAPE, **MLP | OTHER)),
    "a VAE of convolutions": lambda: (VAE.convolutional(SHAPE, **CONV), VAEGuide.convolutional(SHAPE, **CONV | OTHER)),
    "a VMA of MLPs": lambda: (VMA.mlp(SHAPE, **MLP), VMAGuide.mlp(SHAPE, **MLP | OTHER)),
    "a VMA of convolutions": lambda: (VMA.convolutional(SHAPE, **CONV), VMAGuide.convolutional(SHAPE, **CONV | OTHER)),
    "soft attention": lambda: (soft()[0], SoftAttentionVAEGuide.convolutional(SHAPE, **CONV | OTHER, **MATCH)),
    "a base VAE": lambda: (BASES["vae"]()[0], VAEBaseGuide(SHAPE, channels=(4, 5), **OTHER)),
    "a base hierarchy": lambda: (
        BASES["hierarchical"]()[0],
        HierarchicalBaseGuide(SHAPE, latent_dims=(4, 3), channels=(4, 5)),
    ),
}


def other_latents(make):
    model, guide = make()
    memory = () if isinstance(model, (VAE, BaseModel)) else (SlotMemory(ink(3, *SHAPE)),)
    train(model, guide, ink(2, *SHAPE), *memory)


for name, make in LATENTS.items():
    mistakes[f"latents of another dimension in the guide of {name}"] = (
        (lambda m=make: other_latents(m)), r"`z2?` must have one event shape.*\[\d\].*`latent_dim`", (ValueError,),
    )  # fmt: skip

NETWORKS = {
    "a pyramid": (lambda: ImagePyramid(SHAPE, (4, 5))(ink(2, *SMALL)), r"`images`.*\[1, 9, 7\].*\[1, 8, 8\]"),
    "an MLP": (lambda: ImageMLP((1, 6, 6), (8,))(ink(2, 1, 4, 9)), r"`images`.*\[1, 6, 6\].*\[1, 4, 9\]"),
    "skips": (lambda: SkipPyramid(SHAPE, (4, 5))(ink(2, *SMALL)), r"`images`.*\[1, 9, 7\].*\[1, 8, 8\]"),
    "an embedding": (lambda: Embedding(ImageMLP(SHAPE, (8,)), 3)(ink(2, *SMALL)), r"`images`.*\[1, 9, 7\]"),
    "a head": (lambda: GaussianHead(4, 3)(torch.ones(2, 5)), r"`features` must have 4 dimensions.*got 5"),
    "an MLP decoder": (lambda: MLPDecoder(SHAPE, 3)(torch.ones(2, 4)), r"`z` must have 3 dimensions.*got 4"),
    "a convolutional decoder": (lambda: ConvDecoder(SHAPE, 3)(torch.ones(2, 4)), r"`z` must have 3 dimensions.*got 4"),
    "a decoder beside other content": (
        lambda: ConvDecoder(SHAPE, 3, (4, 5))(torch.ones(2, 3), SkipPyramid(SHAPE, (4, 6))(ink(2, *SHAPE))),
        r"`content`.*\[5, 3, 2\].*\[6, 3, 2\].*`channels`",
    ),
}
for name, (make, text) in NETWORKS.items():
    mistakes[f"another size for {name}"] = make, text, (ValueError,)


@mistakes.told(r"`memory`.*\[1, 9, 7\].*\[1, 8, 8\]")
def a_memory_of_other_items():
    train(*vma(), ink(2, *SHAPE), SlotMemory(ink(3, *SMALL)))


@mistakes.told(r"`memory`.*2 data.*5 memories")
def a_memory_a_datum_for_another_batch():
    train(*vma(), ink(2, *SHAPE), SlotMemory(ink(5, 3, *SHAPE), batch_dim=-1))


@mistakes.told(r"`templates`|`memory`.*\[1, 9, 7\]")
def templates_of_another_size():
    train(*vma(templates=TemplateMemory(3, SMALL)), ink(2, *SHAPE))


@mistakes.told(r"`query` and `key`.*3 and 4")
def an_address_whose_key_has_another_dimension():
    ContentAddress(Embedding(ImageMLP(SHAPE, (8,)), 3), Embedding(ImageMLP(SHAPE, (8,)), 4))(
        ink(2, *SHAPE), SlotMemory(ink(3, *SHAPE))
    )


@mistakes.told(r"`key`.*`dim`.*4.*3")
def a_learned_prior_of_another_dimension():
    LearnedPrior(Embedding(ImageMLP(SHAPE, (8,)), 3), 4)(SlotMemory(ink(3, *SHAPE)))


@mistakes.told(r"`x`.*2 features.*got 3")
def a_series_of_more_features():
    train(SequenceModel.series(2, TitansLMM, dim=8), EmptyGuide(), torch.randn(2, 5, 3), objective=Trace_ELBO())


@mistakes.told(r"`x` must be .*\[batch, time, dim\] with dim = 8, as the TitansLMM has; got .*\[2, 5, 6\]")
def tokens_of_another_width_for_a_mixer():
    TitansLMM(8, heads=2)(torch.randn(2, 5, 6))


@mistakes.told(r"`targets`.*\b2\b")
def targets_of_another_horizon():
    model = SequenceModel.series(1, TitansLMM, dim=8, outputs=2)
    train(model, EmptyGuide(), torch.randn(2, 5, 1), None, torch.randn(2, 1, 3), objective=Trace_ELBO())


@mistakes.told(r"`x`.*10 values.*`past`")
def a_past_of_another_length_for_the_linear_forecaster():
    train(
        DLinear(10, 3, kernel=5), EmptyGuide(), torch.randn(2, 4, 2), None, torch.randn(2, 1, 3), objective=Trace_ELBO()
    )


@mistakes.told(r"`x`.*\[batch, channel, height, width\]")
def images_without_channels():
    importance_bound(*vma(), ink(2, 9, 7), SlotMemory(ink(3, *SHAPE)), particles=2)
