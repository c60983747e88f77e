"""Learned templates: how much is an image's nearest template worth, by the number of templates?

No examples are given here: the memory's contents are parameters, trained with the rest from random training images on,
and the address turns the prior over z into a mixture of as many components as there are slots (Bornschein et al., 2017,
section 4.2, https://arxiv.org/abs/1709.07116). Trains a VAE without memory and a VMA for each number of slots, for
equal steps; measures other images; draws the bounds, what the address carries, and the most used templates, decoded.
Writes results.json and templates.png to --out; run it again to go on from there.

    python benchmarks/experiments/vma_templates.py
    python benchmarks/experiments/vma_templates.py --data mnist --data-dir FOLDER --slots 32 256 2048 --steps 4000
"""

import argparse
import json
import math
import time
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import torch

from pyro_memory import (
    VIMCO,
    BoundEstimate,
    MemoryContribution,
    TemplateMemory,
    fit,
    importance_bound,
    information_gain,
    warm_cosine,
)
from pyro_memory.data import NAMES, load_images
from pyro_memory.diagnostics import plot_images
from pyro_memory.guides import VAEGuide, VMAGuide
from pyro_memory.models import VAE, VMA


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = partial(parser.add_argument, metavar="N", type=int)
    parser.add_argument("--data", choices=NAMES, default="glyphs")
    parser.add_argument("--data-dir", metavar="DIR", help="folder with the official files (glyphs need none)")
    parser.add_argument("--out", metavar="DIR", type=Path, default=Path("out/templates"))
    add(
        "--slots", nargs="+", default=[32, 256, 2048], help="templates, one model for each number (default 32 256 2048)"
    )
    add("--steps", default=1000)
    add("--batch", default=64)
    parser.add_argument("--start", choices=("images", "noise"), default="images", help="what templates are at first")
    add("--evaluate", default=500, help="images kept from training and measured (default 500)")
    add("--particles", default=100, help="K of the bounds (default 100)")
    add("--latent-dim", default=16)
    add("--channels", nargs="+", default=[16, 32, 48])
    parser.add_argument("--learning-rate", metavar="X", type=float, default=2e-3)
    add("--seed", default=0)
    parser.add_argument("--fresh", action="store_true", help="start anew instead of resuming from --out")
    return parser.parse_args()


def pair(slots, images, args):
    """A VMA with so many templates, or a VAE for none."""
    shape = images.shape[1:]
    size = {"latent_dim": args.latent_dim, "channels": args.channels}
    torch.manual_seed(args.seed)
    if not slots:
        return VAE.convolutional(shape, **size), VAEGuide.convolutional(shape, **size)
    templates = TemplateMemory(slots, shape, init=images[:slots] if args.start == "images" else None)
    model = VMA.convolutional(shape, templates=templates, **size)
    guide = VMAGuide.convolutional(shape, templates=templates, **size)
    guide.address = VMAGuide.mlp(shape, matching_dim=32).address  # small: it embeds every template at each step
    return model, guide


def train(name, model, guide, images, args):
    def batch(step):
        draw = torch.Generator().manual_seed(args.seed * 1_000_003 + step)
        return images[torch.randint(len(images), (args.batch,), generator=draw)], None

    print(f"\ntraining with {name}: {args.steps} steps of {args.batch} images", flush=True)
    path = args.out / f"{name.replace(' ', '_')}.safetensors"
    result = fit(
        model, guide, batch, VIMCO(4, max_plate_nesting=1), steps=args.steps, learning_rate=args.learning_rate,
        schedule=warm_cosine(args.steps), clip_norm=5000.0, checkpoint=path,
        resume=not args.fresh, seed=args.seed,
    )  # fmt: skip
    model.eval(), guide.eval()
    return result.seconds


def measure(model, guide, x, args):
    torch.manual_seed(args.seed)
    bound = BoundEstimate.cat(
        [importance_bound(model, guide, part, particles=args.particles, max_plate_nesting=1) for part in x.split(50)]
    )
    return bound, information_gain(model, guide, x, draws=4, max_plate_nesting=1)


@torch.no_grad()
def most_used(model, guide, x, count=16):
    """The templates that these images look up most, each decoded at the mean of its p(z | m)."""
    memory = model.templates()
    content = model.content(memory.values[guide.a_dist(x, memory).probs.mean(0).topk(min(count, memory.slots)).indices])
    return model.x_dist(model.z_dist(content).mean, content).mean


def draw(rows, pictures, path):
    fig, axes = plt.subplots(1, 3, figsize=(14, 3.8), layout="constrained", width_ratios=[1, 1, 1.4])
    vae, own = rows[0], rows[1:]
    slots = [row["slots"] for row in own]
    axes[0].errorbar(slots, [r["gain"] for r in own], [2 * r["gain_se"] for r in own], marker="o", capsize=3)
    axes[0].axhline(0, color="0.5", linestyle="--", label=f"VAE, {vae['mean']:.1f}")
    axes[0].set(ylabel="nats per image over the VAE", title="What templates give (two standard errors)")
    for key, label in (("kl_a", "address"), ("kl_z", "z")):
        axes[1].plot(slots, [row[key] for row in own], marker="o", label=label)
    axes[1].plot(slots, [math.log(n) for n in slots], color="0.5", linestyle=":", label="log slots")
    axes[1].axhline(vae["kl_z"], color="C1", linestyle="--", label="z of the VAE")
    axes[1].set(ylabel="nats per image", title="What the latents carry")
    for ax in axes[:2]:
        ax.set_xscale("log", base=2)
        ax.set_xticks(slots, map(str, slots))
        ax.minorticks_off()
        ax.set_xlabel("templates")
        ax.legend(frameon=False, loc="upper left" if ax is axes[0] else "center left")
    plot_images(list(pictures.values()), [f"{n} slots" for n in pictures], ax=axes[2])
    axes[2].set_title("The most used templates, decoded")
    fig.savefig(path, dpi=120)


def main():
    args, start = arguments(), time.perf_counter()
    args.out.mkdir(parents=True, exist_ok=True)
    data = load_images(args.data, "background", args.data_dir)
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(args.seed))
    x, images = data[order[: args.evaluate]], data[order[args.evaluate :]]
    print(f"{data}, {len(x)} of them kept from training")
    rows, pictures, vae = [], {}, None
    for slots in (0, *args.slots):
        name = f"{slots} templates" if slots else "no memory"
        model, guide = pair(slots, images, args)
        seconds = train(name, model, guide, images, args)
        bound, info = measure(model, guide, x, args)
        vae = bound if vae is None else vae
        gain, gain_se = MemoryContribution(bound, {"VAE": vae}).gain("VAE")
        row = {"slots": slots, **bound.to_dict(), "gain": gain, "gain_se": gain_se}
        row |= {"kl_z": info["z"].mean, "seconds": seconds}
        if slots:
            use = info.addresses["a"]
            row |= {"kl_a": info["a"].mean, "unused": int(use.dead.sum()), "effective_slots": use.effective_slots}
            pictures[slots] = most_used(model, guide, x)
        rows.append(row)
    print(f"\nlog p(x) >=, nats per image, {len(x)} images kept from training, K = {args.particles}")
    head = f"{'templates':>10}{'bound':>10}{'se':>7}{'over VAE':>10}{'se':>7}{'KL_a':>8}{'log M':>7}"
    print(f"{head}{'KL_z':>8}{'unused':>8}")
    for r in rows:
        lookup = f"{r['kl_a']:>8.2f}{math.log(r['slots']):>7.2f}" if r["slots"] else f"{'-':>8}{'-':>7}"
        print(
            f"{r['slots']:>10}{r['mean']:>10.2f}{r['se']:>7.2f}{r['gain']:>10.2f}{r['gain_se']:>7.2f}{lookup}"
            f"{r['kl_z']:>8.2f}{r.get('unused', '-'):>8}"
        )
    draw(rows, pictures, args.out / "templates.png")
    settings = {k: v for k, v in vars(args).items() if k not in ("data_dir", "out", "fresh")}
    record = {"settings": settings, "rows": rows, "torch": torch.__version__, "threads": torch.get_num_threads()}
    (args.out / "results.json").write_text(json.dumps(record, indent=1))
    print(f"\ntemplates.png and results.json are in {args.out} ({time.perf_counter() - start:.0f} s)")


if __name__ == "__main__":
    main()
