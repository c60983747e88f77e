"""Character language models that differ only in what mixes their tokens, and their surprise at a planted sentence.

Trains each at equal numbers of parameters on the same windows of text and measures bits per character on the test
part, also on windows longer than those of training. --needles of each batch's windows hide a sentence that comes back
at their end (a needle in a haystack): only a model that remembers knows its digits. Writes results.json, checkpoints
and figures to --out; run it again to go on from there.

    python benchmarks/experiments/titans_language.py
    python benchmarks/experiments/titans_language.py --data-dir FOLDER --models LMM MAC MAG MAL transformer
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

from pyro_memory import TokenSurprise, fit, token_surprise, warm_cosine
from pyro_memory.data import CHARACTERS, CharacterText, NeedleTasks, load_text
from pyro_memory.diagnostics import BLUE, ORANGE
from pyro_memory.guides import EmptyGuide
from pyro_memory.models import SequenceModel

DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = partial(parser.add_argument, metavar="N", type=int)
    parser.add_argument("--models", nargs="+", choices=MIXERS, default=["LMM", "MAG", "transformer"])
    parser.add_argument("--data", choices=["text"], default="text", help="plain text; the embedded one by default")
    parser.add_argument("--data-dir", metavar="DIR", help="a .txt or .txt.gz file, or a folder of them")
    add("--length", default=256, help="characters of a training window (default 256)")
    add("--batch", default=16)
    add("--needles", default=0, help="windows of each batch that hide a needle (default 0)")
    add("--window", default=64, help="characters that attention sees (default 64)")
    add("--dim", default=64)
    add("--blocks", default=2)
    add("--heads", default=4)
    add("--parameters", default=150_000, help="of each model (default 150,000)")
    add("--steps", default=600, help="training steps of each model (default 600)")
    add("--evaluate", default=40_000, help="test characters at most (default 40,000)")
    parser.add_argument("--learning-rate", metavar="X", type=float, default=3e-3)
    add("--seed", default=0)
    parser.add_argument(
        "--weights", metavar="MODEL", choices=MIXERS, help="leave this model's weights in --out/weights"
    )
    parser.add_argument("--name", default="text", help="of the text, for the weights (default: text)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", metavar="DIR", type=Path, default=Path("out/titans_language"))
    parser.add_argument("--fresh", action="store_true", help="start anew instead of resuming from --out")
    args = parser.parse_args()
    if args.weights and args.weights not in args.models:
        parser.error(f"--weights must be one of --models {' '.join(args.models)}; got {args.weights}")
    return args


class Batches:
    """Windows of the text, the first few of each batch with a needle in them."""

    def __init__(self, text, args):
        self.windows = text.batches("train", length=args.length, batch=args.batch - args.needles, seed=args.seed)
        self.needles = None
        if args.needles:
            self.needles = NeedleTasks(text, length=args.length, batch=args.needles, seed=args.seed)

    def __getitem__(self, step):
        (tokens,) = self.windows[step]
        return (tokens if self.needles is None else torch.cat([self.needles[step][0], tokens]),)


def surprise(model, windows, args):
    parts = [token_surprise(model, part.to(args.device)) for part in windows.split(max(1, 8192 // windows.shape[1]))]
    return TokenSurprise.cat(parts)


def needle_accuracy(model, text, depth, args):
    """The share of a needle's digits that are the likeliest, and their mean surprise in nats."""
    tokens, answers = NeedleTasks(text, split="test", length=args.length, depth=depth, batch=64, seed=args.seed)[0]
    tokens, answers = tokens.to(args.device), answers.to(args.device)
    with torch.no_grad():
        x_dist = model.x_dist(tokens)
    right = (x_dist.logits.argmax(-1) == tokens)[answers].float().mean().item()
    return {"accuracy": right, "nats": -x_dist.log_prob(tokens)[answers].mean().item()}


def run(name, mixer, text, args):
    """Trains one model and measures its bits per character."""
    torch.manual_seed(args.seed)
    size = {"dim": args.dim, "blocks": args.blocks, "parameters": args.parameters}
    model = SequenceModel.tokens(len(text.vocabulary), mixer, **size).to(args.device)
    count = sum(p.numel() for p in model.parameters())
    print(f"\n{name}: {count:,} parameters, {args.steps} steps of {args.batch} x {args.length} characters")
    valid = text.windows("valid", length=args.length)[:32]
    result = fit(
        model, EmptyGuide(), Batches(text, args), Trace_ELBO(max_plate_nesting=1), steps=args.steps,
        learning_rate=args.learning_rate, schedule=warm_cosine(args.steps, warm=50),
        clip_norm=float(args.batch * args.length), information_every=None,
        evaluate=lambda step: {"bits": surprise(model, valid, args).bits}, evaluate_every=max(1, args.steps // 10),
        checkpoint=args.out / f"{name}.safetensors", resume=not args.fresh, seed=args.seed, device=args.device,
    )  # fmt: skip
    model.eval()
    row = {"model": name, "parameters": count, "seconds": result.seconds, "learning": result.history["evaluation"]}
    for factor in (1, 4):
        length = factor * args.length
        windows = text.windows("test", length=length)[: max(1, args.evaluate // length)]
        row[f"test_{length}"] = surprise(model, windows, args).to_dict()
        shown = row[f"test_{length}"]
        print(f"  windows of {length:>5}: {shown['bits']:.4f} bits per character (se {shown['se'] / math.log(2):.4f})")
    if args.needles:
        row["needle"] = {depth: needle_accuracy(model, text, depth, args) for depth in DEPTHS}
        print("  digits of a needle   " + "  ".join(f"{d}: {v['accuracy']:.2f}" for d, v in row["needle"].items()))
    if name == args.weights:
        sizes, told = {"vocabulary": len(text.vocabulary), **size}, facts(name, text, row, args)
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
    start = time.perf_counter()
    args.out.mkdir(parents=True, exist_ok=True)
    text = CharacterText(load_text(args.data_dir), extra=CHARACTERS)
    print(text)
    planted = NeedleTasks(text, split="test", length=args.length, depth=0.35, seed=args.seed + 1).read(0, 0)
    made = mixers(args.heads, 16, args.window)
    models, rows = {}, []
    for name in args.models:
        models[name], row = run(name, made[name], text, args)
        rows.append(row)
    draw_learning(rows, args.out / "learning.png")
    needle = draw_needle(models, text, planted, args, args.out / "surprise.png")
    for name, nats in needle.items():
        print(f"{name:>12}: the planted sentence {nats['first']:.1f} nats, again at the end {nats['again']:.1f}")
    record = {
        "arguments": {k: v for k, v in vars(args).items() if k not in ("data_dir", "out", "fresh")},
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "text": repr(text),
        "runs": rows,
        "planted": needle,
    }
    (args.out / "results.json").write_text(json.dumps(record, indent=1))
    print(f"figures and results.json are in {args.out} ({time.perf_counter() - start:.0f} s)")


if __name__ == "__main__":
    main()
