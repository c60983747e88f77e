"""A user's program: sets of one's own drawings, new ones from episodic and semantic memory."""

import numpy as np
import pyro
import pytest
import torch
from PIL import Image, ImageDraw

from pyro_memory import (
    VIMCO,
    ConceptMemory,
    EpisodicMemory,
    Recall,
    StructuredMemory,
    fit,
    importance_bound,
    information_gain,
    memory_contribution,
    posterior_address,
    remember,
    to_arviz,
)  # fmt: skip
from pyro_memory.data import LabelledImages, SetTasks
from pyro_memory.guides import VAEBaseGuide, VSMGuide
from pyro_memory.models import VSM, VAEBase

TASKS = 16


def drawn(corners, jitter):
    image = Image.new("1", (12, 12))
    ImageDraw.Draw(image).line([tuple(p) for p in (corners + jitter).tolist()], fill=1, width=2)
    return np.asarray(image)


@pytest.fixture(scope="module")
def program():
    torch.manual_seed(0)
    pyro.clear_param_store()
    shapes = 1 + 9 * torch.rand(30, 3, 2)
    images = [drawn(shape, 0.6 * torch.randn(3, 2)) for shape in shapes for _ in range(10)]
    data = LabelledImages(images, torch.arange(30).repeat_interleave(10))
    options = {"dim": 4, "code_dim": 8}
    recall = Recall(data.shape, channels=(8, 8), hidden=32, **options)
    model = VSM(VAEBase(data.shape, latent_dim=4, channels=(8, 8), code_dim=8), recall)
    guide = VSMGuide(VAEBaseGuide(data.shape, latent_dim=4, channels=(8, 8), code_dim=8), recall)
    stores = StructuredMemory(ConceptMemory.reserve(8, 4), EpisodicMemory.reserve(24, 4, data.shape, 4, 8))
    tasks = SetTasks(data, tasks=TASKS, queries=2, shots=4)

    def batch(step):
        x, support = tasks[step]
        return x, support, remember(recall, stores, support)

    fit(model, guide, batch, VIMCO(2), steps=60, learning_rate=3e-3, information_every=None, progress=False)
    return model, guide, *batch(1000)


def test_bound_information_and_posterior(program):
    model, guide, *given = program
    torch.manual_seed(0)
    bound, few = (importance_bound(model, guide, *given, particles=k) for k in (100, 2))
    assert few.mean < bound.mean < 0
    assert "nats/task" in repr(bound)
    gain = information_gain(model, guide, *given)
    assert {name for name, site in gain.sites.items() if site.unit == "task"} == set("ksjc")
    assert gain["z"].mean > 5 * gain["z"].se > 0
    assert to_arviz(gain)["information"]["kl_z"].sizes == {"chain": 1, "draw": 2 * TASKS}
    found = posterior_address(model, guide, *given, site="j", particles=100)
    torch.testing.assert_close(found.probs.sum(-1), torch.ones(TASKS).double())
    assert found.unit == "task"
    summed = posterior_address(model, guide, *given, site="j", particles=100, exact=True)
    assert (found.method, summed.method) == ("importance weights", "enumerated")
    assert summed.se.mean() < found.se.mean()


def test_it_must_be_said_which_store_is_the_memory_and_either_may_be(program):
    model, guide, x, support, memory = program
    empty = {"no episodes": memory.without_episodes()}
    with pytest.raises(ValueError, match=r"`memory` must say which .*: 'support', 'memory' are stores"):
        memory_contribution(model, guide, x, support, memory, alternatives=empty)
    worth = memory_contribution(model, guide, x, support, memory, memory="memory", alternatives=empty, particles=50)
    lost, se = worth.gain("no episodes")
    assert lost > 5 * se > 0
    assert "nats per task" in repr(worth)
    other = memory_contribution(model, guide, x, support, memory, memory="support", particles=50)
    assert list(to_arviz(other)["bound"]["memory"].values) == ["given", "shuffled"]


def test_new_drawings_come_a_set(program):
    model, _, _, support, memory = program
    new = model.generate(support, memory, 3)
    assert new.shape == (TASKS, 3, 1, 12, 12)
    assert 0 <= new.min() < 0.2 < 0.5 < new.max() <= 1
