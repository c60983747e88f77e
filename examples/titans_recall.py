"""A neural memory that learns at test time recalls pairs far behind; attention with a window and an LSTM do not.

A sequence shows pairs of a key and a value, then filler, and every key once more: what was its value? (Associative
recall, MQAR; Arora et al., 2023, https://arxiv.org/abs/2312.04927.) The Titans' memory (Behrouz et al., 2025,
https://arxiv.org/abs/2501.00663) is a small network that takes a gradient step on each token as it reads, so that what
it has seen is in its weights. Its own weights come with the package; a transformer that sees 8 tokens and an LSTM of as
many parameters are trained here for as many steps, at length 32. Then all are asked at up to 16 times that length.

    python examples/titans_recall.py
"""

import argparse
import math
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from pyro.infer import Trace_ELBO
from tqdm import tqdm

from pyro_memory import fit, load_pretrained, warm_cosine
from pyro_memory.data import RecallTasks
from pyro_memory.guides import EmptyGuide
from pyro_memory.models import LSTMMixer, SequenceModel, TransformerMixer

LENGTHS = (32, 64, 128, 256, 512)
PAIRS, VOCABULARY = 4, 40  # as the package's weights were trained
OTHERS = {"transformer, 8 tokens": partial(TransformerMixer, heads=1, window=8), "LSTM": LSTMMixer}
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--steps", metavar="N", type=int, default=500, help="for the transformer and the LSTM, each")
parser.add_argument("--sequences", metavar="N", type=int, default=256, help="to ask at each length (default 256)")
parser.add_argument("--seed", metavar="N", type=int, default=0, help="of parameters and training sequences")
parser.add_argument("--out", metavar="DIR", type=Path, default=Path("out/titans_recall"), help="figure, checkpoints")


def train(name, mixer, args):
    """Maximum likelihood of the answers: nothing is latent, so the guide is empty."""
    print(f"training the {name}")
    torch.manual_seed(args.seed)
    model = SequenceModel.tokens(VOCABULARY, mixer, dim=32, parameters=50_000)
    fit(
        model, EmptyGuide(), RecallTasks(pairs=PAIRS, length=32, vocabulary=VOCABULARY, batch=64, seed=args.seed),
        Trace_ELBO(max_plate_nesting=1), steps=args.steps, learning_rate=5e-3,
        schedule=warm_cosine(args.steps, warm=50), clip_norm=256.0, information_every=None, seed=args.seed,
        checkpoint=args.out / f"{name.split(',')[0].lower()}-{args.seed}.safetensors",
    )  # fmt: skip
    return model.eval()


@torch.no_grad()
def ask(name, model, length, args):
    """Of each new sequence: the share of right answers, and -log p(answer | all before), nats an answer."""
    batch = max(1, 2048 // length)
    tasks = RecallTasks(pairs=PAIRS, length=length, vocabulary=VOCABULARY, batch=batch, seed=10_000)
    right, nats = [], []
    for i in tqdm(range(-(-args.sequences // batch)), desc=f"{name}, length {length}", leave=False):
        tokens, answers = tasks[i]
        x_dist = model.x_dist(tokens)
        right.append((x_dist.logits.argmax(-1) == tokens)[answers].reshape(batch, PAIRS).float().mean(-1))
        nats.append(-x_dist.log_prob(tokens)[answers].reshape(batch, PAIRS).mean(-1))
    return mean_se(torch.cat(right)), mean_se(torch.cat(nats))


def mean_se(values):
    return values.mean().item(), (values.std() / math.sqrt(len(values))).item()


def draw(found, path):
    fig, axes = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for part, (ax, guess) in enumerate(zip(axes, (1 / PAIRS, math.log(PAIRS)), strict=True)):
        for name, by_length in found.items():
            mean, se = zip(*(result[part] for result in by_length.values()), strict=True)
            ax.errorbar(LENGTHS, mean, [2 * s for s in se], marker="o", capsize=3, label=name)
        ax.axhline(guess, color="0.5", linestyle="--", label="a guess among the four values")
        ax.axvline(32, color="0.6", linestyle=":", label="training length")
        ax.set_xscale("log", base=2)
        ax.set_xticks(LENGTHS, map(str, LENGTHS))
        ax.set_xlabel("length of the sequence")
    axes[0].set(ylim=(0, 1.03), ylabel="share", title="Right answers")
    axes[1].set(ylim=(-0.1, 4.3), ylabel="-log p(answer | before), nats", title="Surprise at the answer")
    axes[1].legend(frameon=False, fontsize=8)
    fig.savefig(path, dpi=120)


if __name__ == "__main__":
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    models = {"Titans": load_pretrained("titans-lmm-recall")[0]}
    models |= {name: train(name, mixer, args) for name, mixer in OTHERS.items()}
    found = {name: {n: ask(name, model, n, args) for n in LENGTHS} for name, model in models.items()}
    draw(found, args.out / "titans_recall.png")

    print(
        f"\nnats an answer (standard error), and right answers; a guess among the {PAIRS} values: {math.log(PAIRS):.2f}"
    )
    print(f"{'length':>8}" + "".join(f"{name:>27}" for name in found))
    for n in LENGTHS:
        cells = [f"{nats:.2f} ({se:.2f}), {right:.0%}" for (right, _), (nats, se) in (f[n] for f in found.values())]
        print(f"{n:>8}" + "".join(f"{cell:>27}" for cell in cells))
    told = {name: "{:.2f} ({:.2f})".format(*by_length[128][1]) for name, by_length in found.items()}
    window, lstm = OTHERS
    print(
        f"At four times the training length an answer costs the Titans {told['Titans']} nats, the transformer with a "
        f"window\n{told[window]} and the LSTM {told[lstm]}: in as many steps neither has learned more than to guess.\n"
        f"The figure is {args.out / 'titans_recall.png'}"
    )
