"""The pair of examples/attend_infer_repeat.py: how many letters there are is a latent without a pathwise gradient."""

import importlib.util
from pathlib import Path

import pyro
import pytest
import torch
from pyro.infer import RenyiELBO, TraceGraph_ELBO

from pyro_memory import VIMCO, LeaveOneOutELBO, fit
from pyro_memory.inference import Particles, weigh

PATH = Path(__file__).parents[2] / "examples" / "attend_infer_repeat.py"
VECTORISED = {"num_particles": 3, "vectorize_particles": True, "max_plate_nesting": 1}


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("attend_infer_repeat", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def air(example):
    pyro.set_rng_seed(0)
    return example.AIR("air")


@pytest.fixture
def images(example):
    pyro.set_rng_seed(1)
    return example.scatter(torch.ones(3, example.LETTER, example.LETTER), 8)


def presence_and_place(air, objective, x):
    """How much the rows of the guide's last layer move: that of presence, and those of where."""
    air.zero_grad()
    objective.loss_and_grads(air.model, air.guide, x)
    gradient = air.look[-1].weight.grad.abs()
    return gradient[0].max().item(), gradient[1:].max().item()


@pytest.mark.parametrize(
    "objective",
    [VIMCO(3, max_plate_nesting=1), LeaveOneOutELBO(3, max_plate_nesting=1), TraceGraph_ELBO(**VECTORISED)],
    ids=lambda objective: type(objective).__name__,
)
def test_presence_is_trained(air, images, objective):
    presence, place = presence_and_place(air, objective, images[0])
    assert presence > 0
    assert place > 0


def test_pyros_bound_of_many_particles_leaves_presence_untrained(air, images):
    """https://github.com/pyro-ppl/pyro/issues/3289: where this fails, Pyro is mended, and the example must say so."""
    presence, place = presence_and_place(air, RenyiELBO(**VECTORISED), images[0])
    assert presence == 0.0
    assert place > 0


def test_what_is_absent_weighs_nothing(air, images):
    with torch.no_grad():
        air.look[-1].bias[0] = -50.0
    ((model_trace, guide_trace),) = Particles(**VECTORISED).traces(air.model, air.guide, (images[0],), {})
    one, other, _ = guide_trace.nodes["where_1"]["value"]
    assert not torch.equal(one, other)
    weights = weigh(model_trace, guide_trace).log_weight
    torch.testing.assert_close(weights, weights[:1].expand_as(weights), rtol=0, atol=0)


def test_a_window_at_a_corner_is_that_corner_of_the_image(example):
    rows, cols = example.window(torch.tensor([-1.0, 1.0]))
    image = torch.rand(example.SIDE, example.SIDE)
    torch.testing.assert_close(rows.mT @ image @ cols, image[: example.LETTER, -example.LETTER :])


def test_images_hold_as_many_letters_as_they_say(images, example):
    x, counts = images
    ink = example.LETTER**2
    assert set(counts.tolist()) == {0, 1, 2}
    assert x.unique().tolist() == [0.0, 1.0]
    assert (x.sum((1, 2))[counts < 2] == ink * counts[counts < 2]).all()
    assert (x.sum((1, 2))[counts == 2] > ink).all()


def test_a_few_steps_raise_the_bound(air, images):
    x, _ = images
    run = fit(air.model, air.guide, [(x,)], VIMCO(3, max_plate_nesting=1), steps=20, learning_rate=3e-3, progress=False)
    assert run.bounds[-1] > run.bounds[0] + 5
