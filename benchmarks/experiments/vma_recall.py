"""Train to recall: with the targets in memory, does the lookup carry everything?

The memory holds fixed images and each target is one of them. A model that uses its address perfectly pays log M nats
for it and nothing else: KL_a climbs to log M, KL_z falls to 0 and the bound ends at -log M (Bornschein et al., 2017,
section 4.1, https://arxiv.org/abs/1709.07116). Draws both over steps.

    python benchmarks/experiments/vma_recall.py
    python benchmarks/experiments/vma_recall.py --slots 256 --soft-attention
    python benchmarks/experiments/vma_recall.py --data mnist --data-dir FOLDER --slots 256 --steps 8000
"""

import math

import matplotlib.pyplot as plt
import torch
from study import leave, options, train
from tables_images import recall

from pyro_memory import VIMCO, SlotMemory, importance_bound, information_gain
from pyro_memory.data import load_images
from pyro_memory.guides import SoftAttentionVAEGuide, VMAGuide
from pyro_memory.models import VMA, SoftAttentionVAE


def arguments():
    return options(
        __doc__, "out/recall", device=True,
        slots=(64, "images in memory"), steps=(800, "training steps"),
        soft_attention=(False, "train a soft-attention VAE beside it"),
    ).parse_args()  # fmt: skip


def curve(name, model, guide, images, args):
    """Trains a pair; its bound and information over steps."""
    memory = SlotMemory(images)

    def batch(step):
        draw = torch.Generator().manual_seed(args.seed * 1_000_003 + step)
        return images[torch.randint(args.slots, (64,), generator=draw)], memory

    def measure(step):
        gain = information_gain(model, guide, images, memory, draws=4, max_plate_nesting=1)
        bound = importance_bound(model, guide, images, memory, particles=10, max_plate_nesting=1)
        return {f"KL_{site}": gain[site].mean for site in gain.sites} | {"bound": bound.mean}

    print(f"\ntraining {name}: {args.steps} steps of 64 images")
    return train(
        name.replace(" ", "_").lower(), model, guide, batch, VIMCO(4, max_plate_nesting=1), args, learning_rate=2e-3,
        schedule=lambda step: 0.05 + 0.95 * (1 - step / args.steps), evaluate=measure,
        evaluate_every=max(10, args.steps // 50),
    )  # fmt: skip


def draw(curves, ceiling, slots, path):
    fig, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for i, (name, rows) in enumerate(curves.items()):
        steps = [row["step"] for row in rows]
        for site, style in (("KL_a", "-"), ("KL_z", ":")):
            if site in rows[-1]:
                left.plot(steps, [row[site] for row in rows], style, color=f"C{i}", label=f"{name}: {site}")
        right.plot(steps, [row["bound"] for row in rows], color=f"C{i}", label=name)
    left.axhline(ceiling, color="0.5", linestyle="--", label=f"log {slots}")
    left.set(xlabel="step", ylabel="nats per image", title="What the lookup and the code carry")
    right.axhline(-ceiling, color="0.5", linestyle="--", label=f"-log {slots}: a perfect look-up table")
    right.set(xlabel="step", ylabel="log p(x | memory) >=, nats per image", title="Bound")
    right.set_yscale("symlog", linthresh=10)
    for ax in (left, right):
        ax.set_xscale("log")  # the address is learned within the first steps
        ax.xaxis.set_minor_formatter("")
        ax.legend(frameon=False)
    fig.savefig(path, dpi=120)


def main():
    args = arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    data = load_images(args.data, "background", args.data_dir)
    if args.slots > len(data):
        raise SystemExit(f"--slots must be at most {len(data)}, the images of {args.data}; got {args.slots}")
    generator = torch.Generator().manual_seed(args.seed)
    images = data[torch.randperm(len(data), generator=generator)[: args.slots]].to(args.device)
    size = {"latent_dim": 8, "channels": [16, 24, 32]}
    classes = {"VMA": (VMA, VMAGuide)}
    if args.soft_attention:
        classes["soft attention"] = (SoftAttentionVAE, SoftAttentionVAEGuide)

    results = {}
    for name, pair in classes.items():
        torch.manual_seed(args.seed)
        results[name] = curve(name, *(c.convolutional(data.shape, **size) for c in pair), images, args)

    ceiling = math.log(args.slots)
    curves = {name: result.history["evaluation"] for name, result in results.items()}
    last = curves["VMA"][-1]
    print(f"\nVMA's address carries {100 * last['KL_a'] / ceiling:.1f}% of log {args.slots}, z {last['KL_z']:.3f} nats")
    draw(curves, ceiling, args.slots, args.out / "recall.png")
    seconds = {name: result.seconds for name, result in results.items()}
    leave({"log_slots": ceiling, "training_seconds": seconds, "history": curves}, args, recall)


if __name__ == "__main__":
    main()
