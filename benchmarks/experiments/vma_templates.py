"""Learned templates: how much is an image's nearest template worth, by the number of templates?

No examples are given here: the memory's contents are parameters, trained with the rest from random training images on,
and the address turns the prior over z into a mixture of as many components as there are slots (Bornschein et al., 2017,
section 4.2, https://arxiv.org/abs/1709.07116). Trains a VAE without memory and a VMA for each number of slots, for
equal steps; measures other images; draws the bounds, what the address carries, and the most used templates, decoded.
Writes results.json and templates.png to --out; run it again to go on from there.

    python benchmarks/experiments/vma_templates.py
    python benchmarks/experiments/vma_templates.py --data mnist --data-dir FOLDER --slots 32 256 2048 --steps 4000
"""

import math

import matplotlib.pyplot as plt
import torch
from study import leave, options, train
from tables_images import templates

import pyro_memory as pm
from pyro_memory.data import load_images
from pyro_memory.diagnostics import plot_images
from pyro_memory.guides import VAEGuide, VMAGuide
from pyro_memory.models import VAE, VMA


def arguments():
    return options(
        __doc__, "out/templates",
        slots=([32, 256, 2048], "templates, one model for each number"), steps=(1000, "training steps of each model"),
        evaluate=(500, "images kept from training and measured"), particles=(100, "K of the bounds"),
    ).parse_args()  # fmt: skip


def pair(slots, images, args):
    """A VMA with so many templates, or a VAE for none."""
    shape = images.shape[1:]
    size = {"latent_dim": 16, "channels": [16, 32, 48]}
    torch.manual_seed(args.seed)
    if not slots:
        return VAE.convolutional(shape, **size), VAEGuide.convolutional(shape, **size)
    learned = pm.TemplateMemory(slots, shape, init=images[:slots])
    model = VMA.convolutional(shape, templates=learned, **size)
    guide = VMAGuide.convolutional(shape, templates=learned, **size)
    guide.address = VMAGuide.mlp(shape, matching_dim=32).address  # small: it embeds every template at each step
    return model, guide


def measure(model, guide, x, args):
    torch.manual_seed(args.seed)
    few = {"particles": args.particles, "max_plate_nesting": 1}
    bound = pm.BoundEstimate.cat([pm.importance_bound(model, guide, part, **few) for part in x.split(50)])
    return bound, pm.information_gain(model, guide, x, draws=4, max_plate_nesting=1)


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
    args = arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    data = load_images(args.data, "background", args.data_dir)
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(args.seed))
    x, images = data[order[: args.evaluate]], data[order[args.evaluate :]]
    print(f"{data}, {len(x)} of them kept from training")
    rows, pictures, vae = [], {}, None

    def batch(step):
        draw = torch.Generator().manual_seed(args.seed * 1_000_003 + step)
        return images[torch.randint(len(images), (64,), generator=draw)], None

    for slots in (0, *args.slots):
        name = f"{slots} templates" if slots else "no memory"
        model, guide = pair(slots, images, args)
        print(f"\ntraining with {name}: {args.steps} steps of 64 images", flush=True)
        objective = pm.VIMCO(4, max_plate_nesting=1)
        result = train(name.replace(" ", "_"), model, guide, batch, objective, args, learning_rate=2e-3)
        bound, info = measure(model, guide, x, args)
        vae = bound if vae is None else vae
        gain, gain_se = pm.MemoryContribution(bound, {"VAE": vae}).gain("VAE")
        row = {"slots": slots, **bound.to_dict(), "gain": gain, "gain_se": gain_se}
        row |= {"kl_z": info["z"].mean, "seconds": result.seconds}
        if slots:
            use = info.addresses["a"]
            row |= {"kl_a": info["a"].mean, "unused": int(use.dead.sum()), "effective_slots": use.effective_slots}
            pictures[slots] = most_used(model, guide, x)
        rows.append(row)
    draw(rows, pictures, args.out / "templates.png")
    leave({"rows": rows}, args, templates)


if __name__ == "__main__":
    main()
