"""Kernels compiled here are found where they are carried to, or are refused with what to do about it."""

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="triton exists for Linux only")

KINDS = """
import os, torch
from functools import partial
from kernels_ahead import First
from kernels_check import Check
from kernels_cost import Case
from pyro_memory.kernels import decay_scan

def scan():
    x = torch.zeros(2, 9, 10).requires_grad_()
    decay_scan(x, x, backend="triton").sum().backward()

KINDS = [Check(Case(16, 0, 16, 32, 2, 3)), scan]
WITH_A_CRASH = [First(KINDS[0]), scan, partial(os._exit, 3)]
"""

# What a process on a GPU does up to its launches, with the batch and heads of the real call.
USE = """
import sys, tempfile
import kernels_ahead, kernels_carried, kinds
print(kernels_carried.use(*sys.argv[1:]))
kernels_ahead.begin(90, tempfile.mkdtemp())
from kernels_cases import configured
check, scan = kinds.KINDS
with kernels_carried.counting() as counts, configured(lambda kernel, configurations: configurations[:1]):
    scan()  # another order than before: keys do not depend on it
    kernels_ahead.passes(check)()
print(dict(counts))
import triton
print(triton.runtime.cache.triton_key() == f"triton {triton.__version__}")  # of any build of it
"""


def run(*arguments, path=BENCHMARKS):
    env = {n: v for n, v in os.environ.items() if n != "TRITON_INTERPRET"}
    env |= {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": f"{BENCHMARKS}:{path}"}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=500, cwd=BENCHMARKS.parent)


@pytest.fixture(scope="module")
def ahead(tmp_path_factory):
    """A folder with a file that was packed of what two kinds of call need, and what the command said."""
    folder = tmp_path_factory.mktemp("ahead")
    (folder / "kinds.py").write_text(KINDS)
    arguments = ["--into", folder / "carried.tar.xz", "--cache", folder / "cache", "--kinds", "kinds:WITH_A_CRASH"]
    return folder, run("benchmarks/kernels_ahead.py", *arguments, path=folder)


def test_another_process_finds_every_kernel_and_compiles_none(ahead):
    folder, _ = ahead
    (folder / "cache").rename(folder / "cache of another machine")
    done = run("-c", USE, folder / "carried.tar.xz", folder / "there", path=folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["9", "{'found': 9}", "True"]


def test_a_process_that_dies_takes_only_its_own_work_with_it(ahead):
    _, done = ahead
    assert done.returncode == 1
    assert "its process ended with 3" in done.stdout, done.stderr
    assert "9 of 9 kernels to compile" in done.stdout
    assert "9 entries" in done.stdout.splitlines()[-1]
    assert "9 compiled now, 1 failed, 0 left out" in done.stdout.splitlines()[-1]


def test_after_a_deadline_nothing_is_compiled_and_what_is_left_out_is_said(ahead):
    code = (
        "import kernels_ahead, kinds, time\n"
        "print(*map(len, kernels_ahead.compile_ahead(kinds.KINDS, 90, time.monotonic() - 1, workers=1)))"
    )
    done = run("-c", code, path=ahead[0])
    assert done.returncode == 0, done.stderr
    assert "2 kinds of call not looked at" in done.stdout
    assert done.stdout.splitlines()[-1] == "0 0 2"


def test_help_says_how_to_use_it():
    done = run("benchmarks/kernels_ahead.py", "--help")
    assert done.returncode == 0, done.stderr
    assert "--into carried/triton.tar.xz --capability 90" in done.stdout


def test_a_list_that_is_not_there_is_named(tmp_path):
    done = run("benchmarks/kernels_ahead.py", "--into", tmp_path / "file.tar.xz", "--kinds", "kernels_check:NONE")
    assert done.returncode == 2
    assert "--kinds wants MODULE:NAME" in done.stderr


def entry(folder, name, complete=True, version=None):
    import triton

    (folder / name).mkdir(parents=True)
    about = {"triton_version": version or triton.__version__, "target": {"arch": 90}}
    (folder / name / "kernel.json").write_text(json.dumps(about))
    (folder / name / "kernel.cubin").write_bytes(os.urandom(1000))
    (folder / name / "kernel.ptx").write_text("for people")
    if complete:
        (folder / name / "__grp__kernel.json").write_text('{"child_paths": {}}')


def test_complete_entries_of_this_version_are_packed_and_know_where_they_are_laid(tmp_path):
    from kernels_carried import pack, unpack

    entry(tmp_path / "here", "A")
    entry(tmp_path / "here", "B")
    entry(tmp_path / "here", "INTERRUPTED", complete=False)
    entry(tmp_path / "here", "OLD", version="0.1")
    assert pack(tmp_path / "here", tmp_path / "file.tar.xz") == 2
    assert unpack(tmp_path / "file.tar.xz", tmp_path / "there") == 2
    there = tmp_path / "there" / "A"
    assert sorted(path.name for path in there.iterdir()) == ["__grp__kernel.json", "kernel.cubin", "kernel.json"]
    assert (there / "kernel.cubin").read_bytes() == (tmp_path / "here/A/kernel.cubin").read_bytes()
    group = {"kernel.json": str(there / "kernel.json"), "kernel.cubin": str(there / "kernel.cubin")}
    assert json.loads((there / "__grp__kernel.json").read_text()) == {"child_paths": group}
    assert pack(tmp_path / "here", tmp_path / "file.tar.xz", entries={"B"}) == 1


@pytest.mark.parametrize("what", ["missing", "no archive", "another archive", "cut short", "empty"])
def test_a_broken_file_is_refused_with_the_command_that_makes_it(tmp_path, what):
    from kernels_carried import pack, unpack

    file = tmp_path / "file.tar.xz"
    entry(tmp_path / "here", "A")
    pack(tmp_path / "here", file)
    whole = file.read_bytes()
    if what == "missing":
        file.unlink()
    elif what == "another archive":
        with tarfile.open(file, "w:xz") as archive:
            archive.add(tmp_path / "here" / "A", "A")
    else:
        file.write_bytes({"no archive": b"kernels", "cut short": whole[: len(whole) // 2], "empty": b""}[what])
    with pytest.raises(ValueError, match=r"is missing or broken .* make it with `python benchmarks/kernels_ahead\.py"):
        unpack(file, tmp_path / "there")
    assert not list(tmp_path.glob("there/*/__grp__*"))  # nothing that a launch would take


def test_a_file_of_another_version_of_triton_is_refused(tmp_path, monkeypatch):
    import triton
    from kernels_carried import pack, unpack

    entry(tmp_path / "here", "A")
    pack(tmp_path / "here", tmp_path / "file.tar.xz")
    before = triton.__version__
    monkeypatch.setattr(triton, "__version__", "1.0")
    with pytest.raises(ValueError, match=f"was compiled with triton {before}, this is triton 1.0: make it with"):
        unpack(tmp_path / "file.tar.xz", tmp_path / "there")
    assert not (tmp_path / "there").exists()
