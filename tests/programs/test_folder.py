"""A user's program: a folder of images, a sub-folder a class, and an addressed VAE."""

import numpy as np
import pyro
import pytest
import torch
from PIL import Image, ImageDraw

from pyro_memory import (
    VIMCO,
    fit,
    importance_bound,
    information_gain,
    memory_contribution,
    posterior_address,
    to_arviz,
)  # fmt: skip
from pyro_memory.data import FewShotTasks, LabelledImages
from pyro_memory.guides import VMAGuide
from pyro_memory.models import VMA


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twenty classes of eight drawings: a disc each, about the place of its class."""
    root, rng = tmp_path_factory.mktemp("drawings"), np.random.default_rng(0)
    for k, centre in enumerate(rng.uniform(3, 9, (20, 2))):
        (root / f"place {k:02}").mkdir()
        for i in range(8):
            x, y = centre + rng.normal(0, 0.3, 2)
            image = Image.new("1", (12, 12))
            ImageDraw.Draw(image).ellipse((x - 2.5, y - 2.5, x + 2.5, y + 2.5), fill=1)
            image.save(root / f"place {k:02}" / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def program(folder):
    torch.manual_seed(0)
    pyro.clear_param_store()
    classes = sorted(path.name for path in folder.iterdir())
    files = sorted(folder.glob("*/*.png"))
    images = [np.asarray(Image.open(file)) for file in files]
    data = LabelledImages(images, [classes.index(file.parent.name) for file in files], classes)
    sizes = {"latent_dim": 4, "hidden": (64, 32)}
    model, guide = VMA.mlp(data.shape, **sizes), VMAGuide.mlp(data.shape, **sizes, matching_dim=16)
    tasks = FewShotTasks(data, classes=5, shots=3, targets=32)
    fit(model, guide, tasks, VIMCO(4), steps=100, learning_rate=3e-3, information_every=None, progress=False)
    return model, guide, FewShotTasks(data, classes=5, shots=3, targets=96, seed=1)


def test_the_files_are_read_as_they_were_drawn(program, folder):
    data = program[2].data
    assert repr(data) == "LabelledImages(160 images of 12x12 in 20 classes)"
    assert data.class_names[7] == "place 07"
    drawn = np.asarray(Image.open(folder / "place 07" / "3.png"))
    np.testing.assert_array_equal(data[data.members[7][3]][0].numpy(), drawn)


def test_bound_information_and_memory(program):
    model, guide, tasks = program
    x, memory = tasks[0]
    bound = importance_bound(model, guide, x, memory, particles=100)
    few = importance_bound(model, guide, x, memory, particles=1)
    assert few.mean < bound.mean < 0
    assert "nats/datum" in repr(bound)
    gain = information_gain(model, guide, x, memory)
    assert gain["a"].mean > 5 * gain["a"].se > 0
    found = posterior_address(model, guide, x, memory, particles=100)
    torch.testing.assert_close(found.probs.sum(-1), torch.ones(96).double())
    wrong = {"wrong places": tasks.wrong_classes(0)}
    worth = memory_contribution(model, guide, x, memory, alternatives=wrong, particles=100)
    lost, se = worth.gain("wrong places")
    assert lost > 5 * se > 0
    assert to_arviz(worth)["bound"]["lost"].mean().item() == pytest.approx(lost)
    assert to_arviz(gain)["address_a"]["usage"].sizes == {"slot": 15}
    assert to_arviz(bound)["bound"]["bound"].mean().item() == pytest.approx(bound.mean)


def test_new_images_are_like_those_in_memory(program):
    model, _, tasks = program
    new = model.generate(tasks[0][1], (200,))
    assert new.shape == (200, 1, 12, 12)

    def nearest(memory):
        return (new.unsqueeze(1) - memory.values).square().flatten(2).sum(-1).amin(-1)

    apart = nearest(tasks.wrong_classes(0)) - nearest(tasks[0][1])
    assert apart.mean() > 5 * apart.std() / 200**0.5
