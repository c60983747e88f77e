"""One streamed token on a CPU thread: NeuralMemory, eager and compiled, beside titans-pytorch and an older checkout.

Every setting is a process that keeps its memory and state; they stream a block of tokens each by turns, so that other
work on the machine falls on all alike. Batch 2, 4 heads, depth 2, expansion 4, no gradients; milliseconds of processor
time a token, the median over tokens and the quartiles. titans-pytorch pools a chunk's tokens into one step, ours takes
one a token. A package that is not installed is skipped. Writes streamed.json and a figure to --out.

    python benchmarks/streamed.py --before ../older-checkout
"""

import argparse
import importlib.util
import json
import multiprocessing
import os
import statistics
import sys
import time
from pathlib import Path

from records import about

HEADS, BATCH = 4, 2
SETTINGS = ("pyro-memory", "pyro-memory, compiled", "before", "titans-pytorch")


def stepper(setting, width, chunk):
    """A function that streams one token, and the seconds that the first took."""
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    dim = width * HEADS
    if setting == "titans-pytorch":
        from titans_pytorch import MemoryMLP, NeuralMemory

        net = MemoryMLP(width, depth=2, expansion_factor=4.0)
        memory = NeuralMemory(dim, dim_head=width, heads=HEADS, model=net, chunk_size=chunk)
        step = lambda x, state: memory(x.unsqueeze(1), state=state)  # noqa: E731
    else:
        from pyro_memory.models import NeuralMemory

        memory = NeuralMemory(dim, heads=HEADS, chunk_size=chunk)
        step = torch.compile(memory.step, fullgraph=True) if setting.endswith("compiled") else memory.step
    state = None if setting == "titans-pytorch" else memory.initial_state(BATCH)
    tokens = torch.randn(256, BATCH, dim)
    seen = 0

    def one():
        nonlocal state, seen
        with torch.no_grad():
            _, state = step(tokens[seen % len(tokens)], state)
        seen += 1

    return one


def serve(pipe, setting, width, chunk, before):
    """Streams so many tokens as it is asked for, and gives the processor seconds of each."""
    if setting == "before":  # the package of another checkout
        sys.path.insert(0, before)
    start = time.perf_counter()
    one = stepper(setting, width, chunk)
    for _ in range(2):
        one()
    pipe.send(time.perf_counter() - start)
    while tokens := pipe.recv():
        seconds = []
        for _ in range(tokens):
            start = time.process_time()
            one()
            seconds.append(time.process_time() - start)
        pipe.send(seconds)


def measure(settings, width, chunk, args):
    context = multiprocessing.get_context("spawn")
    workers, starts = {}, {}
    for setting in settings:
        here, there = context.Pipe()
        process = context.Process(target=serve, args=(there, setting, width, chunk, args.before), daemon=True)
        process.start()
        workers[setting] = here
        starts[setting] = here.recv()
    seconds = {setting: [] for setting in settings}
    for _ in range(args.rounds):
        for setting, pipe in workers.items():
            pipe.send(args.block)
            seconds[setting] += pipe.recv()
    rows = []
    for setting, pipe in workers.items():
        pipe.send(0)
        low, middle, high = (1000 * q for q in statistics.quantiles(seconds[setting], n=4))
        rows.append({
            "setting": setting, "head_dim": width, "chunk": chunk, "ms": round(middle, 3),
            "quartiles_ms": [round(low, 3), round(high, 3)], "tokens": len(seconds[setting]),
            "seconds_to_start": round(starts[setting], 1),
        })  # fmt: skip
        print(rows[-1], flush=True)
    return rows


def draw(rows, path):
    import matplotlib.pyplot as plt

    cases = sorted({(r["head_dim"], r["chunk"]) for r in rows})
    names = [s for s in SETTINGS if any(r["setting"] == s for r in rows)]
    figure, ax = plt.subplots(figsize=(7, 3.2), layout="constrained")
    for i, name in enumerate(names):
        found = {(r["head_dim"], r["chunk"]): r for r in rows if r["setting"] == name}
        x = [n + 0.8 * (i + 0.5) / len(names) - 0.4 for n in range(len(cases))]
        bars = ax.bar(x, [found[c]["ms"] for c in cases], 0.75 / len(names), label=name)
        ax.bar_label(bars, fmt="%.2f", fontsize=8)
    ax.set_xticks(range(len(cases)), [f"head width {w}, chunk {c}" for w, c in cases])
    ax.set_ylabel("ms of processor time a token")
    ax.legend(frameon=False, fontsize=8)
    ax.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", help="a checkout of an older pyro-memory, whose token is timed beside")
    parser.add_argument("--widths", type=int, nargs="+", default=[32], help="of a head")
    parser.add_argument("--chunks", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--rounds", type=int, default=12, help="turns")
    parser.add_argument("--block", type=int, default=64, help="tokens a turn")
    parser.add_argument("--out", type=Path, default=Path("out/streamed"))
    args = parser.parse_args()
    settings = [s for s in SETTINGS if s != "before" or args.before]
    if importlib.util.find_spec("titans_pytorch") is None:
        print("titans-pytorch: skipped, it is not installed (pip install titans-pytorch)")
        settings.remove("titans-pytorch")
    os.environ["OMP_NUM_THREADS"] = "1"
    rows = [row for w in args.widths for c in args.chunks for row in measure(settings, w, c, args)]
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "streamed.json").write_text(json.dumps(about() | {"rows": rows}, indent=1) + "\n")
    draw(rows, args.out / "streamed.png")


if __name__ == "__main__":
    main()
