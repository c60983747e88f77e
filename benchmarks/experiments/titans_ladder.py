"""A ladder of associative recall: how many pairs does a memory keep, and how far?

The task of titans_recall.py with more and more pairs, in sequences of 8 tokens a pair, as many tokens a step; every
rung is a model of its own, with the curriculum. Asks at up to 16 times the training length, then with up to 16 times
as many pairs, as far as the vocabulary goes. Writes results.json, checkpoints and a figure to --out; run it again to go
on.

    python benchmarks/experiments/titans_ladder.py --pairs 8 16 --steps 1000 1500
"""

import argparse

import matplotlib.pyplot as plt
from study import leave, options
from tables_titans import ladder, ladder_pairs
from titans_parts import mixers
from titans_recall import FACTORS, run


def arguments():
    parser = options(
        __doc__, "out/titans_ladder", data=(), device=True,
        pairs=([8, 16, 32, 64], "pairs of each rung"), steps=([1200, 1200, 3000, 3000], "training steps of each rung"),
        vocabulary=(512, "different tokens, 8 of them fillers"), tokens=(4096, "a step"),
        learning_rate=(6e-3, "at its highest"), evaluate=(64, "test sequences at each length"),
    )  # fmt: skip
    args = parser.parse_args()
    if len(args.pairs) != len(args.steps) or min(args.pairs) < 1 or args.tokens < 8 * max(args.pairs):
        parser.error(
            "--steps must be one number for each of --pairs, these at least 1, and a step hold one sequence of 8 "
            f"tokens a pair; got {args.pairs}, {args.steps} and {args.tokens} tokens"
        )
    return args


def rung(pairs, steps, args):
    """The arguments of titans_recall.py for so many pairs."""
    length = 8 * pairs
    sizes = {"pairs": pairs, "length": length, "batch": args.tokens // length, "steps": steps}
    fixed = {"curriculum": True, "dim": 64, "blocks": 2, "parameters": 190_000, "weights": None, "filler": 8}
    out = args.out / str(pairs)
    out.mkdir(exist_ok=True)
    return argparse.Namespace(**vars(args) | sizes | fixed | {"out": out})


def draw(rows, path):
    fig, axes = plt.subplots(1, 2, figsize=(12, 4), layout="constrained")
    for row in rows:
        for ax, kind in zip(axes, ("by_length", "by_pairs"), strict=True):
            mean, se = zip(*row[kind].values(), strict=True)
            wrong = [1 - m for m in mean]
            where = FACTORS if kind == "by_length" else [int(pairs) for pairs in row[kind]]
            ax.errorbar(where, wrong, [2 * s for s in se], marker="o", capsize=2, label=row["model"])
    axes[0].set(xlabel="length, in training lengths", title="as many pairs as trained on")
    axes[1].set(xlabel="pairs, 8 tokens a pair", title="more pairs than trained on")
    pairs = sorted({int(n) for row in rows for n in row["by_pairs"]})
    for ax, ticks, sign in zip(axes, (FACTORS, pairs), ("x", ""), strict=True):
        ax.set(ylabel="wrong answers", ylim=(0, None), xscale="log")
        ax.set_xticks(ticks, [f"{t}{sign}" for t in ticks])
        ax.minorticks_off()
    axes[0].legend(frameon=False)
    fig.savefig(path, dpi=120)


def main():
    args = arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    make = mixers(2, 16, 16, expansion=2, persistent=0, weight_decay=False)["LMM"]
    rows = []
    for pairs, steps in zip(args.pairs, args.steps, strict=True):
        row = run("LMM", make, args.seed, rung(pairs, steps, args))
        rows.append(row | {"model": f"{pairs} pairs", "steps": steps})
    draw(rows, args.out / "ladder.png")
    leave({"runs": rows}, args, ladder, ladder_pairs)


if __name__ == "__main__":
    main()
