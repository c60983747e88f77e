"""A user's own model and guide keep the contract; broken in any one way, they fail and are told how."""

import copy

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from pyro.nn import PyroModule
from torch import nn

from pyro_memory import SlotMemory
from pyro_memory.naming import unique_name
from pyro_memory.testing.pairs import check_pair


class Curves(PyroModule):
    def __init__(self, name=None):
        super().__init__(name or unique_name(self))
        self.net = nn.Linear(4, 4)

    def read(self, memory, a):
        return memory[a]

    def shown(self, m, size):
        return self.net(m * (1 + size.unsqueeze(-1)))

    def forward(self, y, memory):
        with pyro.plate("batch", len(y)):
            a = pyro.sample("a", memory.prior())
            size = pyro.sample("size", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("y", dist.Normal(self.shown(self.read(memory, a), size), 1.0).to_event(1), obs=y)


class CurvesGuide(PyroModule):
    site, plate = "size", "batch"

    def __init__(self, name=None):
        super().__init__(name or unique_name(self))
        self.net = nn.Linear(4, 4)
        self.size = nn.Linear(8, 1)

    def logits(self, y, memory):
        return self.net(y) @ memory.values.T

    def forward(self, y, memory):
        with pyro.plate(self.plate, len(y)):
            a = pyro.sample("a", dist.Categorical(logits=self.logits(y, memory)), infer={"enumerate": "parallel"})
            loc = self.size(torch.cat(torch.broadcast_tensors(y, memory[a]), -1))
            pyro.sample(self.site, dist.Normal(loc.squeeze(-1), 0.5))


class Misnamed(CurvesGuide):
    site = "scale"


class OtherPlate(CurvesGuide):
    plate = "data"


class Frozen(CurvesGuide):
    def __init__(self):
        super().__init__()
        self.net.weight.requires_grad_(False)


class Idle(CurvesGuide):
    def __init__(self):
        super().__init__()
        self.idle = nn.Linear(2, 2)


class Detached(CurvesGuide):
    def logits(self, y, memory):
        return super().logits(y, memory).detach()


class KeepsGraph(CurvesGuide):
    def logits(self, y, memory):
        self.last = super().logits(y, memory)
        return self.last


class NotPyro(nn.Module):
    forward = CurvesGuide.forward


class Unpickled(Curves):
    def __init__(self):
        super().__init__()
        self.f = lambda m: m

    def read(self, memory, a):
        return self.f(memory[a])


class Unsaved(Curves):
    def __init__(self):
        super().__init__()
        self.offset = torch.randn(4)

    def read(self, memory, a):
        return memory[a] + self.offset


class Counts(Curves):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def read(self, memory, a):
        self.calls += 1
        return memory[a]


class SwitchesMode(Curves):
    def read(self, memory, a):
        self.net.train()
        return memory[a]


class Unfreezes(Curves):
    def read(self, memory, a):
        self.net.weight.requires_grad_(True)
        return memory[a]


class DrawsElsewhere(Curves):
    def read(self, memory, a):
        return memory[a] + 0.1 * np.random.normal()  # noqa: NPY002


class Drifts(Curves):
    drift = 0.0

    def read(self, memory, a):
        self.drift += 0.5
        return memory[a] + self.drift


class MixesParticles(Curves):
    def shown(self, m, size):
        return super().shown(m, size - 3 * size.mean(0))


class MisreadsEnumerated(Curves):
    def read(self, memory, a):
        return memory[a] if a.shape[-1:] == (5,) else 3 + memory[a]


def curves():
    torch.manual_seed(0)
    return torch.randn(5, 4), SlotMemory(torch.randn(3, 4))


BROKEN_PAIRS = {
    "a misnamed site": (Curves, Misnamed, "missing: `size`. It samples `scale` instead: use the model's site names"),
    "another plate": (Curves, OtherPlate, r"site `a` must lie in the same plates .* guide: \('data', -1, 5\)"),
    "a frozen parameter": (Curves, Frozen, "parameter `guide.net.weight` is frozen"),
    "an idle parameter": (Curves, Idle, "`guide.idle.weight`, `guide.idle.bias` did not move in 50 steps of an ELBO"),
    "a detached address": (Curves, Detached, "`guide.net.weight`, .* did not move .* the objective does not depend on"),
    "one name for two": (
        lambda: Curves("twin"), lambda: CurvesGuide("twin"), "`model.net.weight`.* of pyro.infer.SVI: .* name belongs"
    ),
    "one name for a class": (
        lambda: Curves("curves"), lambda: CurvesGuide("guide"), "SVI, the second pair of the process,: .* a unique name"
    ),
    "no PyroModule": (Curves, NotPyro, "the guide, a NotPyro, must be a PyroModule: SVI finds no parameter"),
    "what is not saved": (Unsaved, CurvesGuide, "restored from its state_dict must give the same loss"),
    "what cannot be pickled": (Unpickled, CurvesGuide, "the pair cannot be pickled: .* keep no lambda"),
    "a graph that is kept": (Curves, KeepsGraph, "after the guide ran, cannot be deepcopied"),
    "a state that is kept": (Drifts, CurvesGuide, "deepcopied must give the same loss under the same seed"),
    "a buffer that measuring changes": (Counts, CurvesGuide, "must leave the value of `model.calls` as it was"),
    "a mode that measuring changes": (SwitchesMode, CurvesGuide, "must leave the training mode of `model.net` as"),
    "a flag that measuring changes": (Unfreezes, CurvesGuide, "must leave requires_grad of `model.net.weight` as"),
    "another random stream": (DrawsElsewhere, CurvesGuide, "drew from Python's or NumPy's random stream"),
    "particles that are mixed": (MixesParticles, CurvesGuide, "a particle must weigh the same beside others as alone"),
    "enumerated values misread": (MisreadsEnumerated, CurvesGuide, "one particle by TraceEnum_ELBO must be that of"),
}  # fmt: skip


def test_a_user_s_pair_keeps_its_contract_and_stays_as_it_was():
    pair, args = (Curves(), CurvesGuide()), curves()
    before, random = copy.deepcopy([m.state_dict() for m in pair]), torch.random.get_rng_state()
    check_pair(*pair, *args)
    check_pair(*pair, *args, make=lambda: (Curves(), CurvesGuide()))
    assert torch.equal(torch.random.get_rng_state(), random)
    assert not list(pyro.get_param_store().keys())
    for module, state in zip(pair, before, strict=True):
        assert all(torch.equal(t, state[n]) for n, t in module.state_dict().items())


@pytest.mark.parametrize("how", BROKEN_PAIRS)
def test_a_broken_pair_is_told_what_is_wrong(how):
    model, guide, message = BROKEN_PAIRS[how]
    with pytest.raises(AssertionError, match=message):
        check_pair(model(), guide(), *curves(), make=lambda: (model(), guide()))


def test_too_many_values_to_enumerate_are_refused():
    y, _ = curves()
    with pytest.raises(ValueError, match=r"more than 64 joint values, 70 at each of 1 places of `a`\. Give a smaller"):
        check_pair(Curves(), CurvesGuide(), y, SlotMemory(torch.randn(70, 4)))


class Level(PyroModule):
    """One latent for all data."""

    def __init__(self):
        super().__init__(unique_name(self))
        self.scale = nn.Parameter(torch.zeros(()))

    def forward(self, y, memory):
        level = pyro.sample("level", dist.Normal(torch.zeros(4), 1.0).to_event(1))
        with pyro.plate("batch", len(y)):
            pyro.sample("y", dist.Normal(level, self.scale.exp()).to_event(1), obs=y)


class LevelGuide(PyroModule):
    def __init__(self):
        super().__init__(unique_name(self))
        self.loc = nn.Parameter(torch.zeros(4))

    def forward(self, y, memory):
        pyro.sample("level", dist.Normal(self.loc, 0.3).to_event(1))


def test_a_pair_of_global_latents_says_that_it_has_no_weight_per_datum():
    make = lambda: (Level(), LevelGuide())  # noqa: E731
    check_pair(*make(), *curves(), make=make, objective=Trace_ELBO(), per_datum=False)
    with pytest.raises(ValueError, match="`per_datum` must be False for a pair with global latents, level"):
        check_pair(*make(), *curves(), make=make, objective=Trace_ELBO())
