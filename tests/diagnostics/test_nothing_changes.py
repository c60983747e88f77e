"""What measures, draws or loads leaves everything else as it was: a row a function.

Functions that draw latents take them from torch's global random stream, as all of Pyro does, and their docstrings say
so (``draws=True`` below); Python's and numpy's streams they leave alone, and the others leave all three.
"""

import contextlib
import copy
import gc
import os
import random
import warnings

import numpy as np
import pyro
import pytest
import sympy.utilities.exceptions  # noqa: F401  # torch loads it late, and it adds a filter of warnings
import torch
from fits import Plain
from fits import pair as fit_pair
from pyro.infer import Trace_ELBO
from set_parts import pair as set_pair
from set_parts import sets, stores
from torch import nn

with contextlib.suppress(ImportError):
    import arviz  # noqa: F401  # loaded late, it adds filters of warnings, too

from pyro_memory import (
    VIMCO,
    ContentAddress,
    LeaveOneOutELBO,
    NearestAddress,
    RaoBlackwellELBO,
    SlotIndex,
    SlotMemory,
    TemplateMemory,
    calibrate,
    complete,
    fit,
    importance_bound,
    information_gain,
    load_pretrained,
    memory_contribution,
    posterior_address,
    posterior_to_arviz,
    pretrained,
    rate_distortion,
    remember,
    token_surprise,
)
from pyro_memory.data import LabelledImages
from pyro_memory.diagnostics import class_agreement, frechet_distance, prototype_sets, train_classifier
from pyro_memory.guides import EmptyGuide, VMAGuide
from pyro_memory.models import VMA, Addressed, LSTMMixer, SequenceModel, VAEBase

X = torch.zeros(4, 1, 6, 6)
X[:, :, 2:4] = 1.0
MEMORY = SlotMemory(torch.cat([X, 1 - X]))
TOKENS = torch.arange(12).reshape(3, 4) % 5


def vma(**options):
    """With a frozen parameter that a PyroModule owns, gradients here and there, and modes that differ."""
    model, guide = VMA.mlp((1, 6, 6), 2, (8,), **options), VMAGuide.mlp((1, 6, 6), 2, (8,), matching_dim=4, **options)
    return mixed(model), mixed(guide)


def mixed(module):
    for i, part in enumerate(module.modules()):
        part.training = i % 2 == 0
    for i, p in enumerate(module.parameters()):
        p.requires_grad_(i % 3 != 0)
        p.grad = torch.full_like(p, 0.5) if i % 2 and p.requires_grad else None
    return module


def with_templates():
    templates = TemplateMemory(3, (1, 6, 6))
    pair = vma(templates=templates)
    templates.values.requires_grad_(False)
    return pair


def addressed():
    templates = TemplateMemory(3, (1, 9, 7))
    base = VAEBase((1, 9, 7), latent_dim=2, channels=(4, 4), reads=True)
    model = mixed(Addressed(base, templates=templates))
    templates.values.requires_grad_(False)
    return model, EmptyGuide()


def indexed():
    model, guide = vma()
    guide.address = NearestAddress(guide.address, 2, epsilon=0.1, index=SlotIndex("brute"))
    return model, guide


def sequences():
    model = mixed(SequenceModel.tokens(5, LSTMMixer, dim=4, blocks=1))
    model.start.requires_grad_(False)
    return model, EmptyGuide()


def images():
    return LabelledImages(torch.rand(24, 1, 8, 8).round(), torch.arange(24) % 2, ("a", "b"))


# name: what to measure, how, and whether it takes draws from torch's stream
ROWS = {
    "importance_bound": (vma, lambda m, g: importance_bound(m, g, X, MEMORY, particles=5, chunk_size=2), True),
    "importance_bound of templates": (with_templates, lambda m, g: importance_bound(m, g, X, particles=3), True),
    "importance_bound with an index": (indexed, lambda m, g: importance_bound(m, g, X, MEMORY, particles=3), True),
    "information_gain": (vma, lambda m, g: information_gain(m, g, X, MEMORY, draws=2), True),
    "information_gain of templates": (with_templates, lambda m, g: information_gain(m, g, X, draws=2), True),
    "rate_distortion": (vma, lambda m, g: rate_distortion(m, g, X, MEMORY, draws=2), True),
    "rate_distortion of templates": (with_templates, lambda m, g: rate_distortion(m, g, X, draws=2), True),
    "memory_contribution": (
        vma,
        lambda m, g: memory_contribution(m, g, X, MEMORY, alternatives={"other": SlotMemory(X)}, particles=2),
        True,
    ),
    "posterior_address": (vma, lambda m, g: posterior_address(m, g, X, MEMORY, particles=5, chunk_size=2), True),
    "importance_bound summing an address": (
        vma,
        lambda m, g: importance_bound(m, g, X, MEMORY, particles=5, exact=["a"]),
        True,
    ),
    "posterior_to_arviz": (
        with_templates,
        lambda m, g: posterior_to_arviz(m, g, X, draws=4, chunk_size=3, predictive=True),
        True,
    ),
    "calibrate": (vma, lambda m, g: calibrate(m, g, X, MEMORY, simulations=3, draws=2), False),
    "calibrate with templates": (with_templates, lambda m, g: calibrate(m, g, X, simulations=3, draws=2), False),
    "complete": (with_templates, lambda m, g: complete(m, g, X, None, sweeps=2), True),
    "token_surprise": (sequences, lambda m, g: token_surprise(m, TOKENS, guide=g), False),
    "SequenceModel.generate": (sequences, lambda m, g: m.generate(TOKENS, 3), True),
    "SequenceModel.generate with a seed": (sequences, lambda m, g: m.generate(TOKENS, 3, seed=1), False),
    "VMA.generate": (with_templates, lambda m, g: m.generate(shape=(3,)), True),
    "Addressed.generate": (addressed, lambda m, g: m.generate(shape=(3,)), True),
    "VMAGuide.a_dist": (vma, lambda m, g: g.a_dist(X, MEMORY).probs.detach(), False),
    "VIMCO.loss": (with_templates, lambda m, g: VIMCO(2).loss(m, g, X), True),
    "LeaveOneOutELBO.loss": (with_templates, lambda m, g: LeaveOneOutELBO(2).loss(m, g, X), True),
    "RaoBlackwellELBO.loss": (with_templates, lambda m, g: RaoBlackwellELBO(1).loss(m, g, X), True),
    "VSM.generate": (
        lambda: tuple(map(mixed, set_pair())),
        lambda m, g: m.generate(SUPPORT, remember(m.recall, stores(), SUPPORT), 2),
        True,
    ),
    "ContentAddress.embed": (vma, lambda m, g: g.address.embed(MEMORY), False),
    "frechet_distance": (vma, lambda m, g: frechet_distance(FEATURES[0], FEATURES[1]), False),
    "class_agreement": (vma, lambda m, g: class_agreement(*3 * [FEATURES]), False),
    "prototype_sets": (vma, lambda m, g: prototype_sets(IMAGES, torch.arange(2), support=4), False),
    "train_classifier": (vma, lambda m, g: train_classifier(IMAGES, steps=2, batch=4, progress=False), False),
    "pretrained": (vma, lambda m, g: pretrained(), False),
    "load_pretrained": (vma, lambda m, g: load_pretrained("vae-omniglot28"), False),
}
SUPPORT, IMAGES, FEATURES = sets([2, 1]), images(), torch.rand(2, 24, 3)


def looked_at(model, guide):
    """Everything that a call might leave changed."""
    parts = [p for m in (model, guide) for p in m.modules()]
    tensors = [t for m in (model, guide) for t in [*m.parameters(), *m.buffers()]]
    return {
        "requires_grad": [t.requires_grad for t in tensors],
        "modes": [p.training for p in parts],
        "identity": [id(t) for t in tensors],
        "values": [t.detach().tolist() for t in tensors],
        "gradients": [None if t.grad is None else t.grad.tolist() for t in tensors],
        "parameter store": {name: id(p) for name, p in pyro.get_param_store().named_parameters()},
        "python's stream": random.getstate(),
        "numpy's stream": [np.asarray(part).tolist() for part in np.random.get_state()],  # noqa: NPY002
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "warning filters": list(warnings.filters),
        "gradient mode": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "validation": torch.distributions.Distribution._validate_args,
        "folder": sorted(os.listdir()),
        "open files": open_files(),
        "threads": torch.get_num_threads(),
    }


def open_files():
    gc.collect()
    names = {}
    for fd in os.listdir("/proc/self/fd"):
        try:
            names[fd] = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:
            continue  # the one that lists them
    return {fd: name for fd, name in names.items() if not name.startswith("/proc")}


@pytest.mark.filterwarnings("ignore:.*was not registered in the param store")  # Pyro's word on frozen parameters
@pytest.mark.parametrize("name", ROWS)
def test_it_changes_nothing(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make, call, draws = ROWS[name]
    model, guide = make()
    before, stream = looked_at(model, guide), torch.get_rng_state()
    call(model, guide)
    after, moved = looked_at(model, guide), not torch.equal(torch.get_rng_state(), stream)
    store = after["parameter store"]  # Pyro notes what it meets, under the module's own tensors
    assert {id_ for name_, id_ in store.items() if name_ not in before["parameter store"]} <= set(before["identity"])
    after["parameter store"] = {n: i for n, i in store.items() if n in before["parameter store"]}
    for what, value in before.items():
        assert after[what] == value, what
    assert moved == draws, "torch's stream"


def test_the_look_sees_a_parameter_that_was_set_free():
    """Under plain Pyro the frozen parameter of a PyroModule is free after one pass: the table can fail."""
    templates = with_templates()[0].templates
    before = looked_at(templates, templates)
    pyro.poutine.trace(templates).get_trace()
    assert looked_at(templates, templates)["requires_grad"] != before["requires_grad"]


def test_evaluation_inside_fit_changes_nothing_that_trains():
    runs = []
    for measured in (False, True):
        pyro.clear_param_store()
        model, guide = fit_pair()
        x = torch.ones(3, 3)

        def evaluate(step, model=model, guide=guide, x=x):
            assert not model.training
            bound = importance_bound(model, guide, x, particles=4)
            return {"bound": bound.mean, "noise": torch.rand(()).item() + random.random() + np.random.random()}  # noqa: NPY002

        options = {"evaluate": evaluate, "evaluate_every": 2, "information_every": 3} if measured else {}
        options = {"information_every": None, "progress": False, "seed": 1} | options
        fit(model, guide, Plain(), Trace_ELBO(), steps=7, learning_rate=0.05, **options)
        runs.append((model.state_dict(), guide.state_dict(), torch.get_rng_state(), random.getstate()))
    for one, other in zip(*(r[:2] for r in runs), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one.values(), other.values(), strict=True))
    assert torch.equal(runs[0][2], runs[1][2])
    assert runs[0][3] == runs[1][3]


def test_a_failing_measurement_leaves_modes_and_streams_too():
    content = ContentAddress(nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5)))
    content.query[0].training = False
    before = copy.deepcopy([p.training for p in content.modules()])
    with pytest.raises(ValueError, match="`memory`"):
        content.embed(SlotMemory(torch.zeros(5, 7)))
    assert [p.training for p in content.modules()] == before


def test_the_look_sees_a_dropped_gradient_and_an_open_file():
    model, guide = vma()
    before = looked_at(model, guide)
    model.zero_grad()
    assert looked_at(model, guide)["gradients"] != before["gradients"]
    with open(os.devnull):
        assert looked_at(model, guide)["open files"] != before["open files"]
