"""How a pair was built: what a record keeps, what JSON tells of it, what is made of that."""

import copy
import gc
import json
import pickle
import random
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from rebuilt_pairs import DENSE, SHAPE
from torch import nn
from torch.nn import functional
from torch.testing import assert_close

from pyro_memory import ContentAddress, NearestAddress, TemplateMemory, rebuildable
from pyro_memory.building import apart, make, recorded_build
from pyro_memory.gate import CLASSES, construction
from pyro_memory.gate.recording import LARGEST, PLACE
from pyro_memory.guides import EmptyGuide, VAEGuide, VMAGuide
from pyro_memory.models import VAE, VMA, LSTMMixer, SequenceModel, TitansLMM
from pyro_memory.nets import Embedding

pytestmark = pytest.mark.unchecked


@rebuildable
class Holder(nn.Module):
    """Stands for a user's class: takes anything, keeps what it was given, has weights of its own."""

    def __init__(self, *parts, given=None, name=None, size=2, **more):
        super().__init__()
        self.parts = nn.ModuleList(p for p in parts if isinstance(p, nn.Module))
        self.given, self.more = given, more
        self.weight = nn.Parameter(torch.randn(size))

    @classmethod
    def wide(cls, size=9):
        return cls(size=size)


@rebuildable
class Larger(VAE):
    """A user's subclass of a model, with an argument of its own."""

    def __init__(self, latent_dim, likelihood, *, extra=1):
        super().__init__(latent_dim, likelihood, name=f"larger{extra}")
        self.extra = nn.Linear(extra, 1)


def again(model, guide=None):
    """The pair made of what JSON tells, its weights those of constructors."""
    told = recorded_build(model, EmptyGuide() if guide is None else guide)
    made = make(json.loads(json.dumps(told.build)), told.tensors, told.own)
    return made["model"] if guide is None else (made["model"], made["guide"])


def told_of(model, guide=None):
    return recorded_build(model, EmptyGuide() if guide is None else guide).build


class OfTorch:
    """Modules of torch's, each with an option that is not the default."""

    MODULES = (
        lambda: nn.Linear(3, 4, bias=False),
        lambda: nn.Conv2d(2, 4, (3, 5), stride=2, padding=1, dilation=(1, 2), groups=2, bias=False),
        lambda: nn.Conv1d(2, 4, 3, padding="same", padding_mode="circular"),
        lambda: nn.ConvTranspose2d(2, 4, 3, stride=2, output_padding=1),
        lambda: nn.Embedding(5, 3, padding_idx=1, max_norm=2.0),
        lambda: nn.LayerNorm([2, 3], eps=1e-3, elementwise_affine=False),
        lambda: nn.GroupNorm(2, 4, affine=False),
        lambda: nn.BatchNorm1d(3, momentum=0.3, track_running_stats=False),
        lambda: nn.RMSNorm(3, eps=1e-4),
        lambda: nn.Sequential(nn.Flatten(2), nn.Unflatten(1, (1, 2)), nn.Dropout(0.3), nn.Upsample(scale_factor=2)),
        lambda: nn.Sequential(nn.Sequential(nn.ReLU(inplace=True)), nn.LeakyReLU(0.3), nn.GELU("tanh"), nn.ELU(0.5)),
        lambda: nn.Sequential(nn.Softplus(2.0), nn.SiLU(), nn.Hardtanh(-2.0, 2.0)),
        lambda: nn.ModuleList([nn.Identity(), nn.Tanh()]),
        lambda: nn.ModuleDict({"one": nn.Sigmoid(), "two": nn.Softmax(-1)}),
        lambda: nn.LSTM(3, 4, num_layers=2, batch_first=True, bidirectional=True, bias=False),
        lambda: nn.GRU(3, 4, dropout=0.0),
        lambda: nn.MultiheadAttention(4, 2, batch_first=True, kdim=3, vdim=3),
        lambda: nn.Bilinear(2, 3, 4, bias=False),
        lambda: nn.PReLU(3, init=0.1),
        lambda: pyro.nn.PyroModule[nn.Sequential](pyro.nn.PyroModule[nn.Linear](3, 4, bias=False), nn.ReLU()),
    )  # fmt: skip


@pytest.mark.parametrize("number", range(len(OfTorch.MODULES)))
def test_a_module_of_torch_is_read_off_its_attributes(number):
    module = OfTorch.MODULES[number]()
    new = again(Holder(module)).parts[0]
    assert type(new) is type(module)
    assert repr(new) == repr(module)
    assert {k: t.shape for k, t in new.state_dict().items()} == {k: t.shape for k, t in module.state_dict().items()}


def test_a_sequence_keeps_the_names_of_its_parts():
    from collections import OrderedDict

    named = nn.Sequential(OrderedDict(first=nn.Linear(2, 3), last=nn.ReLU()))
    assert repr(again(Holder(named)).parts[0]) == repr(named)


VALUES = {
    "plain": {"a": [1, 2.5, None, True, "x"], "b": (1, (2, 3)), "c": {"d": ()}},
    "torch's": [torch.float64, torch.Size([2, 3]), torch.tanh, functional.relu, functional.gelu, nn.ReLU],
    "classes": [VAE, Holder],
    "mapping of one": {"tuple": {"build": 1}},
}


@pytest.mark.parametrize("name", VALUES)
def test_an_argument_comes_back_as_it_was(name):
    assert again(Holder(given=VALUES[name])).given == VALUES[name]


def test_a_partial_makes_what_it_made():
    given = again(Holder(given=partial(Holder, nn.ReLU, size=3)))
    made = given.given()
    assert made.weight.shape == (3,)
    assert again(Holder(given=partial(Holder.wide, 4))).given().weight.shape == (4,)


def test_numbers_and_arrays_of_numpy_are_plain_numbers_and_tensors():
    new = again(Holder(given=[np.float64(0.5), np.int64(3), np.arange(3)]))
    assert new.given[:2] == [0.5, 3]
    assert_close(new.given[2], torch.arange(3))


def test_a_tensor_is_copied_when_given_and_a_parameter_stays_one():
    tensor, parameter = torch.rand(3), nn.Parameter(torch.rand(2))
    holder = Holder(given=[tensor, parameter])
    expected = tensor.clone()
    tensor.zero_()
    holder.given = [expected, parameter]
    new = again(holder)
    assert_close(new.given[0], expected)
    assert isinstance(new.given[1], nn.Parameter)
    assert_close(new.given[1], parameter)


def test_a_large_tensor_is_kept_where_the_module_has_it_and_nowhere_else():
    large = torch.rand(LARGEST // 4 + 1)
    kept = Holder(given=large)
    assert sum(len(pickle.dumps(v)) for v in vars(kept).values() if isinstance(v, torch.Tensor)) > LARGEST
    assert large.shape == again(kept).given.shape
    assert len(pickle.dumps(vars(kept)[PLACE])) < 1000
    with pytest.raises(ValueError, match=r"`given` of `model` is a float32 tensor of shape \[262145\], too large"):
        told_of(Holder(given=[large.clone()]))
    templates = TemplateMemory(600, (1, 28, 28), init=torch.rand(600, 1, 28, 28))
    assert len(pickle.dumps(vars(templates)[PLACE])) < 1000
    assert_close(again(templates).values, templates.values)


def test_the_outermost_constructor_stays():
    assert told_of(VMA.mlp(**DENSE))["model"][0] == "VMA.mlp"
    assert told_of(Holder.wide(4))["model"] == ["own.Holder.wide", {"size": 4}]
    wider = rebuildable(type("Wider", (Holder,), {})).wide(4)  # a class method that its base's decorator has recorded
    assert told_of(wider)["model"] == ["own.Wider.wide", {"size": 4}]
    larger = told_of(Larger(3, VAE.mlp(**DENSE).likelihood, extra=2))["model"]
    assert (larger[0], larger[1]["extra"]) == ("own.Larger", 2)
    assert larger[1]["likelihood"]["build"][0] == "BernoulliImage"


def test_one_part_in_two_places_is_built_once():
    net = nn.Linear(2, 2)
    inner = Holder(net, nn.Sequential(net))
    model, guide = again(Holder(inner, net), Holder(inner, nn.ReLU()))
    assert model.parts[0] is guide.parts[0]
    assert model.parts[1] is model.parts[0].parts[0] is model.parts[0].parts[1][0]
    whole = Holder(net)
    one, two = again(whole, whole)
    assert one is two


def test_a_guide_may_have_a_part_that_the_model_made_itself():
    model = VMA.mlp(**DENSE)
    guide = VMAGuide(ContentAddress(Embedding(model.content, 4)), VMAGuide.mlp(**DENSE).encoder)
    told = told_of(model, guide)
    assert {"part": "content"} in told["guide"][1]["address"]["build"][1]["query"]["build"][1].values()
    model, guide = again(model, guide)
    assert guide.address.query.features is model.content


def test_a_part_put_into_the_place_of_an_argument_is_told_as_it_is_now():
    guide = VMAGuide(ContentAddress(nn.Flatten(-3)), VMAGuide.mlp(**DENSE).encoder)
    guide.address = NearestAddress(guide.address, 2)
    assert told_of(VMA.mlp(**DENSE), guide)["guide"][1]["address"]["build"][0] == "NearestAddress"


def test_a_copy_and_a_pickle_know_it_too():
    model = SequenceModel.tokens(7, partial(TitansLMM, heads=2), dim=8)
    told = told_of(model)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert told_of(other) == told
        assert other.blocks[0] is not model.blocks[0]
    loose = SequenceModel.tokens(7, lambda dim: LSTMMixer(dim), dim=8)
    assert repr(pickle.loads(pickle.dumps(loose))) == repr(loose)


def test_random_streams_stay_as_they_are():
    model, guide = VMA.mlp(**DENSE), VMAGuide.mlp(**DENSE)
    torch.manual_seed(1), random.seed(1), np.random.seed(1)  # noqa: NPY002
    before = pyro.util.get_rng_state()
    again(model, guide)
    after = pyro.util.get_rng_state()
    assert torch.equal(before["torch"], after["torch"])
    assert before["random"] == after["random"]
    assert (before["numpy"][1] == after["numpy"][1]).all()


@rebuildable
class Usual(pyro.nn.PyroModule):
    """A user's class with a name of its own, and a part whose parameters are called by it."""

    def __init__(self, name="usual", sampled=False):
        super().__init__(name)
        self.inner = pyro.nn.PyroModule[nn.Linear](2, 2)
        if sampled:
            self.w = pyro.nn.PyroSample(dist.Normal(0.0, 1.0))


def loaded(module):
    return apart(nn.ModuleDict({"model": again(module)}))["model"]


def test_a_usual_name_is_used_once_too_and_is_free_when_its_module_is_gone():
    first = Usual()
    others = [loaded(first), loaded(first)]
    names = [m._pyro_name for m in (first, *others)]
    assert names[0] == "usual"
    assert len(set(names)) == 3
    assert [m.inner._pyro_name for m in others] == [f"{name}.inner" for name in names[1:]]
    del first, others
    gc.collect()
    copied = copy.deepcopy(Usual())
    assert loaded(copied)._pyro_name == "usual"
    pyro.param("usual.inner.weight", torch.zeros(2))
    assert loaded(copied)._pyro_name != "usual"


def test_a_name_that_sites_are_called_by_stays_and_a_warning_tells_of_the_store():
    first = Usual("lines", sampled=True)
    with pytest.warns(UserWarning, match=r"`lines` is the name of another module.*Call pyro\.clear_param_store\(\)"):
        assert loaded(first)._pyro_name == "lines"


def test_a_model_still_compiles_whole():
    model = SequenceModel.tokens(7, LSTMMixer, dim=8)
    x = torch.randint(7, (2, 5))
    compiled = torch.compile(model.embedding, backend="eager", fullgraph=True)
    assert_close(compiled(x), model.embedding(x))

    def build_and_use(x):
        return nn.functional.relu(x)

    assert_close(torch.compile(build_and_use, backend="eager")(torch.ones(2)), torch.ones(2))
    made = torch.compile(lambda x: Holder(size=3).weight.sum() * 0 + x, backend="eager")(torch.ones(2))
    assert_close(made, torch.ones(2))


def test_a_name_stands_for_one_class_of_the_package():
    """Two classes of one name would be one in the table of names."""
    from pyro_memory import addressing, distributions, guides, models, nets, recall, stores

    for room in (addressing, distributions, guides, models, nets, recall, stores):
        for name in room.__all__:
            thing = getattr(room, name)
            if isinstance(thing, type) and issubclass(thing, nn.Module):
                assert CLASSES[name] is thing


def test_every_module_in_a_pair_has_a_record_or_is_its_makers():
    model = VAE.mlp(**DENSE)
    assert construction(model.likelihood).arguments["decoder"].path == "decoder"
    assert construction(nn.Linear(2, 2)) is None
    assert construction(VAEGuide.mlp(SHAPE, 2, (4,))).method == "mlp"


def test_a_recorded_class_method_is_still_looked_at_by_the_gate():
    with pytest.raises(TypeError, match="`tied` must be True or False; got 'x'"):
        VMA.convolutional(SHAPE, 3, (4, 5), tied="x")
