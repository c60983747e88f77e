"""Every model, guide, base, mixer and store of the package keeps its contract: one row each."""

from functools import partial

import pyro
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceEnum_ELBO

from pyro_memory import (
    VIMCO,
    ConceptMemory,
    EpisodicMemory,
    Exemplars,
    LearnedPrior,
    LeaveOneOutELBO,
    MappedMemory,
    NearestAddress,
    Recall,
    ShardedMemory,
    SlotMemory,
    StructuredMemory,
    TemplateMemory,
    fit,
)
from pyro_memory.guides import (
    AddressedGuide,
    AutoregressiveBaseGuide,
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
    AutoregressiveBase,
    ConsolidationModel,
    DiffusionBase,
    DLinear,
    HierarchicalBase,
    LSTMMixer,
    NeuralMemory,
    SequenceModel,
    SoftAttentionVAE,
    StudentTReadout,
    TitansAddressing,
    TitansLMM,
    TitansMAC,
    TitansMAG,
    TitansMAL,
    TransformerMixer,
    VAEBase,
)
from pyro_memory.nets import Embedding, GaussianImage, ImageMLP
from pyro_memory.testing.bases import check_base
from pyro_memory.testing.mixers import check_mixer
from pyro_memory.testing.pairs import check_pair
from pyro_memory.testing.stores import check_store

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
    "autoregressive": lambda **o: (
        AutoregressiveBase(SHAPE, maps=4, layers=(1, 2), looks=1, **o),
        AutoregressiveBaseGuide(),
    ),
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


def stores(episodes=2):
    semantic = concepts()
    loc, variance = torch.randn(episodes, 3), torch.full((episodes, 3), 0.2)
    rho = semantic.responsibilities(loc, variance)
    episodic = EpisodicMemory.reserve(episodes, 1, SHAPE, 3, 2)
    episodic = episodic.write(loc, variance, ink(episodes, 1, *SHAPE), torch.ones(episodes, dtype=torch.long), rho)
    return StructuredMemory(semantic, episodic)


def task(episodes=2):
    mask = torch.tensor([[True, True], [True, False]])
    support = SlotMemory(ink(2, 2, *SHAPE) * mask.reshape(2, 2, 1, 1, 1), mask=mask, batch_dim=-2)
    return ink(2, 1, *SHAPE), support, stores(episodes)


def sequential():
    sizes = {"hidden": (8, 8), "matching_dim": 4}
    model = TitansAddressing.mlp((1, 3, 3), 8, heads=1, chunk_size=2, persistent=2, **sizes)
    return model, TitansAddressingGuide.mlp((1, 3, 3), **sizes)


MIX = {
    "LMM": partial(TitansLMM, heads=2, persistent=2, chunk_size=4),
    "MAC": partial(TitansMAC, heads=2, persistent=2, chunk_size=4, segment=4),
    "MAG": partial(TitansMAG, heads=2, persistent=2, chunk_size=4, window=5),
    "MAL": partial(TitansMAL, heads=2, persistent=2, chunk_size=4, window=5),
    "attention": partial(TransformerMixer, heads=2, window=5),
    "LSTM": LSTMMixer,
}


def tokens(name):
    return SequenceModel.tokens(7, MIX[name], dim=8, blocks=1), EmptyGuide()


def series():
    return SequenceModel.series(2, MIX["LSTM"], dim=8, readout=StudentTReadout), EmptyGuide()


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
    "VSM vae": (lambda: structured("vae"), lambda: task(episodes=1), {}),
    "VSM hierarchical": (lambda: structured("hierarchical"), task, {"combinations": 0}),
    "VSM diffusion": (lambda: structured("diffusion"), task, noisy | {"combinations": 0}),
    "consolidation": (
        lambda: (ConsolidationModel(), ConsolidationGuide(8)),
        lambda: (concepts(), torch.randn(3, 3), torch.full((3, 3), 0.1), torch.tensor([1, 9, 60])),
        {},
    ),
    "TitansAddressing": (sequential, lambda: (ink(2, 4, 1, 3, 3), SlotMemory(ink(2, 1, 3, 3))), {}),
    "SequenceModel of a series": (series, lambda: (torch.randn(3, 6, 2),), likelihood),
    **{
        f"SequenceModel of {name}": (partial(tokens, name), lambda: (torch.randint(7, (3, 7)),), likelihood)
        for name in MIX
    },
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


@pytest.mark.parametrize("name", PAIRS)
def test_a_pair_trains_in_mixed_precision_and_counts_nats_in_single(name):
    make, args, options = PAIRS[name]
    (model, guide), args = make(), args()
    objective = type(options["objective"])() if "objective" in options else VIMCO(2)
    pyro.set_rng_seed(1)
    expected = objective.loss(model, guide, *args)
    with torch.autocast("cpu", torch.bfloat16):
        pyro.set_rng_seed(1)
        assert objective.loss(model, guide, *args) == pytest.approx(expected, rel=5e-3)
        fit(model, guide, [args], objective, steps=2, progress=False)


@pytest.mark.parametrize("name", ["VMA convolutional", "VSM vae", "TitansAddressing"])
def test_enumerated_addresses_train_in_mixed_precision(name):
    make, args, _ = PAIRS[name]
    with torch.autocast("cpu", torch.bfloat16):
        fit(*make(), [args()], TraceEnum_ELBO(max_plate_nesting=2), steps=2, progress=False)


TOLD = {
    "vae": ("vae", {}),
    "vae told": ("vae", {"code_dim": 3}),
    "vae told by a code alone": ("vae", {"code_dim": 3, "reads": False}),
    "vae that reads": ("vae", {"reads": True}),
    "hierarchical": ("hierarchical", {}),
    "hierarchical told": ("hierarchical", {"code_dim": 3}),
    "diffusion": ("diffusion", {}),
    "diffusion told": ("diffusion", {"code_dim": 3}),
    "diffusion that predicts v": ("diffusion", {"predicts": "v", "code_dim": 3, "reads": False}),
    "diffusion that predicts epsilon": ("diffusion", {"predicts": "epsilon", "reads": True}),
}


@pytest.mark.parametrize("name", TOLD)
def test_a_base_keeps_its_contract(name):
    base, options = TOLD[name]
    make = partial(BASES[base], **options)
    check_base(*make(), ink(4, *SHAPE), make=make)


MEMORY = {"heads": 2, "chunk_size": 4}
MIXERS = {
    "memory": lambda: NeuralMemory(12, **MEMORY),
    "memory, decay by channel": lambda: NeuralMemory(12, channel_decay=True, **MEMORY),
    "memory, linear": lambda: NeuralMemory(
        12, heads=2, chunk_size=5, depth=1, residual_norm=False, convolution=1, momentum=False, weight_decay=False
    ),
    "memory, online": lambda: NeuralMemory(12, heads=2, chunk_size=1, depth=3, activation="silu"),
    "LMM": lambda: TitansLMM(12, persistent=6, **MEMORY),
    "MAL": lambda: TitansMAL(12, persistent=6, window=7, **MEMORY),
    "MAG": lambda: TitansMAG(12, persistent=6, window=7, **MEMORY),
    "MAC": lambda: TitansMAC(12, persistent=6, segment=8, **MEMORY),
    "MAC, nothing persistent": lambda: TitansMAC(12, persistent=0, segment=8, **MEMORY),
    "attention": lambda: TransformerMixer(12, heads=2, window=5),
    "LSTM": lambda: LSTMMixer(12, hidden=10),
}


@pytest.mark.parametrize("name", MIXERS)
def test_a_mixer_keeps_its_contract(name):
    check_mixer(MIXERS[name]())


MASK = torch.tensor([True, False, True, True])


def written(store):
    return store.write(torch.rand(1, *store.event_shape))


def episode(store):
    return store.write(
        torch.ones(1, 3), torch.ones(1, 3), ink(1, 1, *SHAPE), torch.tensor([1]), torch.full((1, 2), 0.5)
    )


def taken_in(store):
    return store.update(torch.ones(1, 3), torch.ones(1, 3), torch.full((1, 2), 0.5))


def exemplars():
    return Exemplars.reserve(2, 3, (4,), 3).take_in(torch.rand(2, 4), torch.ones(3), torch.ones(3), torch.ones(2))


STORES = {
    "slots": (lambda: SlotMemory(torch.rand(4, 2), mask=MASK), {"write": written}),
    "slots with keys": (
        lambda: SlotMemory(torch.rand(4, 2), torch.rand(4, 3), MASK),
        {"write": lambda store: store.write(torch.rand(1, 2), torch.rand(1, 3))},
    ),
    "slots a datum": (
        lambda: SlotMemory(torch.rand(3, 4, 2), mask=MASK.expand(3, 4), batch_dim=-1),
        {"write": lambda store: store.write(torch.rand(3, 1, 2))},
    ),
    "slots a task": (lambda: SlotMemory(torch.rand(3, 4, 2), mask=MASK.expand(3, 4), batch_dim=-2), {}),
    "templates": (lambda: TemplateMemory(4, (2,))(), {"write": written}),
    "concepts": (concepts, {"write": taken_in, "read": lambda store: store.predictive().base_dist.scale}),
    "episodes": (
        lambda: stores().episodes,
        {"write": episode},
    ),
    "both": (
        stores,
        {
            "write": lambda store: store.without_episodes(),
            "read": lambda store: store.read(torch.tensor([0, 2]), torch.tensor([0, 0]), lambda m: m),
        },
    ),
    "exemplars": (
        exemplars,
        {"write": lambda store: store.take_in(torch.rand(2, 4), torch.ones(3), torch.ones(3), torch.ones(2))},
    ),
}


@pytest.mark.parametrize("name", STORES)
def test_a_store_keeps_its_contract(name):
    make, options = STORES[name]
    check_store(make(), **options)


def test_a_mapped_store_keeps_its_contract(tmp_path):
    store = MappedMemory.create(tmp_path, (2,), dtype=torch.float32).append(torch.rand(4, 2))
    check_store(store, write=lambda store: store.append(torch.rand(1, 2)), tensors=False)


def test_a_sharded_store_keeps_its_contract(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        check_store(ShardedMemory(SlotMemory(torch.rand(4, 2), mask=MASK)), tensors=False)
    finally:
        torch.distributed.destroy_process_group()
