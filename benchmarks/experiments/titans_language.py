"""Character language models that differ only in what mixes their tokens, and their surprise at a planted sentence.

Trains each at equal numbers of parameters on the same windows of text and measures bits per character on the test
part, also on windows longer than those of training. A sentence planted in a window comes back at its end (a needle in
a haystack): only a model that remembers knows its digits. Writes results.json, checkpoints and figures to --out; run it
again to go on from there.

    python benchmarks/experiments/titans_language.py
    python benchmarks/experiments/titans_language.py --data-dir FOLDER --models LMM MAC MAG MAL transformer
"""

import math

import matplotlib.pyplot as plt
import torch
from pyro.infer import Trace_ELBO
from study import leave, options, train
from tables_titans import language
from titans_parts import MIXERS, leave_weights, mixers

from pyro_memory import TokenSurprise, token_surprise, warm_cosine
from pyro_memory.data import CHARACTERS, CharacterText, NeedleTasks, load_text
from pyro_memory.diagnostics import BLUE, ORANGE
from pyro_memory.guides import EmptyGuide
from pyro_memory.models import SequenceModel

SIZE = {"dim": 64, "blocks": 2, "parameters": 150_000}


def arguments():
    parser = options(
        __doc__, "out/titans_language", data=("text",), device=True,
        length=(256, "characters of a training window"), batch=(16, "windows a step"),
        window=(64, "characters that attention sees"),
        steps=(600, "training steps of each model"), evaluate=(40_000, "test characters at most"),
        learning_rate=(3e-3, "at its highest"), name=("text", "of the text, for the weights"),
    )  # fmt: skip
    parser.add_argument("--models", nargs="+", choices=MIXERS, default=["LMM", "MAG", "transformer"])
    parser.add_argument("--weights", choices=MIXERS, help="leave this model's weights in --out/weights")
    args = parser.parse_args()
    if args.weights and args.weights not in args.models:
        parser.error(f"--weights must be one of --models {' '.join(args.models)}; got {args.weights}")
    return args


def surprise(model, windows, args):
    parts = [token_surprise(model, part.to(args.device)) for part in windows.split(max(1, 8192 // windows.shape[1]))]
    return TokenSurprise.cat(parts)


def run(name, mixer, text, args):
    """Trains one model and measures its bits per character."""
    torch.manual_seed(args.seed)
    model = SequenceModel.tokens(len(text.vocabulary), mixer, **SIZE).to(args.device)
    count = sum(p.numel() for p in model.parameters())
    print(f"\n{name}: {count:,} parameters, {args.steps} steps of {args.batch} x {args.length} characters")
    valid = text.windows("valid", length=args.length)[:32]
    batches = text.batches("train", length=args.length, batch=args.batch, seed=args.seed)
    result = train(
        name, model, EmptyGuide(), batches, Trace_ELBO(max_plate_nesting=1), args,
        schedule=warm_cosine(args.steps, warm=50), clip_norm=float(args.batch * args.length),
        evaluate=lambda step: {"bits": surprise(model, valid, args).bits}, evaluate_every=max(1, args.steps // 10),
    )  # fmt: skip
    row = {"model": name, "parameters": count, "seconds": result.seconds, "learning": result.history["evaluation"]}
    for factor in (1, 4):
        length = factor * args.length
        windows = text.windows("test", length=length)[: max(1, args.evaluate // length)]
        row[f"test_{length}"] = surprise(model, windows, args).to_dict()
    if name == args.weights:
        sizes, told = {"vocabulary": len(text.vocabulary), **SIZE}, facts(name, text, row, args)
        leave_weights(f"titans-{name.lower()}-{args.name}", model, "tokens", sizes, mixer, told, args.out / "weights")
    return model, row


def facts(name, text, row, args):
    """What the card of its weights says; who reads with them needs the vocabulary."""
    lengths = {n: row[f"test_{n}"] for n in (args.length, 4 * args.length)}
    return {
        "about": f"Titans {name}, a language model of characters, trained on {args.name}",
        "data": f"{args.name}: {text}; the last 5% are the test part",
        "licence": "the text's own; tinyshakespeare is in the public domain",
        "protocol": "bits per character of the test part, in windows of each length that follow each other: "
        f"{row[f'test_{args.length}']['elements']:,} characters",
        "numbers": {
            f"windows of {n}": f"{r['bits']:.3f} ({r['se'] / math.log(2):.3f}) bits" for n, r in lengths.items()
        },
        "training": f"{args.steps} steps of {args.batch} windows of {args.length} characters, seed {args.seed}",
        "vocabulary": text.vocabulary,
    }


def draw_needle(models, text, read, args, path):
    """The surprise of each model over one window of the test part, and where needle and question stand."""
    first, last = read.index("The secret"), read.rindex("The secret")
    fig, axes = plt.subplots(len(models), 1, figsize=(13, 1 + 1.7 * len(models)), layout="constrained", squeeze=False)
    gains = {}
    for (name, model), ax in zip(models.items(), axes[:, 0], strict=True):
        seen = token_surprise(model, text.encode(read)[None].to(args.device))
        seen.plot(ax)
        nats = seen.nats[0].cpu()
        span = len(read) - last
        gains[name] = {"first": nats[first : first + span].sum().item(), "again": nats[last:].sum().item()}
        ax.axvspan(first, first + span, color=ORANGE, alpha=0.25, label=f"planted: {gains[name]['first']:.0f} nats")
        ax.axvspan(last, last + span, color=BLUE, alpha=0.2, label=f"again: {gains[name]['again']:.0f} nats")
        ax.set(title=name, xlim=(0, len(read)), xlabel="", ylabel="surprise, nats")
        ax.legend(frameon=False, loc="upper left", ncols=2)
    axes[-1, 0].set_xlabel(f"character; planted is {read[first:].split('.')[0]!r}")
    fig.savefig(path, dpi=120)
    return gains


def draw_learning(rows, path):
    fig, ax = plt.subplots(figsize=(7, 4), layout="constrained")
    for row in rows:
        steps, bits = zip(*((r["step"], r["bits"]) for r in row["learning"]), strict=True)
        ax.plot(steps, bits, marker="o", markersize=3, label=f"{row['model']} ({row['seconds'] / 60:.1f} min)")
    ax.set(xlabel="step", ylabel="bits per character, validation", title="Equal parameters, equal characters")
    ax.legend(frameon=False)
    fig.savefig(path, dpi=120)


def main():
    args = arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    text = CharacterText(load_text(args.data_dir), extra=CHARACTERS)
    print(text)
    planted = NeedleTasks(text, split="test", length=args.length, depth=0.35, seed=args.seed + 1).read(0, 0)
    made = mixers(4, 16, args.window)
    models, rows = {}, []
    for name in args.models:
        models[name], row = run(name, made[name], text, args)
        rows.append(row)
    draw_learning(rows, args.out / "learning.png")
    needle = draw_needle(models, text, planted, args, args.out / "surprise.png")
    for name, nats in needle.items():
        print(f"{name:>12}: the planted sentence {nats['first']:.1f} nats, again at the end {nats['again']:.1f}")
    leave({"text": repr(text), "runs": rows, "planted": needle}, args, language)


if __name__ == "__main__":
    main()
