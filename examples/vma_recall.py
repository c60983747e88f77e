"""Train to recall: with the targets in memory, does the lookup carry everything?

The memory holds fixed images and each target is one of them. A model that uses its address perfectly pays log M nats
for it and nothing else: KL_a climbs to log M, KL_z falls to 0 and the bound ends at -log M (Bornschein et al., 2017,
section 4.1, https://arxiv.org/abs/1709.07116). Draws both over steps.

    python examples/vma_recall.py
    python examples/vma_recall.py --data mnist --data-dir FOLDER --slots 256 --steps 8000
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
from pyro_memory.guides import VMAGuide
from pyro_memory.models import VMA


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
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--fresh", action="store_true", help="start anew instead of resuming from --out")
    return parser.parse_args()


def main():
    args = arguments()
    start = time.perf_counter()
    args.out.mkdir(parents=True, exist_ok=True)
    data = load_images(args.data, "background", args.data_dir)
    if args.slots > len(data):
        raise SystemExit(f"--slots must be at most {len(data)}, the images of {args.data}; got {args.slots}")
    generator = torch.Generator().manual_seed(args.seed)
    images = data[torch.randperm(len(data), generator=generator)[: args.slots]].to(args.device)
    memory = SlotMemory(images)

    def batch(step):
        draw = torch.Generator().manual_seed(args.seed * 1_000_003 + step)
        return images[torch.randint(args.slots, (args.batch,), generator=draw)], memory

    torch.manual_seed(args.seed)
    size = {"latent_dim": args.latent_dim, "channels": args.channels}
    model, guide = VMA.convolutional(data.shape, **size), VMAGuide.convolutional(data.shape, **size)

    def measure(step):
        gain = information_gain(model, guide, images, memory, draws=4, max_plate_nesting=1)
        bound = importance_bound(model, guide, images, memory, particles=10, max_plate_nesting=1)
        return {"KL_a": gain["a"].mean, "KL_z": gain["z"].mean, "bound": bound.mean}

    result = fit(
        model, guide, batch, VIMCO(args.train_particles, max_plate_nesting=1), steps=args.steps,
        learning_rate=args.learning_rate, schedule=lambda step: 0.05 + 0.95 * (1 - step / args.steps),
        clip_norm=5000.0, evaluate=measure, evaluate_every=max(1, args.steps // 80), information_every=None,
        checkpoint=args.out / "vma.safetensors", resume=not args.fresh, seed=args.seed, device=args.device,
    )  # fmt: skip

    rows, ceiling = result.history["evaluation"], math.log(args.slots)
    print(f"\n{args.slots} images in memory, each target one of them; log {args.slots} = {ceiling:.3f} nats")
    print(f"{'step':>7}{'bound':>12}{'KL_a':>9}{'KL_z':>9}   nats")
    for row in rows[:: -max(1, len(rows) // 10)][::-1]:
        print(f"{row['step']:>7}{row['bound']:>12.3f}{row['KL_a']:>9.3f}{row['KL_z']:>9.3f}")
    share = 100 * rows[-1]["KL_a"] / ceiling
    print(f"\nat the end KL_a is {share:.1f}% of log {args.slots}, KL_z {rows[-1]['KL_z']:.3f} nats")

    steps = [row["step"] for row in rows]
    fig, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    left.plot(steps, [row["KL_a"] for row in rows], label="KL of the address")
    left.plot(steps, [row["KL_z"] for row in rows], label="KL of the code z")
    left.axhline(ceiling, color="0.5", linestyle="--", label=f"log {args.slots}")
    left.set(xlabel="step", ylabel="nats per image", title="What the lookup and the code carry")
    right.plot(steps, [row["bound"] for row in rows], label="log p(x | memory) >=")
    right.axhline(-ceiling, color="0.5", linestyle="--", label=f"-log {args.slots}: a perfect look-up table")
    right.set(xlabel="step", ylabel="nats per image", title="Bound")
    for ax in (left, right):
        ax.set_xscale("log")  # the address is learned within the first steps
        ax.legend(frameon=False)
    fig.savefig(args.out / "recall.png", dpi=120)
    record = {
        "arguments": {k: v for k, v in vars(args).items() if k not in ("data_dir", "out", "fresh")},
        "log_slots": ceiling,
        "seconds": result.seconds,
        "history": rows,
    }
    (args.out / "results.json").write_text(json.dumps(record, indent=1))
    print(f"recall.png and results.json are in {args.out} ({time.perf_counter() - start:.0f} s)")


if __name__ == "__main__":
    main()
