"""``make gpu`` without a GPU: its parts against a pretended clock, and the whole of it on a pretended device."""

import csv
import importlib
import json
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import parts
import pytest
import torch
from parts import FILES, Part, Run

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

ABOUT = {"gpu": "pretended", "triton": "0", "date": "2026-01-01"}


class Clock:
    """Stands still but for what jobs take."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now

    def job(self, name, seconds, error=None, **row):
        def run():
            self.now += seconds
            yield {"what": name, "measured": self.now} | row
            if error is not None:
                raise error

        return name, run


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def run(tmp_path, clock):
    return Run(tmp_path / "out", 100, ABOUT, clock)


def kept(run):
    with open(run.path, newline="") as file:
        return [(row["part"], row["case"], row["what"]) for row in csv.DictReader(file)]


def test_parts_come_in_order_and_what_does_not_fit_is_left_out(run, clock):
    first = Part("first", 0.3, lambda: [clock.job(f"a{i}", 12) for i in range(5)])
    second = Part("second", 0.6, lambda: [clock.job(f"b{i}", 8) for i in range(2)])
    third = Part("third", 0.6, lambda: [clock.job(f"c{i}", 30) for i in range(3)])
    run.run([first, second, third])
    # a2 starts at 24 s and ends at 36; the second part takes until 52; c0 starts before 60 and ends at 82
    assert [case for _, case, _ in kept(run)] == ["a0", "a1", "a2", "b0", "b1", "c0"]
    assert run.skipped == {"first": 2, "third": 2}
    table = run.table()
    assert "not started for want of time: 2 of first" in table
    assert "not started for want of time: 2 of third" in table


def test_time_that_a_part_leaves_goes_to_the_next(run, clock):
    quick = Part("quick", 0.5, lambda: [clock.job("a", 1)])
    slow = Part("slow", 0.6, lambda: [clock.job(f"b{i}", 10) for i in range(6)])
    run.run([quick, slow])
    assert len(kept(run)) == 7
    assert not run.skipped


def test_a_part_or_a_job_that_raises_does_not_end_the_rest(run, clock):
    def broken():
        raise ImportError("no such module")

    jobs = [clock.job("a", 1, RuntimeError("out of luck\nand more")), clock.job("b", 1)]
    run.run([Part("broken", 1, broken), Part("half", 1, lambda: jobs)])
    assert kept(run) == [
        ("broken", "all", "failed"), ("half", "a", "a"), ("half", "a", "failed"), ("half", "b", "b"),
    ]  # fmt: skip
    assert [row["note"] for row in run.rows if row["what"] == "failed"] == [
        "ImportError: no such module", "RuntimeError: out of luck",
    ]  # fmt: skip
    assert run.table().splitlines()[1].split()[:3] == ["broken", "all", "failed"]


def test_a_device_that_is_lost_leaves_what_is_apart_from_it(run, clock):
    def lost():
        raise RuntimeError("an illegal memory access was encountered")

    def job(name):
        return lambda: [clock.job(name, 1), clock.job(f"{name}2", 1)]

    run.run([Part("one", 1, job("a")), Part("two", 1, job("b")), Part("three", 1, job("c"), apart=True)], after=lost)
    assert [case for _, case, what in kept(run) if not what.startswith("failed")] == ["a", "c"]
    assert "failed: device lost" in run.table().splitlines()[1]


def test_a_job_that_outlasts_its_part_is_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "GRACE", 0.1)

    def endless():
        yield {"what": "begun"}
        while True:
            with suppress(Exception):  # of another package, whose failure is a row
                time.sleep(1)

    run = Run(tmp_path, 0.2, ABOUT)
    run.run([Part("one", 0.5, lambda: [("a", endless)]), Part("two", 1, lambda: [("b", lambda: [{"what": "done"}])])])
    assert kept(run)[:2] == [("one", "a", "begun"), ("one", "a", "failed")]
    assert "stopped" in run.rows[1]["note"]


def test_rows_are_on_disk_as_they_come_and_are_added_to_earlier_ones(run, clock, tmp_path):
    def watched():
        yield {"what": "first"}
        assert kept(run)[-1][-1] == "first"
        yield {"what": "second"}

    run.run([Part("part", 1, lambda: [("a", watched)])])
    again = Run(tmp_path / "out", 100, ABOUT, clock)
    again.run([Part("part", 1, lambda: [("b", lambda: [{"what": "third"}])])])
    assert [what for *_, what in kept(again)] == ["first", "second", "third"]
    assert len(again.rows) == 1


def test_the_table_has_sixty_lines_at_most_and_what_failed_comes_first(run, clock):
    jobs = [clock.job(f"a{i}", 0) for i in range(80)] + [
        clock.job("b", 0, predicted=3.0),
        clock.job("c", 0, ValueError()),
    ]
    run.run([Part("part", 1, lambda: jobs), Part("late", 0, lambda: [clock.job("d", 1)])])
    lines = run.table().splitlines()
    assert len(lines) == 60
    assert "failed" in lines[1]
    assert lines[2].split()[1] == "b"
    assert lines[-2] == "not started for want of time: 1 of late"
    assert lines[-1] == "26 more rows in rows.csv"


def test_files_beyond_the_limits_are_named(run, monkeypatch):
    monkeypatch.setattr(parts, "FILE_BYTES", 1000)
    (run.out / "large").write_bytes(bytes(1001))
    for i in range(FILES - 1):
        (run.out / f"small{i}").touch()
    assert [said.split(" has ")[0] for said in run.too_large()] == [str(run.out / "large")]
    (run.out / "zero").touch()
    assert "one more than 8 files" in run.too_large()[1]


# --- the whole


@pytest.fixture
def pretended(monkeypatch, tmp_path):
    """A device that is the CPU, with tiny cases, and a clock that a timing moves by ten seconds."""
    pytest.importorskip("triton", reason="triton exists for Linux only")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    import interpreter
    import kernels_carried
    import kernels_cases
    import kernels_check
    import kernels_gpu
    import kernels_rows
    from kernels_cost import Case
    from triton.runtime.interpreter import InterpreterBuilder

    clock = Clock()

    def time_ms(call):
        call()
        clock.now += 2
        return 1.0, 0.9, 1.1

    def kernel_times(call, repeats=1):
        call()
        return {"linear_forward": 1.0, "copy": 2.0}

    tiny = (Case(16, 0, 16, 16, 1, 1), Case(16, 1, 16, 16, 1, 1))
    monkeypatch.setattr(InterpreterBuilder, "cast_impl", interpreter.rounding_cast)
    monkeypatch.setattr(kernels_cases, "DEVICE", "cpu")
    for name in ("BASE", "BOTH_FORMS", "OTHERS", "DECODED", "SWEPT", "RIVALLED"):
        monkeypatch.setattr(kernels_rows, name, tiny if name == "BASE" else tiny[:1])
    monkeypatch.setattr(kernels_rows, "PLAIN", (replace(tiny[0], norm=False),))
    monkeypatch.setattr(kernels_rows, "READS", ((2, 16, 1),))
    monkeypatch.setattr(kernels_rows, "READ_GB_S", {(2, 16, 1): 100})
    monkeypatch.setattr(kernels_rows.reading, "__defaults__", (50, "cpu"))
    monkeypatch.setattr(kernels_rows, "SCANNED", ((1, 40, 16),))
    monkeypatch.setattr(kernels_rows, "time_ms", time_ms)
    monkeypatch.setattr(kernels_rows, "kernel_times", kernel_times)
    monkeypatch.setattr(kernels_check, "CHECKS", (kernels_check.Check(tiny[0]),) * 3)
    for name, size in (("read_error", 50), ("scan_error", 40)):
        monkeypatch.setattr(getattr(kernels_check, name), "__defaults__", (size,))
    monkeypatch.setattr(kernels_check, "CONFIGURED", (kernels_check.Check(tiny[1]),))
    monkeypatch.setattr(kernels_check, "SMALL", kernels_check.SMALL[:1])
    monkeypatch.setattr(kernels_gpu, "machine", lambda: ABOUT)
    monkeypatch.setattr(kernels_gpu, "ceilings", lambda rates: [clock.job("ceilings", 1)])
    monkeypatch.setattr(kernels_gpu, "Run", lambda *args: Run(*args, clock))
    monkeypatch.setattr(kernels_carried, "use", lambda file: 7)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *args: (9, 0))
    for name in ("reset_peak_memory_stats", "empty_cache", "synchronize"):
        monkeypatch.setattr(torch.cuda, name, lambda *args: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda *args: 2**20)
    return kernels_gpu, tmp_path


class Training:
    """A process that trains until it is told to stop."""

    signals = ()

    def __init__(self, command, stdout, stderr, env):
        self.out = Path(next(word for word in command if word.startswith("--out="))[6:])
        Training.command, Training.signals = command, []

    def wait(self, seconds):
        if not Training.signals:
            raise subprocess.TimeoutExpired("training", seconds)
        (self.out / "vma.safetensors.json").write_text(json.dumps({"step": 900}))
        (self.out / "vma.safetensors").write_bytes(bytes(10))

    def send_signal(self, which):
        Training.signals.append(which)

    def kill(self):
        Training.signals.append("killed")


def test_the_whole_runs_on_a_pretended_device(pretended, monkeypatch, capsys):
    """Every job that a run has, on tiny cases: what it would raise on a GPU, but for the kernels, it raises here."""
    kernels_gpu, folder = pretended
    carried = folder / "carried"
    (carried / "training").mkdir(parents=True)
    (carried / "triton.tar.xz").touch()
    (carried / "training" / "vma.json").write_text(json.dumps({"step": 500}))
    monkeypatch.setattr(subprocess, "Popen", Training)
    monkeypatch.setattr(sys, "argv", ["kernels_gpu.py", "--carried", str(carried), "--out", str(folder / "out")])
    assert kernels_gpu.main() == 0, capsys.readouterr().out
    with open(folder / "out" / "rows.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(dict.fromkeys(row["part"] for row in rows)) == list(kernels_gpu.MARKS)
    assert {row["gpu"] for row in rows} == {"pretended"}
    measured = {row["what"]: float(row["measured"]) for row in rows if row["measured"]}
    assert measured["entries of the cache carried"] == 7
    assert measured["error over its bar"] <= 1
    assert measured["steps of the vma"] == 400
    assert Training.signals == [signal.SIGTERM, "killed"]
    assert "--device=cuda" in Training.command
    others = [row for row in rows if row["part"] == "others"]
    assert any(row["note"].startswith("not here: ") for row in others)
    beside = {row["what"].removesuffix(" forward") for row in others if "no norm" in row["case"]}
    assert {"ours", "torch, eager", "fla gated delta rule", "fla momentum delta rule"} <= beside
    files = {path.name for path in (folder / "out").iterdir()}
    assert files == {"rows.csv", "table.txt", "times.png", "vma.safetensors", "vma.safetensors.json"}
    assert len((folder / "out" / "table.txt").read_text().splitlines()) <= 60


def test_a_part_that_fails_is_told_by_the_exit_code(pretended, monkeypatch):
    kernels_gpu, folder = pretended
    import kernels_check

    monkeypatch.setattr(kernels_check, "BARS", {name: (1e-30, 1e-30) for name in kernels_check.BARS})
    monkeypatch.setattr(
        sys,
        "argv",
        ["kernels_gpu.py", "--only", "check", "reads", "--out", str(folder / "out"), "--carried", str(folder)],
    )
    assert kernels_gpu.main() == 1
    assert "failed: error over its bar" in (folder / "out" / "table.txt").read_text().splitlines()[1]
    assert (folder / "out" / "rows.csv").read_text().count("\npretended") > 3


def test_without_its_packages_training_says_what_is_missing(pretended, monkeypatch):
    kernels_gpu, folder = pretended
    monkeypatch.setattr(kernels_gpu, "find_spec", lambda name: None if name in ("pyro", "pooch") else object())
    ((_, job),) = kernels_gpu.training(folder, folder, lambda: 100.0)
    (row,) = job()
    assert row["note"] == "pyro, pooch not here; their wheels can be carried"


def test_wheels_that_are_carried_can_be_imported(tmp_path, monkeypatch):
    import zipfile

    import kernels_gpu

    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("PYTHONPATH", "")
    with zipfile.ZipFile(tmp_path / "carried_here-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("carried_here/__init__.py", "value = 3")
    kernels_gpu.add_wheels(tmp_path)
    import carried_here

    assert carried_here.value == 3
    done = subprocess.run([sys.executable, "-c", "import carried_here; print(carried_here.value)"], capture_output=True)
    assert done.stdout == b"3\n"


def test_without_a_gpu_it_says_what_it_needs():
    for script in ("kernels_gpu.py", "kernels_profile.py", "kernels_check.py"):
        done = subprocess.run([sys.executable, BENCHMARKS / script], capture_output=True, text=True, timeout=120)
        assert done.returncode
        assert "No CUDA device is visible to torch" in done.stderr


def test_profiling_leaves_out_a_tool_that_is_not_here_and_goes_on_after_one_that_fails(tmp_path, capsys):
    import kernels_profile

    tools = [
        ("none", 9, ["no-such-tool"]), ("bad, 1", 9, [sys.executable, "-c", "print(7); exit(3)"]),
        ("slow", 0.2, [sys.executable, "-c", "import time; time.sleep(60)"]), ("good", 9, [sys.executable, "-c", ""]),
    ]  # fmt: skip
    assert kernels_profile.report(tools, tmp_path) == 2
    said = capsys.readouterr().out.splitlines()
    assert "no-such-tool is not here" in said[0]
    assert "ended with 3" in said[1]
    assert "stopped after 0.2 s" in said[2]
    assert "ended with 0" in said[3]
    assert (tmp_path / "bad_1.log").read_text() == "7\n"


def test_a_time_belongs_to_the_code_of_every_kernel(tmp_path, monkeypatch):
    gpu = importlib.import_module("kernels_gpu")
    shutil.copytree(gpu.ROOT / "kernels", tmp_path / "kernels")
    before = gpu.code()
    monkeypatch.setattr(gpu, "ROOT", tmp_path)
    assert gpu.code() == before
    changed = tmp_path / "kernels" / "memory" / "triton_linear.py"
    changed.write_text(changed.read_text() + "\n")
    assert gpu.code() != before
