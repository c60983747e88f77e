"""How gradients and weights of a neural memory grow with length, by depth, by the plain rule and by the steady one.

Reads five sequences with a fresh memory: noise, and what is hardest to be steady with: one token repeated, negated in
turn, two in turn, and noise a thousand times as large. The gates are as they start, for each of --seeds, then with
learning, momentum and decay at their bounds, for the first of them. Told are, for each sequence and length, the
largest gradient that the sum of squared outputs has in any token, times the tokens' size, and the largest weight at the
end; the figure has them as multiples of those at the shortest length. The plain rule at depth 3 and more is what the
constructor refuses. Told beside: what is left of the loss of eight pairs that are written once, with learning rates at
their bound, which is what it costs to be steady. Writes depth.json and depth.png to --out.

    python benchmarks/depth.py
"""

import argparse
import json
import math
import time
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from pyro import poutine
from tqdm import tqdm

from pyro_memory.models import NeuralMemory

KINDS = ("noise", "repeated", "negated", "two in turn", "large")
COLORS = {"plain": "tab:red", "steady": "tab:blue"}
CEILING = 1e12  # what is larger, or not finite, is drawn there
ROWS = ("gradients", "weights")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depths", metavar="N", nargs="+", type=int, default=[1, 2, 3, 4])
    parser.add_argument("--lengths", metavar="N", nargs="+", type=int, default=[64, 256, 1024, 4096, 16384])
    parser.add_argument("--head-dim", metavar="N", type=int, default=16)
    parser.add_argument("--chunk", metavar="N", type=int, default=16)
    parser.add_argument("--max-lr", metavar="X", type=float, default=0.5)
    parser.add_argument("--rules", nargs="+", choices=COLORS, default=["plain", "steady"])
    parser.add_argument("--seeds", metavar="N", nargs="+", type=int, default=[0, 1, 2, 3])
    parser.add_argument("--out", metavar="DIR", type=Path, default=Path("out/depth"))
    return parser.parse_args()


def sequences(length, dim):
    """One of each kind."""
    key, other = torch.randn(2, dim)
    even = (torch.arange(length) % 2 == 0)[:, None]
    noise = torch.randn(length, dim)
    x = [noise, key.expand(length, dim), torch.where(even, key, -key), torch.where(even, key, other), 1000 * noise]
    return torch.stack(x)


def built(rule, depth, bounds, args):
    """A memory of two heads, by the plain rule also where its constructor refuses that."""
    steady = rule == "steady" or depth > 2 or args.head_dim < 4
    memory = NeuralMemory(
        2 * args.head_dim, heads=2, depth=depth, chunk_size=args.chunk, convolution=1, max_lr=args.max_lr, steady=steady
    )
    with torch.no_grad():
        if rule == "plain" and steady:
            memory.steady, memory.lr_shares = False, [1] * depth
            for layer in range(1, depth):
                getattr(memory, f"initial_{layer}").mul_(0.5**0.5)
        for linear in (memory.to_lr, memory.to_momentum, memory.to_decay) if bounds else ():
            linear.weight.zero_()
            linear.bias.fill_(30.0)
    return memory


def measure(rule, depth, bounds, seed, args):
    """A row for each sequence."""
    told = {"rule": rule, "depth": depth, "gates": "at their bounds" if bounds else "as they start", "seed": seed}
    rows = [told | {"tokens": kind, "gradients": [], "weights": []} for kind in KINDS]
    for length in args.lengths:
        torch.manual_seed(seed)
        memory = built(rule, depth, bounds, args)
        x = sequences(length, memory.dim).requires_grad_()
        y, state = memory(x)
        y.square().sum().backward()
        gradients = (x.grad.double().norm(dim=-1) * x.detach().double().norm(dim=-1)).amax(1)
        weights = torch.stack([w.detach().abs().flatten(1).amax(1) for w in state.weights]).amax(0)
        for row, gradient, weight in zip(rows, gradients.tolist(), weights.tolist(), strict=True):
            row["gradients"].append(gradient)
            row["weights"].append(weight)
    return rows


def left_after_one_pass(depth, max_lr, seed):
    """What is left of the loss of eight pairs, by the rule that a memory of that depth has."""
    torch.manual_seed(seed)
    options = {"convolution": 1, "chunk_size": 8, "max_lr": max_lr, "surprise": True, "name": "memory"}
    memory, x, state, losses = NeuralMemory(32, depth=depth, **options), torch.randn(4, 8, 32), None, []
    memory.to_lr.bias.data.fill_(30.0)
    memory.to_decay.bias.data.fill_(-30.0)
    for _ in range(2):  # what surprises the second time is left
        with poutine.trace() as seen, torch.no_grad():
            _, state = memory(x, state)
        losses.append(seen.trace.nodes["memory.surprise"]["value"][..., 0].sum().item())
    return losses[1] / losses[0]


def growth(row, key):
    """Multiples of the first."""
    values = torch.tensor(row[key], dtype=torch.float64)
    return (values / values[0]).nan_to_num(CEILING, CEILING).clamp(max=CEILING)


def draw(rows, args, path):
    size = {"figsize": (3.6 * len(args.depths), 6), "sharex": True, "sharey": "row", "squeeze": False}
    fig, axes = plt.subplots(2, len(args.depths), **size, layout="constrained")
    for column, depth in zip(axes.T, args.depths, strict=True):
        for ax, key in zip(column, ROWS, strict=True):
            for rule, color in COLORS.items():
                own = [r for r in rows if (r["depth"], r["rule"]) == (depth, rule)]
                usual = [r["tokens"] == "noise" and r["gates"] == "as they start" for r in own]
                for style, label, wanted in (("-", "noise", True), (":", "the other sequences and gates", False)):
                    lines = [growth(r, key) for r, is_usual in zip(own, usual, strict=True) if is_usual == wanted]
                    for i, line in enumerate(lines):
                        told = {"label": f"{rule}, {label}" if i == 0 else None, "linewidth": 1.5 if wanted else 0.8}
                        ax.plot(args.lengths, line, style, color=color, **told)
            ax.set(xscale="log", yscale="log")
            ax.grid(alpha=0.3)
        column[0].set_title(f"depth {depth}")
        column[1].set_xlabel("tokens")
    axes[0, 0].set_ylabel(f"largest gradient, times that at {args.lengths[0]}")
    axes[1, 0].set_ylabel(f"largest weight, times that at {args.lengths[0]}")
    axes[0, 0].legend(frameon=False, fontsize=8)
    fig.savefig(path, dpi=120)


def main():
    args = arguments()
    torch.set_flush_denormal(True)  # what a memory that has decayed to nothing computes with is slow
    start = time.perf_counter()
    cases = [(False, seed) for seed in args.seeds] + [(True, args.seeds[0])]
    grid = [(rule, depth, *case) for depth in args.depths for rule in args.rules for case in cases]
    rows = []
    for rule, depth, bounds, seed in tqdm(grid):
        rows += measure(rule, depth, bounds, seed, args)
        most = {row["tokens"]: f"{growth(row, 'gradients').max():.3g}" for row in rows[-len(KINDS) :]}
        tqdm.write(f"depth {depth}, {rule}, gates {rows[-1]['gates']}, seed {seed}: gradients at most times {most}")
    passes = [{"depth": depth, "max_lr": max_lr} for depth in args.depths for max_lr in (0.5, 4.0)]
    for row in passes:
        row["left"] = [round(left_after_one_pass(row["depth"], row["max_lr"], seed), 4) for seed in args.seeds]
        print(f"depth {row['depth']}, max_lr {row['max_lr']}: {row['left']} of the loss is left after a pass")
    told = {name: value for name, value in vars(args).items() if name != "out"}
    told |= {"torch": torch.__version__, "threads": torch.get_num_threads(), "seconds": time.perf_counter() - start}
    args.out.mkdir(parents=True, exist_ok=True)
    draw(rows, args, args.out / "depth.png")
    for row in rows:
        for key in ROWS:
            row[key] = [float(f"{x:.4g}") if math.isfinite(x) else None for x in row[key]]
    (args.out / "depth.json").write_text(json.dumps({"options": told, "rows": rows, "passes": passes}, indent=1) + "\n")


if __name__ == "__main__":
    main()
