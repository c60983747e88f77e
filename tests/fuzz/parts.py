"""Small things that many calls share; made once where no call changes them."""

import itertools
from functools import cache, wraps
from pathlib import Path

import torch

from pyro_memory import (
    ConceptMemory,
    EpisodicMemory,
    MappedMemory,
    Recall,
    ShardedMemory,
    SlotMemory,
    StructuredMemory,
)
from pyro_memory.addressing import ContentAddress
from pyro_memory.data import CHARACTERS, CharacterText, LabelledImages, Series
from pyro_memory.guides import (
    AddressedGuide,
    AutoregressiveBaseGuide,
    DiffusionBaseGuide,
    HierarchicalBaseGuide,
    VAEBaseGuide,
    VMAGuide,
)
from pyro_memory.models import (
    VMA,
    VSM,
    Addressed,
    AutoregressiveBase,
    DiffusionBase,
    HierarchicalBase,
    LSTMMixer,
    SequenceModel,
    VAEBase,
)
from pyro_memory.nets import Context, Embedding, ImageMLP

SHAPE = (1, 6, 6)
CONV = {"channels": (4, 5)}
count = itertools.count()


def kept(make):
    """Makes it once for each choice of arguments, from a random stream of its own."""

    @cache
    @wraps(make)
    def made(*args):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return make(*args)

    return made


def positional(function, *names):
    """Calls by name a function that takes the last of some arguments in ``*args``."""

    @wraps(function)
    def call(**kwargs):
        leading = [kwargs.pop(n) for n in names]
        return function(*leading, **kwargs)

    return call


def ink(*shape):
    return (torch.rand(*shape) < 0.4).float()


def images(n=3):
    return ink(n, *SHAPE)


def longs(*values):
    return torch.tensor(values, dtype=torch.long)


@kept
def slots(n=5):
    return SlotMemory(ink(n, *SHAPE))


@kept
def slots_a_datum(n=3):
    return SlotMemory(ink(n, 4, *SHAPE), batch_dim=-1)


@kept
def flat_slots(dim=3):
    return SlotMemory(torch.rand(5, dim), torch.rand(5, dim), torch.tensor([True, True, False, True, True]))


@kept
def vma(none_slot=False):
    return VMA.mlp(SHAPE, 2, (8, 8), none_slot=none_slot)


@kept
def vma_guide(none_slot=False):
    return VMAGuide.mlp(SHAPE, 2, (8, 8), matching_dim=4, none_slot=none_slot)


def address():
    return ContentAddress(embedding(), embedding())


@kept
def embedding():
    return Embedding(ImageMLP(SHAPE, (8,)), 4)


BASES = {
    "vae": VAEBase, "hierarchical": HierarchicalBase, "diffusion": DiffusionBase, "autoregressive": AutoregressiveBase,
}  # fmt: skip
GUIDES = {"vae": VAEBaseGuide, "hierarchical": HierarchicalBaseGuide}
SIZES = {
    "vae": {"latent_dim": 2, **CONV}, "hierarchical": {"latent_dims": (3, 2), "hidden": 8, **CONV},
    "diffusion": {"steps": 3, **CONV}, "autoregressive": {"maps": 4, "layers": (1, 2), "looks": 1, "unread": 0.1},
}  # fmt: skip


@kept
def base(kind, code_dim=0, reads=True):
    return BASES[kind](SHAPE, code_dim=code_dim, reads=reads, **SIZES[kind])


@kept
def base_guide(kind, code_dim=0):
    if kind == "diffusion":
        return DiffusionBaseGuide(3)
    if kind == "autoregressive":
        return AutoregressiveBaseGuide()
    return GUIDES[kind](SHAPE, code_dim=code_dim, **SIZES[kind])


def told(kind):
    """A context that ``base(kind, 3)`` reads: of three images."""
    return Context(torch.randn(3, 3), base(kind, 3).content(images()))


@kept
def addressed():
    return Addressed(base("vae"))


@kept
def addressed_guide():
    return AddressedGuide.convolutional(SHAPE, base_guide("vae"), matching_dim=4, **CONV)


@kept
def recall():
    return fresh_recall()


def fresh_recall():
    return Recall(SHAPE, dim=3, code_dim=3, hidden=8, key_dim=4, **CONV)


@kept
def vsm():
    return VSM(base("vae", 3), recall())


@kept
def concepts():
    loc, variance = embedded(4)
    return ConceptMemory.reserve(2, 3).update(loc, variance, torch.eye(2).repeat(2, 1))


def embedded(n=4):
    """Means and variances of some episodes."""
    return torch.randn(n, 3), torch.full((n, 3), 0.2)


@kept
def episodes():
    loc, variance = embedded(2)
    store = EpisodicMemory.reserve(3, 2, SHAPE, 3, 2)
    return store.write(loc, variance, ink(2, 2, *SHAPE), longs(2, 1), concepts().responsibilities(loc, variance))


@kept
def structured():
    return StructuredMemory(concepts(), episodes())


@kept
def support():
    mask = torch.tensor([[True, True], [True, False]])
    return SlotMemory(ink(2, 2, *SHAPE) * mask.reshape(2, 2, 1, 1, 1), mask=mask, batch_dim=-2)


def queries():
    return ink(2, 2, *SHAPE)


def folder():
    """A new folder's name, in the working directory."""
    return Path(f"folder{next(count)}")


def mapped(keys=False):
    """A store in files of its own, as appending changes them."""
    store = MappedMemory.create(folder(), SHAPE, key_dim=4 if keys else None)
    return store.append(images(5), torch.rand(5, 4) if keys else None)


@kept
def sharded():
    return ShardedMemory(SlotMemory(torch.rand(5, 4)))


@kept
def letters():
    """Five classes of four images."""
    labels = torch.arange(5).repeat_interleave(4)
    return LabelledImages(ink(20, *SHAPE).byte(), labels, tuple("abcde"))


@kept
def text():
    return CharacterText("a needle in a stack of hay, and hay again. " * 20, extra=CHARACTERS)


@kept
def series():
    return Series(torch.randn(60, 2), ("one", "two"), (30, 45, 60))


@kept
def tokens_model():
    return SequenceModel.tokens(7, LSTMMixer, dim=8, blocks=1)


@kept
def series_model():
    return SequenceModel.series(2, LSTMMixer, dim=8, blocks=1)
