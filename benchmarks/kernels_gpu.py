"""Checks and times the kernels on a GPU in minutes, and trains in what is left of them.

Parts in order, each with its mark on the clock: what was compiled ahead is laid ready, correctness, our kernels by
call, in either form and each by itself, their configurations, others beside them, address and scan, and training. Rows
go to OUT/rows.csv as they come, with GPU, driver and versions; at the end a figure, OUT/times.png, and a table of at
most 60 lines, also in OUT/table.txt. Needs torch, triton, numpy and matplotlib, and runs from a checkout.

    python benchmarks/kernels_gpu.py --minutes 7 --out out/gpu
    python benchmarks/kernels_gpu.py --only check --minutes 2
    python benchmarks/kernels_gpu.py --list

What lies in the folder --carried is used: triton.tar.xz, kernels that benchmarks/kernels_ahead.py compiled; wheels/, of
pure Python packages (training needs pyro-ppl, pyro-api, pooch, platformdirs); data/omniglot; training/, what an earlier
run of this recipe left. Training starts where a minute is left.
"""

import argparse
import datetime
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
import zipfile
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import kernels_cases
import torch
from kernels_cases import first_that_fits
from parts import Part, Run, has_failed

ROOT = Path(__file__).resolve().parent.parent
RECIPE = ROOT / "benchmarks" / "experiments" / "recipes" / "vma_fewshot_mixed.toml"
CHECKPOINTS = ("vae.safetensors", "vae.safetensors.json", "vma.safetensors", "vma.safetensors.json")


def machine():
    import triton

    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        driver = subprocess.run(query, capture_output=True, text=True, check=True).stdout.split("\n")[0]
    except (OSError, subprocess.CalledProcessError):
        driver = "unknown"
    return {
        "date": datetime.date.today().isoformat(), "kernels": code(), "gpu": torch.cuda.get_device_name(),
        "driver": driver, "torch": torch.__version__, "cuda": torch.version.cuda, "triton": triton.__version__,
    }  # fmt: skip


def code():
    """Names the kernels' code, which a time belongs to."""
    files = sorted((ROOT / "kernels").rglob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:8]


# --- made ready


def add_wheels(folder):
    """Makes pure Python packages importable, here and in processes started from here; a wheel is an archive of one."""
    site = tempfile.mkdtemp(prefix="site-")
    for wheel in sorted(folder.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(site)
    sys.path.insert(0, site)
    os.environ["PYTHONPATH"] = os.pathsep.join([site, os.environ.get("PYTHONPATH", "")])


def ready(carried, run):
    """Jobs: lays carried kernels where Triton looks for them, and compiles what is missing until the part's mark."""
    import kernels_ahead
    import kernels_carried

    def lay():
        kernels_carried.share_keys()
        count = kernels_carried.use(carried / "triton.tar.xz") if (carried / "triton.tar.xz").exists() else 0
        yield {"what": "entries of the cache carried", "measured": count}

    def compile_missing():
        from kernels_check import CHECKS, errors

        start = time.monotonic()
        with kernels_carried.counting() as counts, first_that_fits():
            for check in (CHECKS[0], CHECKS[2]):  # one layer, and two
                errors(check, kernels_cases.DEVICE)
        yield {"what": "to the first results", "predicted": 2, "measured": time.monotonic() - start, "unit": "s"}
        if not counts["compiled"]:
            return  # carried
        major, minor = torch.cuda.get_device_capability()
        deadline = time.monotonic() + run.left(MARKS["ready"])
        done, failed, left_out = kernels_ahead.compile_ahead(kinds(), 10 * major + minor, deadline)
        note = "; ".join([f"{len(left_out)} left out", *failed])
        yield {"what": "kernels compiled here", "predicted": 0, "measured": len(done), "note": note}

    return [("carried", lay), ("what is missing", compile_missing)]


def kinds():
    """All calls of the run, the most needed first."""
    import kernels_rows
    from kernels_ahead import First
    from kernels_check import CHECKS, SMALL

    first = map(First, (*CHECKS, *SMALL, *kernels_rows.OTHERS))
    return [*first, *kernels_rows.BASE, *kernels_rows.DECODED, *kernels_rows.PLAIN, *kernels_rows.ahead()]


def ceilings(rates):
    """Jobs: rates of matmul (bfloat16) and copy, which floors are made of; a second, to ``rates``."""
    from kernels_rows import time_ms

    def measure():
        n = 8192
        x, y = (torch.randn(n, n, device="cuda", dtype=torch.bfloat16) for _ in range(2))
        big = torch.empty(2**29, device="cuda", dtype=torch.bfloat16)
        other = torch.empty_like(big)
        rates[:] = [
            2 * n**3 / (time_ms(lambda: x @ y)[0] / 1e3), 2 * big.nbytes / (time_ms(lambda: other.copy_(big))[0] / 1e3)
        ]  # fmt: skip
        yield {"what": "matmul", "predicted": 700, "measured": rates[0] / 1e12, "unit": "Tflop/s"}
        yield {"what": "copy", "predicted": 3000, "measured": rates[1] / 1e9, "unit": "GB/s"}

    return [("ceilings", measure)]


# --- training


def training(carried, out, seconds):
    """Jobs: goes on with the recipe on the GPU until the run's end; its checkpoints go back to ``out``."""
    missing = [name for name in ("pyro", "jaxtyping", "pooch", "safetensors", "tqdm") if find_spec(name) is None]
    recipe = tomllib.loads(RECIPE.read_text())

    def train():
        if missing:
            yield {"what": "not started", "note": f"{', '.join(missing)} not here; their wheels can be carried"}
            return
        if seconds() < 60:
            yield {"what": "not started", "note": f"{seconds():.0f} s are left, a minute is the least"}
            return
        place = Path(tempfile.mkdtemp(prefix="training-"))
        if (carried / "training").is_dir():
            shutil.copytree(carried / "training", place, dirs_exist_ok=True)
        words = [f"--data-dir={carried.resolve() / 'data' / recipe['data']}", "--device=cuda", f"--out={place}"]
        for name, value in recipe["arguments"].items():
            words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
        command = [sys.executable, str(ROOT / recipe["script"]), *words]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
        before, start = steps_in(place), time.monotonic()
        with open(place / "log", "w") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
            try:
                process.wait(max(1.0, seconds() - 10))
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGTERM)  # it writes its checkpoint first
                with suppress(subprocess.TimeoutExpired):
                    process.wait(20)
            finally:
                process.kill()  # if it still measures; its last checkpoint stays
        for name in CHECKPOINTS:
            if (place / name).exists():
                shutil.copy(place / name, out)
        said = (place / "log").read_text().splitlines()
        for name, steps in steps_in(place).items():
            spent = time.monotonic() - start
            note = f"{steps} of {recipe['arguments']['steps']} now, in {spent:.0f} s"
            yield {"what": f"steps of the {name}", "measured": steps - before.get(name, 0), "note": note}
        if not steps_in(place):
            yield {"what": "failed", "note": said[-1] if said else "no output"}

    return [(RECIPE.stem, train)]


def steps_in(folder):
    """Steps of each checkpoint, by the record that lies beside it."""
    steps = {}
    for name in ("vae", "vma"):
        for file in (folder / f"{name}.json", folder / f"{name}.safetensors.json"):  # earlier versions', today's
            if file.exists():
                steps[name] = json.loads(file.read_text())["step"]
    return steps


# --- the whole

# No job of a part starts later than this share of the run; an early part's leftover goes to the later ones.
MARKS = {
    "ready": 0.18, "ceilings": 0.2, "check": 0.38, "ours": 0.55, "forms": 0.58, "kernels": 0.62, "sweep": 0.69,
    "others": 0.73, "reads": 0.78, "training": 1.0,
}  # fmt: skip


def parts(carried, out, run):
    """The parts of a run; a test replaces what they need of a GPU."""
    import kernels_check
    import kernels_rows

    rates = [float("inf"), float("inf")]
    jobs = {
        "ready": lambda: ready(carried, run),
        "ceilings": lambda: ceilings(rates),
        "check": kernels_check.jobs,
        "ours": lambda: kernels_rows.ours(rates),
        "forms": kernels_rows.forms,
        "kernels": kernels_rows.kernels,
        "sweep": kernels_rows.sweep,
        "others": lambda: kernels_rows.others(rates),
        "reads": kernels_rows.reads,
        "training": lambda: training(carried, out, run.left),
    }
    return [Part(name, until, jobs[name], apart=name == "training") for name, until in MARKS.items()]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=7, metavar="X", help="of the whole run (default 7)")
    parser.add_argument("--out", type=Path, default=Path("out/gpu"), metavar="DIR", help="default %(default)s")
    parser.add_argument("--carried", type=Path, default=Path("carried"), metavar="DIR", help="default %(default)s")
    parser.add_argument("--only", nargs="+", choices=MARKS, metavar="PART", help=", ".join(MARKS))
    parser.add_argument("--list", action="store_true", help="print the jobs of every part and stop")
    options = parser.parse_args()
    if not torch.cuda.is_available() and not options.list:
        print(
            "No CUDA device is visible to torch, so there is nothing to time. Run this on a machine with an NVIDIA "
            "GPU; `make test` runs the same kernels in Triton's interpreter.",
            file=sys.stderr,
        )
        return 2
    add_wheels(options.carried / "wheels")
    run = Run(options.out, 60 * options.minutes, {} if options.list else machine())
    import kernels_figure
    import kernels_rows

    chosen = [p for p in parts(options.carried, options.out, run) if not options.only or p.name in options.only]
    if options.list:
        print("\n".join(f"{part.name:9} {case}" for part in chosen for case, _ in part.jobs()))
        return 0
    print(", ".join(f"{name} {value}" for name, value in run.about.items()), flush=True)
    with torch.autograd.set_multithreading_enabled(False):  # else no alarm could end a backward pass
        run.run(chosen, after=kernels_rows.free)
    (options.out / "table.txt").write_text(run.table() + "\n")
    title = f"{run.about['gpu']}, triton {run.about['triton']}, {run.about['date']}"
    kernels_figure.draw(run.rows, options.out / "times.png", title)
    for what in run.too_large():
        print(f"too much to bring back: {what}")
    print(f"\n{run.table()}\n{run.left():.0f} s left; {run.path}")
    return 1 if any(map(has_failed, run.rows)) else 0


if __name__ == "__main__":
    sys.exit(main())
