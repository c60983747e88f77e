import pytest
import torch

from pyro_memory.data import glyphs, load_images


def test_a_name_gives_the_set_it_names():
    assert torch.equal(load_images("glyphs", "evaluation").images, glyphs("evaluation").images)


def test_unknown_names_and_missing_folders_are_refused(tmp_path):
    with pytest.raises(ValueError, match="`name` must be one of glyphs"):
        load_images("cifar", "background")
    with pytest.raises(FileNotFoundError, match=r"images_background\.zip"):
        load_images("omniglot26", "background", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"t10k-images-idx3-ubyte\.gz"):
        load_images("mnist", "evaluation", tmp_path)
