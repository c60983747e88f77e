"""Associative recall: who remembers pairs of tokens that lie far behind, and how far?

Trains sequence models that differ only in what mixes their tokens, at equal numbers of parameters, to answer for the
value of each key (MQAR; Arora et al., 2023, https://arxiv.org/abs/2312.04927), then asks at up to 16 times the training
length. Attention sees --window tokens. Writes results.json, checkpoints and a figure to --out; run it again to go on.

    python benchmarks/experiments/titans_recall.py
    python benchmarks/experiments/titans_recall.py --models LMM --ablations none linear momentum --seeds 0 1
"""

import argparse
import json
import math
import time
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from pyro.infer import Trace_ELBO
from titans_parts import MIXERS, leave_weights, mixers

from pyro_memory import fit, warm_cosine
from pyro_memory.data import RecallTasks
from pyro_memory.guides import EmptyGuide
from pyro_memory.models import SequenceModel

FACTORS = (1, 2, 4, 8, 16)
ABLATIONS = {
    "none": {},
    "linear": {"depth": 1, "residual_norm": False},
    "convolution": {"convolution": 1},
    "momentum": {"momentum": False},
    "decay": {"weight_decay": False},
    "persistent": {"persistent": 0},
}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = partial(parser.add_argument, metavar="N", type=int)
    parser.add_argument("--models", nargs="+", choices=MIXERS, default=["LMM", "transformer", "LSTM"])
    parser.add_argument(
        "--ablations", nargs="+", choices=ABLATIONS, default=["none"], help="what a memory goes without"
    )
    add("--pairs", default=4, help="pairs to remember (default 4)")
    add("--length", default=64, help="training length (default 64)")
    add("--vocabulary", default=40)
    add("--window", default=16, help="tokens that attention sees (default 16)")
    add("--dim", default=32)
    add("--blocks", default=2)
    add("--heads", default=1)
    add("--chunk", default=16, help="tokens a memory's gradient is shared by; divides --window (default 16)")
    add("--parameters", default=50_000, help="of each model (default 50,000)")
    add("--steps", default=500, help="training steps of each model (default 500)")
    add("--batch", default=64)
    add("--evaluate", default=256, help="test sequences at each length (default 256)")
    parser.add_argument("--learning-rate", metavar="X", type=float, default=5e-3)
    add("--seeds", nargs="+", default=[0])
    parser.add_argument(
        "--weights",
        metavar="MODEL",
        choices=MIXERS,
        help="leave this model's weights, of the first seed, in --out/weights",
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", metavar="DIR", type=Path, default=Path("out/titans_recall"))
    parser.add_argument("--fresh", action="store_true", help="start anew instead of resuming from --out")
    args = parser.parse_args()
    if args.weights and (args.weights not in args.models or "none" not in args.ablations):
        parser.error(f"--weights must be one of --models {' '.join(args.models)}, not ablated; got {args.weights}")
    return args


def tasks(args, length, seed, gap=None, batch=None):
    return RecallTasks(
        pairs=args.pairs, length=length, vocabulary=args.vocabulary, gap=gap, batch=batch or args.batch, seed=seed
    )


@torch.no_grad()
def accuracy(model, batches, args):
    """The share of right answers, and its standard error over sequences."""
    shares, count = [], 0
    for i in range(args.evaluate):
        tokens, answers = (t.to(args.device) for t in batches[i])
        right = (model.x_dist(tokens).logits.argmax(-1) == tokens) & answers
        shares.append(right.sum(-1) / args.pairs)
        count += len(tokens)
        if count >= args.evaluate:
            break
    share = torch.cat(shares)
    return share.mean().item(), (share.std() / math.sqrt(len(share))).item()


def run(name, mixer, seed, args):
    """Trains one model and measures it at every length and gap."""
    torch.manual_seed(seed)
    size = {"dim": args.dim, "blocks": args.blocks, "parameters": args.parameters}
    model = SequenceModel.tokens(args.vocabulary, mixer, **size).to(args.device)
    count = sum(p.numel() for p in model.parameters())
    print(f"\n{name}, seed {seed}: {count:,} parameters, {args.steps} steps of {args.batch} sequences")
    test = tasks(args, args.length, 10_000)
    file = f"{name.replace(',', '').replace(' ', '-')}-{seed}.safetensors"
    result = fit(
        model, EmptyGuide(), tasks(args, args.length, seed), Trace_ELBO(max_plate_nesting=1), steps=args.steps,
        learning_rate=args.learning_rate, schedule=warm_cosine(args.steps, warm=50),
        clip_norm=float(args.batch * args.pairs), information_every=None,
        evaluate=lambda step: {"accuracy": accuracy(model, test, args)[0]}, evaluate_every=max(1, args.steps // 10),
        checkpoint=args.out / file, resume=not args.fresh, seed=seed,
        device=args.device,
    )  # fmt: skip
    model.eval()
    by_length, by_gap = {}, {}
    for factor in FACTORS:
        length = factor * args.length
        small = max(1, args.batch // factor)
        by_length[length] = accuracy(model, tasks(args, length, 10_000, batch=small), args)
        gap = length - 4 * args.pairs
        by_gap[gap] = accuracy(model, tasks(args, length, 20_000, gap, small), args)
    print("  accuracy by length  " + "  ".join(f"{k}: {a:.3f} ({se:.3f})" for k, (a, se) in by_length.items()))
    print("  accuracy by gap     " + "  ".join(f"{k}: {a:.3f} ({se:.3f})" for k, (a, se) in by_gap.items()))
    if name == args.weights and seed == args.seeds[0]:
        sizes, told = {"vocabulary": args.vocabulary, **size}, facts(name, by_length, args)
        leave_weights(f"titans-{name.lower()}-recall", model, "tokens", sizes, mixer, told, args.out / "weights")
    return {
        "model": name, "seed": seed, "parameters": count, "seconds": result.seconds,
        "learning": result.history["evaluation"], "by_length": by_length, "by_gap": by_gap,
    }  # fmt: skip


def facts(name, by_length, args):
    """What the card of its weights says."""
    return {
        "about": f"Titans {name} trained on associative recall",
        "data": f"MQAR (Arora et al., 2023), {args.pairs} pairs of {args.vocabulary} tokens, drawn by RecallTasks",
        "licence": "none needed: made from random numbers",
        "protocol": f"trained at length {args.length}; the share of right answers on {args.evaluate} new sequences",
        "numbers": {f"length {n}": f"{a:.3f} ({se:.3f})" for n, (a, se) in by_length.items()},
        "training": f"{args.steps} steps of {args.batch} sequences, seed {args.seeds[0]}",
    }


def draw(rows, args, path):
    fig, axes = plt.subplots(1, 3, figsize=(15, 4), layout="constrained")
    for name in dict.fromkeys(row["model"] for row in rows):
        own = [row for row in rows if row["model"] == name]
        for ax, key in zip(axes, ("by_length", "by_gap"), strict=False):
            where = list(own[0][key])
            mean = torch.tensor([[row[key][w][0] for w in where] for row in own]).mean(0)
            se = torch.tensor([[row[key][w][1] for w in where] for row in own]).square().mean(0).div(len(own)).sqrt()
            ax.errorbar(where, mean, 2 * se, marker="o", markersize=3, capsize=2, label=name)
        for i, row in enumerate(own):
            steps, values = zip(*((r["step"], r["accuracy"]) for r in row["learning"]), strict=True)
            axes[2].plot(steps, values, label=name if i == 0 else None, color=axes[0].get_lines()[-3].get_color())
    for ax, label in zip(axes, ("length of the sequence", "fillers between pairs and questions"), strict=False):
        ax.set_xscale("log", base=2)
        ax.set_xlabel(label)
    axes[0].axvline(args.length, color="0.6", linestyle=":", linewidth=1)
    axes[0].set_title(f"{args.pairs} pairs; trained at length {args.length} (dotted)")
    axes[1].set_title(f"attention sees {args.window} tokens")
    axes[2].set(xlabel="step", title="at training length")
    for ax in axes:
        ax.axhline(1 / args.pairs, color="0.6", linestyle="--", linewidth=1, label="a guess among the values")
        ax.set(ylim=(0, 1.03), ylabel="accuracy")
    axes[0].legend(frameon=False, fontsize=8)
    fig.savefig(path, dpi=120)


def main():
    args = arguments()
    start = time.perf_counter()
    args.out.mkdir(parents=True, exist_ok=True)
    made = mixers(args.heads, args.chunk, args.window)
    runs = {}
    for name in args.models:
        memory = name in ("LMM", "MAC", "MAG", "MAL")
        for ablation in args.ablations if memory else ["none"]:
            label = {"none": name, "linear": f"{name}, linear memory"}.get(ablation, f"{name} without {ablation}")
            runs[label] = partial(made[name], **ABLATIONS[ablation]) if memory else made[name]
    rows = [run(name, mixer, seed, args) for name, mixer in runs.items() for seed in args.seeds]
    draw(rows, args, args.out / "recall.png")
    record = {
        "arguments": {k: v for k, v in vars(args).items() if k not in ("data_dir", "out", "fresh")},
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "runs": rows,
    }
    (args.out / "results.json").write_text(json.dumps(record, indent=1))
    print(f"\nrecall.png and results.json are in {args.out} ({time.perf_counter() - start:.0f} s)")


if __name__ == "__main__":
    main()
