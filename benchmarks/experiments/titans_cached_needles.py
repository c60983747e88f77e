"""Needles through a memory of memories: a number in prose, asked for at up to 64 times the training length.

CachedTitans, with decay on, reads a text in segments that overlap by more than a needle, and keeps the state of a
neural memory after each; the question asks them all, its address summed out. The needles are those of
titans_needles.py, whose one memory goes on over the whole text. Writes results.json, a checkpoint and a figure to
--out; run it again to go on.

    python benchmarks/experiments/titans_cached_needles.py
"""

from functools import partial

import matplotlib.pyplot as plt
import torch
from pyro.infer import Trace_ELBO
from study import Curriculum, leave, mean_se, options, train
from tables_cached import cached_needles

from pyro_memory import warm_cosine
from pyro_memory.data import CHARACTERS, CharacterText, NeedleTasks, load_text
from pyro_memory.diagnostics import BLUE, GREY
from pyro_memory.guides import EmptyGuide
from pyro_memory.models import CachedTitans, TransformerMixer

QUESTION = len(" The secret number of Amsterdam is 1234.")  # the longest there is
MEMORY = {"heads": 2, "chunk_size": 16, "expansion": 2, "momentum": False, "max_lr": 8.0, "steady": True}


def arguments():
    parser = options(
        __doc__, "out/titans_cached_needles", data=("text",),
        length=(256, "characters of the longest training texts"), begin=(96, "of those of the first third"),
        segment=(128, "characters a cached state has read"), overlap=(48, "of them were the last one's too"),
        dim=(48, "of the hidden vectors"), steps=(900, "training steps"), batch=(16, "texts a step"),
        learning_rate=(3e-3, "at its highest"), evaluate=(200, "test texts at each length"),
        factors=([1, 4, 16, 64], "times the training length, to test at"),
    )  # fmt: skip
    args = parser.parse_args()
    if not QUESTION <= args.overlap < args.segment or args.begin <= 2 * QUESTION or args.length < args.begin:
        parser.error(
            f"--overlap must lie in {QUESTION} .. --segment, --length be at least --begin, that above {2 * QUESTION}; "
            f"got {args.overlap}, {args.segment}, {args.length} and {args.begin}"
        )
    return args


class Questions:
    """Needle tasks as a model's arguments: the question, the past in overlapping segments, where the answer is."""

    def __init__(self, text, args, length, seed, **more):
        batch = max(1, min(args.batch, 16_384 // length))
        self.tasks = NeedleTasks(text, length=length, batch=batch, seed=seed, **more)
        self.segment, self.stride = args.segment, args.segment - args.overlap

    def __getitem__(self, index):
        tokens, answers = self.tasks[index]
        past = tokens[:, :-QUESTION]
        if past.shape[1] > self.segment:  # the last one ends where the question begins
            past = past[:, self.starts(past.shape[1])[:, None] + torch.arange(self.segment)].flatten(1)
        return tokens[:, -QUESTION:], past, answers[:, -QUESTION:]

    def starts(self, time):
        count = 1 - min(0, (self.segment - time) // self.stride)
        return (time - self.segment - self.stride * torch.arange(count)).clamp_min(0).flip(0)

    def holding(self, index):
        """Which slots have read the whole sentence that is asked for, [batch, slot]."""
        starts = self.starts(self.tasks.length - QUESTION)
        rows = []
        for row in range(self.tasks.batch):
            read = self.tasks.read(index, row)
            said = read[read.rindex(" The secret") :]
            at = read.index(said)
            rows.append((starts <= at) & (at + len(said) <= starts + self.segment))
        return torch.stack(rows)


@torch.no_grad()
def measured(model, questions, args):
    """Exact match, and how much of p(a) at the first digit is on slots that read the whole needle."""
    right, held = [], []
    for i in range(-(-args.evaluate // questions.tasks.batch)):
        x, past, mask = questions[i]
        cache = model.states.remember(past)
        right.append(((model.x_dist(x, cache).logits.argmax(-1) == x) | ~mask).all(-1))
        probs = model.a_dist(model.states.present(x), cache).probs[mask].unflatten(0, (len(x), -1))[:, 0]
        held.append((probs * questions.holding(i)).sum(-1))
    slots = probs.shape[-1]
    right, held = torch.cat(right)[: args.evaluate].double(), torch.cat(held)[: args.evaluate]
    return {"exact": mean_se(right), "on its slots": mean_se(held), "slots": slots}


def draw(found, args, path):
    fig, ax = plt.subplots(figsize=(7, 4), layout="constrained")
    for key, color, label in (("exact", BLUE, "exact match"), ("on its slots", GREY, "p(a) on slots with the needle")):
        mean, se = zip(*(row[key] for row in found.values()), strict=True)
        ax.errorbar(list(found), mean, [2 * s for s in se], color=color, marker="o", capsize=2, label=label)
    ax.axvline(args.length, color=GREY, linestyle=":")
    ax.set(xscale="log", ylim=(0, 1.03), xlabel="characters", title="A number in prose, through a memory of memories")
    ax.legend(frameon=False)
    fig.savefig(path, dpi=120)


def main():
    args = arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    text = CharacterText(load_text(args.data_dir), extra=CHARACTERS)
    torch.manual_seed(args.seed)
    model = CachedTitans.tokens(
        len(text.vocabulary), partial(TransformerMixer, heads=2, window=16), dim=args.dim, segment=args.segment,
        none_slot=False, **MEMORY,
    )  # fmt: skip
    stages = [(Questions(text, args, n, args.seed), share) for n, share in ((args.begin, 1 / 3), (args.length, 1.0))]
    valid = Questions(text, args, args.length, 10_000, split="valid")
    tests = {n * args.length: Questions(text, args, n * args.length, 10_000, split="test") for n in args.factors}
    result = train(
        "cached", model.marginal, EmptyGuide(), Curriculum(args.steps, stages), Trace_ELBO(max_plate_nesting=2), args,
        schedule=warm_cosine(args.steps, warm=50), clip_norm=4.0 * args.batch,
        evaluate=lambda step: {"exact": measured(model, valid, args)["exact"][0]},
        evaluate_every=max(1, args.steps // 10),
    )  # fmt: skip
    found = {}
    for length, questions in tests.items():
        found[length] = measured(model, questions, args)
        print(f"{length} characters: {found[length]}", flush=True)
    draw(found, args, args.out / "cached_needles.png")
    count = sum(p.numel() for p in model.parameters())
    record = {"text": repr(text), "parameters": count, "seconds": result.seconds, "by_length": found}
    leave(record | {"learning": result.history["evaluation"]}, args, cached_needles)


if __name__ == "__main__":
    main()
