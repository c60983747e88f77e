"""Base generative models: alone and told by a context."""

import math

import pyro
import pytest
import torch
from base_pairs import CODE, SHAPE, autoregressive, diffusion, hierarchical, vae
from conftest import ink
from pyro.infer import Trace_ELBO

from pyro_memory import VIMCO, Context, fit, importance_bound
from pyro_memory.guides import BaseGuide
from pyro_memory.models import BaseModel
from pyro_memory.nets import GaussianImage

BASES = {
    "vae": vae,
    "hierarchical": hierarchical,
    "diffusion": diffusion,
    "autoregressive": autoregressive,
    "diffusion v": lambda **options: diffusion(predicts="v", **options),
    "diffusion epsilon": lambda **options: diffusion(predicts="epsilon", **options),
}


@pytest.mark.parametrize("name", BASES)
def test_training_raises_the_bound_that_is_measured(name):
    model, guide = BASES[name]()
    x = ink(1, *SHAPE).expand(16, *SHAPE).contiguous()

    def measured():
        model.eval(), guide.eval()
        value = importance_bound(model, guide, x, particles=4).mean
        model.train(), guide.train()
        return value

    before = measured()
    fit(model, guide, lambda step: (x,), Trace_ELBO(), steps=150, learning_rate=1e-2, progress=False, clip_norm=1000.0)
    assert measured() > max(before / 3, -20)


@pytest.mark.parametrize("name", BASES)
def test_a_base_can_be_built_that_reads_nothing(name):
    model, guide = BASES[name](code_dim=CODE, reads=False)
    assert model.content is None
    assert model.eval().generate(Context(torch.randn(2, 1, CODE)), (2, 3)).shape == (2, 3, *SHAPE)
    with pyro.plate("batch", 3):
        guide.infer(ink(3, *SHAPE), Context(torch.randn(3, CODE)))


@pytest.mark.parametrize("name", ["vae", "hierarchical"])
def test_other_likelihoods_can_be_chosen(name):
    model, guide = BASES[name](likelihood=GaussianImage)
    assert math.isfinite(VIMCO(2).loss(model, guide, torch.randn(4, *SHAPE)))


@pytest.mark.parametrize("name", BASES)
@pytest.mark.unchecked
def test_bad_images_are_refused(name):
    model, guide = BASES[name]()
    with pytest.raises(ValueError, match="`x` must be a floating-point tensor"):
        guide(ink(9, 7))
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
        model(ink(2, *SHAPE) * 255)
    with pytest.raises(ValueError, match="must be finite"):
        guide(ink(2, *SHAPE) / 0)


def test_a_base_must_define_what_it_is():
    for f in (lambda: BaseModel().explain(None, Context()), lambda: BaseModel().generate(Context())):
        with pytest.raises(NotImplementedError, match="BaseModel must define"):
            f()
    with pytest.raises(NotImplementedError, match="BaseGuide must define `infer`"):
        BaseGuide().infer(ink(2, *SHAPE), Context())
