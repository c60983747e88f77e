"""A needle in a haystack: who still knows a number that stood far back in a text, and how far back?

Trains sequence models that differ only in what mixes their characters, at equal numbers of parameters, on the answers
alone: texts that hide a sentence and ask about it at their end, at first short ones (--begin characters), then of every
length up to --length in turn. Then asks at each depth in texts up to --factors times as long. Attention sees --window
characters. Published relative: S-NIAH and MK-NIAH of RULER (Hsieh et al., 2024, https://arxiv.org/abs/2404.06654).
Writes results.json, checkpoints and a heat map to --out; run it again to go on.

    python benchmarks/experiments/titans_needles.py
    python benchmarks/experiments/titans_needles.py --cases prose keys --models LMM transformer
"""

from functools import partial

import matplotlib.pyplot as plt
import torch
from pyro.infer import Trace_ELBO
from study import leave, options, train
from tables_needles import needles, needles_by_length
from titans_parts import MIXERS, leave_weights, mixers

from pyro_memory import warm_cosine
from pyro_memory.data import CHARACTERS, CharacterText, NeedleTasks, load_text
from pyro_memory.guides import EmptyGuide
from pyro_memory.models import SequenceModel

DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
CASES = {"filler": {"kind": "filler"}, "prose": {}, "word": {"kind": "word"}, "keys": {"keys": 4}}
SIZE = {"dim": 48, "blocks": 2, "parameters": 75_000}
# The steady rule keeps what is written late as strong as what was written into a fresh memory.
MEMORY = {
    "depth": 2, "expansion": 2, "momentum": False, "weight_decay": False, "max_lr": 8.0, "steady": True,
    "persistent": 0,
}  # fmt: skip
PARTS = {
    "none": ("{}", {}),
    "decay": ("{} with decay", {"weight_decay": True}),
    "momentum": ("{} with momentum", {"momentum": True}),
    "plain": ("{}, plain rule, theta to 4", {"steady": False, "max_lr": 4.0}),
    "bound": ("{}, theta to 0.5", {"max_lr": 0.5}),
    "linear": ("{}, linear memory", {"depth": 1, "residual_norm": False}),
    "narrow": ("{} without convolution", {"convolution": 1}),
    "wide": ("{}, convolution of 12", {"convolution": 12}),
    "chunk": ("{}, chunk 64", {"chunk": 64}),
}


def arguments():
    parser = options(
        __doc__, "out/titans_needles", data=("text",), device=True,
        length=(512, "characters of the longest training texts"), begin=(96, "characters of the first"),
        window=(16, "characters that attention sees; two blocks reach back 30, and from answer to answer it is 35"),
        chunk=(16, "characters a memory's gradient is shared by"),
        steps=(1200, "training steps of each model"), batch=(16, "texts a step"),
        learning_rate=(3e-3, "at its highest"), first=(0.3, "the share of steps on the shortest texts"),
        factors=([1, 2, 4], "times the training length, to test at"), evaluate=(200, "test texts a length and depth"),
    )  # fmt: skip
    parser.add_argument("--cases", nargs="+", choices=CASES, default=["prose"], help="what is hidden in what")
    parser.add_argument("--models", nargs="+", choices=MIXERS, default=["LMM", "MAG", "transformer"])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=["none"], help="what of a memory is changed")
    parser.add_argument("--weights", choices=MIXERS, help="leave this model's weights in --out/weights")
    args = parser.parse_args()
    if args.weights and (args.weights not in args.models or "none" not in args.parts):
        parser.error(f"--weights must be one of --models {' '.join(args.models)}, whole; got {args.weights}")
    if "keys" in args.cases and args.length < args.begin * CASES["keys"]["keys"]:
        parser.error(f"--length must hold {CASES['keys']['keys']} times --begin for keys; got {args.length}")
    if "chunk" in args.parts and "MAC" in args.models:
        parser.error("--parts chunk is for models other than MAC, whose segment, --window, is shorter than 64")
    return args


class Growing:
    """Training batches, each case in turn: at first the shortest texts, then the longest in every second turn.

    Of several keys the longest texts hold all, shorter ones half at most, the shortest one.
    """

    def __init__(self, text, args):
        self.first = round(args.first * args.steps)
        self.tasks = []
        for case in map(CASES.get, args.cases):
            keys, lengths = case.get("keys", 1), [args.length]
            while lengths[-1] > args.begin:
                lengths.append(max(args.begin, lengths[-1] // 2))
            made = []
            for i, length in enumerate(lengths):
                # All that is planted is asked for: more answers to learn from.
                held = max(1, min(keys if i == 0 else keys // 2, length // args.begin))
                make = partial(NeedleTasks, text, batch=args.batch, seed=args.seed, length=length)
                made.append(make(**case | {"keys": held, "questions": held}))
            self.tasks.append(made)

    def __getitem__(self, step):
        turn, case = divmod(step, len(self.tasks))
        tasks = self.tasks[case]
        place = -1 if step < self.first else 0 if turn % 2 else turn // 2 % len(tasks)
        return tasks[place][step]


@torch.no_grad()
def exact(model, tasks, args):
    """The share of texts whose answer is right in all its characters, each given those before it."""
    right = []
    for i in range(-(-args.evaluate // tasks.batch)):
        tokens, answers = (t.to(args.device) for t in tasks[i])
        right.append(((model.x_dist(tokens).logits.argmax(-1) == tokens) | ~answers).all(-1))
    return torch.cat(right)[: args.evaluate].double().mean().item()


def run(name, mixer, text, args):
    """Trains one model and asks it at every length and depth."""
    torch.manual_seed(args.seed)
    model = SequenceModel.tokens(len(text.vocabulary), mixer, **SIZE).to(args.device)
    count = sum(p.numel() for p in model.parameters())
    print(f"\n{name}: {count:,} parameters, {args.steps} steps of {args.batch} texts")

    def measured(case, length, depth, split="test"):
        batch = max(1, min(args.evaluate, 16_384 // length))
        options = CASES[case] | {"split": split, "length": length, "depth": depth, "batch": batch}
        return exact(model, NeedleTasks(text, seed=10_000, **options), args)

    result = train(
        name.replace(",", "").replace(" ", "-"), model, EmptyGuide(), Growing(text, args),
        Trace_ELBO(max_plate_nesting=1), args, schedule=warm_cosine(args.steps, warm=50), clip_norm=4.0 * args.batch,
        evaluate=lambda step: {case: measured(case, args.length, None, "valid") for case in args.cases},
        evaluate_every=max(1, args.steps // 10),
    )  # fmt: skip
    found = {}
    for case in args.cases:
        for length in (factor * args.length for factor in args.factors):
            found.setdefault(case, {})[length] = cells = {depth: measured(case, length, depth) for depth in DEPTHS}
            print(f"{name}, {case}, {length} characters:", *(f"{share:.3f}" for share in cells.values()), flush=True)
    if name == args.weights:
        sizes, told = {"vocabulary": len(text.vocabulary), **SIZE}, facts(name, text, found, args)
        leave_weights(f"titans-{name.lower()}-needles", model, "tokens", sizes, mixer, told, args.out / "weights")
    return {
        "model": name, "parameters": count, "seconds": result.seconds, "learning": result.history["evaluation"],
        "exact": found,
    }  # fmt: skip


def facts(name, text, found, args):
    """What the card of its weights says; who reads with them needs the vocabulary."""
    return {
        "about": f"Titans {name} trained to find a sentence that is hidden in a text",
        "data": f"{text}; sentences planted by NeedleTasks",
        "licence": "the text's own; the embedded text is the documentation of Python, under the PSF licence",
        "protocol": f"trained on texts of {args.begin} to {args.length} characters; the share of {args.evaluate} texts "
        f"of the test part whose answer is right in all characters, at depths {', '.join(map(str, DEPTHS))}",
        "numbers": {
            f"{case}, {length} characters": " ".join(f"{share:.3f}" for share in cells.values())
            for case, lengths in found.items()
            for length, cells in lengths.items()
        },
        "training": f"{args.steps} steps of {args.batch} texts, seed {args.seed}",
        "vocabulary": text.vocabulary,
    }


def draw(rows, args, path):
    """A heat map of depth against length, for each model and case."""
    size = {"figsize": (1 + 2.6 * len(rows), 0.6 + 2.3 * len(args.cases)), "layout": "constrained"}
    fig, axes = plt.subplots(len(args.cases), len(rows), squeeze=False, sharex=True, sharey=True, **size)
    for row, column in zip(rows, axes.T, strict=True):
        for (case, lengths), ax in zip(row["exact"].items(), column, strict=True):
            shares = torch.tensor([list(cells.values()) for cells in lengths.values()]).T
            image = ax.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
            for i, line in enumerate(shares.tolist()):
                for j, share in enumerate(line):
                    ax.text(j, i, f"{share:.2f}", ha="center", va="center", color="white" if share > 0.6 else "black")
            ax.set(xticks=range(len(lengths)), xticklabels=lengths, yticks=range(len(DEPTHS)), yticklabels=DEPTHS)
            ax.set_title(f"{row['model']}: {case}")
    fig.supxlabel(f"characters (trained to {args.length})")
    fig.supylabel("depth of the needle")
    fig.colorbar(image, ax=axes, label="exact match")
    fig.savefig(path, dpi=120)


def made(args):
    """By label what makes each mixer."""
    out = {}
    for name in args.models:
        for part in args.parts if name in ("LMM", "MAC", "MAG", "MAL") else ["none"]:
            label, change = PARTS[part]
            memory = {"heads": 2, "chunk": args.chunk, "window": args.window, **MEMORY} | change
            out[label.format(name)] = mixers(**memory)[name]
    return out


def main():
    args = arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    text = CharacterText(load_text(args.data_dir), extra=CHARACTERS)
    print(text)
    rows = [run(name, mixer, text, args) for name, mixer in made(args).items()]
    draw(rows, args, args.out / "needles.png")
    chance = {case: NeedleTasks(text, length=args.length, **CASES[case]).chance for case in args.cases}
    leave({"text": repr(text), "chance": chance, "runs": rows}, args, needles, needles_by_length)


if __name__ == "__main__":
    main()
