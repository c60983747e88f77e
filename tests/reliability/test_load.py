"""Threads that wait: what the Makefile sets reaches torch's OpenMP, and importing the package sets nothing."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import load
import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
@pytest.mark.parametrize(("given", "policy"), [({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")])
def test_the_makefile_lets_threads_sleep_unless_told_otherwise(tmp_path, given, policy):
    show = tmp_path / "show.mk"
    show.write_text("show:\n\t@echo $$OMP_WAIT_POLICY\n")
    environment = {k: v for k, v in os.environ.items() if k not in load.SETTINGS} | given
    command = ["make", "-s", "-f", str(ROOT / "Makefile"), "-f", str(show), "show"]
    said = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert said.stdout.strip() == policy


@pytest.mark.skipif(sys.platform != "linux", reason="GNU's OpenMP tells what it was set to")
def test_torch_honours_it_and_importing_the_package_leaves_threads_alone():
    code = (
        "import os, torch; before = dict(os.environ), torch.get_num_threads(), torch.get_num_interop_threads()\n"
        "import pyro_memory, pyro_memory.models, pyro_memory.guides, pyro_memory.kernels\n"
        "assert before == (dict(os.environ), torch.get_num_threads(), torch.get_num_interop_threads())"
    )
    environment = {k: v for k, v in os.environ.items() if k not in load.SETTINGS}
    environment |= {"OMP_WAIT_POLICY": "PASSIVE", "OMP_DISPLAY_ENV": "VERBOSE", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "GOMP_SPINCOUNT = '0'" in done.stderr


def test_a_cell_counts_the_steps_that_were_done_in_its_time(monkeypatch):
    """A stand-in for the measured process: a mark every 20 ms."""
    code = "import time\nwhile True: print(time.monotonic(), flush=True); time.sleep(0.02)"
    real = subprocess.Popen

    def popen(command, **options):
        return real([sys.executable, "-c", code] if "--steps" in command else command, **options)

    monkeypatch.setattr(load.subprocess, "Popen", popen)
    times = load.measure({"OMP_NUM_THREADS": "1"}, 1, 1.0)
    assert 3 < len(times) <= 50
    assert min(times) >= 19
    row = load.spread(times)
    assert row["low"] <= row["ms"] <= row["high"]
    assert load.spread([])["ms"] is None
