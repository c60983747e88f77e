"""What cannot be told or built, and in which words; what a file cannot make happen."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from rebuilt_pairs import DENSE
from torch import nn

from pyro_memory import NearestAddress, load, rebuildable, save
from pyro_memory.building import make, recorded_build
from pyro_memory.guides import EmptyGuide, VMAGuide
from pyro_memory.models import VAE, LSTMMixer, SequenceModel
from pyro_memory.training import save_checkpoint
from pyro_memory.training.seal import load_file, save_file
from pyro_memory.training.summary import HEADER

pytestmark = pytest.mark.unchecked


@rebuildable
class Box(nn.Module):
    def __init__(self, given=None, part=None):
        super().__init__()
        self.given, self.part = given, part
        self.weight = nn.Parameter(torch.zeros(2))


class Bare(nn.Module):
    pass


class Undecorated(VAE):
    pass


class Mixin:
    """As of a library that reads its own files."""

    @classmethod
    def read(cls, given=None):
        raise AssertionError("called")


@rebuildable
class Mixed(Mixin, Box):
    pass


@rebuildable
class Kept(pyro.nn.PyroModule):
    """Attributes that are neither weights nor plain, and a default of the class."""

    scale = 1.0

    def __init__(self, random=False):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))
        self.mean, self.sizes, self.sides, self.options = torch.zeros(2), [1, 2], (1, {"a": 2}), {"a": [1, self.weight]}
        self.order = torch.randperm(50) if random is True else None
        self.hidden = [nn.Linear(2, 2)] if random == "hidden" else ()
        self._private = 1.0
        self.act = nn.functional.relu
        self.prior = pyro.nn.PyroSample(dist.Independent(dist.Normal(torch.zeros(2), 1.0), 1))
        self.drawn = pyro.nn.PyroSample(lambda self: dist.Normal(self.scale, 1.0))
        self.share = pyro.nn.PyroParam(torch.tensor(0.5), dist.constraints.unit_interval)
        self.register_buffer("mask", torch.ones(3), persistent=False)

    def forward(self):
        return self.prior, self.drawn, self.share


def changed(change):
    def build():
        kept = Kept()
        change(kept)
        return kept

    return build


@rebuildable
class Parametrised(nn.Module):
    """Makes its weight when it is called, as lazy modules do."""

    def forward(self):
        self.weight = nn.Parameter(torch.zeros(3))
        return self


def undecorated():
    return Undecorated(3, VAE.mlp(**DENSE).likelihood)


def replaced():
    guide = VMAGuide.mlp(**DENSE)
    guide.address = NearestAddress(guide.address, 2)
    return guide


def unnamed(**more):
    class Twin(Box):
        pass

    rebuildable(Twin)
    return Twin(**more)


def hooked():
    box = Box()
    box.register_forward_hook(lambda *args: None)
    return box


def normed():
    return Box(part=nn.utils.parametrizations.spectral_norm(nn.Linear(2, 2)))


def resized():
    model = VAE.mlp(**DENSE)
    model.likelihood.decoder.extra = nn.Parameter(torch.zeros(2))
    return model


def tied():
    box = Box(part=nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))
    box.part[1].weight = box.part[0].weight
    return box


REFUSED = {
    "a class without a record": (Bare, "`model`: the class Bare leaves no record"),
    "a subclass without a record": (undecorated, r"leaves no record .*: put @pyro_memory\.rebuildable above it"),
    "a lambda": (lambda: Box(lambda x: x), "`given` of `model` is the function <lambda>, which no file can tell: give"),
    "a lambda inside": (lambda: Box([{"a": lambda x: x}]), "`given` of `model` is the function <lambda>"),
    "a class of Python's": (lambda: Box(object), "`given` of `model`: the class object leaves no record"),
    "a function": (lambda: Box(undecorated), "`given` of `model`: the function undecorated is no class"),
    "an object": (lambda: Box(object()), "`given` of `model` is a object, which no file can tell"),
    "a torch function on files": (lambda: Box(torch.load), "the function load is no class"),
    "a part without a record": (lambda: Box(part=Bare()), "`part` of `model`: the class Bare leaves no record"),
    "a part that is none": (lambda: Box([nn.Linear(2, 2)]), "is a Linear that is no part of it"),
    "a lambda for a mixer": (
        lambda: SequenceModel.tokens(7, lambda dim: LSTMMixer(dim), dim=8),
        "`mixer` of `model` is the function <lambda>",
    ),
    "a part replaced": (replaced, r"model\.address is a NearestAddress, and a ContentAddress where it is built again"),
    "a weight made later": (lambda: Parametrised()(), r"the weight model\.weight is .*, and not there where"),
    "a weight more": (resized, r"the weight model\.likelihood\.decoder\.extra is .*, and not there where"),
    "a hook": (hooked, "the number of hooks in model is 1, and 0 where it is built again: it was changed after"),
    "a parametrised weight": (normed, "`part` of `model`: the class ParametrizedLinear leaves no record"),
    "what torch.compile made": (
        lambda: torch.compile(Box()), r"`model` is what torch\.compile made: save the module that it was given",
    ),
    "tied weights": (tied, r"model\.part\.1\.weight is the parameter model\.part\.0\.weight"),
    "a tensor changed": (changed(lambda m: m.mean.add_(1)), r"model\.mean is a float32 tensor of shape \[2\] with"),
    "a list longer": (changed(lambda m: m.sizes.append(7)), r"model\.sizes is list\(1, 2, 7\), and list\(1, 2\)"),
    "a tuple changed": (changed(lambda m: m.sides[1].update(a=3)), r"model\.sides is tuple\(1, dict\('a': 3\)\), and"),
    "a dict changed": (changed(lambda m: m.options["a"].pop()), r"model\.options is dict\('a': list\(1\)\), and dict"),
    "a private number": (changed(lambda m: setattr(m, "_private", 4.0)), r"model\._private is 4\.0, and 1\.0 where"),
    "an attribute more": (changed(lambda m: setattr(m, "extra", 3.0)), r"model\.extra is 3\.0, and not there where it"),
    "an attribute less": (changed(lambda m: delattr(m, "sizes")), r"model\.sizes is not there, and list\(1, 2\) where"),
    "a number for a list": (changed(lambda m: setattr(m, "sizes", 3)), r"model\.sizes is 3, and list\(1, 2\) where"),
    "another function": (changed(lambda m: setattr(m, "act", torch.tanh)), r"model\.act is .*, and <code object relu"),
    "another prior": (
        changed(lambda m: m._pyro_samples.update(prior=dist.Normal(torch.zeros(2), 9.0).to_event(1))),
        r"model\._pyro_samples is .*float32 tensor of shape \[2\].*, and .* where it is built again",
    ),
    "another drawn prior": (
        changed(lambda m: setattr(m, "drawn", pyro.nn.PyroSample(lambda self: dist.Normal(0.0, 2.0)))),
        r"model\._pyro_samples is .*<code object <lambda> at .*, and .*<code object <lambda> at",
    ),
    "another constraint": (
        changed(lambda m: m._pyro_params.update(share=(dist.constraints.interval(0.0, 2.0), None))),
        r"model\._pyro_params is .*'upper_bound': 2\.0.*, and .*'upper_bound': 1.* where",
    ),
    "a buffer's shape": (changed(lambda m: setattr(m, "mask", torch.ones(4))), r"model\.mask is the buffer .* \[4\]"),
    "a tensor drawn": (lambda: Kept(random=True), r"model\.order is an int64 tensor of shape \[50\].*is drawn at"),
    "a module in a list": (lambda: Kept(random="hidden"), r"model\.hidden is .*float32 tensor of shape \[2, 2\]"),
    "a class method of a library": (
        lambda: Box(Mixed.read), "`given` of `model`: the function read is no class or class method",
    ),
    "two classes of a name": (lambda: Box(part=unnamed(part=unnamed())), "two of your classes are named Twin"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_file_can_tell_is_said_when_it_is_loaded_and_not_when_it_is_trained(tmp_path, name):
    build, message = REFUSED[name]
    model = build()
    with pytest.raises(ValueError, match=message):
        recorded_build(model, EmptyGuide())
    path = save_checkpoint(tmp_path / "run.safetensors", model, EmptyGuide())
    with pytest.raises(ValueError, match=f"cannot be built from the file alone: .*{message}"):
        load(path)
    with pytest.raises(ValueError, match=message):
        save(tmp_path / "pair.safetensors", model, EmptyGuide())


def test_what_is_as_it_was_built_is_not_refused_and_what_changes_after_a_save_is(tmp_path):
    kept = Kept()
    for _ in range(2):
        assert load(save(tmp_path / "pair.safetensors", kept, EmptyGuide()), own=(Kept,))[0].sizes == [1, 2]
        kept()
        kept.compile(backend="eager")
    kept.sizes.append(3)
    with pytest.raises(ValueError, match=r"model\.sizes is list\(1, 2, 3\), and list\(1, 2\) where"):
        save(tmp_path / "pair.safetensors", kept, EmptyGuide())


def test_whatever_a_class_does_the_checkpoint_is_written(tmp_path):
    class Mute(nn.Linear):
        def __repr__(self):
            raise ZeroDivisionError("no text")

    path = save_checkpoint(tmp_path / "run.safetensors", rebuildable(Mute)(2, 2), EmptyGuide())
    with pytest.raises(ValueError, match="cannot be built from the file alone: ZeroDivisionError: no text"):
        load(path)


def test_a_part_that_is_gone_is_named():
    box = Box(part=nn.ReLU())
    del box.part
    with pytest.raises(ValueError, match="`part` of `model` was its part `part`, which is gone"):
        recorded_build(box, EmptyGuide())


def test_a_users_class_is_built_only_where_it_is_handed_in(tmp_path):
    path = save(tmp_path / "pair.safetensors", Box(part=nn.ReLU()), EmptyGuide())
    with pytest.raises(ValueError, match=r"`own` must hold the class Box.*give own=\(Box,\)"):
        load(path)
    with pytest.raises(ValueError, match=r"`own` must hold classes of torch\.nn\.Module; got the class int"):
        load(path, own=(int,))
    assert type(load(path, own=(Box,))[0]) is Box
    with pytest.raises(TypeError, match=r"`own` must be a class of torch\.nn\.Module; got the class int"):
        rebuildable(int)


def test_a_class_that_has_changed_since_is_an_error_that_says_so(tmp_path):
    path = save(tmp_path / "pair.safetensors", Box(given=1), EmptyGuide())

    class Box2(nn.Module):
        def __init__(self, wanted):
            super().__init__()

    Box2.__name__ = "Box"
    with pytest.raises(ValueError, match=r"was built by other classes than are here: .*given.*`load_weights"):
        load(path, own=(Box2,))

    class Box3(Box):
        def __init__(self, given):
            super().__init__(given)
            self.more = nn.Linear(2, 2)

    Box3.__name__ = "Box"
    with pytest.raises(ValueError, match=r"holds another model: .*model\.more\.weight is missing in the file"):
        load(path, own=(Box3,))


GUIDE = ["EmptyGuide", {}]
NO_MODULE, NO_METHOD = "`build` must name a module of pyro_memory", "`build` must name a class, or a class method"
NO_FUNCTION = r"`build` must name a function of torch\.nn\.functional"


def given(kind, what):
    """An argument of a file."""
    return ["own.Box", {"given": {kind: what}}]


HOSTILE = [
    (["os.system", {"command": "false"}], NO_MODULE),
    (["builtins.eval", {}], NO_MODULE),
    (["fit", {}], NO_MODULE),
    (["torch.nn.Module", {}], NO_MODULE),
    (["torch.nn.modules", {}], NO_MODULE),
    (["torch.nn.DataParallel", {}], NO_MODULE),
    (["torch.nn.functional.relu", {}], NO_MODULE),
    (["torch.load", {"f": "x"}], NO_MODULE),
    (["pyro.nn.PyroSample", {}], NO_MODULE),
    (["pyro.nn.Linear.to", {}], NO_METHOD),
    (["Mixer", {"dim": 3, "heads": 1}], NO_MODULE),  # no room exports it
    (["MappedMemory.create", {"folder": "made", "event_shape": [1]}], NO_MODULE),
    (["own.Other", {}], "`own` must hold the class Other"),
    (["torch.nn.Embedding.from_pretrained", {}], NO_METHOD),
    (["VMA.generate", {}], NO_METHOD),
    (["VMA.__init__", {}], NO_METHOD),
    (["VMA.__init_subclass__", {}], NO_METHOD),
    (["own.Box.cpu", {}], NO_METHOD),
    (["own.Mixed.read", {}], NO_METHOD),
    (given("class", "own.Mixed.read"), NO_METHOD),
    (given("partial", ["own.Mixed.read", {}]), NO_METHOD),
    (given("function", "torch.load"), NO_FUNCTION),
    (given("function", "torch.nn.functional.torch"), NO_FUNCTION),
    (given("function", "torch.nn.functional.importlib"), NO_FUNCTION),
    (given("function", "os.system"), NO_FUNCTION),
    (given("class", "os.system"), NO_MODULE),
    (given("partial", ["os.system", {}]), NO_MODULE),
    (given("dtype", "load"), "'load' is no dtype"),
    (given("part", "x"), "a part of the model is wanted before there is one"),
    (given("shared", "x"), "x"),
    (given("tensor", "build.7"), "build.7"),
]


@pytest.mark.parametrize(("spec", "message"), HOSTILE, ids=str)
def test_no_name_in_a_file_makes_anything_else_happen(tmp_path, monkeypatch, spec, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ValueError, LookupError, TypeError), match=message):
        make({"model": spec, "guide": GUIDE}, {}, {"Box": Box, "Mixed": Mixed})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["_getattribute__", "_class__", "unknown"])
def test_a_word_that_is_none_of_a_files_is_what_it_is(kind):
    made = make({"model": given(kind, "built"), "guide": GUIDE}, {}, {"Box": Box})
    assert made["model"].given == {kind: "built"}


def test_a_circle_of_shared_parts_ends():
    shared = {"a": ["torch.nn.Sequential", {"*": [{"shared": "a"}]}]}
    with pytest.raises(LookupError):
        make({"shared": shared, "model": ["torch.nn.Sequential", {"*": [{"shared": "a"}]}], "guide": GUIDE}, {}, {})


@pytest.mark.parametrize("depth", [600, 5000])
def test_a_header_that_is_nested_too_deeply_is_an_error_that_says_so(tmp_path, depth):
    path = save(tmp_path / "pair.safetensors", Box(given="deep"), EmptyGuide())
    metadata, tensors = load_file(path, tensors=True)
    header = metadata[HEADER].replace('"deep"', "[" * depth + "]" * depth)
    save_file(tensors, path, {HEADER: header})
    with pytest.raises(ValueError, match=r"`.*pair\.safetensors`.*(recursion|too deep)"):
        load(path, own=(Box,))


def test_only_plain_public_attributes_are_set():
    build = {"model": ["EmptyGuide", {}], "guide": GUIDE}
    made = make(build | {"set": {"model._pyro_name": "x", "model.forward": 1, "model.new": 1}}, {}, {})["model"]
    assert made._pyro_name != "x"
    assert callable(made.forward)
    assert not hasattr(made, "new")


def test_methods_are_programs_too(tmp_path):
    @rebuildable
    class Table(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.rand(2))

        def model(self):
            return self.weight.sum()

        def guide(self):
            return -self.weight.sum()

    table = Table()
    model, guide, _ = load(save(tmp_path / "pair.safetensors", table.model, table.guide), own=(Table,))
    assert model.__self__ is guide.__self__
    assert model() == -guide() == table.model()
