"""Weights that come with the package, and their cards."""

import importlib
import json
import math
import os
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import ink
from pyro.infer import Trace_ELBO
from safetensors.torch import load
from torch.testing import assert_close

from pyro_memory import (
    ConceptMemory,
    EpisodicMemory,
    Recall,
    Recognition,
    SlotMemory,
    StructuredMemory,
    TokenSurprise,
    importance_bound,
    load_memory,
    load_pretrained,
    pretrained,
    remember,
    save_pretrained,
    token_surprise,
)
from pyro_memory.data import (
    CHARACTERS,
    CharacterText,
    FewShotTasks,
    NeedleTasks,
    RecallTasks,
    ReturningClasses,
    SetTasks,
    glyphs,
    load_images,
    load_series,
    load_text,
)
from pyro_memory.guides import EmptyGuide, VAEBaseGuide, VMAGuide, VSMGuide
from pyro_memory.models import VMA, VSM, SequenceModel, TitansLMM, VAEBase
from pyro_memory.zoo import FACTS, FOLDER

ROOT = Path(__file__).resolve().parent.parent
SIZES = {"shape": [1, 8, 8], "latent_dim": 3, "channels": [4, 5]}
BUILD = {"model": ("VMA.convolutional", SIZES), "guide": ("VMAGuide.convolutional", SIZES)}
FACT = dict.fromkeys(FACTS, "x") | {"numbers": {"bound": "-1.0 (0.1)"}}


@pytest.fixture
def saved(tmp_path):
    pair = VMA.convolutional(**SIZES), VMAGuide.convolutional(**SIZES)
    card = save_pretrained("small", *pair, build=BUILD, facts=FACT, folder=tmp_path)
    return pair, card, tmp_path


def test_saved_weights_load_as_they_were_but_for_half_precision(saved):
    pair, card, folder = saved
    torch.manual_seed(0)
    before = torch.get_rng_state()
    again = load_pretrained("small", folder)
    assert torch.equal(torch.get_rng_state(), before)
    for old, new in zip(pair, again, strict=True):
        assert not new.training
        for (name, one), (other, two) in zip(old.state_dict().items(), new.state_dict().items(), strict=True):
            assert name == other
            assert two.dtype == torch.float32
            assert_close(two, one.half().float(), rtol=0, atol=0)
    x, memory = ink(4, 1, 8, 8), SlotMemory(ink(5, 1, 8, 8))
    bounds = []
    for model, guide in (pair, again):
        torch.manual_seed(1)
        bounds.append(importance_bound(model, guide, x, memory, particles=20, max_plate_nesting=1).mean)
    assert bounds[0] == pytest.approx(bounds[1], abs=0.5)
    assert pretrained(folder)["small"] == card
    assert "bound -1.0 (0.1)" in repr(card)


def test_what_does_not_fit_is_refused(saved):
    _, _, folder = saved
    with pytest.raises(ValueError, match="`name` must be one of small; got 'large'"):
        load_pretrained("large", folder)
    with pytest.raises(ValueError, match="`folder` must hold weights with their cards"):
        load_pretrained("small", folder / "nowhere")
    facts = {key: value for key, value in FACT.items() if key != "protocol"}
    with pytest.raises(ValueError, match="missing: protocol"):
        save_pretrained("other", *saved[0], build=BUILD, facts=facts, folder=folder)
    wider = {role: (name, SIZES | {"latent_dim": 4}) for role, (name, _) in BUILD.items()}
    with pytest.raises(ValueError, match="was saved from other modules"):
        save_pretrained("wider", *saved[0], build=wider, facts=FACT, folder=folder)
    card = json.loads((folder / "small.json").read_text())
    card["build"]["model"][0] = "os.system"
    del card["check"]
    (folder / "small.json").write_text(json.dumps(card))
    with pytest.raises(
        ValueError, match=r"`build` must name a module of pyro_memory \(.*models.*\) .*; got 'os\.system'"
    ):
        load_pretrained("small", folder)
    file = folder / "small.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValueError, match="is not the file that its card describes"):
        load_pretrained("small", folder)


def test_what_model_and_guide_share_is_written_once_and_stores_come_along(tmp_path):
    size = {"shape": [1, 8, 8], "channels": [4, 5], "code_dim": 3}
    seen = {"shape": [1, 8, 8], "dim": 2, "code_dim": 3, "channels": [4, 5], "hidden": 6}
    recall = Recall(**seen)
    pair = VSM(VAEBase(**size), recall), VSMGuide(VAEBaseGuide(**size), recall)
    support = SlotMemory(ink(3, 2, 1, 8, 8), batch_dim=-2)
    stores = StructuredMemory(ConceptMemory.reserve(4, 2), EpisodicMemory.reserve(5, 2, (1, 8, 8), 2, 4))
    stores = remember(recall, stores, support)
    build = {
        "shared": {"recall": ["Recall", seen]},
        "model": ["VSM", {"base": {"build": ["VAEBase", size]}, "recall": {"shared": "recall"}}],
        "guide": ["VSMGuide", {"base": {"build": ["VAEBaseGuide", size]}, "recall": {"shared": "recall"}}],
    }
    save_pretrained("small", *pair, build=build, facts=FACT, folder=tmp_path, memory=stores)
    model, guide = load_pretrained("small", tmp_path)
    assert model.recall is guide.recall
    assert not [key for key in load((tmp_path / "small.safetensors").read_bytes()) if key.startswith("guide.recall")]
    for old, new in zip(pair, (model, guide), strict=True):
        for one, two in zip(old.state_dict().values(), new.state_dict().values(), strict=True):
            assert_close(two, one.half().float(), rtol=0, atol=0)
    for key, kept in load_memory("small", tmp_path).to_tensors().items():
        assert_close(kept, stores.to_tensors()[key], rtol=1e-3, atol=1e-3)
    save_pretrained("bare", *pair, build=build, facts=FACT, folder=tmp_path)
    with pytest.raises(ValueError, match="bare was saved without a memory"):
        load_memory("bare", tmp_path)
    others = pair[0], VSMGuide(pair[1].base, Recall(**seen))
    with pytest.raises(
        ValueError, match=r"must share the parts that model and guide share, and no others; guide\.recall"
    ):
        save_pretrained("other", *others, build=build, facts=FACT, folder=tmp_path)
    for wrong in ({"shared": "recal"}, {"build": ["Recall.calibrated", seen]}, {"build": ["fit", {}]}):
        bad = build | {"model": ["VSM", build["model"][1] | {"recall": wrong}]}
        with pytest.raises(ValueError, match=r"was saved from other modules|must name a"):
            save_pretrained("other", *pair, build=bad, facts=FACT, folder=tmp_path)
    assert not list(tmp_path.glob("other*"))
    unshared = build | {"guide": ["VSMGuide", build["guide"][1] | {"recall": {"build": ["Recall", seen]}}]}
    with pytest.raises(ValueError, match="was saved from other modules"):
        save_pretrained("unshared", *pair, build=unshared, facts=FACT, folder=tmp_path)


def test_a_model_makes_its_own_mixers_again_and_the_commit_is_told(tmp_path, monkeypatch):
    size = {"dim": 8, "blocks": 2, "parameters": 4000}
    mixer = partial(TitansLMM, heads=2, chunk_size=4)
    model = SequenceModel.tokens(11, mixer, **size)
    made = {"partial": ["TitansLMM", mixer.keywords]}
    build = {
        "model": ["SequenceModel.tokens", {"vocabulary": 11, "mixer": made, **size}], "guide": ["EmptyGuide", {}],
    }  # fmt: skip
    facts = {key: value for key, value in FACT.items() if key != "commit"} | {"vocabulary": "abc"}
    monkeypatch.setattr(sys.modules["__main__"], "__file__", str(tmp_path / "script.py"), raising=False)
    card = save_pretrained("small", model, EmptyGuide(), build=build, facts=facts, folder=tmp_path)
    assert card.facts["commit"] == "unknown"  # no repository here
    assert card.facts["vocabulary"] == "abc"
    again, guide = load_pretrained("small", tmp_path)
    x = torch.randint(11, (3, 12))
    assert_close(again.x_dist(x).logits, model.x_dist(x).logits, rtol=0, atol=0.02)
    assert math.isfinite(Trace_ELBO(max_plate_nesting=1).loss(again, guide, x))
    monkeypatch.setattr(sys.modules["__main__"], "__file__", str(ROOT / "benchmarks" / "experiments" / "results.py"))
    if (ROOT / ".git").exists():
        commit = save_pretrained("small", model, EmptyGuide(), build=build, facts=facts, folder=tmp_path)
        assert len(commit.facts["commit"]) == 40


@pytest.mark.parametrize("name", [n for n in pretrained() if not n.startswith("titans")])
def test_shipped_weights_are_whole_and_explain_letters(name):
    """Glyphs are not what they were trained on: drawn letters all the same, better explained than by a fair coin."""
    model, guide = load_pretrained(name)
    letters = glyphs("evaluation", size=26 if name.endswith("26") else 28)
    if name.startswith("vsm"):
        x, support = SetTasks(letters, tasks=16, shots=5)[0]
        args = x, support, remember(model.recall, load_memory(name), support)
    else:
        args = FewShotTasks(letters, classes=1, shots=5, targets=16, per_target=True)[0]
    bound = importance_bound(model, guide, *args, particles=20, max_plate_nesting=2)
    assert bound.mean > -0.5 * 28 * 28 * 0.693
    assert torch.isfinite(bound.bound).all()


def test_shipped_weights_are_small():
    assert sum(path.stat().st_size for path in FOLDER.glob("*")) < 16e6


@pytest.mark.skipif("PYRO_MEMORY_DATA" not in os.environ, reason="PYRO_MEMORY_DATA names no folder with the real files")
@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("vma-omniglot28", {"particles": 300}),
        ("vma-diffusion-omniglot28", {"particles": 8}),
        ("vma-autoregressive-omniglot28", {"particles": 1, "exact": ("a",)}),
        ("vma-autoregressive-omniglot26", {"particles": 1, "exact": ("a",)}),
    ],
)
def test_shipped_weights_reproduce_the_table(name, how):
    mean, se = pretrained()[name].facts["numbers"]["1 class, 4 shots"].split()
    model, guide = load_pretrained(name)
    data = load_images("omniglot26-45-5" if name.endswith("26") else "omniglot", "evaluation")
    tasks = FewShotTasks(data, classes=1, shots=4, targets=64, per_target=True, seed=1)
    bound = importance_bound(model, guide, *tasks[0], max_plate_nesting=1, **how)
    assert abs(bound.mean - float(mean)) < 4 * bound.se + float(se.strip("()"))


@pytest.mark.skipif("PYRO_MEMORY_DATA" not in os.environ, reason="PYRO_MEMORY_DATA names no folder with the real files")
def test_shipped_structured_memory_reproduces_its_record():
    """Image by image: another memory, or none, would cost some three nats."""
    name, record = "vsm-vae-omniglot", json.loads((ROOT / "docs" / "data" / "vsm_omniglot.json").read_text())
    each = torch.tensor(record["runs"]["both"]["0"]["bounds"]["5"]["each"])
    data = load_images("omniglot", "evaluation")
    targets = torch.randperm(len(data), generator=torch.Generator().manual_seed(1))[200:240]
    sets = SetTasks(data, tasks=20, shots=5, targets=targets, seed=1)
    model, guide = load_pretrained(name)
    bounds = []
    for x, support in (sets[i] for i in range(2)):
        memory = remember(model.recall, load_memory(name), support)
        bounds.append(importance_bound(model, guide, x, support, memory, particles=100, max_plate_nesting=2).bound)
    assert (torch.cat(bounds) - each[:40]).mean().abs() < 1


@pytest.mark.skipif("PYRO_MEMORY_DATA" not in os.environ, reason="PYRO_MEMORY_DATA names no folder with the real files")
def test_a_shipped_memory_draws_what_recall_takes_for_the_class():
    """A guess among 20 classes is right once in 20."""
    name = "vsm-autoregressive-omniglot"
    (model, _), data = load_pretrained(name), load_images("omniglot", "evaluation")
    torch.manual_seed(0)
    _, support = SetTasks(data, tasks=20, shots=5, seed=3)[0]
    memory = remember(model.recall, load_memory(name), support)
    drawn = model.generate(support, memory, 2, guidance=0.25, temperature=0.9, candidates=4)
    right = Recognition(model.recall).accuracy(drawn, support)
    assert right > 0.6


@pytest.mark.skipif("PYRO_MEMORY_DATA" not in os.environ, reason="PYRO_MEMORY_DATA names no folder with the real files")
def test_shipped_concepts_are_worth_what_the_card_says():
    name = "vsm-returning-omniglot"
    (model, guide), memory = load_pretrained(name), load_memory(name)
    data, gained = load_images("omniglot", "evaluation"), []
    stream = ReturningClasses(data, queries=1, shots=5, back=(1, 2), items=5, classes=300, seed=0)
    for _, x, support in stream.returns(249, shots=0, tasks=10):
        with_them, without = (
            importance_bound(model, guide, x, support, stores, particles=50, max_plate_nesting=2).bound
            for stores in (memory, memory.without_concepts())
        )
        gained.append(with_them - without)
    gained = torch.cat(gained)
    mean, se = pretrained()[name].facts["numbers"]["gained by concepts, 0 examples"].split()
    assert abs(gained.mean() - float(mean)) < 3 * (gained.std() / len(gained) ** 0.5 + float(se.strip("()")))


def experiment(name):
    """An experiment as a module, with those that lie beside it."""
    sys.path.insert(0, str(ROOT / "benchmarks" / "experiments"))
    return importlib.import_module(name)


def told(card, number):
    return float(card.facts["numbers"][number].split()[0])


def test_a_shipped_memory_recalls_at_four_times_its_training_length():
    card = pretrained()["titans-lmm-recall"]
    model, _ = load_pretrained(card.name)
    tokens, answers = RecallTasks(pairs=4, length=128, vocabulary=40, batch=64, seed=10_000)[0]
    with torch.no_grad():
        right = (model.x_dist(tokens).logits.argmax(-1) == tokens)[answers].float().mean()
    assert abs(right - told(card, "length 128")) < 0.05
    assert right > 0.9  # a guess among the four values is right in a quarter


@torch.no_grad()
def test_a_shipped_memory_recalls_32_pairs_at_four_times_its_training_length():
    card = pretrained()["titans-lmm-recall32"]
    tokens, answers = RecallTasks(pairs=32, length=1024, vocabulary=512, batch=8, seed=10_000)[0]
    right = (load_pretrained(card.name)[0].x_dist(tokens).logits.argmax(-1) == tokens)[answers].float().mean()
    assert right == pytest.approx(told(card, "length 1024"), abs=0.03)
    assert right > 0.95  # a guess among the values is right in one of 32 cases


@torch.no_grad()
def test_a_shipped_cache_of_memories_recalls_at_sixteen_times_its_training_length():
    """A guess among the values is right in one of 32 cases."""
    model, _ = load_pretrained("titans-cached-recall32")
    tokens, answers = RecallTasks(pairs=32, length=4096, vocabulary=512, gap=4096 - 128, batch=4, seed=10_000)[0]
    x, past, asked = tokens[:, -64:], tokens[:, :-64], answers[:, -64:]
    assert (model.x_dist(x, past).logits.argmax(-1) == x)[asked].float().mean() > 0.98


@torch.no_grad()
def test_a_shipped_memory_finds_a_needle_at_four_times_its_training_length():
    card = pretrained()["titans-lmm-needles"]
    text = CharacterText(load_text(), extra=CHARACTERS)
    assert text.vocabulary == card.facts["vocabulary"]
    tokens, answers = NeedleTasks(text, split="test", length=2048, depth=0.5, batch=24, seed=10_000)[0]
    right = (load_pretrained(card.name)[0].x_dist(tokens).logits.argmax(-1) == tokens) | ~answers
    assert right.all(-1).float().mean() > 0.9  # a guess is right once in ten thousand


def test_a_shipped_language_model_knows_english_from_noise():
    card = pretrained()["titans-mag-tinyshakespeare"]
    model, guide = load_pretrained(card.name)
    letters = CharacterText(card.facts["vocabulary"])
    text = "Good morrow, gentle cousin; what is the news from the court?\n"
    mixed = "".join(text[i] for i in torch.randperm(len(text), generator=torch.Generator().manual_seed(0)))
    plain, shuffled = (token_surprise(model, letters.encode(t)[None], guide=guide).bits for t in (text, mixed))
    assert plain < 3.5 < 4.5 < shuffled  # of log2 74 = 6.2


@pytest.mark.skipif("PYRO_MEMORY_DATA" not in os.environ, reason="PYRO_MEMORY_DATA names no folder with the real files")
def test_a_shipped_language_model_reproduces_its_bits():
    card = pretrained()["titans-mag-tinyshakespeare"]
    text = CharacterText(load_text(Path(os.environ["PYRO_MEMORY_DATA"]) / "text" / "tinyshakespeare"), extra=CHARACTERS)
    assert text.vocabulary == card.facts["vocabulary"]
    model, _ = load_pretrained(card.name)
    with torch.no_grad():
        parts = [token_surprise(model, part) for part in text.windows("test", length=128).split(64)]
    assert TokenSurprise.cat(parts).bits == pytest.approx(told(card, "windows of 128"), abs=0.01)


@pytest.mark.skipif("PYRO_MEMORY_DATA" not in os.environ, reason="PYRO_MEMORY_DATA names no folder with the real files")
def test_a_shipped_forecaster_reproduces_its_errors():
    forecast = experiment("titans_forecast")
    card = pretrained()["titans-lmm-etth1-96"]
    series, args = load_series("ETTh1"), SimpleNamespace(device="cpu", past=96)
    starts = series.windows("test", past=96, horizon=96, batch=1).starts
    windows = forecast.Windows(forecast.without_profile(series, 24), starts, 96, args, 64)
    errors = forecast.errors(load_pretrained(card.name)[0], windows, args)
    assert errors["mse"] == pytest.approx(told(card, "MSE"), abs=2e-3)
    assert errors["mae"] == pytest.approx(told(card, "MAE"), abs=2e-3)
