"""A memory of memories: recall at 64 times the training length, by looking up which cached state to ask.

Pairs of tokens come first, then filler, then every key once more (MQAR; Arora et al., 2023,
https://arxiv.org/abs/2312.04927). CachedTitans reads all but the questions in segments, keeps the state of a neural
memory after each, and answers by the state that it looks up; its addresses are summed out in training. Then a guide
learns to look them up from the answer, the model held: the KL of the address says what knowing the answer would be
worth. With --keys-alone a state is chosen by its key, not by how its answer looks. The memory decays; one memory that
goes on over the whole sequence is in titans_recall.py. Writes results.json, checkpoints and a figure to --out; run it
again to go on.

    python benchmarks/experiments/titans_cached.py --steps 100
"""

import time
from functools import partial

import matplotlib.pyplot as plt
import torch
from pyro.infer import Trace_ELBO, TraceEnum_ELBO
from study import Curriculum, leave, mean_se, options, train
from tables_cached import cached_cost, cached_length, cached_lookup, kinds

from pyro_memory import information_gain, memory_contribution, save_pretrained, warm_cosine
from pyro_memory.data import RecallTasks
from pyro_memory.diagnostics import BLUE, GREY, ORANGE
from pyro_memory.guides import CachedTitansGuide, EmptyGuide
from pyro_memory.models import CachedTitans, TransformerMixer

FACTORS = (1, 2, 4, 8, 16, 64)
STAGES = ((0.1, 8), (0.2, 4), (0.35, 2), (1.0, 1))  # until what share of the steps, what part of pairs and length


def arguments():
    parser = options(
        __doc__, "out/titans_cached", data=(),
        pairs=(32, "pairs a sequence"), vocabulary=(512, "different tokens, 8 of them fillers"),
        length=(256, "training length"), segment=(16, "tokens a cached state has read"),
        chunk=(8, "tokens that a memory's gradient is shared by"), dim=(64, "of the hidden vectors"),
        steps=(1200, "training steps of each model"), lookup_steps=(300, "training steps of the guide"),
        batch=(8, "sequences a step"), learning_rate=(4e-3, "at its highest"),
        evaluate=(64, "test sequences at each length, a quarter at the longest"), seeds=([0], "a run each"),
        keys_alone=(False, "choose states by their keys alone"),
        weights=(False, "leave the first seed's in --out/weights"),
    )  # fmt: skip
    args = parser.parse_args()
    if args.keys_alone and args.weights:
        parser.error("--weights are left of a model that weighs answers; leave out --keys-alone")
    if args.pairs < 1 or args.length < 8 * args.pairs:
        parser.error(f"--length must be 8 * --pairs or more, --pairs at least 1; got {args.length}, {args.pairs}")
    return args


class Questions:
    """Recall tasks as a model's arguments: the questions, the past, and where the answers are."""

    def __init__(self, args, length, seed, batch=None, pairs=None):
        pairs = pairs or args.pairs
        self.tasks = RecallTasks(
            pairs=pairs, length=length, vocabulary=args.vocabulary, gap=length - 4 * pairs, batch=batch or args.batch,
            seed=seed,
        )  # fmt: skip

    def __getitem__(self, index):
        tokens, answers = self.tasks[index]
        asked = 2 * self.tasks.pairs
        return tokens[:, -asked:], tokens[:, :-asked], answers[:, -asked:]


class Remembered:
    """Questions with the cache of a trained model in place of the past."""

    def __init__(self, questions, states):
        self.questions, self.states = questions, states

    @torch.no_grad()
    def __getitem__(self, index):
        x, past, mask = self.questions[index]
        return x, self.states.remember(past), mask


def curriculum(args, seed):
    """Few pairs in short sequences first."""
    stages = []
    for share, part in STAGES:
        questions = Questions(args, args.length // part, seed, args.batch * part, max(1, args.pairs // part))
        stages.append((questions, share))
    return Curriculum(args.steps, stages)


@torch.no_grad()
def accuracy(x_dist, questions, evaluate, args):
    """The share of right answers of ``x_dist(*arguments)``, and its standard error over sequences."""
    shares = []
    for i in range(-(-evaluate // questions.tasks.batch)):
        x, past, mask = questions[i]
        right = (x_dist(x, past).logits.argmax(-1) == x) & mask
        shares.append(right.sum(-1) / args.pairs)
    return mean_se(torch.cat(shares)[:evaluate])


def by_length(x_dist, args):
    found = {}
    for factor in FACTORS:
        questions = Questions(args, factor * args.length, 10_000, max(1, args.batch // factor))
        count = args.evaluate if factor <= 16 else args.evaluate // 4
        found[factor * args.length] = accuracy(x_dist, questions, count, args)
    return found


def schedule(steps, args):
    return {
        "steps": steps, "schedule": warm_cosine(steps, warm=min(50, steps // 4)),
        "clip_norm": float(args.batch * args.pairs),
    }  # fmt: skip


def run(seed, args):
    """A cache of memories: the model, then its guide, then what a look-up is worth."""
    torch.manual_seed(seed)
    options = {"heads": 2, "chunk_size": args.chunk, "expansion": 2, "momentum": False, "max_lr": 4.0}
    model = CachedTitans.tokens(
        args.vocabulary, partial(TransformerMixer, heads=2, window=4), dim=args.dim, segment=args.segment,
        none_slot=True, **options,
    )  # fmt: skip
    if args.keys_alone:
        model.address = model.address.content
    guide = CachedTitansGuide.mlp(model.states, none_slot=True)
    result = train(
        f"cached-{seed}", model.marginal, EmptyGuide(), curriculum(args, seed), Trace_ELBO(max_plate_nesting=2), args,
        **schedule(args.steps, args), seed=seed,
    )  # fmt: skip
    found = {"by_length": by_length(model.x_dist, args), "cost": cost(model, args), "seconds": result.seconds}
    if not args.keys_alone:
        whole, model.address = model.address, model.address.content
        found["keys"] = by_length(model.x_dist, args)
        model.address = whole
    model.requires_grad_(False).eval()
    train(
        f"guide-{seed}", model, guide, Remembered(Questions(args, args.length, seed), model.states),
        TraceEnum_ELBO(max_plate_nesting=2), args,
        **schedule(args.lookup_steps, args), seed=seed,
    )  # fmt: skip
    found["lookup"] = {f * args.length: lookup(model, guide, f * args.length, args) for f in (1, 16)}
    count = sum(p.numel() for p in model.parameters())
    if args.weights and seed == args.seeds[0]:
        told, name = facts(found, args), f"titans-cached-recall{args.pairs}"
        print(f"\n{save_pretrained(name, model, guide, facts=told, folder=args.out / 'weights')}")
    return {"seed": seed, "parameters": count, **found}


def facts(found, args):
    """What the card of its weights says."""
    return {
        "about": "CachedTitans and its guide trained on associative recall",
        "data": f"MQAR (Arora et al., 2023), {args.pairs} pairs of {args.vocabulary} tokens, drawn by RecallTasks",
        "licence": "none needed: made from random numbers",
        "protocol": f"trained at length {args.length}, questions last; the share of right answers on "
        f"{args.evaluate} new sequences, a quarter of them at the longest",
        "numbers": {f"length {n}": f"{a:.4f} ({se:.4f})" for n, (a, se) in found["by_length"].items()},
        "training": f"{args.steps} steps of {args.batch} sequences, then {args.lookup_steps} of the guide, seed "
        f"{args.seeds[0]}",
    }


@torch.no_grad()
def lookup(model, guide, length, args):
    """What the answers were worth to the look-ups, and what the cache to the answers, in nats an answer."""
    x, past, mask = Questions(args, length, 30_000, 16)[0]
    cache = model.states.remember(past)

    def told(nats):  # by sequence, whose answers are not independent
        return mean_se(nats.reshape(x.shape)[mask].reshape(len(x), -1).mean(-1))

    gain = information_gain(model, guide, x, cache, mask, draws=1, max_plate_nesting=2)["a"].kl
    probs = model.a_dist(model.states.present(x), cache.with_none()).probs
    stands = past[:, None, : 2 * args.pairs : 2] == torch.cat([x[:, :1], x[:, :-1]], 1)[..., None]
    found = probs.argmax(-1) == 2 * stands.int().argmax(-1) // args.segment
    worth = memory_contribution(model, guide, x, cache, mask, particles=1, exact=("a",), max_plate_nesting=2)
    return {
        "slots": cache.slots, "found": told(found.double()), "nats an answer": told(-worth.given.bound),
        "KL of a lookup": told(gain), "entropy of the prior": told(-torch.special.xlogy(probs, probs).sum(-1)),
        "lost": {name: told(worth.differences(name)) for name in worth.alternatives},
    }  # fmt: skip


@torch.no_grad()
def cost(model, args):
    """Microseconds a token of the past, and milliseconds an answer, by length."""
    out = {}
    for factor in FACTORS:
        x, past, _ = Questions(args, factor * args.length, 40_000, 1)[0]
        model.x_dist(x, model.states.remember(past))  # the first call of a shape takes longer
        start = time.perf_counter()
        cache = model.states.remember(past)
        read = time.perf_counter()
        model.x_dist(x, cache)
        done = time.perf_counter()
        out[factor * args.length] = {
            "us a token": (read - start) / past.shape[1] * 1e6, "ms an answer": (done - read) / args.pairs * 1e3,
            "MB": cache.values.numel() * 4 / 2**20,
        }  # fmt: skip
    return out


def draw(rows, args, path):
    fig, axes = plt.subplots(1, 2, figsize=(12, 4), layout="constrained")
    for row in rows:
        for kind, label in kinds(row):
            where, values = zip(*row[kind].items(), strict=True)
            mean, se = zip(*values, strict=True)
            label = label if row is rows[0] else None
            color = BLUE if kind == "by_length" else GREY
            axes[0].errorbar(where, mean, [2 * s for s in se], color=color, marker="o", capsize=2, label=label)
        cost = row["cost"].values()
        axes[1].plot(where, [c["us a token"] for c in cost], color=BLUE, marker="o")
        axes[1].plot(where, [1e3 * c["ms an answer"] for c in cost], color=ORANGE, marker="o")
    axes[0].axvline(args.length, color=GREY, linestyle=":")
    axes[0].set(xscale="log", ylim=(0, 1.03), xlabel="length of the sequence", ylabel="accuracy")
    axes[0].legend(frameon=False)
    axes[1].set(xscale="log", yscale="log", xlabel="length of the sequence", ylabel="microseconds")
    axes[1].set_title("a token of the past (blue), an answer (orange)")
    fig.savefig(path, dpi=120)


def main():
    args = arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    rows = [run(seed, args) for seed in args.seeds]
    draw(rows, args, args.out / "cached.png")
    leave({"runs": rows}, args, cached_length, cached_lookup, cached_cost, unused=("seed",))


if __name__ == "__main__":
    main()
