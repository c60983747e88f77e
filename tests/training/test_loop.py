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


def test_modes_gradients_and_frozen_parts_are_afterwards_as_they_were():
    model, guide = pair()
    guide.net = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 2))
    guide.net[1].eval()
    model.eval()
    model.net.weight.requires_grad_(False)
    model.net.bias.grad = torch.full((3,), 7.0)
    frozen = model.net.weight.clone()
    seen = []
    forward = guide.forward
    guide.forward = lambda x: (seen.append((model.training, guide.training, guide.net[1].training)), forward(x))[1]
    options = {"steps": 4, "information_every": 2, "evaluate": lambda step: {"nll": importance(model, guide)}}
    for stop in (False, True):
        seen.clear()
        if stop:
            options["schedule"] = lambda step: 1.0 if step < 2 else -1.0
            with pytest.raises(ValueError, match="`schedule` must give finite factors that are not negative; got -1"):
                run(model, guide, **options)
        else:
            run(model, guide, **options)
        assert (True, True, False) in seen
        assert not any(dropout for *_, dropout in seen)
        assert [m.training for m in (model, model.net, guide, guide.net[0], guide.net[1])] == [False] * 2 + [
            True,
            True,
            False,
        ]
        assert [p.requires_grad for p in model.parameters()] == [p is not model.net.weight for p in model.parameters()]
        assert all(p.grad is None for p in [*model.parameters(), *guide.parameters()] if p is not model.net.bias)
        assert (model.net.bias.grad == 7).all()
        assert (model.net.weight == frozen).all()


def importance(model, guide):
    return importance_bound(model, guide, *Plain()[0], particles=2).mean


def test_a_frozen_parameter_that_the_store_knows_already_stays_and_is_no_stranger():
    class Own(Guide):
        def __init__(self):
            super().__init__()
            self.shift = nn.Parameter(torch.zeros(()))

        def forward(self, x):
            super().forward(x + self.shift)

    model, guide = Model(), Own()
    Trace_ELBO().loss_and_grads(model, guide, *Plain()[0])  # Pyro's store knows it from here on
    guide.shift.requires_grad_(False)
    run(model, guide, steps=3, information_every=1)
    assert guide.shift == 0
    assert not guide.shift.requires_grad


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rate": -1.0}, "`learning_rate` must be finite and not negative; got -1"),
        ({"clip_norm": 0.0}, "`clip_norm` must be positive, or None to leave gradients as they are; got 0.0"),
        ({"seed": -1}, r"`seed` must lie in \[0, 2\*\*32\); got -1"),
        ({"seed": "0"}, "`seed` must be an integer; got '0'"),
        ({"objective": Trace_ELBO}, "`objective` must be an ELBO; got the class Trace_ELBO. Give an instance"),
        ({"schedule": torch.optim.lr_scheduler.StepLR}, r"`schedule` must be a function .*warm_cosine.*class StepLR"),
        ({"schedule": [1.0, 0.5]}, r"`schedule` must be a function .*got a list of 2"),
        ({"schedule": lambda step: float("nan")}, "`schedule` must give finite factors .*; got nan at step 0"),
        ({"evaluate": lambda step: 2.0}, r"`evaluate` must give a dict of numbers, .*; got 2\.0"),
    ],
)
@pytest.mark.unchecked
def test_settings_that_cannot_be_meant_are_refused(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        run(*pair(), **options)
