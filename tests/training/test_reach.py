"""What takes part in a loss and would not move is refused at the first step."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from fits import Guide, Model, Plain, pair, run, weights
from pyro.infer import (
    RenyiELBO,
    ReweightedWakeSleep,
    Trace_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
)
from torch import nn

from pyro_memory import VIMCO, LeaveOneOutELBO, SlotMemory
from pyro_memory.training.reach import backward_watched, leaves, named

OBJECTIVES = [
    Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO, RenyiELBO, ReweightedWakeSleep,
    partial(VIMCO, 2), partial(LeaveOneOutELBO, 2), partial(Trace_ELBO, 2, vectorize_particles=True),
]  # fmt: skip


class Listed(Model):
    """Keeps a layer where torch does not look."""

    def __init__(self):
        super().__init__()
        self.layers = [nn.Linear(2, 2)]

    def forward(self, x):
        with pyro.plate("batch", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            mean = self.net(self.layers[0](z))
            pyro.sample("x", dist.Normal(mean, self.scale).to_event(1), obs=x)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_layer_in_a_plain_list_is_named_whatever_the_objective(objective):
    model, guide = Listed(), Guide()
    before = weights(model, guide)
    with pytest.raises(ValueError, match=r"model\.layers\[0\]\.bias \(a parameter float32\[2\]\).*nn\.ModuleList"):
        run(model, guide, objective=objective(max_plate_nesting=1))
    assert all((a == b).all() for a, b in zip(weights(model, guide), before, strict=True))
    assert model.layers[0].weight.grad is None


def test_an_encoder_that_makes_slots_is_named_by_where_it_is_held():
    encoder = nn.Linear(3, 3)

    class Reads(Guide):
        def forward(self, x, memory):
            super().forward(x + memory.values.mean(0))

    model, plain = Model(), Model.forward
    model.forward = lambda x, memory: plain(model, x)
    with pytest.raises(ValueError, match=r"encoder\.weight \(a parameter float32\[3, 3\]\)"):
        run(model, Reads(), batches=lambda step: (Plain()[step][0], SlotMemory(encoder(torch.eye(3)))))
    slots = nn.Parameter(torch.eye(3))
    with pytest.raises(ValueError, match=r"argument 1\.values holds a parameter float32\[3, 3\]"):
        run(model, Reads(), batches=lambda step: (Plain()[step][0], SlotMemory(slots)))
    encoder.requires_grad_(False)
    run(model, Reads(), steps=1, batches=lambda step: (Plain()[step][0], SlotMemory(encoder(torch.eye(3)))))


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_without_gradients_nothing_starts(context):
    with context(), pytest.raises(ValueError, match=r"gradients are on; it is inside torch\.no_grad"):
        run(*pair())


def test_a_pair_that_is_all_frozen_is_refused():
    model, guide = pair()
    model.requires_grad_(False), guide.requires_grad_(False)
    with pytest.raises(ValueError, match=r"all are frozen. Call `requires_grad_\(True\)`"):
        run(model, guide)


def test_a_loss_without_a_gradient_is_refused():
    class Detached(Trace_ELBO):
        @torch.no_grad()
        def loss_and_grads(self, *args, **kwargs):
            return super().loss_and_grads(*args, **kwargs)

    with pytest.raises(ValueError, match=r"`objective` must give a gradient .*reaches none.*PyroModule"):
        run(*pair(), objective=Detached())


def test_a_baseline_that_pyro_moves_itself_is_no_stranger():
    class Discrete(Model):
        def forward(self, x):
            with pyro.plate("batch", len(x)):
                a = pyro.sample("a", dist.Bernoulli(torch.tensor(0.5)))
                pyro.sample("x", dist.Normal(self.net(torch.stack([a, a], -1)), self.scale).to_event(1), obs=x)

    class Baseline(Guide):
        def forward(self, x):
            with pyro.plate("batch", len(x)):
                logits = self.net(x)[:, 0] * self.width
                infer = {"baseline": {"use_decaying_avg_baseline": True}}
                pyro.sample("a", dist.Bernoulli(logits=logits), infer=infer)

    run(Discrete(), Baseline(), steps=2, objective=TraceGraph_ELBO(max_plate_nesting=1))


def test_leaves_are_those_that_get_a_gradient():
    a, b, c = (nn.Parameter(torch.ones(2)) for _ in range(3))
    with torch.no_grad():
        hidden = 2 * c
    assert {id(t) for t in leaves([(a * b + hidden).sum(), a])} == {id(a), id(b)}
    assert leaves([hidden]) == []


def test_only_the_watched_passes_are_seen_and_torch_is_as_before():
    plain, seen = torch.autograd.backward, []
    x = nn.Parameter(torch.ones(()))
    with backward_watched(seen.extend):
        x.backward()
    (2 * x).backward()
    assert len(seen) == 1
    assert seen[0] is x
    assert torch.autograd.backward is plain


def test_a_name_is_found_in_closures_globals_partials_and_methods():
    tensors = [torch.zeros(1) for _ in range(4)]

    class Source:
        kept = None

        def __init__(self):
            self.kept = {"b": [tensors[1]]}

        def at(self, step):
            pass

    inner = tensors[0]
    places = {
        "batches": lambda step: inner,
        "method": Source().at,
        "part": partial(print, tensors[2]),
    }
    assert named({id(t): t for t in tensors}, places) == {
        id(tensors[0]): "inner",
        id(tensors[1]): "method.kept['b'][0]",
        id(tensors[2]): "part[0]",
    }
