import json
import random
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import ReweightedWakeSleep, Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO, config_enumerate
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule, PyroParam
from safetensors.torch import load_file
from torch import nn

from pyro_memory import information_gain, load_weights
from pyro_memory.naming import unique_name
from pyro_memory.training import fit


class Model(PyroModule):
    """x ~ N(W z, 1), z ~ N(0, 1)."""

    def __init__(self, net=None, name=None):
        super().__init__(name or unique_name(self))
        self.net = net or nn.Linear(2, 3)
        self.scale = PyroParam(torch.tensor(1.0), dist.constraints.positive)

    def forward(self, x):
        with pyro.plate("batch", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.net(z), self.scale).to_event(1), obs=x)


class Guide(PyroModule):
    def __init__(self, net=None, name=None):
        super().__init__(name or unique_name(self))
        self.net = net or nn.Linear(3, 2)
        self.width = PyroParam(torch.tensor(0.5), dist.constraints.positive)

    def forward(self, x):
        with pyro.plate("batch", len(x)):
            pyro.sample("z", dist.Normal(self.net(x), self.width).to_event(1))


class Noisy:
    """Batches that draw from every global random stream."""

    def __getitem__(self, step):
        noise = random.random() + np.random.random()  # noqa: NPY002
        return (torch.randn(4, 3) + noise + step / 100,)


class Plain:
    def __getitem__(self, step):
        return (torch.randn(4, 3, generator=torch.Generator().manual_seed(step)) + 1.0,)


def pair(seed=0):
    torch.manual_seed(seed)
    return Model(), Guide()


def run(model, guide, *, steps=20, batches=None, objective=None, **options):
    options = {"progress": False, "information_every": None, "learning_rate": 0.05, "seed": 1} | options
    return fit(model, guide, batches or Plain(), objective or Trace_ELBO(), steps=steps, **options)


def iter_only(batches):
    return dict(enumerate(batches)).values()


def by_step(batches):
    return lambda step: batches[step % 3]


def weights(*modules):
    return [p.detach().clone() for m in modules for p in m.state_dict().values()]


def assert_same(left, right):
    torch.testing.assert_close(left, right, rtol=0, atol=0)


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


SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
from test_training import Plain, pair, run

class Slow(Plain):
    def __getitem__(self, step):
        import time
        print(step, flush=True)
        time.sleep(0.02)
        return super().__getitem__(step)

run(*pair(), steps=10_000, batches=Slow(), checkpoint={path!r}, checkpoint_every=10_000)
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, -signal.SIGINT)])
def test_a_signal_leaves_a_checkpoint_that_resumes_to_the_same_weights(tmp_path, request, number, code):
    path = tmp_path / "a.safetensors"
    script = SCRIPT.format(path=str(path), tests=str(request.path.parent))
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=request.config.rootpath
    )
    try:
        for _ in range(5):
            assert process.stdout.readline()
        process.send_signal(number)
        errors = process.communicate(timeout=30)[1].decode()
    finally:
        process.kill()
    assert process.returncode == code, errors

    step = json.loads(path.with_suffix(".json").read_text())["step"]
    assert 3 <= step < 1000
    parts, whole = pair(seed=5), pair()
    run(*parts, steps=step + 5, checkpoint=path)
    run(*whole, steps=step + 5)
    assert_same(weights(*parts), weights(*whole))


def test_signal_handlers_come_back(tmp_path):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)

    def interrupt(step):
        assert signal.getsignal(signal.SIGINT) != before[0]
        if step == 2:
            signal.raise_signal(signal.SIGINT)
            assert signal.getsignal(signal.SIGINT) == before[0]
        return {}

    with pytest.raises(KeyboardInterrupt, match="stopped after step 2"):
        run(*pair(), checkpoint=tmp_path / "a.safetensors", evaluate=interrupt, evaluate_every=1)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


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
        r"12 steps in .*\n  bound .* nats per call.*\n  evaluation   score 2.000\n.*none kept", repr(result)
    )
    assert json.loads(json.dumps(result.to_dict()))["history"]["step"] == [10, 12]
    ax = Figure().subplots()
    assert result.plot(ax) is ax
    assert ax.lines[0].get_xdata().tolist() == [10, 12]


class WithGlobal(Model):
    def forward(self, x):
        super().forward(x + pyro.param("offset", torch.tensor(0.3)))


def test_global_parameters_are_refused():
    with pytest.raises(ValueError, match=r"global parameters \['offset'\].*PyroParam"):
        run(WithGlobal(), Guide())


def test_parameters_among_the_arguments_are_refused():
    class Taught(Plain):
        parameter = nn.Parameter(torch.ones(4, 3))

        def __getitem__(self, step):
            return (self.parameter,)

    with pytest.raises(ValueError, match=r"argument 0 holds a parameter.*attribute"):
        run(*pair(), batches=Taught())


def test_colliding_names_are_refused():
    run(Model(name="same"), Guide(), steps=1)
    with pytest.raises(ValueError, match=r"\['0.scale_unconstrained'\].*unique `name=`"):
        run(Model(name="same"), Guide(), steps=1)


def test_entries_that_an_earlier_module_left_do_no_harm():
    class Bare(PyroModule):
        def __init__(self, sizes):
            super().__init__()
            self.net = nn.Linear(*sizes)

    class BareModel(Bare):
        forward = Model.forward
        scale = 1.0

    class BareGuide(Bare):
        forward = Guide.forward
        width = 1.0

    for _ in range(2):
        model, guide = BareModel((2, 3)), BareGuide((3, 2))
        before = weights(model, guide)
        run(model, guide, steps=3)
        assert all((a != b).all() for a, b in zip(weights(model, guide), before, strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objective": Trace_ELBO}, "`objective` must be an ELBO instance"),
        ({"steps": -1}, "`steps` must not be negative; got -1"),
        ({"checkpoint_every": 0}, "`checkpoint_every` must be at least 1; got 0"),
        ({"batches": [torch.zeros(2, 3)]}, r"must give a tuple .* got Tensor: write \(x,\)"),
        ({"batches": 3}, r"`batches` must have `\[step\]`"),
        ({"batches": (x for x in [(torch.zeros(2, 3),)])}, "ran out and cannot start again"),
    ],
)
def test_unusable_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        run(*pair(), **options)


def test_functions_without_parameters_are_refused():
    with pytest.raises(ValueError, match="must own parameters; got none"):
        run(lambda x: None, lambda x: None)


def test_a_pair_without_information_gain_trains_on(monkeypatch):
    def refuse(*args, **kwargs):
        raise ValueError("no such thing")

    monkeypatch.setattr("pyro_memory.training.log.information_gain", refuse)
    with pytest.warns(UserWarning, match=r"`information_every` is off.*no such thing") as record:
        run(*pair(), information_every=2)
    assert len(record) == 1
