"""Nats per datum, wherever plates tell how many data a call explains."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from fits import Plain, pair, run
from pyro.infer import JitTrace_ELBO, RenyiELBO, Trace_ELBO
from pyro.nn import PyroModule
from torch import nn

from pyro_memory import VIMCO
from pyro_memory.naming import unique_name
from pyro_memory.training.counting import DataCount


def normal(name, *obs):
    pyro.sample(name, dist.Normal(torch.zeros(()), 1.0), obs=obs[0] if obs else None)


def plain():
    with pyro.plate("batch", 6):
        normal("z"), normal("x", torch.zeros(6))


def nested():
    with pyro.plate("tasks", 3, dim=-2), pyro.plate("targets", 4, dim=-1):
        normal("z"), normal("x", torch.zeros(3, 4))


def pixels():
    with pyro.plate("batch", 3, dim=-2):
        normal("z")
        with pyro.plate("pixels", 4, dim=-1):
            normal("x", torch.zeros(3, 4))


def subsampled():
    with pyro.plate("batch", 40, subsample_size=8):
        normal("x", torch.zeros(8))


def global_latent():
    normal("w")
    with pyro.plate("classes", 2):
        normal("mean")
    with pyro.plate("batch", 6):
        normal("x", torch.zeros(6))
    pyro.factor("penalty", torch.tensor(-1.0))


def scaled():
    with pyro.poutine.scale(scale=1 / 6):
        plain()


def two():
    with pyro.plate("one", 6):
        normal("x", torch.zeros(6))
    with pyro.plate("other", 6):
        normal("y", torch.zeros(6))


def bare():
    normal("x", torch.zeros(()))


@pytest.mark.parametrize(
    ("model", "data"),
    [
        (plain, 6),
        (nested, 12),
        (pixels, 3),
        (subsampled, 40),
        (global_latent, 6),
        (scaled, 1),
        (two, None),
        (bare, None),
    ],
)
def test_data_are_counted_by_the_plates_of_what_is_observed(model, data):
    with DataCount() as count:
        model()
    assert count.data == (None if data is None else pytest.approx(data))


@pytest.mark.parametrize(
    "objective",
    [
        Trace_ELBO(3, vectorize_particles=True),
        RenyiELBO(num_particles=2),
        VIMCO(2),
        JitTrace_ELBO(ignore_jit_warnings=True),
    ],
)
def test_a_bound_is_told_per_datum_whatever_the_objective(objective):
    objective.max_plate_nesting = 1 + objective.vectorize_particles
    result = run(*pair(), objective=objective, steps=11)
    assert result.history["data"] == [4.0, 4.0]
    assert result.bounds == [bound / 4 for bound in result.history["bound"]]
    assert "nats per datum" in repr(result)
    assert result.plot().get_ylabel() == "bound (nats per datum)"


def test_batches_of_several_sizes_weigh_as_many_as_they_hold():
    class Growing(Plain):
        def __getitem__(self, step):
            return (super().__getitem__(step)[0][: 1 + step % 4],)

    assert run(*pair(), batches=Growing(), steps=10).history["data"] == [2.3]


class Mean(PyroModule):
    """One mean for the whole data set."""

    def __init__(self):
        super().__init__(unique_name(self))
        self.loc = nn.Parameter(torch.zeros(()))


class Known(Mean):
    def forward(self, x):
        pyro.sample("mean", dist.Normal(self.loc, 0.1))


class Whole(Mean):
    def forward(self, x):
        mean = pyro.sample("mean", dist.Normal(torch.zeros(()), 1.0))
        with pyro.plate("batch", len(x)):
            pyro.sample("x", dist.Normal(mean + 0 * self.loc, 1.0).expand([3]).to_event(1), obs=x)


def test_a_latent_of_the_data_set_is_never_told_per_datum():
    text = repr(run(Whole(), Known(), steps=3, information_every=1))
    assert "nats per datum (mean" in text
    assert "nats per data set" in text.splitlines()[2]


def test_where_latents_lie_in_some_plates_only_the_bound_is_told_by_these():
    class Grouped(Whole):
        def forward(self, x):
            with pyro.plate("group", 2, dim=-2):
                mean = pyro.sample("mean", dist.Normal(torch.zeros(()), 1.0))
                with pyro.plate("item", 4, dim=-1):
                    pyro.sample("x", dist.Normal(mean + 0 * self.loc, 1.0), obs=x[:2, :1].expand(2, 4))

    class Told(Mean):
        def forward(self, x):
            with pyro.plate("group", 2, dim=-2):
                pyro.sample("mean", dist.Normal(self.loc, 0.1))

    result = run(Grouped(), Told(), steps=3, information_every=1)
    assert result.history["data"] == [2.0]
    assert result.unit == "group"
    assert "nats per group (mean" in repr(result)
    assert result.plot().get_ylabel() == "bound (nats per group)"


def test_without_a_plate_the_bound_is_per_call():
    class Bare(Mean):
        def forward(self, x):
            pyro.sample("x", dist.Normal(self.loc, 1.0).expand(x.shape).to_event(2), obs=x)

    result = run(Bare(), lambda x: None, steps=3)
    assert result.unit == "call"
    assert result.bounds == result.history["bound"]
    assert "nats per call" in repr(result)
    assert result.plot().get_ylabel() == "bound (nats per call)"
