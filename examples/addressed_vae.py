"""What is a memory of a few examples worth, in nats? An addressed VAE against a VAE without memory.

Both draw 28x28 letters of fonts. The addressed VAE (variational memory addressing; Bornschein et al., 2017,
https://arxiv.org/abs/1709.07116) first samples an address a, reads slot m_a of a memory of examples, then

    a ~ Uniform(slots),  z ~ p(z | m_a),  x ~ p(x | z, m_a)

and its guide q(a | x, M) q(z | x, m_a) learns to look x up. Both are trained by VIMCO for equal steps, then meet
letters of scripts that neither has seen. Cut it off and run it again: it goes on from --out.

    python examples/addressed_vae.py
"""

import argparse
import math
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from tqdm import tqdm

from pyro_memory import VIMCO, BoundEstimate, MemoryContribution, fit, importance_bound, information_gain, warm_cosine
from pyro_memory.data import FewShotTasks, glyphs
from pyro_memory.diagnostics import plot_images
from pyro_memory.guides import VAEGuide, VMAGuide
from pyro_memory.models import VAE, VMA

SHOTS = (1, 2, 4, 8)
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--steps", metavar="N", type=int, default=800, help="training steps of each model (default 800)")
parser.add_argument("--targets", metavar="N", type=int, default=128, help="images to measure on (default 128)")
parser.add_argument("--particles", metavar="K", type=int, default=100, help="of the bounds (default 100)")
parser.add_argument("--seed", metavar="N", type=int, default=0)
parser.add_argument("--device", default="cpu")
parser.add_argument("--out", metavar="DIR", type=Path, default=Path("out/addressed_vae"), help="figure, checkpoints")


def train(args):
    """Both pairs: at every step 32 letters, and a memory of 4 other drawings of each of 8 classes."""
    letters = glyphs("background")
    tasks = FewShotTasks(letters, classes=8, shots=4, targets=32, seed=args.seed)
    size = {"latent_dim": 32, "channels": [16, 32, 48]}
    torch.manual_seed(args.seed)
    pairs = {
        "VAE": (VAE.convolutional(letters.shape, **size), VAEGuide.convolutional(letters.shape, **size)),
        "VMA": (VMA.convolutional(letters.shape, **size), VMAGuide.convolutional(letters.shape, **size)),
    }
    for name, (model, guide) in pairs.items():
        print(f"training the {name}")
        fit(
            model, guide, tasks, VIMCO(4, max_plate_nesting=1), steps=args.steps, learning_rate=2e-3,
            schedule=warm_cosine(args.steps), clip_norm=5000.0, seed=args.seed, device=args.device,
            checkpoint=args.out / f"{name.lower()}-{args.seed}.safetensors",
        )  # fmt: skip
        model.eval(), guide.eval()
    return pairs


def measure(pair, shots, letters, args, wrong=False):
    """log p(x | M) >= for the same targets whatever the shots; each has a memory of its own class, or of another."""
    chosen = torch.randperm(len(letters), generator=torch.Generator().manual_seed(args.seed))[: args.targets]
    tasks = FewShotTasks(
        letters, classes=1, shots=shots, targets=8, per_target=True, seed=args.seed, target_indices=chosen
    )
    torch.manual_seed(args.seed)
    parts = []
    for i in tqdm(range(len(tasks)), desc=f"{shots} examples{', of another letter' * wrong}", leave=False):
        x, memory = tasks[i]
        x, memory = x.to(args.device), (tasks.wrong_classes(i) if wrong else memory).to(args.device)
        parts.append(importance_bound(*pair, x, memory, particles=args.particles, max_plate_nesting=1))
    return BoundEstimate.cat(parts)


@torch.no_grad()
def draw(vae, bounds, wrong, gain, pair, letters, args):
    fig, axes = plt.subplots(1, 3, figsize=(16, 4.4), layout="constrained", width_ratios=[1, 0.8, 1.4])
    means, errors = [b.mean for b in bounds.values()], [2 * b.se for b in bounds.values()]
    axes[0].errorbar(SHOTS, means, errors, marker="o", capsize=3, label="VMA, examples of the letter in memory")
    axes[0].axhline(vae.mean, color="0.5", linestyle="--", label="VAE, no memory")
    axes[0].errorbar([4], [wrong.mean], [2 * wrong.se], marker="x", capsize=3, label="VMA, four of another letter")
    axes[0].set(xlabel="examples in memory", ylabel="log p(x | M) >=, nats", title="Unseen letters (two errors)")
    axes[0].legend(frameon=False)
    gain.plot(axes[1]).set_title("What each latent carries, 32 slots")
    x, memory = (t.to(args.device) for t in FewShotTasks(letters, classes=4, shots=3, targets=12, seed=1)[0])
    model, guide = pair
    slot = guide.a_dist(x, memory).probs.argmax(-1)
    rebuilt = model.x_dist(guide.z_dist(x, memory[slot]).mean, model.content(memory[slot])).mean
    rows = {"memory": memory.values, "": x[:0], "target": x, "looks up": memory[slot], "rebuilt": rebuilt}
    plot_images(list(rows.values()), list(rows), ax=axes[2]).set_title("Lookups among four unseen letters")
    fig.savefig(args.out / "addressed_vae.png", dpi=120)


if __name__ == "__main__":
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    pairs, unseen = train(args), glyphs("evaluation")
    vae = measure(pairs["VAE"], 1, unseen, args)
    bounds = {n: measure(pairs["VMA"], n, unseen, args) for n in SHOTS}
    wrong = measure(pairs["VMA"], 4, unseen, args, wrong=True)
    x, memory = FewShotTasks(unseen, classes=8, shots=4, targets=args.targets, seed=args.seed)[0]
    gain = information_gain(*pairs["VMA"], x.to(args.device), memory.to(args.device))
    draw(vae, bounds, wrong, gain, pairs["VMA"], unseen, args)

    worth = MemoryContribution(bounds[4], {"VAE": vae, "wrong": wrong})
    print(f"\n{gain}\n\n{args.targets} letters of scripts that no model saw, nats each (standard error)")
    rows = {"VAE, no memory": vae} | {f"addressed VAE, examples in memory: {n}": b for n, b in bounds.items()}
    for name, bound in rows.items():
        print(f"  {name:<38}{bound.mean:8.2f} ({bound.se:.2f})")
    print(
        "Four examples of the letter make the addressed VAE {:.1f} ({:.1f}) nats better than the VAE, paired by\n"
        "image; four of another letter instead cost it {:.1f} ({:.1f}). Among 32 slots of 8 letters the address\n"
        "carries {:.2f} ({:.2f}) of at most log 32 = {:.2f} nats. The figure is {}".format(
            *worth.gain("VAE"), *worth.gain("wrong"), gain["a"].mean, gain["a"].se, math.log(32),
            args.out / "addressed_vae.png",
        )
    )  # fmt: skip
