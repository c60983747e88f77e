import pytest
import torch

from pyro_memory.data import LICENCES, NAMES, glyphs, load_images


def test_a_name_gives_the_set_it_names():
    assert torch.equal(load_images("glyphs", "evaluation").images, glyphs("evaluation").images)


@pytest.mark.parametrize(
    ("name", "size", "alphabets"),
    [("omniglot", 28, "official"), ("omniglot26", 26, "official"), ("omniglot26-45-5", 26, "45-5")],
)
def test_omniglot_has_a_name_for_each_size_and_division(name, size, alphabets, monkeypatch):
    calls = []
    found = lambda split, **call: calls.append({"split": split} | call) or glyphs("evaluation")  # noqa: E731
    monkeypatch.setattr("pyro_memory.data.images.named.omniglot", found)
    load_images(name, "evaluation")
    assert calls == [{"split": "evaluation", "size": size, "alphabets": alphabets, "root": None}]


def test_every_name_has_a_licence():
    assert set(LICENCES) == set(NAMES)


def test_unknown_names_and_missing_folders_are_refused(tmp_path):
    with pytest.raises(ValueError, match="`name` must be one of glyphs"):
        load_images("cifar", "background")
    with pytest.raises(FileNotFoundError, match=r"images_background\.zip"):
        load_images("omniglot26", "background", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"images_background\.zip"):
        load_images("omniglot26-45-5", "background", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"t10k-images-idx3-ubyte\.gz"):
        load_images("mnist", "evaluation", tmp_path)
