"""A user's notebook: cells that run one after the other in one namespace, each showing what its last line gives."""

import ast
import types

import pyro
import pytest

CELLS = [
    """
import pyro, torch
import pyro.distributions as dist
from pyro.nn import PyroModule
from pyro_memory import (
    VIMCO, ContentAddress, SlotMemory, fit, importance_bound, information_gain, memory_contribution,
    posterior_address, to_arviz,
)
torch.manual_seed(0)
memory = SlotMemory(torch.randn(6, 2) * 3)
x = memory[torch.randint(6, (100,))] + 0.5 * torch.randn(100, 2)
memory
""",
    """
def model(x, memory):
    with pyro.plate("batch", len(x)):
        a = pyro.sample("a", memory.prior())
        pyro.sample("x", dist.Normal(memory[a], 0.5).to_event(1), obs=x)

class Guide(PyroModule):
    def __init__(self):
        super().__init__("notebook_guide")
        self.address = ContentAddress(torch.nn.Linear(2, 8))

    def forward(self, x, memory):
        with pyro.plate("batch", len(x)):
            pyro.sample("a", self.address(x, memory))

guide = Guide()
fit(model, guide, [(x, memory)], VIMCO(4), steps=60, learning_rate=5e-2, progress=False)
""",
    "bound = importance_bound(model, guide, x, memory, particles=100)\nbound",
    "gain = information_gain(model, guide, x, memory)\ngain",
    "gain['a']",
    "posterior_address(model, guide, x, memory, particles=100)",
    "other = {'moved': SlotMemory(memory.values.roll(1, -1))}\n"
    "worth = memory_contribution(model, guide, x, memory, alternatives=other, particles=100)\nworth",
    "to_arviz(worth)",
    "axes = [record.plot() for record in (bound, gain, worth)]",
]


def run(cell, namespace):
    """What a notebook shows of a cell: the value of its last line, where that is an expression."""
    tree = ast.parse(cell)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "cell", "exec"), namespace)
    if last is None:
        return None
    value = eval(compile(ast.Expression(last.value), "cell", "eval"), namespace)
    return getattr(value, "_repr_html_", value.__repr__)()


@pytest.fixture(scope="module")
def shown():
    pyro.clear_param_store()
    notebook = types.ModuleType("__main__")
    return [run(cell, vars(notebook)) for cell in CELLS], vars(notebook)


def test_each_cell_shows_its_record_with_units_and_errors(shown):
    said, _ = shown
    wanted = [
        "SlotMemory(shared, slots=6", "FitResult", "nats/datum", "nats/lookup", "nats/datum", "posterior",
        "nats per datum", "bound",
    ]  # fmt: skip
    for text, words in zip(said, wanted, strict=False):
        assert words.lower() in text.lower()
    assert all("se" in text for text in said[2:7])
    assert said[8] is None


def test_numbers_are_those_of_the_mixture_in_closed_form(shown):
    torch, dist = shown[1]["torch"], shown[1]["dist"]
    x, memory, bound, gain, worth = (shown[1][name] for name in ("x", "memory", "bound", "gain", "worth"))
    joint = dist.Normal(memory.values, 0.5).to_event(1).log_prob(x.unsqueeze(1)) - torch.tensor(6.0).log()
    assert bound.mean < joint.logsumexp(-1).mean() + 5 * bound.monte_carlo_se
    assert bound.mean > joint.logsumexp(-1).mean() - 0.2
    exact = shown[1]["importance_bound"](shown[1]["model"], shown[1]["guide"], x, memory, particles=1, exact=["a"])
    torch.testing.assert_close(exact.bound, joint.logsumexp(-1).double(), rtol=1e-4, atol=1e-4)
    assert gain["a"].mean > 5 * gain["a"].se > 0
    lost, se = worth.gain("moved")
    assert lost > 5 * se > 0


def test_records_draw_themselves(shown):
    assert [ax.get_xlabel() for ax in shown[1]["axes"]] == [
        "bound on log p(x), nats/datum", "KL(q || p), nats", "nats per datum lost against the memory as given",
    ]  # fmt: skip
