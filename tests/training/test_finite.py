"""A loss, one gradient, or only a norm that is not finite: each is told apart."""

import math

import pyro
import pytest
import torch
from fits import Guide, Model, Plain, pair, run, weights
from torch import nn

from pyro_memory.training.loop import Loop


class Pulled(Model):
    """Adds a term to the bound from the second step on, or from the first."""

    def __init__(self, term, begin=0):
        super().__init__()
        self.term, self.begin, self.calls = term, begin, -1  # a pass comes before the first step

    def forward(self, x):
        if self.calls >= self.begin:
            pyro.factor("pull", self.term(self))
        self.calls += 1
        super().forward(x)


def large(model):
    return 1e27 * model.net.weight.sum()


def root(model):
    return (0 * model.net.weight).sqrt().sum()


def infinite(model):
    return model.net.weight.sum() * float("inf")


FIRST = "No step was taken yet, so the rate is not the cause"


@pytest.mark.parametrize("begin", [0, 3])
@pytest.mark.parametrize(
    ("term", "clip", "message"),
    [
        (infinite, None, "a loss of (inf|-inf|nan);"),
        (root, 1.0, r"a finite loss of .* with a gradient that is not finite, of model\.net\.weight;"),
        (large, None, r"a finite gradient of norm 2\.44949e\+27, whose square is not;.*Give `clip_norm`"),
    ],
)
def test_each_says_what_it_is_and_a_first_step_has_another_remedy(term, clip, message, begin):
    model, guide = Pulled(term, begin), Guide()
    before = weights(model, guide)
    with pytest.raises(FloatingPointError, match=rf"Step {begin + 1} gave {message}") as caught:
        run(model, guide, clip_norm=clip)
    text = str(caught.value)
    if term is not large:
        assert (FIRST in text) == (begin == 0)
        assert ("Lower `learning_rate` (now 0.05)" in text) == (begin > 0)
    assert begin or all((a == b).all() for a, b in zip(weights(model, guide), before, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_gradient_whose_square_overflows_is_clipped_rightly(dtype):
    scale = 4e27 if dtype == torch.float32 else 4e200

    class Weight(nn.Module):
        def __init__(self):
            super().__init__()
            self.w, self.v = (nn.Parameter(torch.zeros(2, dtype=dtype)) for _ in range(2))

        def forward(self, x):
            pyro.module("weight", self)
            pyro.factor("pull", scale * (0.6 * self.w[0] + 0.8 * self.v[1]) + 0 * x.sum())

    model = Weight()
    run(model, lambda x: None, steps=1, clip_norm=1.0, learning_rate=0.5, optimizer=torch.optim.SGD)
    torch.testing.assert_close(model.w.detach(), torch.tensor([0.3, 0.0], dtype=dtype))
    torch.testing.assert_close(model.v.detach(), torch.tensor([0.0, 0.4], dtype=dtype))


def test_it_goes_on_after_such_a_step():
    class Once(Plain):
        def __getitem__(self, step):
            (x,) = super().__getitem__(step)
            return (x * (1e15 if step == 3 else 1.0),)

    assert run(*pair(), batches=Once(), clip_norm=1.0, steps=8).steps == 8


@pytest.mark.parametrize("clip_norm", [math.inf, 1e30])
@pytest.mark.unchecked
def test_a_bound_above_the_norm_leaves_a_huge_gradient_as_it_is(clip_norm):
    weight = torch.nn.Parameter(torch.zeros(3))
    weight.grad = torch.full((3,), 1e22)  # its square overflows, it does not
    loop = Loop(None, None, None, {"w": weight}, None, clip_norm, None, {}, None)
    loop._clip_huge({"w": weight.grad}, 0.0, 0, 1.0, "none")
    assert torch.equal(weight.grad, torch.full((3,), 1e22))
