"""What README shows runs: the pair of its front page under every objective, and what it prints."""

import math
import re
import runpy
import types
from contextlib import nullcontext
from pathlib import Path

import pyro
import pytest
import torch
from pyro.infer import ReweightedWakeSleep, Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO

import pyro_memory
from pyro_memory import (
    VIMCO,
    DReG,
    LeaveOneOutELBO,
    RaoBlackwellELBO,
    SlotMemory,
    WakeWake,
    fit,
    importance_bound,
    information_gain,
    pretrained,
)

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCK = re.compile(r"^```(?:python)?\n(.*?)^```$", re.DOTALL | re.MULTILINE)
PAIR, PRINTED, WEIGHTS = BLOCK.findall(README)
CLASSES, SCRIPT = PAIR.split("\n\n\nmodel, guide = ")
OBJECTIVES = {
    "VIMCO": lambda: VIMCO(3),
    "VIMCO, one by one": lambda: VIMCO(3, vectorize_particles=False),
    "DReG": lambda: DReG(3),
    "LeaveOneOutELBO": lambda: LeaveOneOutELBO(3),
    "WakeWake": lambda: WakeWake(3),
    "RaoBlackwellELBO": lambda: RaoBlackwellELBO(2),
    "TraceEnum_ELBO": lambda: TraceEnum_ELBO(max_plate_nesting=1),
    "TraceEnum_ELBO, one by one": lambda: TraceEnum_ELBO(3, max_plate_nesting=1),
    "TraceEnum_ELBO, vectorised": lambda: TraceEnum_ELBO(3, max_plate_nesting=1, vectorize_particles=True),
    "TraceGraph_ELBO": lambda: TraceGraph_ELBO(max_plate_nesting=1),
    "TraceGraph_ELBO, vectorised": lambda: TraceGraph_ELBO(3, max_plate_nesting=1, vectorize_particles=True),
    "ReweightedWakeSleep": lambda: ReweightedWakeSleep(3, max_plate_nesting=1),
    "Trace_ELBO": lambda: Trace_ELBO(max_plate_nesting=1),
    "Trace_ELBO, vectorised": lambda: Trace_ELBO(3, max_plate_nesting=1, vectorize_particles=True),
}
WARNS = ("Trace_ELBO", "TraceGraph_ELBO", "ReweightedWakeSleep")  # of a mark that they do not heed


@pytest.fixture
def page():
    """The front page's classes, with the imports, the memory and data of the example that it names."""
    names = runpy.run_path(str(ROOT / "examples" / "compose.py"))
    exec(compile(CLASSES, "README.md", "exec"), names)
    memory = SlotMemory(torch.tensor([[2.0, 0.0], [-2.0, 0.0], [0.3, 1.5], [0.3, -1.5], [1.0, 3.0]]))
    y = pyro.poutine.uncondition(names["Lines"]("data"))(torch.zeros(200, 12), memory)
    return types.SimpleNamespace(**names | {"memory": memory, "y": y})


def test_the_front_page_shows_what_the_example_runs():
    assert f"\n{CLASSES}\n" in (ROOT / "examples" / "compose.py").read_text()


def test_every_objective_of_the_comparison_is_tried():
    table = (ROOT / "docs" / "estimators.md").read_text().split("\n\n")[2]
    named = set(re.findall(r"^\| `(\w+)", table, re.MULTILINE))
    assert "VIMCO" in named
    assert named <= {name.partition(",")[0] for name in OBJECTIVES}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_front_page_s_pair_trains_under(name, page):
    model, guide = page.Lines("lines"), page.LinesGuide("lines_guide")
    before = {n: p.detach().clone() for n, p in guide.named_parameters()}
    data = page.y[:20], page.memory
    told = pytest.warns(UserWarning, match="use TraceEnum_ELBO") if name.startswith(WARNS) else nullcontext()
    with told:
        fit(model, guide, [data], OBJECTIVES[name](), steps=2, progress=False)
    still = [n for n, p in guide.named_parameters() if torch.equal(p, before[n])]
    assert still == []
    assert information_gain(model, guide, *data)["a"].mean > 0
    assert math.isfinite(importance_bound(model, guide, *data, particles=5).mean)


def test_enumeration_has_the_value_that_samples_have_on_average(page):
    model, guide = page.Lines("lines"), page.LinesGuide("lines_guide")
    data = page.y[:20], page.memory
    means, errors = [], []
    exact = TraceEnum_ELBO(20, max_plate_nesting=1, vectorize_particles=True)
    for objective in (exact, LeaveOneOutELBO(200, max_plate_nesting=1)):
        losses = torch.tensor([objective.loss(model, guide, *data) for _ in range(20)])
        means.append(losses.mean())
        errors.append(losses.std() / 20**0.5)
    assert abs(means[0] - means[1]) < 5 * math.hypot(*errors)


def test_the_front_page_prints_what_it_shows(page, capsys):
    def briefly(*args, steps, **options):
        return fit(*args, steps=5, progress=False, **options)

    exec(compile("model, guide = " + SCRIPT, "README.md", "exec"), vars(page) | {"fit": briefly})
    assert layout(capsys.readouterr().out) == layout(PRINTED)


def layout(text):
    """A printed text with its numbers left out, and the room that they take."""
    return re.sub(r" +", " ", re.sub(r"-?\d+(\.\d+)?", "#", text)).strip()


def test_the_text_s_numbers_are_those_of_the_printed_block():
    nats, se = map(float, re.search(r"^  a +([\d.]+) +([\d.]+)", PRINTED, re.MULTILINE).groups())
    assert f"ceiling {math.log(5):.3f} nats" in PRINTED
    texts = README + (ROOT / "docs" / "examples.md").read_text()
    carried = re.findall(r"lookup carries ([\d.]+) (?:\(([\d.]+)\) )?of at most (?:log 5 = )?1.61 nats", texts)
    assert len(carried) == 2
    assert all(abs(float(n) - nats) < 0.0051 and abs(float(e or se) - se) < 0.0051 for n, e in carried)


def test_the_weights_that_it_loads_are_there():
    loaded = re.findall(r'load\("([^"]+)"\)', WEIGHTS)
    assert loaded
    assert set(loaded) <= set(pretrained())
    names = {"pyro_memory": pyro_memory, "examples": torch.zeros(3, 1, 28, 28)}
    exec(compile(WEIGHTS, "README.md", "exec"), names)
    assert names["new"].shape == (10, 1, 28, 28)


def test_it_is_short():
    assert len(README.splitlines()) < 120
