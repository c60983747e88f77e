"""A pair from its file alone: what was saved comes back, whatever it was, and nothing else is touched."""

import json
import subprocess
import sys

import pyro
import pytest
import set_parts
import torch
from conftest import ink
from pyro.infer import Trace_ELBO
from rebuilt_pairs import PAIRS, SHAPE, looked_up
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from pyro_memory import (
    VIMCO,
    Lifetime,
    MappedMemory,
    SlotMemory,
    fit,
    guides,
    load,
    load_pretrained,
    models,
    pretrained,
    rebuildable,
    save,
    save_pretrained,
)
from pyro_memory.cards import FACTS
from pyro_memory.data import ClassStream, LabelledImages
from pyro_memory.guides import EmptyGuide
from pyro_memory.models import LSTMMixer, NeuralMemory, SequenceModel
from pyro_memory.training import checkpoints, load_weights, read_header, save_checkpoint
from pyro_memory.training.built import Built

FACT = dict.fromkeys(FACTS, "x")


def pair(name="VMA"):
    return PAIRS[name][0]()


def state_of(model, guide):
    return torch.nn.ModuleDict({"model": model, "guide": guide}).state_dict()


def enlarged(*modules):
    """Weights that no constructor draws, in the parts that train and those that do not."""
    with torch.no_grad():
        for p in {id(p): p for m in modules for p in m.parameters()}.values():
            p.add_(0.1 * torch.randn_like(p))
    return modules


def bound(model, guide, args):
    pyro.set_rng_seed(3)
    if model.forward.__qualname__.startswith(("NeuralMemory", "Titans", "Mixer")) and len(args) == 1:
        return model(*args)[0]  # a mixer: no sites
    with torch.no_grad():
        return torch.tensor(Trace_ELBO(max_plate_nesting=2).loss(model, guide, *args))


@pytest.mark.filterwarnings(r"ignore:[\s\S]*use TraceEnum_ELBO instead")
@pytest.mark.parametrize("name", PAIRS)
def test_a_saved_pair_comes_back_with_its_weights_and_its_bound(tmp_path, name):
    make, given = PAIRS[name]
    old, args = enlarged(*make()), given()
    streams = torch.get_rng_state()
    path = save(tmp_path / "pair.safetensors", *old)
    model, guide, stores = load(path)
    assert torch.equal(torch.get_rng_state(), streams)
    assert stores is None
    assert not model.training
    assert (type(model), type(guide)) == (type(old[0]), type(old[1]))
    assert_close(dict(state_of(model, guide)), dict(state_of(*old)), rtol=0, atol=0)
    assert_close(bound(model, guide, args), bound(*(m.eval() for m in old), args), rtol=0, atol=0)
    assert repr(model) == repr(old[0])


def doubled(value):
    if isinstance(value, torch.Tensor):
        return value.double() if value.is_floating_point() else value
    if hasattr(value, "to_tensors"):
        return type(value).from_tensors({k: doubled(t) for k, t in value.to_tensors().items()})
    return value


@pytest.mark.filterwarnings(r"ignore:[\s\S]*use TraceEnum_ELBO instead")
@pytest.mark.parametrize("name", PAIRS)
def test_a_pair_in_double_precision_comes_back_in_it_buffers_included(tmp_path, name):
    make, given = PAIRS[name]
    old, args = [m.double().eval() for m in enlarged(*make())], tuple(doubled(value) for value in given())
    new = load(save(tmp_path / "pair.safetensors", *old))[:2]
    for one, two in zip(old, new, strict=True):
        buffers = [{n: b.clone() for n, b in m.named_buffers()} for m in (two, one)]
        assert_close(*buffers, rtol=0, atol=0)
    assert_close(bound(*new, args), bound(*old, args), rtol=0, atol=0)


@pytest.mark.filterwarnings(r"ignore:[\s\S]*use TraceEnum_ELBO instead")
@pytest.mark.parametrize("name", ["VAE", "addressed diffusion", "tokens, TitansMAG"])
def test_buffers_are_not_made_anew_in_the_default_dtype_of_the_process_that_loads(tmp_path, name):
    old, args = pair(name), PAIRS[name][1]()
    path, before = save(tmp_path / "pair.safetensors", *old), bound(*(m.eval() for m in old), args)
    torch.set_default_dtype(torch.float64)
    try:
        new = load(path)[:2]
    finally:
        torch.set_default_dtype(torch.float32)
    assert_close(bound(*new, args), before, rtol=0, atol=0)


class Fourier(torch.nn.Module):
    """Features that are drawn and do not train, and a default of the class."""

    scale = 1.0

    def __init__(self, dim=16):
        super().__init__()
        self.register_buffer("frequencies", torch.randn(dim), persistent=False)
        self.out = torch.nn.Linear(dim, 1)

    def forward(self, x):
        return self.scale * self.out(torch.cos(x * self.frequencies))


def test_a_buffer_that_is_drawn_and_a_default_that_was_changed_come_back(tmp_path):
    old, x = rebuildable(Fourier)(), torch.randn(4, 1)
    old.scale = 3.0
    path = save(tmp_path / "pair.safetensors", old, EmptyGuide())
    assert_close(load(path, own=(Fourier,))[0](x), old(x), rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"frequencies differs. A buffer that a constructor draws must be persistent"):
        save_pretrained("small", old, EmptyGuide(), facts=FACT, folder=tmp_path)

    init = Fourier.__init__
    for later in (torch.zeros(3), None):  # the class has changed since

        def changed(self, dim=16, later=later):
            init(self)
            self.register_buffer("frequencies", later, persistent=False)

        Fourier.__init__ = changed
        with pytest.raises(ValueError, match=r"classes than are here: buffers\.model\.frequencies is another one"):
            load(path, own=(Fourier,))


@pytest.mark.filterwarnings("ignore:`lines` is the name of another module")
def test_sites_of_a_sampled_prior_are_called_as_they_were_at_each_load(tmp_path):
    @rebuildable
    class Lines(pyro.nn.PyroModule):
        def __init__(self, name="lines"):
            super().__init__(name)
            self.w = pyro.nn.PyroSample(pyro.distributions.Normal(0.0, 1.0))
            self.noise = torch.nn.Parameter(torch.zeros(()))

        def forward(self, x):
            mean = self.w * x
            with pyro.plate("batch", len(x)):
                pyro.sample("x", pyro.distributions.Normal(mean, self.noise.exp()), obs=x)

    model = Lines()
    path = save(tmp_path / "pair.safetensors", model, EmptyGuide())
    for _ in range(3):
        again = load(path, own=(Lines,))[0]
        assert "lines.w" in pyro.poutine.trace(again).get_trace(torch.ones(2))


def test_every_public_model_and_guide_is_among_the_pairs():
    seen = {type(m).__name__ for make, _ in PAIRS.values() for root in make() for m in root.modules()}
    parts = {"BaseModel", "BaseGuide", "SequenceState"}  # of which others are made
    assert {*models.__all__, *guides.__all__} - seen - parts == set()


@pytest.mark.parametrize("name", ["VMA, templates", "VSM over vae", "VMA, by hand"])
def test_what_is_shared_is_shared_again(tmp_path, name):
    old = pair(name)
    new = load(save(tmp_path / "pair.safetensors", *old))[:2]
    count = [len({id(p) for m in each for p in m.parameters()}) for each in (old, new)]
    assert count[0] == count[1] < sum(len(list(m.parameters(recurse=True))) for m in old) + (name == "VMA, by hand")


def test_dtypes_frozen_parts_and_plain_attributes_stay(tmp_path):
    model, guide = pair("VSM over vae")
    model.recall.fixed = True
    guide.base.double()
    model.base.requires_grad_(False)
    again, its_guide, _ = load(save(tmp_path / "pair.safetensors", model, guide))
    assert again.recall.fixed
    assert {p.dtype for p in its_guide.base.parameters()} == {torch.float64}
    for one, two in zip((model, guide), (again, its_guide), strict=True):
        assert [p.requires_grad for p in one.parameters()] == [p.requires_grad for p in two.parameters()]


STORES = {
    "SlotMemory": lambda: SlotMemory(ink(5, *SHAPE), mask=torch.tensor([True, True, False, True, True])),
    "a memory per datum": lambda: SlotMemory(ink(3, 5, *SHAPE), batch_dim=-1),
    "StructuredMemory": set_parts.stores,
    "ConceptMemory": lambda: set_parts.stores().concepts,
    "EpisodicMemory": lambda: set_parts.stores().episodes,
}


@pytest.mark.parametrize("name", STORES)
def test_a_store_comes_back(tmp_path, name):
    store = STORES[name]()
    again = load(save(tmp_path / "pair.safetensors", *pair(), store))[2]
    assert type(again) is type(store)
    assert_close(again.to_tensors(), store.to_tensors(), rtol=0, atol=0)


def test_the_state_of_a_sequence_comes_back(tmp_path):
    x = torch.randint(7, (2, 6))
    model, mixer = SequenceModel.tokens(7, LSTMMixer, dim=8), NeuralMemory(8, heads=2, chunk_size=4)
    for root, state in ((model, model.read(x)[1]), (mixer, mixer(torch.randn(2, 6, 8))[1])):
        again = load(save(tmp_path / "pair.safetensors", root, EmptyGuide(), state.detach()))[2]
        assert type(again) is type(state)
        assert again.allclose(state, 0, 0)


def test_a_mapped_memory_is_found_where_it_was_or_beside_the_file(tmp_path):
    memory = MappedMemory.create(tmp_path / "slots", SHAPE).append(ink(5, *SHAPE))
    path = save(tmp_path / "pair.safetensors", *pair(), memory)
    assert len(load(path)[2]) == 5
    moved = tmp_path / "moved"
    moved.mkdir()
    path = path.rename(moved / path.name)
    (tmp_path / "slots").rename(moved / "slots")
    assert load(path)[2].folder == moved / "slots"
    (moved / "slots").rename(moved / "others")
    with pytest.raises(ValueError, match=r"with the MappedMemory of .*slots, which is not there. Put its folder there"):
        load(path)
    with pytest.raises(ValueError, match=r"`stores` must be a store with `to_tensors`.*; got a list"):
        save(path, *pair(), [1])


def test_a_checkpoint_of_fit_is_a_pair_and_its_memory(tmp_path):
    path, memory = tmp_path / "run.safetensors", SlotMemory(ink(5, *SHAPE))
    model, guide = pair()
    batches = [(ink(3, *SHAPE),)]
    fit(model, guide, batches, VIMCO(), steps=3, further=(memory,), checkpoint=path, progress=False)
    again, its_guide, its_memory = load(path)
    assert_close(dict(state_of(again, its_guide)), dict(state_of(model, guide)), rtol=0, atol=0)
    assert_close(its_memory.values, memory.values, rtol=0, atol=0)
    fit(again, its_guide, batches, VIMCO(), steps=5, further=(memory,), checkpoint=path, progress=False)  # goes on
    assert read_header(path)["step"] == 5


@pytest.mark.filterwarnings(r"ignore:[\s\S]*use TraceEnum_ELBO instead")
def test_the_stores_of_a_lifetime_come_along(tmp_path):
    path = tmp_path / "run.safetensors"
    model, guide = set_parts.pair()
    shape = set_parts.SHAPE
    data = LabelledImages(ink(40, *shape).byte(), torch.arange(8).repeat_interleave(5), tuple("abcdefgh"))
    tasks = ClassStream(data, stages=2).tasks(0, tasks=2, queries=2, shots=2)
    lived = Lifetime(tasks, model.recall, set_parts.stores(8))
    fit(model, guide, lived, Trace_ELBO(max_plate_nesting=2), steps=2, checkpoint=path, progress=False)
    assert_close(load(path)[2].to_tensors(), lived.memory.to_tensors(), rtol=0, atol=0)


@pytest.mark.filterwarnings(r"ignore:[\s\S]*use TraceEnum_ELBO instead")
def test_a_pair_of_save_pretrained_is_loaded_by_either_file_and_by_its_name(tmp_path):
    old, args = pair("VMA, by hand"), looked_up()
    card = save_pretrained("small", *old, facts=FACT, folder=tmp_path)
    assert card.build["guide"][0] == "VMAGuide"
    assert repr(pretrained(tmp_path)).count("small") == 1
    for path in (tmp_path / "small.json", tmp_path / "small.safetensors"):
        model, guide, stores = load(path)
        assert stores is None
        for one, two in zip(state_of(*old).values(), state_of(model, guide).values(), strict=True):
            assert_close(two, one.half().to(one.dtype), rtol=0, atol=0)
    assert bound(model, guide, args).isfinite()
    by_name, shipped = load("vma-omniglot28"), load_pretrained("vma-omniglot28")
    assert_close(dict(state_of(*by_name[:2])), dict(state_of(*shipped)), rtol=0, atol=0)
    assert load("vsm-vae-omniglot")[2].episodes.slots > 0


def test_a_tensor_among_the_arguments_is_kept_in_full_precision(tmp_path):
    old = pair("VMA, templates")
    first = old[0].templates.values.detach().clone()  # what it was given at the start
    enlarged(*old)
    save_pretrained("small", *old, facts=FACT, folder=tmp_path)
    assert_close(load_file(tmp_path / "small.safetensors")["build.0"], first, rtol=0, atol=0)
    assert_close(load(tmp_path / "small.json")[0].templates.values, old[0].templates.values, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", pretrained())
def test_a_shipped_pair_knows_how_it_was_built(tmp_path, name):
    """What it was built by is the card's own, but for what is JSON's and what is Python's of the same."""
    old = load(name)
    card = save_pretrained(name, *old[:2], facts=FACT, folder=tmp_path)
    assert card.build == pretrained()[name].build
    new = load(tmp_path / f"{name}.json")
    assert_close(dict(state_of(*new[:2])), dict(state_of(*old[:2])), rtol=1e-3, atol=1e-3)


def test_a_name_is_kept_once_so_that_two_pairs_do_not_meet_in_the_parameter_store(tmp_path):
    make = "from pyro_memory.models import VAE; from pyro_memory.guides import VAEGuide; from pyro_memory import save\n"
    make += "size = {'shape': (1, 8, 8), 'latent_dim': 2, 'hidden': (8,)}\n"
    make += "save('pair.safetensors', VAE.mlp(**size, name='named'), VAEGuide.mlp(**size, name='guided'))"
    subprocess.run([sys.executable, "-c", make], cwd=tmp_path, check=True)
    one, two = (load(tmp_path / "pair.safetensors")[0] for _ in range(2))
    assert one._pyro_name == "named"
    assert two._pyro_name != "named"
    x = ink(3, *SHAPE)
    for model, guide, _ in (load(tmp_path / "pair.safetensors") for _ in range(2)):
        pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO()).step(x, None)
        before = [p.clone() for p in model.parameters()]
        pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO()).step(x, None)
        assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_a_pair_of_save_pretrained_has_a_name_of_its_own_too(tmp_path):
    size = {"shape": SHAPE, "latent_dim": 2, "hidden": (8,)}
    old = models.VAE.mlp(**size, name="kept"), guides.VAEGuide.mlp(**size)
    save_pretrained("small", *old, facts=FACT, folder=tmp_path)
    new = load(tmp_path / "small.json")[0], load_pretrained("small", tmp_path)[0]
    assert len({model._pyro_name for model in (old[0], *new)}) == 3


def test_files_that_do_not_tell_say_what_to_do(tmp_path, monkeypatch):
    model, guide = pair()
    path = save_checkpoint(tmp_path / "run.safetensors", model, lambda *args: None)
    with pytest.raises(ValueError, match=r"`guide` is the function <lambda>.*EmptyGuide.*`load_weights\(path"):
        load(path)
    with pytest.raises(ValueError, match=r"cannot be built again from a file: `guide` is .*`save_checkpoint` writes"):
        save(tmp_path / "pair.safetensors", model, lambda *args: None)
    assert not (tmp_path / "pair.safetensors").exists()
    with pytest.raises(ValueError, match=r"run\.safetensors\.json tells of one. Give .*run\.safetensors"):
        load(f"{path}.json")
    with pytest.raises(FileNotFoundError, match="`path` must be a file, or one of diffusion-omniglot28"):
        load("nothing")
    with pytest.raises(ValueError, match="`path` must be a file; got the folder"):
        save(tmp_path, model, guide)
    save_file({"x": torch.zeros(1)}, tmp_path / "b.safetensors")
    with pytest.raises(ValueError, match=r"b\.safetensors` is not a whole pyro-memory checkpoint"):
        load(tmp_path / "b.safetensors")
    monkeypatch.setattr(checkpoints, "built_of", lambda *_: Built({}, {}))  # as earlier versions wrote
    old = save_checkpoint(tmp_path / "old.safetensors", model, guide)
    with pytest.raises(ValueError, match=r"does not tell how its pair was built: an earlier version wrote it. Build"):
        load(old)
    load_weights(old, *pair())


def test_a_file_of_notes_beside_a_checkpoint_is_passed_over(tmp_path):
    path = save(tmp_path / "run.safetensors", *pair())
    (tmp_path / "run.json").write_text("no json {")
    assert load(path)[2] is None


def test_a_fresh_process_needs_six_lines(tmp_path):
    """From the file to samples, a bound and an information gain; of a sequence, its surprise."""
    model, guide = pair()
    save(tmp_path / "vma.safetensors", model, guide, SlotMemory(ink(5, *SHAPE)))
    model, guide = set_parts.pair()
    save(tmp_path / "vsm.safetensors", model, guide, set_parts.stores())
    save(tmp_path / "titans.safetensors", *pair("tokens, TitansMAG"))
    text = {
        "vma": "images = model.generate(memory, (4,)).bernoulli()\n"
        "bound = importance_bound(model, guide, images, memory, particles=20)\n"
        "gain = information_gain(model, guide, images, memory)\n"
        "print(images.shape[0], bound.mean, gain.sites['a'].mean)",
        "vsm": "support = SlotMemory(torch.zeros(2, 1, 1, 9, 7), batch_dim=-2)\n"
        "images = model.generate(support, memory, 2, remembered=False).bernoulli()\n"
        "bound = importance_bound(model, guide, images, support, memory, particles=20, max_plate_nesting=2)\n"
        "print(images.shape[0], bound.mean, information_gain(model, guide, images, support, memory).sites['k'].mean)",
        "titans": "tokens, state = model.generate(torch.zeros(3, 1).long(), 5)\n"
        "bound = importance_bound(model, guide, tokens, particles=1)\n"
        "print(len(tokens), bound.mean, token_surprise(model, tokens, guide=guide).bits)",
    }
    for name, lines in text.items():
        code = f"import torch; from pyro_memory import *\nmodel, guide, memory = load('{name}.safetensors')\n{lines}"
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        count, mean, last = done.stdout.split()
        assert int(count) in (2, 3, 4)
        assert json.loads(f"[{mean}, {last}]")[0] < 0
        assert len(code.strip().splitlines()) <= 6
