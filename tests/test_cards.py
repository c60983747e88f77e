"""What a file of weights keeps, and what is said of a damaged one."""

import itertools
import json
import os

import numpy as np
import pytest
import torch
from torch import nn

from pyro_memory import load_pretrained, pretrained, save_pretrained, zoo
from pyro_memory.cards import FACTS
from pyro_memory.guides import VAEGuide
from pyro_memory.models import VAE
from pyro_memory.zoo import FOLDER

SIZES = {"shape": [1, 8, 8], "latent_dim": 2, "channels": [2, 2]}
BUILD = {"model": ("VAE.convolutional", SIZES), "guide": ("VAEGuide.convolutional", SIZES)}
FACT = dict.fromkeys(FACTS, "x")


def pair():
    return VAE.convolutional(**SIZES), VAEGuide.convolutional(**SIZES)


def save(folder, modules=None, **options):
    return save_pretrained("small", *(modules or pair()), **{"build": BUILD, "facts": FACT, "folder": folder} | options)


def first(module: nn.Module):
    return next(iter(module.parameters()))


@pytest.mark.parametrize("value", [1e6, -7e37, 1e-9, 3e-39, 1e-6, 0.1, 65504.0, 0.0])
@pytest.mark.parametrize("every", [False, True])
def test_a_weight_comes_back_within_a_thousandth(tmp_path, value, every):
    modules = pair()
    with torch.no_grad():
        first(modules[0]).view(-1)[slice(None) if every else slice(3, 4)] = value
    save(tmp_path, modules)
    for old, new in zip(modules, load_pretrained("small", tmp_path), strict=True):
        for one, two in zip(old.parameters(), new.parameters(), strict=True):
            one, two = one.detach().double(), two.detach().double()
            assert ((one - two).abs() <= 1e-3 * one.abs() + 1e-3 * one.square().mean().sqrt()).all()
            assert torch.equal(one == 0, two == 0)
    kept = first(load_pretrained("small", tmp_path)[0]).view(-1)[3].item()
    assert kept == pytest.approx(value, rel=1e-3 if every else 0.02)


def test_most_weights_take_two_bytes(tmp_path):
    modules = pair()
    count = sum(p.numel() for m in modules for p in m.parameters())
    save(tmp_path, modules)
    assert (tmp_path / "small.safetensors").stat().st_size < 2 * count + 4000


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_weights_that_are_not_finite_are_refused_and_nothing_is_written(tmp_path, value):
    modules = pair()
    with torch.no_grad():
        first(modules[1]).view(-1)[0] = value
    with pytest.raises(ValueError, match=r"weights must be finite to be saved; guide\..* holds NaN or infinity"):
        save(tmp_path / "new", modules)
    assert not (tmp_path / "new").exists()


def test_every_cut_or_flipped_card_is_a_value_error_that_names_it(tmp_path):
    save(tmp_path)
    path = tmp_path / "small.json"
    whole, same = path.read_bytes(), 0
    for at in range(0, len(whole), 3):
        for content in (whole[:at], whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :]):
            path.write_bytes(content)
            if json_of(content) == json_of(whole):
                same += 1  # white space
                continue
            for read in (lambda: load_pretrained("small", tmp_path), lambda: pretrained(tmp_path)):
                with pytest.raises(ValueError, match=r"small\.json, the card of small\.safetensors, is damaged"):
                    read()
    assert same < len(whole) / 10


def json_of(content):
    try:
        return json.loads(content)
    except ValueError:
        return None


def test_every_cut_or_flipped_file_of_weights_is_a_value_error_that_names_it(tmp_path):
    save(tmp_path)
    path, random = tmp_path / "small.safetensors", np.random.default_rng(0)
    whole = path.read_bytes()
    for at in random.integers(len(whole), size=60):
        for content in (whole[:at], whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]):
            path.write_bytes(content)
            with pytest.raises(ValueError, match=r"small\.safetensors is not the file that its card describes"):
                load_pretrained("small", tmp_path)


def test_the_shipped_cards_tell_a_changed_number(tmp_path):
    card = next(iter(pretrained().values()))
    folder = tmp_path / "copy"
    folder.mkdir()
    told = (FOLDER / f"{card.name}.json").read_text()
    assert '"check"' in told
    (folder / f"{card.name}.json").write_text(told.replace(str(card.facts["about"]), "another"))
    with pytest.raises(ValueError, match=r"\.json, the card of .* is damaged, not as it was written"):
        pretrained(folder)


def test_files_of_others_are_passed_over_and_kept(tmp_path):
    others = {"list": "[1]", "run": '{"steps": 3}', "notes": "no json {"}
    for name, text in others.items():
        (tmp_path / f"{name}.json").write_text(text)
    (tmp_path / "run.safetensors").write_bytes(b"a checkpoint")
    save(tmp_path)
    assert list(pretrained(tmp_path)) == ["small"]
    with pytest.raises(ValueError, match="`name` must be one of small; got 'run'"):
        load_pretrained("run", tmp_path)
    with pytest.raises(ValueError, match=r"`name` must be free, or that of a card; .*run\.json is another file"):
        save_pretrained("run", *pair(), build=BUILD, facts=FACT, folder=tmp_path)
    assert {name: (tmp_path / f"{name}.json").read_text() for name in others} == others
    with pytest.raises(ValueError, match="`name` must be that of a file, without a folder; got 'a/b'"):
        save_pretrained("a/b", *pair(), build=BUILD, facts=FACT, folder=tmp_path)


def test_after_a_crash_at_any_point_the_old_pair_loads_or_the_new_one(tmp_path, monkeypatch):
    replace = os.replace
    crashes = [(at, after) for at in range(3) for after in (False, True)]

    def crash(at, after, modules):
        """Ends a call of ``save`` before or after one of the swaps of its files."""
        calls = []

        def dies(source, target):
            calls.append(target)
            if len(calls) - 1 != at or after:
                replace(source, target)
            if len(calls) - 1 == at:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", dies)
            with pytest.raises(KeyboardInterrupt):
                save(tmp_path, modules)

    pairs = [pair() for _ in range(3)]
    for once, twice in itertools.product(crashes, crashes):
        save(tmp_path, pairs[0])
        for n, how in enumerate((once, twice), start=1):
            crash(*how, pairs[n])
            there = first(load_pretrained("small", tmp_path)[0])
            assert any(torch.allclose(there, first(p[0]), rtol=2e-3, atol=1e-3) for p in pairs[: n + 1]), (once, twice)
        save(tmp_path, pairs[0])
        assert {p.name for p in tmp_path.iterdir()} == {"small.json", "small.safetensors"}


def test_a_crash_before_the_first_card_leaves_nothing_that_is_listed(tmp_path, monkeypatch):
    replace = zoo.replace_file

    def dies(path, write):
        if path.suffix == ".json":
            raise KeyboardInterrupt
        replace(path, write)

    with monkeypatch.context() as patch:
        patch.setattr(zoo, "replace_file", dies)
        with pytest.raises(KeyboardInterrupt):
            save(tmp_path)
    assert pretrained(tmp_path) == {}
    save(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"small.json", "small.safetensors"}


def test_what_json_cannot_hold_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match=r"`facts` and `build` must be what JSON can hold: .*Tensor"):
        save(tmp_path / "new", facts=FACT | {"loss": torch.ones(())})
    assert not (tmp_path / "new").exists()


def test_weights_come_in_the_default_dtype(tmp_path):
    save(tmp_path)
    torch.set_default_dtype(torch.float64)
    try:
        assert {p.dtype for m in load_pretrained("small", tmp_path) for p in m.parameters()} == {torch.float64}
    finally:
        torch.set_default_dtype(torch.float32)
