"""NeuralMemory on CPU beside other packages' memories, and over a million streamed tokens.

Speed: forward, and forward with backward, at equal batch, heads, head width, depth 2 and expansion 4, in milliseconds
of CPU time, which other work on the machine disturbs least. Each case runs in a process of its own, whose peak
resident memory over that before the first call is what it took. The rules differ:

    paper      a gradient step a token, all gradients at the chunk's first weights (ours; titans-pytorch with
               chunk_size=1, batch_size=C)
    refreshed  one pooled step and one gate a chunk, gradients at the chunk's first weights (chunk_size=batch_size=C)
    frozen     one pooled step and one gate a chunk, all gradients at the initial weights (the packages' default)

Ours computes depthwise convolutions, gates for each layer, LN and an output gate besides. A package that is not
installed is skipped; a setting stops growing where a call took longer than --limit seconds.

Streaming: cost per token and memory in use while one state passes over a million tokens.

Writes neural_memory_cpu.json and figures to --out.

    python benchmarks/neural_memory_cpu.py
"""

import argparse
import gc
import importlib.util
import itertools
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

from records import about

HEADS, BATCH = 4, 2
OURS = "pyro-memory, paper"
SETTINGS = {  # name: module, arguments from the chunk
    OURS: ("pyro_memory", lambda c: {"chunk_size": c}),
    "titans-pytorch, frozen": ("titans_pytorch", lambda c: {"chunk_size": c}),
    "titans-pytorch, refreshed": ("titans_pytorch", lambda c: {"chunk_size": c, "batch_size": c}),
    "titans-pytorch, paper": ("titans_pytorch", lambda c: {"chunk_size": 1, "batch_size": c}),
    "open-titans, frozen": ("open_titans", lambda c: {"chunk_size": c}),
}


def build(setting, width, chunk):
    module, options = SETTINGS[setting]
    if module == "pyro_memory":
        from pyro_memory.models import NeuralMemory

        return NeuralMemory(width * HEADS, heads=HEADS, **options(chunk))
    if module == "titans_pytorch":
        from titans_pytorch import MemoryMLP, NeuralMemory
    else:
        from open_titans.modules import MemoryMLP, NeuralMemory
    memory = MemoryMLP(width, depth=2, expansion_factor=4.0)
    return NeuralMemory(width * HEADS, dim_head=width, heads=HEADS, model=memory, **options(chunk))


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def resident():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def measure(setting, width, chunk, time_steps, threads, repeats, gigabytes):
    """Milliseconds and added MB of one case; runs in its own process."""
    import torch

    resource.setrlimit(resource.RLIMIT_AS, (gigabytes * 2**30,) * 2)
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    module = build(setting, width, chunk)
    x = torch.randn(BATCH, time_steps, width * HEADS, requires_grad=True)

    def forward():
        with torch.no_grad():
            module(x)

    def both():
        y, _ = module(x)
        y.square().sum().backward()

    row = {"setting": setting, "head_dim": width, "chunk": chunk, "tokens": time_steps, "threads": threads}
    before = peak()
    for name, call in (("forward", forward), ("both", both)):
        seconds = []
        while len(seconds) <= repeats or sum(seconds) < 2:  # the first warms up
            start = time.process_time()
            call()
            seconds.append(time.process_time() - start)
            if seconds[-1] > 3:
                break
        row[f"{name}_ms"] = round(1000 * statistics.median(seconds[1:] or seconds), 1)
        row[f"{name}_mb"] = round(peak() - before)
    return row


def speed(args):
    rows, stopped = [], set()
    for setting, (module, _) in SETTINGS.items():
        if importlib.util.find_spec(module) is None:
            print(f"{setting}: skipped, `{module}` is not installed (pip install {module.replace('_', '-')})")
            stopped |= {(setting, width, chunk) for width in args.widths for chunk in args.chunks}
    cells = [(w, c, t) for w in args.widths for c in args.chunks for t in args.tokens]
    for (width, chunk, tokens), setting in itertools.product(cells, SETTINGS):
        if (setting, width, chunk) in stopped:
            continue
        case = [setting, width, chunk, tokens, args.threads, args.repeats, args.memory]
        done = subprocess.run([sys.executable, __file__, "--case", json.dumps(case)], capture_output=True, text=True)
        if done.returncode:
            print(f"{setting}, {width}, {chunk}, {tokens}: stopped ({done.stderr.strip()[-80:]})")
            stopped.add((setting, width, chunk))
            continue
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(rows[-1], flush=True)
        if rows[-1]["both_ms"] > 1000 * args.limit:
            stopped.add((setting, width, chunk))
    return rows


def stream(args):
    """One state over many tokens, in pieces, with single tokens timed in between."""
    import torch

    from pyro_memory.models import NeuralMemory

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    memory, state, rows, seen = NeuralMemory(128, heads=HEADS), None, [], 0
    marks = [t for t in (1_000, 3_000, 10_000, 30_000, 100_000, 300_000, 1_000_000) if t <= args.stream]
    with torch.no_grad():
        for mark in marks:
            start, first = time.process_time(), seen
            while seen < mark:
                piece = min(1_000, mark - seen)
                y, state = memory(torch.randn(1, piece, 128), state)
                seen += piece
            pieces = (time.process_time() - start) / (seen - first)
            times, other = [], state
            for _ in range(64):
                start = time.process_time()
                _, other = memory.step(torch.randn(1, 128), other)
                times.append(time.process_time() - start)
            gc.collect()
            largest = max(w.abs().max().item() for w in state.weights)
            rows.append({
                "tokens": mark, "piece_us_per_token": round(1e6 * pieces, 1),
                "step_ms": round(1000 * statistics.median(times), 3), "resident_mb": round(resident(), 1),
                "state_mb": round(sum(t.nbytes for _, t in state.named_tensors()) / 2**20, 3),
                "finite": bool(y.isfinite().all()), "largest_weight": round(largest, 3),
            })  # fmt: skip
            print(rows[-1], flush=True)
    return rows


def draw(rows, streamed, path):
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 4, figsize=(16, 7), layout="constrained")
    cells = sorted({(r["head_dim"], r["chunk"]) for r in rows})
    for column, (width, chunk) in enumerate(cells[:4]):
        for line, setting in enumerate(SETTINGS):
            own = [r for r in rows if (r["head_dim"], r["chunk"], r["setting"]) == (width, chunk, setting)]
            tokens = [r["tokens"] for r in own]
            style = {"marker": "o", "color": f"C{line}", "label": setting}
            if own:
                axes[0, column].plot(tokens, [r["both_ms"] / r["tokens"] for r in own], **style)
                axes[1, column].plot(tokens, [r["both_mb"] for r in own], **style)
        axes[0, column].set(title=f"head width {width}, chunk {chunk}", ylabel="ms a token, forward + backward")
        axes[1, column].set(xlabel="tokens", ylabel="MB added, forward + backward")
    for ax in axes.flat:
        ax.set(xscale="log", yscale="log")
        ax.set_xticks(sorted({r["tokens"] for r in rows}), sorted({r["tokens"] for r in rows}))
        ax.xaxis.set_minor_formatter("")
    axes[0, 0].legend(frameon=False, fontsize=8)
    figure.savefig(path / "neural_memory_cpu.png", dpi=110)
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.5), layout="constrained")
    for ax, key in zip(axes, ("piece_us_per_token", "step_ms", "resident_mb"), strict=True):
        ax.plot([r["tokens"] for r in streamed], [r[key] for r in streamed], marker="o")
        ax.set(xscale="log", xlabel="tokens streamed", ylim=(0, 1.3 * max(r[key] for r in streamed)))
    for ax, label in zip(axes, ("microseconds a token, in pieces", "ms a single step", "MB resident"), strict=True):
        ax.set_ylabel(label)
    figure.savefig(path / "streaming_cpu.png", dpi=110)


def ratios(rows):
    ours = {(r["head_dim"], r["chunk"], r["tokens"]): r for r in rows if r["setting"] == OURS}
    print(f"\n{'':28}{'width':>6}{'chunk':>6}{'tokens':>7}{'forward':>9}{'both':>8}{'memory':>8}   times ours")
    for r in rows:
        own = ours.get((r["head_dim"], r["chunk"], r["tokens"]))
        if r["setting"] != OURS and own:
            times = [r[k] / own[k] for k in ("forward_ms", "both_ms", "both_mb")]
            print(
                f"{r['setting']:28}{r['head_dim']:>6}{r['chunk']:>6}{r['tokens']:>7}{times[0]:>9.2f}{times[1]:>8.2f}"
                f"{times[2]:>8.2f}"
            )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/neural_memory_cpu"))
    parser.add_argument("--tokens", type=int, nargs="+", default=[512, 1024, 2048, 4096, 8192])
    parser.add_argument("--widths", type=int, nargs="+", default=[32, 128])
    parser.add_argument("--chunks", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3, help="at least, and for 2 seconds")
    parser.add_argument(
        "--limit", type=float, default=6.0, help="seconds of a call after which a setting stops growing"
    )
    parser.add_argument("--memory", type=int, default=10, help="gigabytes a case may take")
    parser.add_argument("--stream", type=int, default=1_000_000, help="tokens to stream")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        print(json.dumps(measure(*json.loads(args.case))))
        return
    args.out.mkdir(parents=True, exist_ok=True)
    rows = speed(args)
    streamed = stream(args)
    record = about() | {"rows": rows, "streamed": streamed}
    (args.out / "neural_memory_cpu.json").write_text(json.dumps(record, indent=1) + "\n")
    ratios(rows)
    draw(rows, streamed, args.out)


if __name__ == "__main__":
    main()
