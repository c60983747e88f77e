"""Few-shot generation from episodic and semantic memory: what does each level of recall tell, by shots?

A structured memory (after Duan et al., 2023, https://openreview.net/forum?id=dxPcdEeQk9) holds recent episodes, sets of
images of one class each, and the concepts that older episodes became. To explain or draw an image of a new set S the
model recalls in turn

    k ~ r(k | S) a concept,  s ~ r(s | k, S) what it says,  j ~ r(j | k, S) an episode,  c ~ r(c | s, j, S) the context

and a VAE draws the image given c and one of the episode's images. The weights and the stores come with the package:
they were trained on letters that people drew. Here they meet letters of fonts, in scripts of which they have seen none.

    python examples/episodic_semantic.py
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from tqdm import tqdm

from pyro_memory import (
    BoundEstimate,
    MemoryContribution,
    importance_bound,
    information_gain,
    load_memory,
    load_pretrained,
    remember,
)  # fmt: skip
from pyro_memory.data import SetTasks, glyphs
from pyro_memory.diagnostics import plot_images, plot_levels

WEIGHTS = "vsm-vae-omniglot"
SHOTS = (0, 1, 2, 5, 10)
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--targets", metavar="N", type=int, default=100, help="images to measure on (default 100)")
parser.add_argument("--particles", metavar="K", type=int, default=50, help="of the bounds (default 50)")
parser.add_argument("--seed", metavar="N", type=int, default=0)
parser.add_argument("--out", metavar="DIR", type=Path, default=Path("out/episodic_semantic"), help="of the figure")


def sets_of(letters, shots, args):
    """Sets of one unseen class each; the targets are the same for all shots, and fewer images begin more."""
    chosen = torch.randperm(len(letters), generator=torch.Generator().manual_seed(args.seed))[: args.targets]
    return SetTasks(letters, tasks=20, shots=shots, targets=chosen, seed=args.seed)


def measure(model, guide, stores, sets, args, alter=lambda memory: memory, wrong=False):
    """log p(x | S) >= of each target, the support S written into memory first, and the nats of each level of recall."""
    torch.manual_seed(args.seed)
    bounds, told = [], []
    for i in tqdm(range(len(sets)), desc=f"{sets.items} shots", leave=False):
        x, support = sets[i]
        support = sets.wrong_classes(i) if wrong else support
        memory = alter(remember(model.recall, stores, support))
        bounds.append(importance_bound(model, guide, x, support, memory, particles=args.particles, max_plate_nesting=2))
        took = information_gain(model.imagined, model.recalled, support, memory, max_plate_nesting=2)
        told.append({site: level.mean for site, level in took.sites.items()})
    return BoundEstimate.cat(bounds), {site: sum(t[site] for t in told) / len(told) for site in told[0]}


def draw(bounds, told, worth, model, stores, letters, args):
    fig, axes = plt.subplots(2, 2, figsize=(12, 8), layout="constrained")
    means, errors = [b.mean for b in bounds.values()], [2 * b.se for b in bounds.values()]
    axes[0, 0].errorbar(SHOTS, means, errors, marker="o", capsize=3)
    axes[0, 0].set(xlabel="images in the set", ylabel="log p(x | S) >=, nats", title="Unseen letters (two errors)")
    plot_levels(told, axes[0, 1]).set_title("What the set told each level: KL(r(. | S) || p), nats")
    worth.plot(axes[1, 0]).set_title("Nats lost at five shots without ...")
    _, support = SetTasks(letters, tasks=8, shots=5, seed=2)[0]
    new = model.generate(support, remember(model.recall, stores, support), 10)
    rows = [torch.cat([s, torch.zeros_like(s[:1]), n]) for s, n in zip(support.values, new, strict=True)]
    plot_images(rows, ax=axes[1, 1]).set_title("Five images of a letter, and ten new ones given them")
    fig.savefig(args.out / "episodic_semantic.png", dpi=120)


if __name__ == "__main__":
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    (model, guide), stores, letters = load_pretrained(WEIGHTS), load_memory(WEIGHTS), glyphs("evaluation")
    print(f"{stores.concepts}\n{int(stores.episodes.filled.sum())} episodes in {stores.episodes.slots} slots")
    bounds, told = {}, {}
    for shots in SHOTS:
        bounds[shots], told[shots] = measure(model, guide, stores, sets_of(letters, shots, args), args)
    changes = {
        "the right class": {"wrong": True},
        "concepts": {"alter": lambda memory: memory.without_concepts()},
        "episodes": {"alter": lambda memory: memory.without_episodes()},
    }
    five = sets_of(letters, 5, args)
    others = {name: measure(model, guide, stores, five, args, **change)[0] for name, change in changes.items()}
    worth = MemoryContribution(bounds[5], others)
    draw(bounds, told, worth, model, stores, letters, args)

    print(f"\nlog p(x | S) >= of {args.targets} unseen letters, nats each (standard error), and what S told k, s, j, c")
    for shots, bound in bounds.items():
        levels = "  ".join(f"{site} {nats:5.2f}" for site, nats in told[shots].items())
        print(f"  {shots:>2} images  {bound.mean:8.2f} ({bound.se:.2f})   {levels}")
    gain, se = MemoryContribution(bounds[10], {"none": bounds[0]}).gain("none")
    lost = {name: "{:.1f} ({:.1f})".format(*worth.gain(name)) for name in others}
    print(
        f"Ten images of a class are worth {gain:.1f} ({se:.1f}) nats to another of it, paired by image. At five, a set "
        f"of another\nclass costs {lost['the right class']}, emptied episodes cost {lost['episodes']} and emptied "
        f"concepts {lost['concepts']}.\nThe figure is {args.out / 'episodic_semantic.png'}"
    )
