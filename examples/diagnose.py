"""What a trained VMA's memory is worth: every record in words, and one sheet of figures.

Reads a checkpoint of benchmarks/experiments/vma_fewshot.py (sizes come from the results.json beside it) and measures it
on unseen classes: information per site and datum, use of the slots, the bound with other memories, the images that
gain most and least from memory with the slots they look up, many classes at once, and lookups cut to the 5 nearest
slots. Writes diagnosis.json and diagnosis.png beside the checkpoint, or to --out.

    python examples/diagnose.py out/demo/vma.safetensors
    python examples/diagnose.py out/omniglot/vma.safetensors --data omniglot --data-dir FOLDER --many 16 64 256 659
"""

import argparse
import json
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from tqdm import tqdm

from pyro_memory import (
    BoundEstimate,
    NearestAddress,
    importance_bound,
    information_gain,
    load_weights,
    memory_contribution,
)
from pyro_memory.data import NAMES, FewShotTasks, load_images
from pyro_memory.diagnostics import plot_images, plot_usage
from pyro_memory.guides import VMAGuide
from pyro_memory.models import VMA


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = partial(parser.add_argument, metavar="N", type=int)
    parser.add_argument("checkpoint", type=Path, help="the vma.safetensors of vma_fewshot.py")
    parser.add_argument("--data", choices=NAMES, help="by default what the checkpoint was trained on")
    parser.add_argument("--data-dir", metavar="DIR", help="folder with the official files (glyphs need none)")
    parser.add_argument("--out", metavar="DIR", type=Path, help="by default the checkpoint's folder")
    add("--classes", default=8, help="classes in the memory that is looked at (default 8)")
    add("--shots", default=4, help="examples a class (default 4)")
    add("--targets", default=96, help="images that read it (default 96)")
    add("--many", nargs="+", default=[16, 64, 256], help="classes in memory at once, for the curve, 16 or more")
    add("--particles", default=100, help="K of the bounds (default 100)")
    add("--seed", default=0)
    return parser.parse_args()


def load(args):
    """Rebuilds the pair with the sizes that results.json tells."""
    beside = args.checkpoint.with_name("results.json")
    if not beside.is_file():
        raise SystemExit(f"There is no {beside}, which tells the sizes of the model: let vma_fewshot.py finish first")
    known = json.loads(beside.read_text())["arguments"]
    data = load_images(args.data or known["data"], "evaluation", args.data_dir)
    sizes = {name: known[name] for name in ("latent_dim", "channels", "none_slot") if name in known}
    model, guide = (c.convolutional(data.shape, **sizes) for c in (VMA, VMAGuide))
    load_weights(args.checkpoint, model, guide)
    return model.eval(), guide.eval(), data


def many_classes(model, guide, data, args):
    """The bound as ever more classes share one memory, with every slot and with the 5 nearest."""
    nearest = NearestAddress(guide.address, 5)
    rows = []
    # A task's targets are of its first 16 classes, so that they are the same however many classes follow.
    for classes in tqdm([c for c in args.many if 16 <= c <= data.classes], desc="classes in memory", leave=False):
        tasks = FewShotTasks(data, classes=classes, shots=args.shots, targets=16, seed=args.seed)
        row = {"classes": classes, "slots": classes * args.shots}
        every = guide.address
        for name, address in (("every slot", every), ("5 nearest", nearest)):
            guide.address = address
            parts = [
                importance_bound(model, guide, *tasks[i], particles=args.particles, max_plate_nesting=1)
                for i in range(max(1, args.targets // 16))
            ]
            row[name] = BoundEstimate.cat(parts).to_dict()
        guide.address = every
        rows.append(row)
    return rows


def print_many(rows):
    print(
        f"\nmany unseen classes in memory at once, nats per image\n{'classes':>9}{'slots':>7}{'every slot':>20}", end=""
    )
    print(f"{'5 nearest':>20}")
    for row in rows:
        cells = [row.get(name) for name in ("every slot", "5 nearest")]
        shown = ["" if c is None else f"{c['mean']:.2f} ({c['se']:.2f})" for c in cells]
        print(f"{row['classes']:>9}{row['slots']:>7}" + "".join(f"{text:>20}" for text in shown))


@torch.no_grad()
def draw(model, guide, x, memory, gain, contribution, rows, path):
    fig, axes = plt.subplots(2, 3, figsize=(17, 9), layout="constrained")
    gain.plot(axes[0, 0]).set_title("Information per site")
    plot_usage(gain.addresses["a"].usage, model.a_dist(memory).probs, axes[0, 1])
    axes[0, 1].set_title(f"Use of the slots, {int(gain.addresses['a'].dead.sum())} dead")
    contribution.plot(axes[0, 2]).set_title("Nats lost with another memory")
    lost = contribution.given.bound - contribution.alternatives["wrong classes"].bound
    axes[1, 0].scatter(gain["a"].kl, lost, s=12)
    axes[1, 0].set(xlabel="KL of the address, nats", ylabel="nats lost with the wrong classes", title="Image by image")
    order, slot = lost.argsort(descending=True), guide.a_dist(x, memory).probs.argmax(-1)
    most, least = order[:10], order[-10:]
    sheet = {"gains most": x[most], "its slot": memory[slot[most]], "": x[:0]}
    sheet |= {"gains least": x[least], "its slot ": memory[slot[least]]}
    plot_images(list(sheet.values()), list(sheet), ax=axes[1, 1])
    axes[1, 1].set_title("What memory is worth most and least to")
    for name in ("every slot", "5 nearest"):
        bounds, errors = [row[name]["mean"] for row in rows], [2 * row[name]["se"] for row in rows]
        axes[1, 2].errorbar([row["classes"] for row in rows], bounds, errors, marker="o", capsize=3, label=name)
    axes[1, 2].set_xscale("log", base=2)
    axes[1, 2].set(xlabel="unseen classes in one memory", ylabel="log p(x | memory) >=, nats per image")
    axes[1, 2].set_title("Many classes at once (two standard errors)")
    axes[1, 2].legend(frameon=False)
    fig.savefig(path, dpi=110)


def main():
    args = arguments()
    model, guide, data = load(args)
    torch.manual_seed(args.seed)
    tasks = FewShotTasks(data, classes=args.classes, shots=args.shots, targets=args.targets, seed=args.seed)
    (x, memory), wrong = tasks[0], tasks.wrong_classes(0)
    print(f"{args.targets} images of {args.classes} unseen classes, one memory of {memory.slots} slots\n")
    gain = information_gain(model, guide, x, memory)
    print(gain)
    contribution = memory_contribution(model, guide, x, memory, {"wrong classes": wrong}, particles=args.particles)
    print(f"\n{contribution.given}\n\n{contribution}")
    rows = many_classes(model, guide, data, args)
    print_many(rows)
    out = args.out or args.checkpoint.parent
    out.mkdir(parents=True, exist_ok=True)
    draw(model, guide, x, memory, gain, contribution, rows, out / "diagnosis.png")
    record = {"information": gain.to_dict(), "contribution": contribution.to_dict(), "many_classes": rows}
    (out / "diagnosis.json").write_text(json.dumps(record, indent=1))
    print(f"\ndiagnosis.png and diagnosis.json are in {out}")


if __name__ == "__main__":
    main()
