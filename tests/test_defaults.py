"""Another default dtype or device, which another package set: data, stores, models and guides agree on it."""

import importlib

import pytest
import torch
from torch.utils._pytree import tree_leaves

from pyro_memory import (
    VIMCO,
    ConceptMemory,
    EpisodicMemory,
    MappedMemory,
    Recall,
    SlotIndex,
    SlotMemory,
    StructuredMemory,
    TemplateMemory,
    fit,
    importance_bound,
    remember,
)
from pyro_memory.data import (
    CHARACTERS,
    CharacterText,
    ClassStream,
    FewShotTasks,
    LabelledImages,
    NeedleTasks,
    RecallTasks,
    Series,
    SetTasks,
    load_series,
    load_text,
)
from pyro_memory.guides import VAEBaseGuide, VAEGuide, VMAGuide, VSMGuide
from pyro_memory.models import VAE, VMA, VSM, NeuralMemory, SequenceModel, TitansLMM, VAEBase

BITS = torch.randint(2, (24, 8, 8), generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(24) // 6


def data():
    return LabelledImages(BITS.tolist(), LABELS.tolist())


def text():
    return CharacterText(load_text()[:20000], extra=CHARACTERS)


SOURCES = {
    "images": lambda: [data()[torch.tensor([0, 1], device="cpu")]],
    "redrawn": lambda: [data().varied(torch.tensor([0, 1], device="cpu"), torch.Generator("cpu").manual_seed(0))],
    "few shots": lambda: FewShotTasks(data(), classes=2, shots=2, targets=3, turned=0.5, varied=0.5),
    "recalled": lambda: FewShotTasks(data(), classes=2, shots=2, targets=3, recalled=0.5),
    "own memories": lambda: FewShotTasks(data(), classes=(1, 2), shots=2, targets=3, per_target=True),
    "gmn": lambda: FewShotTasks(data(), classes=2, shots=2, targets=3, protocol="gmn"),
    "fixed": lambda: FewShotTasks(data(), classes=1, shots=2, targets=3, per_target=True, target_indices=range(9)),
    "sets": lambda: SetTasks(data(), tasks=3, queries=2, shots=[0, 2], turned=0.5, varied=0.5),
    "fixed sets": lambda: SetTasks(data(), tasks=3, shots=2, targets=range(0, 24, 5)),
    "a stream": lambda: ClassStream(data(), stages=2).tasks(1, tasks=2, shots=1),
    "recall": lambda: RecallTasks(pairs=3, length=20, batch=2),
    "recall at a gap": lambda: RecallTasks(pairs=3, length=20, batch=2, gap=2),
    "needle": lambda: NeedleTasks(text(), length=100, batch=2),
    "text": lambda: text().batches("train", length=9, batch=2),
    "windows of text": lambda: [text().windows("train", length=9)],
    "series": lambda: Series(BITS[:, 0], (), (12, 18, 24)).windows("train", past=3, horizon=2, batch=2, seed=0),
    "every window": lambda: load_series("eeg").windows("test", past=3, horizon=2, batch=2),
}


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def elsewhere():
    """A device that has no values stands for one that is not the CPU: what mixes with it fails."""
    torch.set_default_device("meta")
    yield
    torch.set_default_device(None)


def tensors(item):
    for leaf in tree_leaves(item):
        yield from (leaf.values, leaf.filled, leaf.ages) if isinstance(leaf, SlotMemory) else (leaf,)


@pytest.mark.parametrize("name", SOURCES)
def test_data_come_in_the_default_dtype_and_are_the_same_numbers(name, double):
    found = list(tensors(SOURCES[name]()[0]))
    assert {t.dtype for t in found} <= {torch.float64, torch.int64, torch.bool}
    torch.set_default_dtype(torch.float32)
    usual = list(tensors(SOURCES[name]()[0]))
    assert {t.dtype for t in usual} <= {torch.float32, torch.int64, torch.bool}
    for one, other in zip(found, usual, strict=True):
        torch.testing.assert_close(one.to(other.dtype), other)


@pytest.mark.unchecked
@pytest.mark.parametrize("name", SOURCES)
def test_data_lie_on_the_cpu_and_are_the_same_numbers(name, elsewhere):
    found = list(tensors(SOURCES[name]()[0]))
    assert {t.device.type for t in found} == {"cpu"}
    torch.set_default_device(None)
    for one, other in zip(found, tensors(SOURCES[name]()[0]), strict=True):
        assert torch.equal(one, other)


def pairs():
    shape, sizes = (1, 8, 8), {"latent_dim": 2, "channels": (4, 4)}
    vae = {"shape": shape, "code_dim": 2, "channels": (4, 4)}
    recall = Recall(shape=shape, dim=2, code_dim=2, channels=(4, 4), hidden=6)
    yield VAE.convolutional(shape, **sizes), VAEGuide.convolutional(shape, **sizes)
    yield VMA.convolutional(shape, **sizes), VMAGuide.convolutional(shape, **sizes)
    yield VSM(VAEBase(**vae), recall), VSMGuide(VAEBaseGuide(**vae), recall)
    yield NeuralMemory(8, heads=2, chunk_size=4), SequenceModel.tokens(9, TitansLMM, dim=8, blocks=1)


def test_models_guides_and_stores_are_built_on_the_default_device(elsewhere):
    for pair in pairs():
        for module in pair:
            assert {t.device.type for t in module.state_dict().values()} == {"meta"}
    assert TemplateMemory(3, (2,)).values.device.type == "meta"
    store = SlotMemory(torch.rand(3, 2, device="cpu"), mask=torch.tensor([True, True, False], device="cpu"))
    structured = StructuredMemory(
        ConceptMemory.reserve(3, 2, device="cpu"), EpisodicMemory.reserve(4, 2, (1, 8, 8), 2, 3, device="cpu")
    )
    moved = [
        store.to(torch.float64),
        structured.to(torch.float64),
        structured.shuffled(),
        structured.without_concepts(),
    ]
    for memory in (*moved, store.write(torch.ones(9, 2, device="cpu"), policy="reservoir"), store.with_none()):
        assert {t.device.type for t in memory.to_tensors().values()} == {"cpu"}
    assert store.prior().sample().device.type == "cpu"
    assert store[torch.tensor([0, 1], device="cpu")].device.type == "cpu"


def test_a_memory_in_files_stays_on_the_cpu(elsewhere, tmp_path):
    memory = MappedMemory.create(tmp_path, (2,)).append(torch.ones(3, 2, device="cpu"))
    assert memory.to(torch.float64) is memory
    assert memory.prior().sample().device.type == "cpu"
    assert {t.device.type for t in memory.loaded().to_tensors().values()} == {"cpu"}
    index = SlotIndex("brute")
    index.build(torch.rand(5, 2, device="cpu"))
    assert index.search(torch.rand(1, 2, device="cpu"), 2).device.type == "cpu"


def test_few_shot_tasks_train_a_vma_in_double_precision(double):
    tasks = FewShotTasks(data(), classes=2, shots=2, targets=4)
    _, (model, guide), *_ = pairs()
    fit(model, guide, tasks, VIMCO(2, max_plate_nesting=1), steps=2, progress=False)
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    bound = importance_bound(model, guide, *tasks[0], particles=4, max_plate_nesting=1)
    assert bound.bound.isfinite().all()


def test_sets_train_a_vsm_in_double_precision(double):
    sets = SetTasks(data(), tasks=3, shots=2)
    _, _, (model, guide), _ = pairs()
    x, support = sets[0]
    stores = StructuredMemory(ConceptMemory.reserve(3, 2), EpisodicMemory.reserve(4, 2, (1, 8, 8), 2, 3))
    memory = remember(model.recall, stores, support)
    fit(model, guide, [(x, support, memory)], VIMCO(2, max_plate_nesting=2), steps=2, progress=False)
    assert {t.dtype for t in memory.to_tensors().values()} == {torch.float64, torch.int64, torch.bool}


def test_glyphs_are_the_same_bits_in_double_precision(double):
    vary = importlib.import_module("pyro_memory.data.images.letters")._vary
    draw = torch.Generator().manual_seed(0)
    letters, noise = (torch.rand(*s, generator=draw, dtype=torch.float32) for s in ((9, 1, 96, 96), (9, 24)))
    found = vary((letters > 0.9).float(), noise, 28)
    torch.set_default_dtype(torch.float32)
    assert torch.equal(found, vary((letters > 0.9).float(), noise, 28))
    assert 0 < found.float().mean() < 1
