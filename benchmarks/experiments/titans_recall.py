"""Associative recall: who remembers pairs of tokens that lie far behind, and how far?

Trains sequence models that differ only in what mixes their tokens, at equal numbers of parameters, to answer for the
value of each key (MQAR; Arora et al., 2023, https://arxiv.org/abs/2312.04927), then asks at up to 16 times the training
length. Attention sees --window tokens. Writes results.json, checkpoints and a figure to --out; run it again to go on.

    python benchmarks/experiments/titans_recall.py
    python benchmarks/experiments/titans_recall.py --models LMM --ablations none linear momentum --seeds 0 1
"""

from functools import partial

import matplotlib.pyplot as plt
import torch
from pyro.infer import Trace_ELBO
from study import leave, mean_se, options, train
from tables_titans import by_gap, by_length
from titans_parts import MIXERS, leave_weights, mixers

from pyro_memory import warm_cosine
from pyro_memory.data import RecallTasks
from pyro_memory.guides import EmptyGuide
from pyro_memory.models import SequenceModel

FACTORS = (1, 2, 4, 8, 16)
PAIRS, VOCABULARY = 4, 40
SIZE = {"dim": 32, "blocks": 2, "parameters": 50_000}
ABLATIONS = {
    "none": {},
    "linear": {"depth": 1, "residual_norm": False},
    "convolution": {"convolution": 1},
    "momentum": {"momentum": False},
    "decay": {"weight_decay": False},
    "persistent": {"persistent": 0},
}


def arguments():
    parser = options(
        __doc__, "out/titans_recall", data=(), device=True,
        length=(64, "training length"), window=(16, "tokens that attention sees"),
        chunk=(16, "tokens a memory's gradient is shared by; divides --window"),
        steps=(500, "training steps of each model"), batch=(64, "sequences a step"),
        evaluate=(256, "test sequences at each length"), seeds=([0], "a run each"),
    )  # fmt: skip
    parser.add_argument("--models", nargs="+", choices=MIXERS, default=["LMM", "transformer", "LSTM"])
    parser.add_argument("--ablations", nargs="+", choices=ABLATIONS, default=["none"], help="what memory goes without")
    parser.add_argument("--weights", choices=MIXERS, help="leave this model's, of the first seed, in --out/weights")
    args = parser.parse_args()
    if args.weights and (args.weights not in args.models or "none" not in args.ablations):
        parser.error(f"--weights must be one of --models {' '.join(args.models)}, not ablated; got {args.weights}")
    return args


def tasks(args, length, seed, gap=None, batch=None):
    return RecallTasks(pairs=PAIRS, length=length, vocabulary=VOCABULARY, gap=gap, batch=batch or args.batch, seed=seed)


@torch.no_grad()
def accuracy(model, batches, args):
    """The share of right answers, and its standard error over sequences."""
    shares = []
    for i in range(-(-args.evaluate // batches.batch)):
        tokens, answers = (t.to(args.device) for t in batches[i])
        right = (model.x_dist(tokens).logits.argmax(-1) == tokens) & answers
        shares.append(right.sum(-1) / PAIRS)
    return mean_se(torch.cat(shares))


def run(name, mixer, seed, args):
    """Trains one model and measures it at every length and gap."""
    torch.manual_seed(seed)
    model = SequenceModel.tokens(VOCABULARY, mixer, **SIZE).to(args.device)
    count = sum(p.numel() for p in model.parameters())
    print(f"\n{name}, seed {seed}: {count:,} parameters, {args.steps} steps of {args.batch} sequences")
    test = tasks(args, args.length, 10_000)
    result = train(
        f"{name.replace(',', '').replace(' ', '-')}-{seed}", model, EmptyGuide(), tasks(args, args.length, seed),
        Trace_ELBO(max_plate_nesting=1), args, learning_rate=5e-3, schedule=warm_cosine(args.steps, warm=50),
        clip_norm=float(args.batch * PAIRS), seed=seed,
        evaluate=lambda step: {"accuracy": accuracy(model, test, args)[0]}, evaluate_every=max(1, args.steps // 10),
    )  # fmt: skip
    lengths, gaps = {}, {}
    for factor in FACTORS:
        length = factor * args.length
        small = max(1, args.batch // factor)
        lengths[length] = accuracy(model, tasks(args, length, 10_000, batch=small), args)
        gap = length - 4 * PAIRS
        gaps[gap] = accuracy(model, tasks(args, length, 20_000, gap, small), args)
    if name == args.weights and seed == args.seeds[0]:
        sizes, told = {"vocabulary": VOCABULARY, **SIZE}, facts(name, lengths, args)
        leave_weights(f"titans-{name.lower()}-recall", model, "tokens", sizes, mixer, told, args.out / "weights")
    return {
        "model": name, "seed": seed, "parameters": count, "seconds": result.seconds,
        "learning": result.history["evaluation"], "by_length": lengths, "by_gap": gaps,
    }  # fmt: skip


def facts(name, lengths, args):
    """What the card of its weights says."""
    return {
        "about": f"Titans {name} trained on associative recall",
        "data": f"MQAR (Arora et al., 2023), {PAIRS} pairs of {VOCABULARY} tokens, drawn by RecallTasks",
        "licence": "none needed: made from random numbers",
        "protocol": f"trained at length {args.length}; the share of right answers on {args.evaluate} new sequences",
        "numbers": {f"length {n}": f"{a:.3f} ({se:.3f})" for n, (a, se) in lengths.items()},
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
    axes[0].set(xlabel="length of the sequence", title=f"{PAIRS} pairs; trained at length {args.length} (dotted)")
    axes[1].set(xlabel="fillers between pairs and questions", title=f"attention sees {args.window} tokens")
    axes[2].set(xlabel="step", title="at training length")
    axes[0].axvline(args.length, color="0.6", linestyle=":", linewidth=1)
    for ax in axes[:2]:
        ax.set_xscale("log", base=2)
    for ax in axes:
        ax.axhline(1 / PAIRS, color="0.6", linestyle="--", linewidth=1, label="a guess among the values")
        ax.set(ylim=(0, 1.03), ylabel="accuracy")
    axes[0].legend(frameon=False, fontsize=8)
    fig.savefig(path, dpi=120)


def main():
    args = arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    made = mixers(1, args.chunk, args.window)
    runs = {}
    for name in args.models:
        memory = name in ("LMM", "MAC", "MAG", "MAL")
        for ablation in args.ablations if memory else ["none"]:
            label = {"none": name, "linear": f"{name}, linear memory"}.get(ablation, f"{name} without {ablation}")
            runs[label] = partial(made[name], **ABLATIONS[ablation]) if memory else made[name]
    rows = [run(name, mixer, seed, args) for name, mixer in runs.items() for seed in args.seeds]
    draw(rows, args, args.out / "recall.png")
    leave({"runs": rows}, args, by_length, by_gap, unused=("seed",))


if __name__ == "__main__":
    main()
