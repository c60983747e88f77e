"""What do the diagnostics say of a trained memory? Every record in words, and one sheet of figures.

A VMA that was trained on letters that people drew (it comes with the package; --folder takes your own) meets letters
of fonts in scripts that it has not seen. How much does each latent carry, are all slots used, what is lost with another
memory, which images gain most and least, does it hold with hundreds of letters in memory at once, and do the 5 nearest
slots stand in for all?

    python examples/diagnose.py
    python examples/diagnose.py --weights vma-glyphs --folder out/fewshot/weights
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from tqdm import tqdm

from pyro_memory import (
    BoundEstimate,
    NearestAddress,
    importance_bound,
    information_gain,
    load_pretrained,
    memory_contribution,
)  # fmt: skip
from pyro_memory.data import FewShotTasks, glyphs
from pyro_memory.diagnostics import plot_images, plot_usage

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--weights", metavar="NAME", default="vma-omniglot28", help="of a VMA (default vma-omniglot28)")
parser.add_argument("--folder", metavar="DIR", help="where weights lie (default: the package's)")
parser.add_argument("--targets", metavar="N", type=int, default=96, help="images to measure on (default 96)")
parser.add_argument("--many", metavar="N", nargs="+", type=int, default=[16, 64, 256], help="letters at once, from 16")
parser.add_argument("--particles", metavar="K", type=int, default=100, help="of the bounds (default 100)")
parser.add_argument("--seed", metavar="N", type=int, default=0)
parser.add_argument("--out", metavar="DIR", type=Path, default=Path("out/diagnose"), help="of the figure")


def many_letters(model, guide, letters, args):
    """The bound of the same images as ever more letters share one memory, by every slot and by the 5 nearest."""
    rows, every = {}, guide.address
    for classes in tqdm([c for c in args.many if 16 <= c <= letters.classes], desc="letters in memory", leave=False):
        # A task's targets are of its first 16 classes, so that they are the same however many classes follow.
        tasks = FewShotTasks(letters, classes=classes, shots=4, targets=16, seed=args.seed)
        for name, address in (("every slot", every), ("5 nearest", NearestAddress(every, 5))):
            guide.address = address
            parts = [
                importance_bound(model, guide, *tasks[i], particles=args.particles, max_plate_nesting=1)
                for i in range(max(1, args.targets // 16))
            ]
            rows.setdefault(classes, {})[name] = BoundEstimate.cat(parts)
        guide.address = every
    return rows


@torch.no_grad()
def draw(model, guide, x, memory, gain, contribution, rows, path):
    fig, axes = plt.subplots(2, 3, figsize=(17, 9), layout="constrained")
    gain.plot(axes[0, 0]).set_title("Information per site")
    plot_usage(gain.addresses["a"].usage, model.a_dist(memory).probs, axes[0, 1])
    axes[0, 1].set_title(f"Use of the slots, {int(gain.addresses['a'].dead.sum())} dead")
    contribution.plot(axes[0, 2]).set_title("Nats lost with another memory")
    lost = contribution.given.bound - contribution.alternatives["wrong letters"].bound
    axes[1, 0].scatter(gain["a"].kl, lost, s=12)
    axes[1, 0].set(xlabel="KL of the address, nats", ylabel="nats lost with wrong letters", title="Image by image")
    order, slot = lost.argsort(descending=True), guide.a_dist(x, memory).probs.argmax(-1)
    most, least = order[:10], order[-10:]
    sheet = {"gains most": x[most], "its slot": memory[slot[most]], "": x[:0]}
    sheet |= {"gains least": x[least], "its slot ": memory[slot[least]]}
    plot_images(list(sheet.values()), list(sheet), ax=axes[1, 1])
    axes[1, 1].set_title("What memory is worth most and least to")
    for name in ("every slot", "5 nearest"):
        means, errors = zip(*((row[name].mean, 2 * row[name].se) for row in rows.values()), strict=True)
        axes[1, 2].errorbar(list(rows), means, errors, marker="o", capsize=3, label=name)
    axes[1, 2].set_xscale("log", base=2)
    axes[1, 2].set(xlabel="unseen letters in one memory", ylabel="log p(x | memory) >=, nats per image")
    axes[1, 2].set_title("Many letters at once (two standard errors)")
    axes[1, 2].legend(frameon=False)
    fig.savefig(path, dpi=110)


if __name__ == "__main__":
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    model, guide = load_pretrained(args.weights, *([args.folder] if args.folder else []))
    letters = glyphs("evaluation")
    torch.manual_seed(args.seed)
    tasks = FewShotTasks(letters, classes=8, shots=4, targets=args.targets, seed=args.seed)
    (x, memory), wrong = tasks[0], tasks.wrong_classes(0)
    gain = information_gain(model, guide, x, memory)
    contribution = memory_contribution(
        model, guide, x, memory, alternatives={"wrong letters": wrong}, particles=args.particles
    )
    print(f"{args.targets} images of 8 unseen letters, one memory of {memory.slots} slots\n\n{gain}\n\n{contribution}")
    rows = many_letters(model, guide, letters, args)
    draw(model, guide, x, memory, gain, contribution, rows, args.out / "diagnosis.png")

    print(f"\nnats per image with many letters in memory at once\n{'letters':>9}{'every slot':>20}{'5 nearest':>20}")
    for classes, row in rows.items():
        print(f"{classes:>9}" + "".join(f"{f'{b.mean:.2f} ({b.se:.2f})':>20}" for b in row.values()))
    address, (lost, se) = gain.addresses["a"], contribution.gain("wrong letters")
    print(
        f"\nThe lookup carries {gain['a'].mean:.2f} ({gain['a'].se:.2f}) of at most {address.ceiling:.2f} nats and "
        f"hesitates between {address.effective_slots:.1f} slots;\n{int(address.dead.sum())} of {memory.slots} slots "
        f"are dead. With wrong letters in memory an image loses {lost:.1f} ({se:.1f}) nats.\n"
        f"The figure is {args.out / 'diagnosis.png'}"
    )
