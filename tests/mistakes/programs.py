"""Mistakes in the programs that users write, and in how they hand them to an objective."""

import fits
import pyro
import pyro.distributions as dist
import torch
from mistakes.table import Mistakes
from pyro.infer import TraceEnum_ELBO
from pyro.nn import PyroModule
from torch import nn

from pyro_memory import (
    VIMCO,
    LeaveOneOutELBO,
    RaoBlackwellELBO,
    complete,
    fit,
    importance_bound,
    information_gain,
    memory_contribution,
)
from pyro_memory.naming import unique_name

X = torch.ones(4, 3)
mistakes = Mistakes()


class Program(PyroModule):
    def __init__(self, run):
        super().__init__(unique_name(self))
        self.net, self.run = nn.Linear(2, 3), run

    def forward(self, x):
        return self.run(self, x)


def normal(size, events=1):
    return dist.Normal(torch.zeros(size), 1.0).to_event(events)


def explained(module, x, plate="batch", events=1):
    with pyro.plate(plate, len(x)):
        z = pyro.sample("z", normal(2))
        pyro.sample("x", dist.Normal(module.net(z), 1.0).to_event(events), obs=x)


def model():
    return Program(explained)


def guided(module, x, plate="batch", site="z"):
    with pyro.plate(plate, len(x)):
        pyro.sample(site, dist.Normal(module.net.weight.sum(0), 1.0).to_event(1))


def guide():
    return Program(guided)


def train(model, guide, objective=None, args=(X,), **options):
    objective = objective or VIMCO(2)
    return fit(model, guide, [args], objective, **{"steps": 2, "progress": False, "information_every": None} | options)


@mistakes.told(r"plate.*`?(rows|batch)`?.*plate.*`?(rows|batch)`?")
def a_guide_whose_plate_has_another_name():
    train(model(), Program(lambda m, x: guided(m, x, plate="rows")))


@mistakes.told(r"`?pyro\.plate")
def no_plate_at_all():
    def without(module, x):
        z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(module.net(z), 1.0).to_event(1), obs=x)

    def without_either(module, x):
        pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))

    train(Program(without), Program(without_either))


@mistakes.told(r"`x`.*to_event")
def a_missing_to_event():
    train(Program(lambda m, x: explained(m, x, events=0)), guide())


@mistakes.told(r"`x`.*to_event")
def a_to_event_too_many():
    train(Program(lambda m, x: explained(m, x, events=2)), guide())


@mistakes.told(r"missing: z")
def a_guide_without_a_site():
    train(model(), Program(lambda m, x: None))


@mistakes.told(r"does not: y")
def a_guide_with_one_site_more():
    def more(module, x):
        with pyro.plate("batch", len(x)):
            pyro.sample("z", normal(2))
            pyro.sample("y", normal(2))

    train(model(), Program(more))


@mistakes.told(r"missing: z")
def a_guide_whose_site_has_another_name():
    train(model(), Program(lambda m, x: guided(m, x, site="z2")))


@mistakes.told(r"`guide`|`model`")
def model_and_guide_swapped():
    train(guide(), model())


@mistakes.told(r"`z`.*enumerate")
def a_continuous_site_marked_for_enumeration():
    def marked(module, x):
        with pyro.plate("batch", len(x)):
            pyro.sample("z", normal(2), infer={"enumerate": "parallel"})

    train(model(), Program(marked), TraceEnum_ELBO(max_plate_nesting=1))


@mistakes.told(r"`num_particles` must be at least 2.*one particle")
def one_particle_for_vimco():
    VIMCO(1)


@mistakes.told(r"`num_particles` must be at least 2")
def one_particle_for_leave_one_out():
    LeaveOneOutELBO(1)


@mistakes.told(r"`site`.*address|site `address`.*z")
def a_site_that_there_is_not():
    train(model(), guide(), RaoBlackwellELBO(2, site="address"))


@mistakes.told(r"`site` must be an observed site of the model.*y")
def a_site_to_complete_that_there_is_not():
    complete(model(), guide(), X, known=X > 0, sweeps=1, site="y")


@mistakes.told(r"`site` must be a latent site of the model, 'z'; got 'nosuch'")
def the_gain_of_a_site_that_there_is_not():
    information_gain(model(), guide(), X)["nosuch"]


@mistakes.told(r"names of their own.*`name=`")
def two_modules_of_one_name():
    for _ in range(2):
        fits.run(fits.Model(name="same"), fits.Guide(), steps=1)


@mistakes.told(r"`guide`")
def no_guide():
    importance_bound(model(), None, X)


@mistakes.told(r"`model`.*(\(\.\.\.\)|instance)")
def a_model_that_was_not_built():
    train(Program, guide())


@mistakes.told(r"`args` must give.*there are 2 of them")
def the_contribution_of_a_memory_that_the_model_does_not_take():
    memory_contribution(model(), guide(), X, torch.ones(3, 2))


@mistakes.told(r"`memory` must say which argument it is.*SlotMemory")
def the_contribution_of_a_memory_that_is_a_tensor():
    memory_contribution(model(), guide(), X)
