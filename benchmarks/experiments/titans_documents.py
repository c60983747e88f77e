"""Does a memory's gain grow with the position in a document? Bits per character of Python's own source files.

Names of functions and variables come back over thousands of characters of a module. Trains language models that differ
only in what mixes their characters, at equal numbers of parameters, on the standard library of this Python, and reads
the first --read characters of the longest module of each package that none of them saw. New names are words that no
training file holds. Attention sees --window characters, "attention" the whole of a training window.

``--models transformer:2.4`` trains that one for 2.4 times the steps: beside a model of as many steps one of as much
time. ``LMM+copies`` first copies for a quarter of its steps: strings of random characters that come back and back, in
which there is nothing else to learn; then it reads windows four times as long, a quarter as many, its memory without
decay. Writes results.json, checkpoints and a figure to --out; run it again to go on.

    python benchmarks/experiments/titans_documents.py
    python benchmarks/experiments/titans_documents.py --models LMM+copies LMM MAG transformer transformer:2.4 LSTM
"""

import math
import re
import sys
import sysconfig
from collections import defaultdict
from functools import partial
from pathlib import Path
from zlib import crc32

import matplotlib.pyplot as plt
import torch
from pyro.infer import Trace_ELBO
from study import Curriculum, leave, mean_se, options, train
from tables_documents import by_occurrence, by_position
from titans_parts import MIXERS, mixers

from pyro_memory import TokenSurprise, token_surprise, warm_cosine
from pyro_memory.data import CharacterText
from pyro_memory.guides import EmptyGuide
from pyro_memory.models import SequenceModel

KNOWN, MEMORIES = (*MIXERS, "attention"), ("LMM", "MAC", "MAG", "MAL")
SIZE = {"dim": 64, "blocks": 2, "parameters": 190_000}
BEGINNINGS = (0, 128, 512, 1024, 2048, 4096)  # of the stretches of a document that are told apart
TIMES = (1, 2, 3, 4, 8)  # a name's occurrences, from each of these on to the next
STRINGS = (((10, 14), 0.15), ((24, 32), 0.2), ((64, 100), 0.25))  # lengths to copy, until what share of the steps
SKIPPED = {"test", "tests", "idle_test", "site-packages", "lib2to3", "turtledemo"}
TABLES = {"encodings", "pydoc_data"}  # code pages, and a dump of prose
COPIES = {"posixpath.py", "sunau.py"}  # share four characters in ten with ntpath.py and wave.py, which are trained on


def arguments():
    parser = options(
        __doc__, "out/titans_documents", data=(), device=True,
        length=(1024, "characters of a training window"), batch=(4, "windows a step"),
        window=(64, "characters that attention sees; two blocks reach back 126"),
        read=(8192, "characters of each test document"),
        cut=(512, "characters that a memory knows in a second reading, half of them at least"),
        steps=(2000, "training steps, to be multiplied"),
        learning_rate=(4e-3, "at its highest, half as much again with copies"), evaluate=(64, "test documents at most"),
    )  # fmt: skip
    told = f"what to train, of {', '.join(KNOWN)}; the gain is the first one's, over each other"
    parser.add_argument(
        "--models", nargs="+", metavar="NAME[+copies][:FACTOR]", default=["LMM+copies", "transformer"], help=told
    )
    args = parser.parse_args()
    for word in args.models:
        name, _, factor = word.partition(":")
        if name.removesuffix("+copies") not in KNOWN or not re.fullmatch(r"|(?=.*[1-9])\d*\.?\d+", factor):
            parser.error(f"--models takes names as LMM, LMM+copies or LMM:1.5, of {', '.join(KNOWN)}; got {word}")
    if args.cut % 2 or args.read <= max(BEGINNINGS[-1], args.cut) or (args.read - args.cut) % (args.cut // 2):
        parser.error(
            f"--cut must be even and --read above {BEGINNINGS[-1]}, --cut and some halves of it; got {args.cut} and "
            f"{args.read}"
        )
    if args.batch % 4:
        parser.error(
            f"--batch must be a multiple of 4, as there are a quarter as many longer windows; got {args.batch}"
        )
    return args


def modules():
    """The files of the standard library by the package that each is of, in ASCII."""
    root = Path(sysconfig.get_path("stdlib"))
    found = defaultdict(list)
    for file in sorted(root.rglob("*.py")):
        inside = file.relative_to(root)
        if not SKIPPED.intersection(inside.parts):
            found[inside.parts[0]].append(file.read_text("utf-8", "replace").encode("ascii", "replace").decode())
    return found


def divided(args):
    """The text to train on and the documents to read, of packages that are held out by the sum of their names."""
    packages = modules()
    held = {name for name in packages if crc32(name.encode()) % 5 == 0}
    training = "\n".join(text for name in packages if name not in held for text in packages[name])
    longest = (max(packages[name], key=len) for name in sorted(held - TABLES - COPIES))
    tests = [text[: args.read] for text in longest if len(text) >= args.read][: args.evaluate]
    if len(tests) < 2:
        raise SystemExit(f"--read {args.read} and --evaluate must leave two documents; there are {len(tests)} so long")
    return training, tests


class Copies:
    """Random strings of one of two lengths, each over and over for 256 characters."""

    def __init__(self, characters, lengths, args):
        self.characters, self.lengths, self.seed = characters, lengths, args.seed
        self.batch = max(1, args.batch * args.length // 256)

    def __getitem__(self, index):
        draw = torch.Generator().manual_seed(1_000_003 * self.seed + index)
        length = self.lengths[index % 2]
        string = torch.randint(self.characters, (self.batch, length), generator=draw)
        return (string.repeat(1, 256 // length + 1)[:, :256],)


def read(model, tokens):
    """The surprise at each character, in bits, [document, character]."""
    batches = tokens.split(max(1, 8192 // tokens.shape[1]))
    return TokenSurprise.cat([token_surprise(model, batch) for batch in batches]).nats.cpu() / math.log(2)


def read_cut(model, tokens, length):
    """The same by a model that starts anew every half a ``length``: it knows of half to a whole one."""
    half = length // 2
    bits = read(model, tokens.unfold(1, length, half).flatten(0, 1)).unflatten(0, (len(tokens), -1))
    return torch.cat([bits[:, 0], bits[:, 1:, half:].flatten(1)], 1)


def new_names(documents, known, far):
    """Where words stand that training never held: (document, first, last) by how often the word has been there.

    Of those that come back only such whose last occurrence lies more than ``far`` characters back.
    """
    found = defaultdict(list)
    for i, document in enumerate(documents):
        before = defaultdict(list)
        for match in re.finditer(r"[A-Za-z_]\w{4,}", document):
            word, (first, last) = match.group(), match.span()
            if word in known:
                continue
            if not before[word] or first - before[word][-1] > far:
                times = len(before[word]) + 1
                found[max(t for t in TIMES if t <= times)].append((i, first, last))
            before[word].append(last)
    return found


def occurrences(bits, places):
    """Bits per character of a new name, by how often it has been in its document, with errors over documents.

    Names met often are other names than those met once: rows compare, columns do not.
    """
    out = {}
    for times in TIMES:
        sums, counts = torch.zeros(len(bits), dtype=torch.double), torch.zeros(len(bits), dtype=torch.double)
        for i, first, last in places[times]:
            sums[i] += bits[i, first:last].sum()
            counts[i] += last - first
        mean = (sums.sum() / counts.sum()).item()
        _, se = mean_se((sums - mean * counts) / counts.mean())
        out[times] = (mean, se, len(places[times]))
    return out


def run(label, text, args):
    """Trains one model; gives it with the facts of its training."""
    name, _, factor = label.partition(":")
    name, steps, copies = name.removesuffix("+copies"), round(args.steps * float(factor or 1)), "+copies" in label
    length, batch = (4 * args.length, args.batch // 4) if copies else (args.length, args.batch)
    made = mixers(2, 16, args.window, expansion=2, persistent=0, weight_decay=not copies)
    made["attention"] = partial(made["transformer"], window=length + 1)  # and the start
    torch.manual_seed(args.seed)
    model = SequenceModel.tokens(len(text.vocabulary), made[name], **SIZE).to(args.device)
    count = sum(p.numel() for p in model.parameters())
    print(f"\n{label}: {count:,} parameters, {steps} steps of {batch} x {length} characters")
    batches, more = text.batches("train", length=length, batch=batch, seed=args.seed), {}
    if copies:  # at a high rate a second moment that forgets soon
        first = [(Copies(len(text.vocabulary), n, args), share) for n, share in STRINGS]
        batches = Curriculum(steps, [*first, (batches, 1.0)])
        more = {"optimizer": partial(torch.optim.Adam, betas=(0.9, 0.98)), "learning_rate": 1.5 * args.learning_rate}
    valid = text.windows("valid", length=length)[: 32 * args.length // length].to(args.device)
    result = train(
        label.replace(":", "-").replace("+", "-"), model, EmptyGuide(), batches, Trace_ELBO(max_plate_nesting=1), args,
        steps=steps, schedule=warm_cosine(steps, warm=50), clip_norm=float(args.batch * args.length),
        evaluate=lambda step: {"bits": token_surprise(model, valid).bits}, evaluate_every=max(1, steps // 10),
        **more,
    )  # fmt: skip
    learning = result.history["evaluation"]
    return model, {"parameters": count, "steps": steps, "seconds": result.seconds, "learning": learning}


def stretches(bits):
    """Means over the stretches of documents, [document, stretch]."""
    ends = (*BEGINNINGS[1:], bits.shape[1])
    return torch.stack([bits[:, a:b].mean(1) for a, b in zip(BEGINNINGS, ends, strict=True)], 1)


def measured(label, bits, first, places):
    """What is told of a model: bits by position and occurrence, and what the first model gains, in each document."""
    gained = stretches(bits) - stretches(first)
    return {
        "model": label,
        "by_position": {b: mean_se(column) for b, column in zip(BEGINNINGS, stretches(bits).T, strict=True)},
        "gained": {b: mean_se(column) for b, column in zip(BEGINNINGS, gained.T, strict=True)},
        "grown": mean_se(gained[:, -1] - gained[:, 0]), "by_occurrence": occurrences(bits, places) if places else {},
    }  # fmt: skip


def draw(rows, args, path):
    """Bits by position, what the first model gains over the others, and new names by how often they were seen."""
    fig, axes = plt.subplots(1, 3, figsize=(15, 4.6), layout="constrained")
    ends = (*BEGINNINGS[1:], args.read)
    places = [f"{a}–{b}" for a, b in zip(BEGINNINGS, ends, strict=True)]
    colors = {}
    for row in rows:
        name, _, cut = row["model"].partition(",")
        style = {"color": colors.setdefault(name, f"C{len(colors)}"), "linestyle": "--" if cut else "-"}
        for ax, key in zip(axes, ("by_position", "gained", "by_occurrence"), strict=True):
            if not row[key] or (key == "gained" and row is rows[0]):
                continue
            mean, se, *_ = zip(*row[key].values(), strict=True)
            x = [str(t) for t in TIMES] if key == "by_occurrence" else places
            ax.errorbar(x, mean, se, marker="o", markersize=3, capsize=2, label=row["model"], **style)
    first = rows[0]["model"]
    axes[0].set(ylabel="bits per character", xlabel="position in the document", title="Modules of unseen packages")
    axes[1].set(ylabel="bits per character", xlabel="position in the document", title=f"What {first} gains over each")
    axes[1].axhline(0, color="0.6", linewidth=0.8)
    axes[2].set(ylabel="bits per character of the name", xlabel="occurrence (the last is of that many or more)")
    axes[2].set(title=f"New names, more than {2 * args.window} characters apart")
    for ax in axes[:2]:
        ax.tick_params(axis="x", labelrotation=20)
    fig.legend(*axes[0].get_legend_handles_labels(), frameon=False, ncols=5, loc="outside lower center")
    fig.savefig(path, dpi=120)


def main():
    args = arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    training, documents = divided(args)
    text = CharacterText(training, valid=0.02, test=0.0, extra="".join(map(chr, (9, 10, 12, *range(32, 127)))))
    tokens = torch.stack([text.encode(document) for document in documents]).to(args.device)
    places = new_names(documents, set(re.findall(r"[A-Za-z_]\w{4,}", training)), 2 * args.window)
    print(f"{text}; {len(documents)} documents of {args.read} to read")
    rows, first = [], None
    for label in args.models:
        model, trained = run(label, text, args)
        bits = read(model, tokens)
        first = bits if first is None else first
        rows.append(measured(label, bits, first, places) | trained)
        if label[:3] in MEMORIES:
            cut = read_cut(model, tokens, args.cut)
            rows.append(measured(f"{label}, its past cut off at {args.cut}", cut, first, None))
    draw(rows, args, args.out / "documents.png")
    facts = {"python": sys.version.split()[0], "text": repr(text), "documents": len(documents)}
    leave(facts | {"runs": rows}, args, by_position, by_occurrence)


if __name__ == "__main__":
    main()
