"""Associative recall: who remembers pairs of tokens that lie far behind, and how far?

Trains sequence models that differ only in what mixes their tokens, at equal numbers of parameters, to answer for the
value of each key (MQAR; Arora et al., 2023, https://arxiv.org/abs/2312.04927), then asks at up to 16 times the training
length, and with more pairs, as far as the vocabulary goes. A window of attention sees --window tokens, "attention"
all. With --curriculum sequences are short and hold few pairs at first. Writes results.json, checkpoints and a figure to
--out; run it again to go on.

    python benchmarks/experiments/titans_recall.py
    python benchmarks/experiments/titans_recall.py --models LMM --ablations none linear momentum --seeds 0 1
"""

from functools import partial

import matplotlib.pyplot as plt
import torch
from pyro.infer import Trace_ELBO
from study import Curriculum, leave, mean_se, options, train
from tables_titans import by_gap, by_length
from titans_parts import MIXERS, constant_rates, descent_turned, fast_decay, last_layer_only, leave_weights, mixers

from pyro_memory import warm_cosine
from pyro_memory.data import RecallTasks
from pyro_memory.guides import EmptyGuide
from pyro_memory.models import SequenceModel

FACTORS = (1, 2, 4, 8, 16)
PARTS = {
    "none": ("{}", {}),
    "linear": ("{}, linear memory", {"depth": 1, "residual_norm": False}),
    "convolution": ("{} without convolution", {"convolution": 1}),
    "momentum": ("{} without momentum", {"momentum": False}),
    "decay": ("{} without decay", {"weight_decay": False}),
    "persistent": ("{} without persistent", {"persistent": 0}),
    "forgetting": ("{} with decay", {"weight_decay": True}),
    "fast": ("{} with decay, fast at first", fast_decay),
    "ascent": ("{}, ascent for descent", descent_turned),
    "layers": ("{}, last layer only", last_layer_only),
    "rates": ("{}, constant rates", constant_rates),
}
# Of a curriculum: until what share of the steps, what share of the pairs, four at least.
STAGES = ((0.27, 0), (0.37, 1 / 4), (0.45, 1 / 2), (0.7, 1))


def arguments():
    parser = options(
        __doc__, "out/titans_recall", data=(), device=True,
        pairs=(4, "pairs a sequence"), vocabulary=(40, "different tokens, 8 of them fillers"),
        length=(64, "training length"), window=(16, "tokens that attention sees"),
        chunk=(16, "tokens a memory's gradient is shared by; divides --window"), dim=(32, "of the hidden vectors"),
        blocks=(2, "of mixer and MLP"), parameters=(50_000, "of each model"),
        heads=(1, "of attention and memory"), expansion=(4, "how much wider than its keys a memory is"),
        persistent=(16, "persistent tokens"), no_decay=(False, "a memory that forgets nothing"),
        steps=(500, "training steps of each model"), batch=(64, "sequences a step"),
        curriculum=(False, "begin with few pairs and little filler"),
        filler=(8, "of the curriculum, between pairs and questions"), learning_rate=(5e-3, "at its highest"),
        evaluate=(256, "test sequences at each length"), seeds=([0], "a run each"),
    )  # fmt: skip
    parser.add_argument("--models", nargs="+", choices=(*MIXERS, "attention"), default=["LMM", "transformer", "LSTM"])
    parser.add_argument("--ablations", nargs="+", choices=PARTS, default=["none"], help="what a memory goes without")
    parser.add_argument("--weights", choices=MIXERS, help="leave this model's, of the first seed, in --out/weights")
    args = parser.parse_args()
    if args.weights and (args.weights not in args.models or "none" not in args.ablations):
        parser.error(f"--weights must be one of --models {' '.join(args.models)}, not ablated; got {args.weights}")
    return args


def tasks(args, length, seed, gap=None, batch=None, pairs=None):
    return RecallTasks(
        pairs=pairs or args.pairs, length=length, vocabulary=args.vocabulary, gap=gap, batch=batch or args.batch,
        seed=seed,
    )  # fmt: skip


def curriculum(args, seed):
    """Batches of as many tokens each: few pairs and little filler, then more pairs, at last the task itself.

    The filler should be more than anything but the memory reaches over: convolutions of two blocks 6 tokens, two
    windows of attention twice --window. Without it the third of three seeds of LMM learned slowly, and not the task.
    """
    stages = []
    for share, part in STAGES:
        pairs = min(args.pairs, max(4, round(part * args.pairs)))
        length = min(4 * pairs + args.filler, args.length)
        batch = args.batch * args.length // length
        stages.append((tasks(args, length, seed, length - 4 * pairs, batch, pairs), share))
    return Curriculum(args.steps, [*stages, (tasks(args, args.length, seed), 1.0)])


@torch.no_grad()
def accuracy(model, batches, args):
    """The share of right answers, and its standard error over sequences."""
    shares = []
    for i in range(-(-args.evaluate // batches.batch)):
        tokens, answers = (t.to(args.device) for t in batches[i])
        right = (model.x_dist(tokens).logits.argmax(-1) == tokens) & answers
        shares.append(right.sum(-1) / batches.pairs)
    return mean_se(torch.cat(shares))


def sizes(args):
    return {"dim": args.dim, "blocks": args.blocks, "parameters": args.parameters}


def run(name, mixer, seed, args):
    """Trains one model and measures it at every length and gap."""
    torch.manual_seed(seed)
    model = SequenceModel.tokens(args.vocabulary, mixer, **sizes(args)).to(args.device)
    count = sum(p.numel() for p in model.parameters())
    print(f"\n{name}, seed {seed}: {count:,} parameters, {args.steps} steps of {args.batch} sequences")
    test = tasks(args, args.length, 10_000)
    batches, more = tasks(args, args.length, seed), {}
    if args.curriculum:  # at a high rate a second moment that forgets soon
        batches, more = curriculum(args, seed), {"optimizer": partial(torch.optim.Adam, betas=(0.9, 0.98))}
    result = train(
        f"{name.replace(',', '').replace(' ', '-')}-{seed}", model, EmptyGuide(), batches,
        Trace_ELBO(max_plate_nesting=1), args, schedule=warm_cosine(args.steps, warm=50),
        clip_norm=float(args.batch * args.pairs), seed=seed,
        evaluate=lambda step: {"accuracy": accuracy(model, test, args)[0]}, evaluate_every=max(1, args.steps // 10),
        **more,
    )  # fmt: skip
    lengths, gaps, crowds = {}, {}, {}
    for factor in FACTORS:
        length = factor * args.length
        small = max(1, args.batch // factor)
        lengths[length] = accuracy(model, tasks(args, length, 10_000, batch=small), args)
        gap = length - 4 * args.pairs
        gaps[gap] = accuracy(model, tasks(args, length, 20_000, gap, small), args)
        pairs = factor * args.pairs
        if 2 * pairs + 8 <= args.vocabulary:  # the fillers are 8
            crowds[pairs] = accuracy(model, tasks(args, length, 30_000, None, small, pairs), args)
    if name == args.weights and seed == args.seeds[0]:
        told = facts(name, lengths, args)
        size = {"vocabulary": args.vocabulary, **sizes(args)}
        file = f"titans-{name.lower()}-recall{'' if args.pairs == 4 else args.pairs}"
        leave_weights(file, model, "tokens", size, mixer, told, args.out / "weights")
    return {
        "model": name, "seed": seed, "parameters": count, "seconds": result.seconds,
        "learning": result.history["evaluation"], "by_length": lengths, "by_gap": gaps, "by_pairs": crowds,
    }  # fmt: skip


def facts(name, lengths, args):
    """What the card of its weights says."""
    return {
        "about": f"Titans {name} trained on associative recall",
        "data": f"MQAR (Arora et al., 2023), {args.pairs} pairs of {args.vocabulary} tokens, drawn by RecallTasks",
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
    title = f"{args.pairs} pairs; trained at length {args.length} (dotted)"
    axes[0].set(xlabel="length of the sequence", title=title)
    axes[1].set(xlabel="fillers between pairs and questions", title=f"a window is {args.window} tokens")
    axes[2].set(xlabel="step", title="at training length")
    axes[0].axvline(args.length, color="0.6", linestyle=":", linewidth=1)
    for ax in axes[:2]:
        ax.set_xscale("log", base=2)
    for ax in axes:
        ax.axhline(1 / args.pairs, color="0.6", linestyle="--", linewidth=1, label="a guess among the values")
        ax.set(ylim=(0, 1.03), ylabel="accuracy")
    axes[0].legend(frameon=False, fontsize=8)
    fig.savefig(path, dpi=120)


def made(args):
    """By label what makes each mixer."""
    options = {"expansion": args.expansion, "persistent": args.persistent}
    options |= {"weight_decay": False} if args.no_decay else {}
    known = mixers(args.heads, args.chunk, args.window, **options)
    known["attention"] = partial(known["transformer"], window=FACTORS[-1] * args.length)
    out = {}
    for name in args.models:
        for part in args.ablations if name in ("LMM", "MAC", "MAG", "MAL") else ["none"]:
            label, change = PARTS[part]
            make = known[name]
            out[label.format(name)] = partial(make, **change) if isinstance(change, dict) else partial(change, make)
    return out


def main():
    args = arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    rows = [run(name, mixer, seed, args) for name, mixer in made(args).items() for seed in args.seeds]
    draw(rows, args, args.out / "recall.png")
    leave({"runs": rows}, args, by_length, by_gap, unused=("seed",))


if __name__ == "__main__":
    main()
