import pyro
import pytest
import torch
from fits import Guide, Model, Plain, pair, run, weights
from pyro.infer import Trace_ELBO
from pyro.nn import PyroModule
from torch import nn

from pyro_memory import complete, importance_bound


class WithGlobal(Model):
    def forward(self, x):
        super().forward(x + pyro.param("offset", torch.tensor(0.3)))


def test_global_parameters_are_refused():
    with pytest.raises(ValueError, match=r"global parameters \['offset'\].*PyroParam"):
        run(WithGlobal(), Guide())


def test_parameters_among_the_arguments_are_refused():
    class Taught(Plain):
        parameter = nn.Parameter(torch.ones(4, 3))

        def __getitem__(self, step):
            return (self.parameter,)

    with pytest.raises(ValueError, match=r"argument 0 holds a parameter.*attribute"):
        run(*pair(), batches=Taught())


def test_colliding_names_are_refused():
    run(Model(name="same"), Guide(), steps=1)
    with pytest.raises(ValueError, match=r"\['0.scale_unconstrained'\].*unique `name=`"):
        run(Model(name="same"), Guide(), steps=1)


def test_entries_that_an_earlier_module_left_do_no_harm():
    class Bare(PyroModule):
        def __init__(self, sizes):
            super().__init__()
            self.net = nn.Linear(*sizes)

    class BareModel(Bare):
        forward = Model.forward
        scale = 1.0

    class BareGuide(Bare):
        forward = Guide.forward
        width = 1.0

    for _ in range(2):
        model, guide = BareModel((2, 3)), BareGuide((3, 2))
        before = weights(model, guide)
        run(model, guide, steps=3)
        assert all((a != b).all() for a, b in zip(weights(model, guide), before, strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objective": Trace_ELBO}, "`objective` must be an ELBO instance"),
        ({"steps": -1}, "`steps` must not be negative; got -1"),
        ({"checkpoint_every": 0}, "`checkpoint_every` must be at least 1; got 0"),
        ({"batches": [torch.zeros(2, 3)]}, r"must give a tuple .* got Tensor: write \(x,\)"),
        ({"batches": 3}, r"`batches` must have `\[step\]`"),
        ({"batches": (x for x in [(torch.zeros(2, 3),)])}, "ran out and cannot start again"),
    ],
)
@pytest.mark.unchecked
def test_unusable_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        run(*pair(), **options)


def test_functions_without_parameters_are_refused():
    with pytest.raises(ValueError, match="must own parameters; got none"):
        run(lambda x: None, lambda x: None)


def test_a_pair_without_information_gain_trains_on(monkeypatch):
    def refuse(*args, **kwargs):
        raise ValueError("no such thing")

    monkeypatch.setattr("pyro_memory.training.log.information_gain", refuse)
    with pytest.warns(UserWarning, match=r"`information_every` is off.*no such thing") as record:
        run(*pair(), information_every=2)
    assert len(record) == 1


def test_what_is_frozen_stays_so_whatever_is_measured_or_trained():
    """Pyro's store would set ``requires_grad`` of a parameter that a PyroModule owns itself."""
    model, guide = pair()
    guide.own = nn.Parameter(torch.zeros(()))
    guide.own.requires_grad_(False)
    plain = guide.forward
    guide.forward = lambda *args: (guide.own, plain(*args))[1]
    importance_bound(model, guide, *Plain()[0], particles=2)
    complete(model, guide, *Plain()[0], sweeps=1)
    run(model, guide, steps=3)
    assert not guide.own.requires_grad
    assert guide.own == 0
