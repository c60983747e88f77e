"""A memory of memories: which of hundreds of cached states of a neural memory knows the answer?

A sequence shows 32 pairs of a key and a value, then filler, and every key once more: what was its value? (Associative
recall, MQAR; Arora et al., 2023, https://arxiv.org/abs/2312.04927.) CachedTitans reads it in segments of 16 tokens and
keeps the state of a neural memory after each in a slot; for each question it draws which slot to ask. Its weights come
with the package, trained at length 256, with decay on. Here it is asked at up to 64 times that length, and a look-up is
measured: how uncertain the address was, and what the answers lose with another sequence's cache, or an empty one.

    python examples/cached_memory.py
"""

import argparse
import math
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from tqdm import tqdm

from pyro_memory import load_pretrained, memory_contribution
from pyro_memory.data import RecallTasks

PAIRS, VOCABULARY, TRAINED = 32, 512, 256  # as the package's weights were trained
FACTORS = (1, 4, 16, 64)
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument(
    "--sequences", metavar="N", type=int, default=16, help="to ask at each length, 2 or more (default 16)"
)
parser.add_argument("--seed", metavar="N", type=int, default=0, help="of the sequences (default 0)")
parser.add_argument("--out", metavar="DIR", type=Path, default=Path("out/cached_memory"), help="of the figure")


def sequences(length, batch, seed):
    """The questions, the past, and where the answers are."""
    tasks = RecallTasks(
        pairs=PAIRS, length=length, vocabulary=VOCABULARY, gap=length - 4 * PAIRS, batch=batch, seed=10_000 + seed
    )
    asked = 2 * PAIRS

    def batch_of(index):
        tokens, answers = tasks[index]
        return tokens[:, -asked:], tokens[:, :-asked], answers[:, -asked:]

    return batch_of


@torch.no_grad()
def ask(model, length, args):
    """Of each sequence the share of right answers, nats an answer, and the entropy of the address, in nats."""
    right, nats, entropy = [], [], []
    batches = sequences(length, 1, args.seed)
    for i in tqdm(range(args.sequences), desc=f"length {length}", leave=False):
        x, past, mask = batches(i)
        cache = model.states.remember(past)
        x_dist = model.x_dist(x, cache)
        right.append((x_dist.logits.argmax(-1) == x)[mask].float().mean())
        nats.append(-x_dist.log_prob(x)[mask].mean())
        probs = model.a_dist(model.states.present(x), cache.with_none()).probs[mask]
        entropy.append(-torch.special.xlogy(probs, probs).sum(-1).mean())
    return [mean_se(torch.stack(values)) for values in (right, nats, entropy)], cache.slots


def mean_se(values):
    return values.mean().item(), (values.std() / math.sqrt(len(values))).item()


@torch.no_grad()
def draw(model, found, args, path):
    x, past, mask = sequences(TRAINED, 1, args.seed)(0)
    cache = model.states.remember(past)
    probs = model.a_dist(model.states.present(x), cache.with_none()).probs[mask]
    keys = torch.cat([x[:, :1], x[:, :-1]], 1)[mask]
    stands = 2 * (past[0, : 2 * PAIRS : 2] == keys[:, None]).int().argmax(-1) // model.states.segment
    order = stands.argsort(stable=True)
    fig, axes = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    shown = axes[0].imshow(probs[order].T, cmap="Blues", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    axes[0].plot(stands[order], "o", color="tab:orange", markersize=3, label="where its pair stood")
    axes[0].set(xlabel="question", ylabel="slot", title=f"Which state is asked, length {TRAINED}: p(a | past)")
    axes[0].legend(frameon=False)
    fig.colorbar(shown, ax=axes[0])
    lengths = [factor * TRAINED for factor in FACTORS]
    mean, se = zip(*(found[length][0][0] for length in lengths), strict=True)
    axes[1].errorbar(lengths, mean, [2 * s for s in se], marker="o", capsize=3)
    axes[1].axvline(TRAINED, color="0.6", linestyle=":", label="training length")
    axes[1].set(xscale="log", ylim=(0, 1.03), xlabel="length of the sequence", title="Right answers")
    axes[1].legend(frameon=False)
    fig.savefig(path, dpi=120)


if __name__ == "__main__":
    args = parser.parse_args()
    if args.sequences < 2:
        parser.error(f"--sequences must be 2 or more, for a standard error; got {args.sequences}")
    args.out.mkdir(parents=True, exist_ok=True)
    model, guide = load_pretrained("titans-cached-recall32")
    found = {factor * TRAINED: ask(model, factor * TRAINED, args) for factor in FACTORS}
    draw(model, found, args, args.out / "cached_memory.png")
    print(f"{'length':>8}{'slots':>8}{'right answers':>18}{'nats an answer':>18}{'entropy of the address':>26}")
    for length, ((right, nats, entropy), slots) in found.items():
        cells = (f"{right[0]:.1%} ({right[1]:.1%})", *(f"{mean:.3f} ({se:.3f})" for mean, se in (nats, entropy)))
        print(f"{length:>8}{slots:>8}{cells[0]:>18}{cells[1]:>18}{cells[2]:>26}")
    x, past, mask = sequences(4 * TRAINED, max(2, args.sequences), args.seed)(0)
    with torch.no_grad():
        cache = model.states.remember(past)
    worth = memory_contribution(model, guide, x, cache, mask, particles=1, exact=("a",), max_plate_nesting=2)
    for name in worth.alternatives:
        lost = worth.differences(name).reshape(x.shape)[mask].reshape(len(x), PAIRS).mean(-1)  # of each sequence
        print("An answer loses {:.2f} ({:.2f}) nats with the cache {}.".format(*mean_se(lost), name))
    print(f"The figure is {args.out / 'cached_memory.png'}")
