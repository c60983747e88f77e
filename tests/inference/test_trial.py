"""A pair's first pass tells which site, plate or argument does not fit; Pyro's own objectives are told as ours are."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceEnum_ELBO
from pyro.infer.autoguide import AutoDelta, AutoMultivariateNormal, AutoNormal
from pyro.nn import PyroModule
from torch import nn

from pyro_memory import VIMCO, LeaveOneOutELBO, complete, fit, importance_bound, information_gain, token_surprise
from pyro_memory.distributions import StreamedCategorical
from pyro_memory.naming import unique_name

X = torch.ones(4, 3)
OBJECTIVES = {
    "VIMCO": lambda **o: VIMCO(2, **o),
    "leave one out": lambda **o: LeaveOneOutELBO(2, **o),
    "Trace_ELBO": lambda **o: Trace_ELBO(**o),
    "Trace_ELBO at once": lambda **o: Trace_ELBO(2, vectorize_particles=True, **o),
    "TraceEnum_ELBO": lambda **o: TraceEnum_ELBO(**o),
}
pytestmark = pytest.mark.unchecked


class Program(PyroModule):
    def __init__(self, run):
        super().__init__(unique_name(self))
        self.net, self.run = nn.Linear(2, 3), run

    def forward(self, x):
        return self.run(self, x)


def explained(module, x, plate="batch", events=1, cells=None):
    with pyro.plate(plate, cells or len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(module.net(z), 1.0).to_event(events), obs=x)


def guided(module, x, plate="batch", size=2, cells=None):
    with pyro.plate(plate, cells or len(x)):
        loc = module.net.weight.sum() * torch.ones(size)
        pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))


def model(**options):
    return Program(lambda m, x: explained(m, x, **options))


def guide(**options):
    return Program(lambda m, x: guided(m, x, **options))


def train(model, guide, objective=None, args=(X,)):
    return fit(model, guide, [args], objective or Trace_ELBO(), steps=2, progress=False, information_every=None)


def flat(module, x):
    with pyro.plate("batch", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(module.net(z).reshape(-1, 3), 1.0).to_event(1), obs=x)


def unplated(module, x):
    loc = module.net.weight.sum() * torch.ones(len(x), 2)
    pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))


def summed(module, x):
    with pyro.plate("batch", len(x)):
        a = pyro.sample("a", dist.Categorical(torch.ones(5)), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(module.net.bias + a.unsqueeze(-1), 1.0).to_event(1), obs=x)


def addressed(fn, events=0):
    def run(module, x):
        with pyro.plate("batch", len(x)):
            pyro.sample("z", fn(module).to_event(events), infer={"enumerate": "parallel"})

    return Program(run)


WRONG = {
    "a missing to_event": (
        lambda: (model(events=0), guide()),
        r'site `x` must fit.*\[4, 3\] and event shape \[\], and plate "batch" wants 4 at dim -1.*: \.to_event\(1\)',
    ),
    "a to_event too many": (
        lambda: (model(events=2), guide()),
        r'site `x` must be one of the 4 data.*"batch".*\[4, 3\].*counts them 4 times.*smaller: \.to_event\(1\)',
    ),
    "a plate of other names": (
        lambda: (model(), guide(plate="rows")),
        r'`z` lies in plate `batch` of the model.*another name, `rows`.*Rename.*pyro\.plate\("batch", \.\.\.\)',
    ),
    "no plate in the guide": (
        lambda: (model(), Program(unplated)), r'site `z` must lie in plates.*\[4\].*pyro\.plate\("batch", len\(x\)\)',
    ),
    "a latent of another size": (
        lambda: (model(), guide(size=5)), r"site `z` must have one event shape.*\[2\] and \[5\].*\.to_event\(n\)",
    ),
    "a guide without sites": (
        lambda: (model(), Program(lambda m, x: None)), r"`guide` must sample every latent.*missing: z\. Sample each",
    ),
    "programs swapped": (lambda: (guide(), model()), r"`model` must be what observes.*the guide x.*swapped\?"),
}  # fmt: skip


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("wrong", WRONG)
def test_a_pair_that_does_not_fit_is_told_whatever_the_objective(wrong, objective):
    make, message = WRONG[wrong]
    with pytest.raises(ValueError, match=f"(?s){message}"):
        train(*make(), OBJECTIVES[objective]())


@pytest.mark.parametrize("wrong", WRONG)
def test_and_whatever_measures_it(wrong):
    make, message = WRONG[wrong]
    for measure in (importance_bound, information_gain, lambda *pair: complete(*pair, sweeps=1)):
        with pytest.raises(ValueError, match=f"(?s){message}"):
            measure(*make(), X)


@pytest.mark.filterwarnings("ignore:TraceEnum_ELBO found no sample sites")
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_pairs_that_fit_train(objective):
    assert train(model(), guide(), OBJECTIVES[objective]()).steps == 2


@pytest.mark.parametrize("kind", [AutoNormal, AutoDelta, AutoMultivariateNormal])
def test_automatic_guides_fit(kind):
    pyro.clear_param_store()
    program = model()
    assert train(program, kind(program)).steps == 2


@pytest.mark.parametrize("objective", ["VIMCO", "leave one out", "Trace_ELBO at once"])
def test_particles_that_a_model_lays_flat_are_told(objective):
    with pytest.raises(ValueError, match=r"(?s)site `x`.*\[8\].*in one pass.*flatten\(-2\).*vectorize_particles=False"):
        train(Program(flat), guide(), OBJECTIVES[objective]())
    assert train(Program(flat), guide()).steps == 2


def test_particles_that_a_users_code_cannot_take_are_noted():
    def viewed(module, x):
        with pyro.plate("batch", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(module.net(z.view(len(x), 2)), 1.0).to_event(1), obs=x)

    with pytest.raises(RuntimeError, match="invalid for input of size 16") as caught:
        train(Program(viewed), guide(), VIMCO(2))
    assert "It may be the particles" in caught.value.__notes__[0]
    assert "vectorize_particles=False" in caught.value.__notes__[0]
    assert train(Program(viewed), guide(), VIMCO(2, vectorize_particles=False)).steps == 2


def test_values_without_a_probability_are_told():
    def coloured(module, x):
        with pyro.plate("batch", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=module.net(z)).to_event(1), obs=255 * x)

    with pytest.raises(ValueError, match=r"`x` has no log-prob.*\[4, 3\] from 255 to 255.*Bernoulli.*Boolean.*within"):
        train(Program(coloured), guide())
    with pytest.raises(ValueError, match=r"`x` has no log-prob.*shape \[4, 3\].*batch shape \[5\].*size of the data"):
        train(model(cells=5), guide(cells=5))


@pytest.mark.parametrize("objective", ["VIMCO", "Trace_ELBO at once", "TraceEnum_ELBO"])
def test_too_shallow_a_nesting_is_told(objective):
    with pytest.raises(ValueError, match='`max_plate_nesting` must be at least 1, where plate "batch" lies; got 0'):
        train(model(), guide(), OBJECTIVES[objective](max_plate_nesting=0))
    with pytest.raises(ValueError, match="`max_plate_nesting` must be at least 1"):
        importance_bound(model(), guide(), X, particles=3, max_plate_nesting=0)


def test_a_site_that_cannot_be_summed_is_told_where_an_objective_sums():
    marked = addressed(lambda m: dist.Normal(m.net.bias[:2], 1.0), 1)
    with pytest.raises(ValueError, match=r'`z` is marked infer=\{"enumerate": \.\.\.\}.*no list of values.*Take the'):
        train(model(), marked, TraceEnum_ELBO())
    assert train(model(), marked, VIMCO(2)).steps == 2

    def counted(module, x):
        with pyro.plate("batch", len(x)):
            z = pyro.sample("z", dist.Categorical(torch.ones(6)))
            pyro.sample("x", dist.Normal(module.net.bias + z.unsqueeze(-1), 1.0).to_event(1), obs=x)

    streamed = addressed(lambda m: StreamedCategorical(m.net.weight[:1].expand(4, 2), m.net.weight[:, :2].repeat(2, 1)))
    with pytest.raises(NotImplementedError, match="StreamedCategorical over 6 slots has no parallel enumeration"):
        train(Program(counted), streamed, TraceEnum_ELBO())


@pytest.mark.filterwarnings("ignore:Found vars in model but not guide")
def test_a_site_that_the_model_sums_needs_no_guide():
    empty = Program(lambda m, x: None)
    assert train(Program(summed), empty, TraceEnum_ELBO()).steps == 2
    assert train(Program(summed), empty, VIMCO(2)).steps == 2


def test_arguments_that_a_program_does_not_take_are_told():
    with pytest.raises(TypeError, match=r"`batches` must give.*the model is Program\(x\), and there are 2 of them"):
        train(model(), guide(), args=(X, X))
    with pytest.raises(TypeError, match=r"`batches` must give.*0 of them \(missing a required argument: 'x'\)"):
        train(model(), guide(), args=())

    def short():
        pass

    with pytest.raises(TypeError, match=r"the guide is short\(\), and there are 1 of them"):
        train(model(), short)
    for measure in (
        importance_bound,
        information_gain,
        lambda p, q, *args, **o: token_surprise(p, *args, guide=q, **o),
    ):
        with pytest.raises(TypeError, match=r"`args` must give.*Program\(x\).*1 of them and memory"):
            measure(model(), guide(), X, memory=None)
