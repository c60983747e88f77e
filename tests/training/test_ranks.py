"""``fit`` in several processes that torchrun starts."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceGraph_ELBO
from pyro.nn import PyroModule
from torch import nn

from pyro_memory import fit, load_weights
from pyro_memory.training import Ranks, read_header

ROOT = Path(__file__).parents[2]
SCRIPT = """
import os, sys, time
from functools import partial
import torch
from test_ranks import Line, batch, silent
from pyro.infer import Trace_ELBO
from pyro_memory import fit

torch.set_num_threads(1)
path, steps, pause = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
def slow(number):
    if number > 20:
        open("started", "w").close()
    time.sleep(pause)
    return batch(number)
result = fit(
    Line(), silent, slow, Trace_ELBO(max_plate_nesting=1), steps=steps, learning_rate=0.01, optimizer=torch.optim.SGD,
    checkpoint=path, checkpoint_every=1000, seed=0, progress=False, information_every=None,
    evaluate=lambda step: {"rank": float(os.environ.get("RANK", 0))},
)
noise = torch.rand(()).item()
line = " ".join(map(str, ["result", result.steps, result.history["bound"], result.history["evaluation"], noise]))
os.write(1, f"{line}\\n".encode())  # at once: the processes share one pipe
"""


class Line(PyroModule):
    """x ~ N(w, 1), with nothing random: the bound is a function of w and the batch."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(0.3))
        self.idle = nn.Parameter(torch.tensor(1.0))  # takes no part

    def forward(self, x):
        with pyro.plate("batch", len(x)):
            pyro.sample("x", dist.Normal(self.w, 1.0), obs=x)


def silent(x):
    pass


def batch(number):
    return (torch.randn(4, generator=torch.Generator().manual_seed(number)) + 2,)


def command(tmp_path, path, steps, pause=0.0, processes=2):
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    start = [sys.executable, str(script)]
    if processes > 1:
        start = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            str(processes),
            str(script),
        ]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{Path(__file__).parent}", "OMP_NUM_THREADS": "1"}
    options = {"env": environment, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": tmp_path}
    return subprocess.Popen([*start, str(path), str(steps), str(pause)], **options)


def by_hand(steps, processes):
    """Gradient descent on the mean over processes of the summed loss of each one's batch."""
    w, history = 0.3, []
    for step in range(steps):
        rows = [batch(step * processes + rank)[0] for rank in range(processes)]
        bounds = [dist.Normal(w, 1.0).log_prob(x).sum().item() for x in rows]
        history.append(sum(bounds) / processes)
        w -= 0.01 * sum((w - x).sum().item() for x in rows) / processes
    return w, history


def test_two_processes_average_their_gradients_and_one_writes(tmp_path):
    run = command(tmp_path, tmp_path / "a.safetensors", 10)
    out, err = run.communicate(timeout=120)
    assert run.returncode == 0, err
    w, history = by_hand(10, 2)
    results = [line.split(" ", 2)[2] for line in out.splitlines() if line.startswith("result 10 ")]
    assert len(results) == 2
    assert len({line.split("]")[-1] for line in results}) == 2  # each has noise of its own
    line = Line()
    load_weights(tmp_path / "a.safetensors", line, silent)
    assert line.w.item() == pytest.approx(w, abs=1e-5)
    log = read_header(tmp_path / "a.safetensors")["record"]["log"]
    assert log["history"]["bound"][0] == pytest.approx(sum(history) / 10, abs=1e-4)
    assert [row["rank"] for row in log["history"]["evaluation"]] == [0.0]


def test_a_signal_stops_all_after_one_step_and_one_process_goes_on(tmp_path):
    path = tmp_path / "b.safetensors"
    run = command(tmp_path, path, 10_000, pause=0.01)
    for _ in range(600):
        if (tmp_path / "started").exists():
            break
        time.sleep(0.1)
    run.send_signal(signal.SIGTERM)
    out, err = run.communicate(timeout=60)
    assert run.returncode != 0
    step = read_header(path)["step"]
    assert 0 < step < 10_000
    line = Line()
    load_weights(path, line, silent)
    assert line.w.item() == pytest.approx(by_hand(step, 2)[0], abs=1e-4)
    assert not list(tmp_path.glob(".*tmp"))
    alone = command(tmp_path, path, step + 5, processes=1)
    out, err = alone.communicate(timeout=60)
    assert alone.returncode == 0, err
    assert f"result {step + 5} " in out
    w = line.w.item()
    for number in range(step, step + 5):  # the same steps counted, now one batch each
        w -= 0.01 * (w - batch(number)[0]).sum().item()
    load_weights(path, line, silent)
    assert line.w.item() == pytest.approx(w, abs=1e-4)
    assert json.loads(path.with_name(f"{path.name}.json").read_text())["step"] == step + 5


def test_two_processes_go_on_with_the_noise_of_both(tmp_path):
    def last(path, *ends):
        """What each process draws next, after the last of some calls of one checkpoint."""
        for steps in ends:
            out, err = (run := command(tmp_path, path, steps)).communicate(timeout=120)
            assert run.returncode == 0, err
        return sorted(line.split("]")[-1] for line in out.splitlines() if line.startswith("result"))

    noise = last(tmp_path / "c.safetensors", 10)
    assert len(set(noise)) == 2
    assert last(tmp_path / "d.safetensors", 6, 10) == noise


def test_the_streams_of_a_step_are_known_without_a_file():
    ranks, noise = Ranks(), {}
    pyro.set_rng_seed(5)
    before = torch.get_rng_state()
    ranks.streams = ranks.draw_streams()
    assert torch.equal(torch.get_rng_state(), before)  # the first process's own stream stays where it is
    ranks.begin_step(3)
    assert torch.equal(torch.get_rng_state(), before)
    ranks.size = 3
    for ranks.rank in (1, 2):
        for step in (7, 8, 7):
            ranks.begin_step(step)
            drawn = torch.rand(()).item()
            assert noise.setdefault((ranks.rank, step), drawn) == drawn
    assert len(set(noise.values())) == 4
    ranks.divided = True
    pyro.set_rng_seed(5)
    ranks.begin_step(7)
    assert torch.equal(torch.get_rng_state(), before)  # all have one stream


def test_alone_nothing_changes_and_batches_come_in_turn(monkeypatch):
    ranks = Ranks()
    assert (ranks.size, ranks.main, ranks.mean(2.5), ranks.any(True), ranks.any(False)) == (1, True, 2.5, True, False)
    assert [ranks.share(step) for step in range(3)] == [0, 1, 2]
    ranks.size, ranks.rank = 4, 1
    assert [ranks.share(step) for step in range(3)] == [1, 5, 9]
    ranks.divided = True
    assert [ranks.share(step) for step in range(3)] == [0, 1, 2]


def test_each_process_takes_its_own_batches_of_any_iterable(monkeypatch):
    from pyro_memory.training.batches import stream as _stream

    ranks = Ranks()
    ranks.size, ranks.rank = 2, 1
    numbers = [(torch.tensor(float(i)),) for i in range(5)]
    for batches in (numbers, numbers.__getitem__, Iterable(numbers)):
        at, first = _stream(batches, 0, ranks)
        assert first()[0] == 0
        assert [at(step)[0].item() for step in range(2)] == [1, 3]
    at, _ = _stream(Iterable(numbers), 1, ranks)
    assert at(1)[0] == 3


class Iterable:
    def __init__(self, items):
        self.items = items

    def __iter__(self):
        return iter(self.items)


def test_an_objective_without_a_differentiable_loss_is_refused_in_several_processes():
    ranks = Ranks()
    ranks.size = 2
    with pytest.raises(ValueError, match=r"`objective` must have differentiable_loss .* got TraceGraph_ELBO"):
        ranks.gradients(TraceGraph_ELBO(), Line(), silent, Line())
    fit(Line(), silent, batch, Trace_ELBO(max_plate_nesting=1), steps=1, progress=False, information_every=None)
