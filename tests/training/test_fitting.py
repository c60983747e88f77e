import json
import random
import re
import time

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from fits import Guide, Model, Noisy, Plain, assert_same, by_step, iter_only, pair, run, weights
from pyro.infer import ReweightedWakeSleep, Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO, config_enumerate
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule
from safetensors.torch import load_file
from torch import nn

from pyro_memory import information_gain, load_weights
from pyro_memory.naming import unique_name


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path):
    whole, parts = pair(), pair()
    options = {"batches": Noisy(), "checkpoint_every": 4}
    random.seed(3), np.random.seed(3)  # noqa: NPY002
    expected = run(*whole, steps=37, checkpoint=tmp_path / "a.safetensors", **options)
    random.seed(3), np.random.seed(3)  # noqa: NPY002
    first = run(*parts, steps=13, checkpoint=tmp_path / "b.safetensors", **options)
    fresh = pair(seed=9)
    random.seed(8), np.random.seed(8)  # noqa: NPY002
    clock = time.process_time()
    actual = run(*fresh, steps=37, checkpoint=tmp_path / "b.safetensors", **options)
    clock = time.process_time() - clock

    assert 0 < first.cpu_seconds < actual.cpu_seconds <= first.cpu_seconds + clock
    assert_same(weights(*fresh), weights(*whole))
    assert actual.history == expected.history
    assert actual.history["step"] == [10, 20, 30, 37]
    optimizer = [k for k in load_file(tmp_path / "a.safetensors") if k.startswith("optimizer.")]
    assert len(optimizer) == 3 * 6
    assert_same(load_file(tmp_path / "a.safetensors"), load_file(tmp_path / "b.safetensors"))


def test_a_finished_run_returns_at_once_with_its_weights(tmp_path):
    model, guide = pair()
    run(model, guide, steps=5, checkpoint=tmp_path / "a.safetensors")
    again = pair(seed=4)
    result = run(*again, steps=5, checkpoint=tmp_path / "a.safetensors", evaluate=lambda step: pytest.fail("ran"))
    assert result.steps == 5
    assert_same(weights(*again), weights(model, guide))


def test_without_resume_an_old_checkpoint_stays_until_the_first_write(tmp_path):
    path = tmp_path / "a.safetensors"
    run(*pair(), steps=5, checkpoint=path)
    old, seen = path.read_bytes(), []
    run(
        *pair(),
        steps=4,
        checkpoint=path,
        checkpoint_every=2,
        resume=False,
        evaluate=lambda step: seen.append(path.read_bytes() == old) or {},
        evaluate_every=1,
    )
    assert seen == [True, True, False, False]


@pytest.mark.parametrize("kind", [list, iter_only, by_step], ids=["list", "iterable", "callable"])
def test_batches_go_round_and_resume_where_they_were(tmp_path, kind):
    source = kind([(torch.full((2, 3), float(i)),) for i in range(3)])
    whole, parts = pair(), pair()
    run(*whole, steps=8, batches=source)
    run(*parts, steps=4, batches=source, checkpoint=tmp_path / "a.safetensors")
    run(*parts, steps=8, batches=source, checkpoint=tmp_path / "a.safetensors")
    assert_same(weights(*parts), weights(*whole))


@pytest.mark.parametrize("kept", [True, False])
def test_a_loss_that_is_not_finite_stops_before_it_does_harm(tmp_path, kept):
    seen = {}

    class Poisoned(Plain):
        def __getitem__(self, step):
            (x,) = super().__getitem__(step)
            if step == 7:
                seen["weights"] = weights(model, guide)
            return (x * (1e30 if step == 7 else 1.0),)

    model, guide = pair()
    path = tmp_path / "a.safetensors"
    expected = rf"Step 8 gave a loss of (inf|nan).* good checkpoint is {re.escape(str(path))} \(step 6\).*`clip_norm`"
    if not kept:
        expected = "Step 8 .* good checkpoint is none.*Lower `learning_rate`"
    with pytest.raises(FloatingPointError, match=expected):
        run(model, guide, batches=Poisoned(), checkpoint=path if kept else None, checkpoint_every=3)
    assert_same(weights(model, guide), seen["weights"])
    if kept:
        assert load_weights(path, *pair())["step"] == 6


def test_clipping_and_schedule_follow_a_hand_written_loop():
    model, guide = pair()
    run(model, guide, clip_norm=0.5, schedule=lambda step: 0.5**step, optimizer=torch.optim.SGD, steps=5)

    by_hand = pair()
    pyro.set_rng_seed(1)
    parameters = [p for m in by_hand for p in m.parameters()]
    for step in range(5):
        for p in parameters:
            p.grad = None
        Trace_ELBO().differentiable_loss(*by_hand, *Plain()[step]).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 0.5)
        for p in parameters:
            p.data -= 0.05 * 0.5**step * p.grad
    torch.testing.assert_close(weights(model, guide), weights(*by_hand))


class Mixture(PyroModule):
    def __init__(self):
        super().__init__(unique_name(self))
        self.means, self.logits = nn.Parameter(torch.tensor([-1.0, 0.5])), nn.Parameter(torch.zeros(2))

    @config_enumerate
    def forward(self, x):
        with pyro.plate("batch", len(x)):
            a = pyro.sample("a", dist.Categorical(logits=self.logits))
            pyro.sample("x", dist.Normal(self.means[a], 1.0).to_event(0), obs=x[..., 0])


class MixtureGuide(PyroModule):
    def __init__(self):
        super().__init__(unique_name(self))
        self.net = nn.Linear(3, 2)

    @config_enumerate
    def forward(self, x):
        with pyro.plate("batch", len(x)):
            pyro.sample("a", dist.Categorical(logits=self.net(x)))


@pytest.mark.parametrize("objective", [Trace_ELBO, TraceGraph_ELBO, TraceEnum_ELBO, ReweightedWakeSleep])
def test_every_objective_moves_every_parameter_of_two_pairs_of_a_class(objective):
    for _ in range(2):
        model, guide = (Mixture(), MixtureGuide()) if objective is TraceEnum_ELBO else pair()
        before = weights(model, guide)
        run(model, guide, steps=8, objective=objective(max_plate_nesting=1))
        assert all((a != b).any() for a, b in zip(weights(model, guide), before, strict=True))


def test_an_enumerated_mixture_needs_no_guide():
    model = Mixture()
    result = run(model, lambda x: None, steps=40, objective=TraceEnum_ELBO(max_plate_nesting=1))
    assert result.history["bound"][-1] > result.history["bound"][0]


def test_a_module_of_both_is_trained_once_and_stays_tied(tmp_path):
    shared = nn.Linear(2, 3)

    class Tied(Guide):
        def forward(self, x):
            with pyro.plate("batch", len(x)):
                pyro.sample("z", dist.Normal(x @ self.net.weight, self.width).to_event(1))

    model, guide = Model(shared), Tied(shared)
    run(model, guide, steps=4, checkpoint=tmp_path / "a.safetensors")
    net = nn.Linear(2, 3)
    again = Model(net), Tied(net)
    load_weights(tmp_path / "a.safetensors", *again)
    assert again[0].net.weight is again[1].net.weight
    assert_same(net.weight, shared.weight)


def test_a_lazy_autoguide_trains_and_resumes(tmp_path):
    pyro.clear_param_store()

    def latent():
        torch.manual_seed(0)
        model = Model()
        return model, AutoNormal(model)

    whole = latent()
    batches = [Plain()[0]]
    run(*whole, steps=9, batches=batches)
    for steps in (4, 9):
        pyro.clear_param_store()
        parts = latent()
        run(*parts, steps=steps, batches=batches, checkpoint=tmp_path / "a.safetensors")
    assert_same(weights(*parts), weights(*whole))


def test_measuring_leaves_training_unchanged():
    quiet, watched = pair(), pair()
    run(*quiet)

    def evaluate(step):
        assert not watched[0].training
        assert not torch.is_grad_enabled()
        return {"score": random.random() + torch.rand(()).item()}

    result = run(*watched, evaluate=evaluate, evaluate_every=6, information_every=5)
    assert_same(weights(*watched), weights(*quiet))
    assert [row["step"] for row in result.history["evaluation"]] == [6, 12, 18, 20]
    assert [row["step"] for row in result.history["information"]] == [5, 10, 15, 20]
    assert result.history["information"][-1]["z"] > 0
    assert information_gain(*watched, *Plain()[19]).sites["z"].mean > 0
    assert watched[0].training


def test_a_result_reads_well_and_draws_on_the_given_axes(capsys):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    result = run(*pair(), steps=12, evaluate=lambda step: {"score": 2.0}, progress=True)
    assert "bound" in capsys.readouterr().err
    assert re.search(
        r"12 steps in .*\n  bound +-\d+\.\d{3} nats per datum.*\n  evaluation  score 2.000\n.*none kept", repr(result)
    )
    assert json.loads(json.dumps(result.to_dict()))["history"]["step"] == [10, 12]
    ax = Figure().subplots()
    assert result.plot(ax) is ax
    assert ax.lines[0].get_xdata().tolist() == [10, 12]
