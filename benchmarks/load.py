"""What a step costs beside busy processes, for each way of telling torch's threads how to wait.

Two threads of torch meet at every barrier of a step. By default the one that is early spins, on a core that a neighbour
could use, while the one that is late waits for that neighbour to give up its own: the machine is busy, and nothing gets
done. A thread that sleeps at barriers, or no second thread, ends that. Steps are those of the demo's addressed VAE in
``fit``, counted for --seconds beside no, one and three processes that do nothing but compute, and again in every
round, so that all cells meet the same machine. Timings need a machine that is quiet otherwise. Writes load.json.

    python benchmarks/load.py
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from datetime import date
from itertools import pairwise
from pathlib import Path
from threading import Timer

CHOICES = {
    "as torch does by itself": {},
    "OMP_NUM_THREADS=1": {"OMP_NUM_THREADS": "1"},
    "OMP_WAIT_POLICY=PASSIVE": {"OMP_WAIT_POLICY": "PASSIVE"},
    "GOMP_SPINCOUNT=0": {"GOMP_SPINCOUNT": "0"},
}
SETTINGS = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
QUIET = 0.5  # the load of a machine that does nothing else
WARM = 3  # steps before the clock runs
START = 120.0  # seconds that a process may take to its first step


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", metavar="X", type=float, default=20, help="of steps in a cell (default 20)")
    parser.add_argument("--rounds", metavar="N", type=int, default=3, help="times each cell is measured (default 3)")
    parser.add_argument("--neighbours", metavar="N", type=int, nargs="+", default=[0, 1, 3], help="(default 0 1 3)")
    parser.add_argument("--out", metavar="DIR", type=Path, default=Path("out/load"))
    parser.add_argument("--steps", action="store_true", help=argparse.SUPPRESS)  # what the measured process does
    return parser.parse_args()


def steps():
    """Trains the demo's VMA for ever, and prints the time before each step."""
    import torch

    from pyro_memory import VIMCO, fit
    from pyro_memory.data import FewShotTasks, LabelledImages
    from pyro_memory.guides import VMAGuide
    from pyro_memory.models import VMA

    ink = torch.rand(400, 1, 28, 28, generator=torch.Generator().manual_seed(0)) < 0.2
    letters = LabelledImages(ink.byte(), torch.arange(400) // 20, tuple(map(str, range(20))))
    tasks = FewShotTasks(letters, classes=8, shots=4, targets=32)

    class Timed:
        def __getitem__(self, step):
            os.write(1, f"{time.monotonic()}\n".encode())
            return tasks[step]

    size = {"latent_dim": 32, "channels": [16, 32, 48]}
    pair = VMA.convolutional(letters.shape, **size), VMAGuide.convolutional(letters.shape, **size)
    fit(
        *pair, Timed(), VIMCO(4, max_plate_nesting=1), steps=10**9, clip_norm=5000.0, seed=0, progress=False,
        information_every=None,
    )  # fmt: skip


def measure(setting, neighbours, seconds):
    """Milliseconds of the steps that were done in the time, beside busy processes."""
    environment = {k: v for k, v in os.environ.items() if k not in SETTINGS} | setting
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(neighbours)]
    run = subprocess.Popen([sys.executable, __file__, "--steps"], env=environment, stdout=subprocess.PIPE, text=True)
    late = Timer(START, run.kill)  # a run that is stuck gives what it did
    late.start()
    marks = []
    try:
        for line in run.stdout:
            marks.append(float(line))
            if len(marks) == WARM + 1:
                late.cancel()
                late = Timer(seconds, run.kill)
                late.start()
    finally:
        late.cancel()
        for process in (run, *busy):
            process.kill()
            process.wait()
        run.stdout.close()
    marks = marks[WARM:]
    return [1000 * (b - a) for a, b in pairwise(marks)]


def spread(times):
    """Median and quartiles."""
    low, middle, high = statistics.quantiles(times, n=4) if len(times) > 1 else 3 * (times or [None])
    return {"steps": len(times), "ms": middle, "low": low, "high": high}


def main():
    args = arguments()
    if args.steps:
        return steps()
    others = os.getloadavg()[0]
    if others > QUIET:
        print(f"the machine is not quiet (load {others:.1f}): the table will say so")
    cells = {(name, n): [] for name in CHOICES for n in args.neighbours}
    for number in range(args.rounds):
        for name, n in cells:
            times = measure(CHOICES[name], n, args.seconds)
            cells[name, n] += times
            done = f"{len(times)} steps" + (f", median {statistics.median(times):.0f} ms" if times else "")
            print(f"round {number + 1} of {args.rounds}: {name}, {n} busy processes: {done}", flush=True)
    rows = [{"choice": name, "neighbours": n} | spread(times) for (name, n), times in cells.items()]
    print(f"\n{'':<28}{'busy':>6}{'steps':>7}{'ms a step (quartiles)':>30}")
    for r in rows:
        shown = f"{r['ms']:.0f} ({r['low']:.0f} to {r['high']:.0f})" if r["ms"] else f"none in {args.seconds:.0f} s"
        print(f"{r['choice']:<28}{r['neighbours']:>6}{r['steps']:>7}{shown:>30}")
    facts = {"seconds": args.seconds, "rounds": args.rounds, "cores": os.cpu_count(), "date": date.today().isoformat()}
    args.out.mkdir(parents=True, exist_ok=True)
    record = facts | {"machine": platform.machine(), "load_before": others, "rows": rows}
    (args.out / "load.json").write_text(json.dumps(record, indent=1) + "\n")
    print(f"load.json is in {args.out}")


if __name__ == "__main__":
    main()
