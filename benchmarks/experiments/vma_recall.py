"""Train to recall: with the targets in memory, does the lookup carry everything?

The memory holds fixed images and each target is one of them. A model that uses its address perfectly pays log M nats
for it and nothing else: KL_a climbs to log M, KL_z falls to 0 and the bound ends at -log M (Bornschein et al., 2017,
section 4.1, https://arxiv.org/abs/1709.07116). Draws both over steps.

    python benchmarks/experiments/vma_recall.py
    python benchmarks/experiments/vma_recall.py --slots 256 --soft-attention
    python benchmarks/experiments/vma_recall.py --data mnist --data-dir FOLDER --slots 256 --steps 8000
"""

import argparse
import json
import math
import time
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import torch

from pyro_memory import VIMCO, SlotMemory, fit, importance_bound, information_gain
from pyro_memory.data import NAMES, load_images
from pyro_memory.guides import SoftAttentionVAEGuide, VMAGuide
from pyro_memory.models import VMA, SoftAttentionVAE


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = partial(parser.add_argument, metavar="N", type=int)
    parser.add_argument("--data", choices=NAMES, default="glyphs")
    parser.add_argument("--data-dir", metavar="DIR", help="folder with the official files (glyphs need none)")
    parser.add_argument("--out", metavar="DIR", type=Path, default=Path("out/recall"))
    add("--slots", default=64, help="images in memory (default 64)")
    add("--steps", default=800)
    add("--batch", default=64)
    add("--train-particles", default=4, help="K of VIMCO (default 4)")
    add("--channels", nargs="+", default=[16, 24, 32])
    add("--latent-dim", default=8)
    parser.add_argument("--learning-rate", metavar="X", type=float, default=2e-3)
    add("--seed", default=0)
    parser.add_argument("--soft-attention", action="store_true", help="train a soft-attention VAE beside it")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--fresh", action="store_true", help="start anew instead of resuming from --out")
    return parser.parse_args()


def train(name, model, guide, images, args):
    memory = SlotMemory(images)

    def batch(step):
        draw = torch.Generator().manual_seed(args.seed * 1_000_003 + step)
        return images[torch.randint(args.slots, (args.batch,), generator=draw)], memory

    def measure(step):
        gain = information_gain(model, guide, images, memory, draws=4, max_plate_nesting=1)
        bound = importance_bound(model, guide, images, memory, particles=10, max_plate_nesting=1)
        return {f"KL_{site}": gain[site].mean for site in gain.sites} | {"bound": bound.mean}

    print(f"\ntraining {name}: {args.steps} steps of {args.batch} images, {args.train_particles} particles")
    return fit(
        model, guide, batch, VIMCO(args.train_particles, max_plate_nesting=1), steps=args.steps,
        learning_rate=args.learning_rate, schedule=lambda step: 0.05 + 0.95 * (1 - step / args.steps),
        clip_norm=5000.0, evaluate=measure, evaluate_every=max(10, args.steps // 50), information_every=None,
        checkpoint=args.out / f"{name.replace(' ', '_').lower()}.safetensors", resume=not args.fresh, seed=args.seed,
        device=args.device,
    )  # fmt: skip


def print_table(name, rows):
    sites = [key for key in rows[-1] if key.startswith("KL_")]
    print(f"\n{name}, nats per image\n{'step':>7}{'bound':>12}" + "".join(f"{site:>9}" for site in sites))
    for row in rows[:: -max(1, len(rows) // 10)][::-1]:
        print(f"{row['step']:>7}{row['bound']:>12.3f}" + "".join(f"{row[site]:>9.3f}" for site in sites))


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
    start = time.perf_counter()
    args.out.mkdir(parents=True, exist_ok=True)
    data = load_images(args.data, "background", args.data_dir)
    if args.slots > len(data):
        raise SystemExit(f"--slots must be at most {len(data)}, the images of {args.data}; got {args.slots}")
    generator = torch.Generator().manual_seed(args.seed)
    images = data[torch.randperm(len(data), generator=generator)[: args.slots]].to(args.device)
    size = {"latent_dim": args.latent_dim, "channels": args.channels}
    classes = {"VMA": (VMA, VMAGuide)}
    if args.soft_attention:
        classes["soft attention"] = (SoftAttentionVAE, SoftAttentionVAEGuide)

    results = {}
    for name, pair in classes.items():
        torch.manual_seed(args.seed)
        results[name] = train(name, *(c.convolutional(data.shape, **size) for c in pair), images, args)

    ceiling = math.log(args.slots)
    curves = {name: result.history["evaluation"] for name, result in results.items()}
    print(f"\n{args.slots} images in memory, each target one of them; log {args.slots} = {ceiling:.3f} nats")
    for name, rows in curves.items():
        print_table(name, rows)
    last = curves["VMA"][-1]
    print(f"\nVMA's address carries {100 * last['KL_a'] / ceiling:.1f}% of log {args.slots}, z {last['KL_z']:.3f} nats")
    draw(curves, ceiling, args.slots, args.out / "recall.png")
    record = {
        "arguments": {k: v for k, v in vars(args).items() if k not in ("data_dir", "out", "fresh")},
        "log_slots": ceiling,
        "seconds": {name: result.seconds for name, result in results.items()},
        "history": curves,
    }
    (args.out / "results.json").write_text(json.dumps(record, indent=1))
    print(f"recall.png and results.json are in {args.out} ({time.perf_counter() - start:.0f} s)")


if __name__ == "__main__":
    main()
