"""What a lookup costs against the number of slots: dense, streamed, nearest-k.

A lookup is what a VIMCO step needs of q(a | x, M): addresses for each datum, their log-probabilities, and the gradient
of these to queries and keys. "dense" is Pyro's Categorical over all logits, "fused" a StreamedCategorical, "mapped" the
same over float16 keys in a file, "nearest" a NearestCategorical by a SlotIndex (hnsw). Writes addressing.csv,
addressing.json and addressing.png to --out.

    OMP_NUM_THREADS=1 python benchmarks/addressing.py
    OMP_NUM_THREADS=1 python benchmarks/addressing.py --slots 1000 10000 --mapped 100000
"""

import argparse
import csv
import ctypes
import json
import platform
import time
from pathlib import Path

import matplotlib.pyplot as plt
import pyro.distributions as dist
import torch
from torch.nn.functional import normalize

from pyro_memory import MappedMemory, NearestCategorical, SlotIndex, StreamedCategorical

COLUMNS = ("method", "slots", "forward_s", "forward_mb", "backward_s", "backward_mb", "build_s", "recall")
STYLE = {"dense": ("0.5", "o"), "fused": ("#2f6f9f", "s"), "mapped": ("#63a0c8", "D"), "nearest": ("#d9822b", "^")}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slots", metavar="N", type=int, nargs="+", default=[10**n for n in range(3, 7)])
    parser.add_argument("--mapped", metavar="N", type=int, default=10**7, help="slots of the mapped file (0: none)")
    parser.add_argument("--batch", metavar="N", type=int, default=64)
    parser.add_argument("--dim", metavar="N", type=int, default=64)
    parser.add_argument("--particles", metavar="N", type=int, default=4)
    parser.add_argument("--nearest", metavar="N", type=int, default=64)
    parser.add_argument("--repeats", metavar="N", type=int, default=5)
    parser.add_argument("--seed", metavar="N", type=int, default=0)
    parser.add_argument("--out", metavar="DIR", type=Path, default=Path("out/benchmarks"))
    return parser.parse_args()


def keys(slots, args, start=0):
    """Unit keys in 2,000 groups, as embeddings of letters lie; slot i is the same in every size."""
    centres = torch.randn(2000, args.dim, generator=torch.Generator().manual_seed(args.seed))
    generator = torch.Generator().manual_seed(args.seed + 1 + start)
    groups = torch.randint(2000, (slots,), generator=generator)
    return normalize(centres[groups] + 0.7 * torch.randn(slots, args.dim, generator=generator), dim=-1)


def queries(args):
    return 15 * keys(args.batch, args, start=10**9)


def peak_memory():
    """The most memory that this process has held since ``reset_peak``, in MB; None outside Linux."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1000


def measure(lookup, query, key, args):
    """Median seconds and memory of a forward pass, and of one with its gradient."""
    learned = key is not None and key.dtype == torch.float32
    leaves = [query.clone().requires_grad_(), key.clone().requires_grad_() if learned else key]

    def forward():
        with torch.no_grad():
            q = lookup(query, key)
            q.log_prob(q.sample((args.particles,)))

    def with_gradient():
        for leaf in leaves:
            if leaf is not None:
                leaf.grad = None
        q = lookup(*leaves)
        q.log_prob(q.sample((args.particles,))).sum().backward()

    row = {}
    for name, run in (("forward", forward), ("backward", with_gradient)):
        before, seconds = reset_peak(), []
        for _ in range(args.repeats):
            start = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - start)
        row[f"{name}_s"] = sorted(seconds)[len(seconds) // 2]
        row[f"{name}_mb"] = None if before is None else peak_memory() - before
    return row


def reset_peak():
    """Starts the peak of memory anew and gives it; None outside Linux."""
    if peak_memory() is None:
        return None
    ctypes.CDLL(None).malloc_trim(0)  # hands back what earlier lookups freed, which would hide this one's
    Path("/proc/self/clear_refs").write_text("5")
    return peak_memory()


def dense(query, key):
    return dist.Categorical(logits=query @ key.mT)


def by_index(index, args):
    def lookup(query, key):
        best = index.search(query.detach(), args.nearest)
        scores = (index.keys[best] * query.unsqueeze(-2)).sum(-1)
        return NearestCategorical(best, scores, len(index.keys), epsilon=0.01)

    return lookup


def rows(args):
    query = queries(args)
    for slots in args.slots:
        key = keys(slots, args)
        yield {"method": "dense", "slots": slots, **measure(dense, query, key, args)}
        yield {"method": "fused", "slots": slots, **measure(StreamedCategorical, query, key, args)}
        start = time.perf_counter()
        index = SlotIndex("hnsw").build(key)
        build = time.perf_counter() - start
        found = {"build_s": build, "recall": index.recall(query, args.nearest)}
        yield {"method": "nearest", "slots": slots, **found, **measure(by_index(index, args), query, None, args)}
    if args.mapped:
        yield from mapped_rows(query, args)


def mapped_rows(query, args):
    folder = args.out / "mapped-keys"
    try:
        memory = MappedMemory.open(folder)
    except ValueError:
        memory = MappedMemory.create(folder, (), key_dim=args.dim)
    while memory.slots < args.mapped:
        block = min(200_000, args.mapped - memory.slots)
        memory = memory.append(torch.zeros(block), keys(block, args, start=memory.slots))
    for slots in [n for n in args.slots if n >= 10**5] + [args.mapped]:
        yield {"method": "mapped", "slots": slots, **measure(StreamedCategorical, query, memory.keys[:slots], args)}


def show(row):
    cells = [row["method"], f"{row['slots']:,}"]
    for name in ("forward", "backward"):
        memory = row[f"{name}_mb"]
        cells += [f"{row[f'{name}_s'] * 1000:.1f} ms", "-" if memory is None else f"{memory:.0f} MB"]
    built = f"   built in {row['build_s']:.1f} s, recall {row['recall']:.3f}" if "build_s" in row else ""
    print("".join(cell.rjust(14) for cell in cells) + built, flush=True)


def draw(table, args):
    fig, axes = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for method, (colour, marker) in STYLE.items():
        own = [row for row in table if row["method"] == method]
        slots = [row["slots"] for row in own]
        for name, line in (("forward_s", "-"), ("backward_s", "--")):
            label = method if name == "forward_s" else None
            axes[0].plot(slots, [row[name] for row in own], line, color=colour, marker=marker, label=label)
            measured = [row for row in own if row[name.replace("_s", "_mb")] is not None]
            memory = [max(row[name.replace("_s", "_mb")], 0.1) for row in measured]
            axes[1].plot([r["slots"] for r in measured], memory, line, color=colour, marker=marker, label=label)
    for ax in axes:
        ax.set(xscale="log", yscale="log", xlabel="slots")
        ax.grid(alpha=0.3)
        ax.legend(frameon=False)
    axes[0].set(ylabel="seconds a lookup", title="Time: forward (line), with gradient (dashed)")
    axes[1].set(ylabel="MB beside the keys", title="Memory: forward (line), with gradient (dashed)")
    fig.suptitle(f"{args.batch} queries of {args.dim} dimensions, {args.particles} particles, one thread")
    fig.savefig(args.out / "addressing.png", dpi=120)


def main():
    args = arguments()
    torch.manual_seed(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    print(f"{args.batch} queries of {args.dim} dimensions, {args.particles} particles, k = {args.nearest}")
    print("".join(name.rjust(14) for name in ("method", "slots", "forward", "memory", "with gradient", "memory")))
    table = []
    for row in rows(args):
        show(row)
        table.append(row)
        with (args.out / "addressing.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(table)
    facts = {"torch": torch.__version__, "threads": torch.get_num_threads(), "machine": platform.machine()}
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
    (args.out / "addressing.json").write_text(json.dumps({"settings": settings, **facts, "rows": table}, indent=1))
    draw(table, args)
    print(f"addressing.csv, addressing.json and addressing.png are in {args.out}")


if __name__ == "__main__":
    main()
