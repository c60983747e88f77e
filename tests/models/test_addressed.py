"""Variational memory addressing over base models."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import ink, sharpen
from pyro import poutine
from torch.testing import assert_close

from pyro_memory import (
    VIMCO,
    Context,
    LeaveOneOutELBO,
    SlotMemory,
    TemplateMemory,
    fit,
    importance_bound,
    load_pretrained,
    save_pretrained,
)
from pyro_memory.guides import (
    AddressedGuide,
    AutoregressiveBaseGuide,
    DiffusionBaseGuide,
    HierarchicalBaseGuide,
    VAEBaseGuide,
)
from pyro_memory.inference import Particles, weigh
from pyro_memory.models import VMA, Addressed, AutoregressiveBase, DiffusionBase, HierarchicalBase, VAEBase
from pyro_memory.zoo import FACTS

SHAPE = (1, 9, 7)
CHANNELS = (4, 5)
BASES = {
    "vae": (
        lambda **kw: VAEBase(SHAPE, latent_dim=3, channels=CHANNELS, **kw),
        lambda: VAEBaseGuide(SHAPE, latent_dim=3, channels=CHANNELS),
    ),
    "hierarchical": (
        lambda **kw: HierarchicalBase(SHAPE, latent_dims=(4, 3), channels=CHANNELS, hidden=8, **kw),
        lambda: HierarchicalBaseGuide(SHAPE, latent_dims=(4, 3), channels=CHANNELS, hidden=8),
    ),
    "diffusion": (
        lambda **kw: DiffusionBase(SHAPE, steps=5, channels=CHANNELS, **kw),
        lambda: DiffusionBaseGuide(5),
    ),
    "autoregressive": (
        lambda **kw: AutoregressiveBase(SHAPE, maps=4, layers=(1, 2), looks=1, **kw),
        AutoregressiveBaseGuide,
    ),
}


def pair(name, **options):
    base, guide = BASES[name]
    guide = AddressedGuide.convolutional(SHAPE, guide(), CHANNELS, matching_dim=4, **options)
    return sharpen(Addressed(base(reads=True), **options), 1.5), sharpen(guide, 1.5)


def objective(name):
    return LeaveOneOutELBO(2, max_plate_nesting=1) if name == "diffusion" else VIMCO(3, max_plate_nesting=1)


@pytest.mark.parametrize("per_datum", [False, True])
@pytest.mark.parametrize("name", BASES)
def test_a_weight_is_that_of_the_address_times_the_base_s_own(name, per_datum):
    model, guide = (m.double().eval() for m in pair(name))
    x = ink(4, *SHAPE).double()
    values = ink(4, 6, *SHAPE).double() if per_datum else ink(6, *SHAPE).double()
    memory = SlotMemory(values, batch_dim=-1 if per_datum else None)
    with torch.no_grad():
        (traces,) = Particles(3, vectorize_particles=True, max_plate_nesting=1).traces(model, guide, (x, memory), {})
        log_weight = weigh(*traces).log_weight
        for k in range(3):
            drawn = {n: s["value"][k] for n, s in traces[1].nodes.items() if s["type"] == "sample" and n != "batch"}
            a = drawn.pop("a")
            read = values[range(4), a] if per_datum else values[a]

            def explained(step, context, drawn=drawn):
                with pyro.plate("batch", 4):
                    step(x, context)

            context = Context(content=model.base.content(read))
            p = poutine.trace(poutine.condition(explained, drawn)).get_trace(model.base.explain, context)
            q = poutine.trace(poutine.condition(explained, drawn)).get_trace(guide.base.infer, Context())
            p.compute_log_prob(), q.compute_log_prob()
            names = [n for n in p.nodes if p.nodes[n]["type"] == "sample" and n != "batch"]
            own = sum(p.nodes[n]["log_prob"] - (q.nodes[n]["log_prob"] if n in q.nodes else 0) for n in names)
            looked_up = guide.a_dist(x, memory).log_prob(a)
            assert_close(log_weight[k], own - math.log(6) - looked_up)
    spread = log_weight.std(0)
    assert (spread.max() if name == "autoregressive" else spread.min()) > 0.01  # the same slot weighs the same


def test_particles_at_one_address_share_the_noise_of_a_step():
    model, guide = pair("diffusion")
    x, memory = ink(64, *SHAPE), SlotMemory(ink(3, *SHAPE))
    with torch.no_grad():
        ((p, q),) = Particles(2, vectorize_particles=True, max_plate_nesting=1).traces(model, guide, (x, memory), {})
    log_weight, a = weigh(p, q, noisy=True).log_weight, q.nodes["a"]["value"]
    same = a[0] == a[1]
    assert same.any()
    assert not same.all()
    assert_close(log_weight[0, same], log_weight[1, same])
    assert (log_weight[0, ~same] - log_weight[1, ~same]).abs().min() > 0


def test_a_lookup_is_learned_from_noisy_steps_and_pays():
    """The address learns which of four images a target is, though no step sees more than one of its noise levels."""
    torch.manual_seed(1)  # of the seeds tried, 0 gets stuck at 10 nats in so short a run
    kinds = ink(4, *SHAPE, density=0.5)
    model, guide = pair("diffusion")

    def batch(step):
        chosen = torch.randint(4, (32,), generator=torch.Generator().manual_seed(step))
        return kinds[chosen], SlotMemory(kinds)

    settings = {"steps": 400, "learning_rate": 1e-2, "progress": False, "information_every": None, "clip_norm": 1000.0}
    fit(model, guide, batch, objective("diffusion"), **settings)
    for module in (model, guide):
        module.eval()
    address = guide.a_dist(kinds, SlotMemory(kinds)).probs
    assert address.diagonal().min() > 0.9
    given = importance_bound(model, guide, kinds, SlotMemory(kinds), particles=50).mean
    wrong = importance_bound(model, guide, kinds, SlotMemory(1 - kinds), particles=50).mean
    assert given > -8  # log 4 = 1.4 and what 63 pixels of a short run leave; a fair coin each is 43.7
    assert wrong < given - 10


@pytest.mark.parametrize("model", [lambda: pair("diffusion")[0], lambda: VMA.mlp(SHAPE, latent_dim=3, hidden=(8, 8))])
def test_images_come_from_the_slot_that_is_read(model):
    model = sharpen(model().eval(), 2.0)
    memory = SlotMemory(torch.stack([torch.zeros(SHAPE), torch.ones(SHAPE)]))

    def drawn(a):
        torch.manual_seed(0)
        return model.generate(memory, a=torch.full((3,), a))

    assert drawn(0).shape == (3, *SHAPE)
    assert_close(drawn(0), drawn(0))
    assert (drawn(0) - drawn(1)).abs().max() > 0.01
    assert model.generate(memory, (2, 3)).shape == (2, 3, *SHAPE)
    each = SlotMemory(memory.values.expand(4, 2, *SHAPE), batch_dim=-1)
    assert model.generate(each, (5,)).shape == (5, 4, *SHAPE)
    with pytest.raises(ValueError, match="built without `templates`"):
        model.generate()
    with pytest.raises(ValueError, match="`shape` must be left out where the slots at `a` are read"):
        model.generate(memory, (2,), a=torch.zeros(2, dtype=torch.long))


@pytest.mark.parametrize("name", BASES)
def test_a_base_that_reads_is_still_a_model_of_its_own(name):
    base, guide = BASES[name][0](reads=True), BASES[name][1]()
    base.eval(), guide.eval()
    assert math.isfinite(importance_bound(base, guide, ink(3, *SHAPE), particles=4, max_plate_nesting=1).mean)


def test_an_empty_memory_needs_a_none_slot_and_templates_stand_in_for_an_argument():
    empty, x = SlotMemory.empty(SHAPE), ink(3, *SHAPE)
    model, guide = pair("vae", none_slot=True)
    with torch.no_grad():
        assert math.isfinite(VIMCO(2, max_plate_nesting=1).loss(model, guide, x, empty))
    model, guide = pair("vae")
    with pytest.raises(ValueError, match="must hold at least one item"):
        model(x, empty)
    with pytest.raises(ValueError, match="built without `templates`"):
        guide(x)
    model, guide = pair("vae", templates=TemplateMemory(4, SHAPE))
    with torch.no_grad():
        assert math.isfinite(VIMCO(2, max_plate_nesting=1).loss(model, guide, x))
    assert model.generate(shape=(7,)).shape == (7, *SHAPE)


def test_a_prior_over_addresses_can_be_chosen():
    class Skewed(torch.nn.Module):
        def forward(self, memory):
            return dist.Categorical(torch.tensor([0.7, 0.2, 0.1]))

    model, guide = pair("vae")
    skewed = Addressed(model.base, address_prior=Skewed())
    args = ink(4, *SHAPE), SlotMemory(ink(3, *SHAPE))
    trace = poutine.trace(guide).get_trace(*args)
    with torch.no_grad():
        one, other = (
            poutine.trace(poutine.replay(m, trace=trace)).get_trace(*args).log_prob_sum() for m in (model, skewed)
        )
    ratio = torch.tensor([0.7, 0.2, 0.1])[trace.nodes["a"]["value"]] * 3
    assert_close(other - one, ratio.log().sum(), atol=1e-3, rtol=0)
    assert ratio.log().sum().abs() > 0.1


@pytest.mark.parametrize("name", BASES)
def test_a_base_that_reads_nothing_is_refused(name):
    for options in ({}, {"code_dim": 3}):
        with pytest.raises(ValueError, match="`base` must read what is looked up and be told no more"):
            Addressed(BASES[name][0](**options))


@pytest.mark.parametrize("per_datum", [False, True])
def test_a_base_with_one_number_as_code_is_told_how_many_slots_there_are(per_datum):
    values = ink(2, 5, *SHAPE) if per_datum else ink(5, *SHAPE)
    mask = torch.tensor([[True] * 5, [True, True, False, True, False]]) if per_datum else torch.ones(5).bool()
    memory = SlotMemory(values, mask=mask, batch_dim=-1 if per_datum else None)
    model = Addressed(BASES["autoregressive"][0](reads=True, code_dim=1))
    told = model.context(torch.tensor([3, 1]), memory).code
    assert_close(told.exp(), torch.tensor([[5.0], [3.0]]) if per_datum else torch.tensor([5.0]))


def test_weights_are_saved_with_how_to_build_them(tmp_path):
    size = {"shape": list(SHAPE), "channels": list(CHANNELS)}
    model = Addressed(DiffusionBase(**size, reads=True))
    guide = AddressedGuide.convolutional(base=DiffusionBaseGuide(), **size)
    build = {
        "model": ["Addressed", {"base": {"build": ["DiffusionBase", size | {"reads": True}]}}],
        "guide": ["AddressedGuide.convolutional", {"base": {"build": ["DiffusionBaseGuide", {}]}, **size}],
    }
    save_pretrained("small", model, guide, build=build, facts=dict.fromkeys(FACTS, "x"), folder=tmp_path)
    again, _ = load_pretrained("small", tmp_path)
    assert_close(again.base.decoder.out.weight, model.base.decoder.out.weight.half().float())
