"""Few-shot density estimation: what is a memory of a few examples worth, in nats?

Trains a VAE without memory and a VMA that reads one (8 random classes of 4 examples, new at every step) for equal
steps, then measures both on letters that neither has seen. With --base diffusion both draw images by a diffusion model
in place of z and a decoder. Writes results.json, checkpoints and figures to --out; run it again to go on from there.

    python benchmarks/experiments/vma_fewshot.py
    torchrun --nproc-per-node 2 benchmarks/experiments/vma_fewshot.py
    python benchmarks/experiments/vma_fewshot.py --data omniglot --data-dir FOLDER --steps 20000 --latent-dim 64
    python benchmarks/experiments/vma_fewshot.py --data omniglot --data-dir FOLDER --pretrained omniglot28
    python benchmarks/experiments/vma_fewshot.py --base diffusion --lookup vma-omniglot28 --steps 3000
"""

import argparse
import json
import os
import time
import zlib
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from fewshot_figures import (
    ALONE,
    draw_address_histogram,
    draw_bounds,
    draw_completion,
    draw_lookups,
    draw_samples,
    draw_training,
    kind,
)
from pyro.infer import Trace_ELBO
from tqdm import tqdm

from pyro_memory import (
    VIMCO,
    BoundEstimate,
    LeaveOneOutELBO,
    MemoryContribution,
    SlotMemory,
    fit,
    importance_bound,
    information_gain,
    load_pretrained,
    pretrained,
    save_pretrained,
    warm_cosine,
)
from pyro_memory.data import LICENCES, NAMES, FewShotTasks, load_images
from pyro_memory.guides import AddressedGuide, DiffusionBaseGuide, VAEGuide, VMAGuide
from pyro_memory.models import VAE, VMA, Addressed, DiffusionBase

# How weights are named, with NAME: of the model without memory and of the one with it.
FILES = {"vae": ("vae", "vma"), "diffusion": ("diffusion", "vma-diffusion")}
PROTOCOLS = {
    "vma": "VMA's: the target is never in memory",
    "gmn": "GMN's: slots are drawn with replacement, the target among them",
}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = partial(parser.add_argument, metavar="N", type=int)
    parser.add_argument("--base", choices=ALONE, default="vae", help="what draws an image (default vae)")
    parser.add_argument("--data", choices=NAMES, default="glyphs")
    parser.add_argument("--data-dir", metavar="DIR", help="folder with the official files (glyphs need none)")
    parser.add_argument("--out", metavar="DIR", type=Path, default=Path("out/fewshot"))
    add("--steps", default=800, help="training steps of each model (default 800)")
    add("--batch", default=32, help="targets a step (default 32)")
    add("--classes", nargs="+", default=[8], help="classes in memory while training, or the range of them (default 8)")
    add("--shots", nargs="+", default=[4], help="examples a class while training, likewise (default 4)")
    add("--train-particles", default=4, help="K of VIMCO (default 4; diffusion: 2 that share the noise, always)")
    parser.add_argument(
        "--turned", metavar="X", type=float, default=0.0, help="share of training tasks turned or mirrored (default 0)"
    )
    parser.add_argument(
        "--varied", metavar="X", type=float, default=0.0,
        help="share of training tasks whose images are each redrawn, as another hand might (default 0)",
    )  # fmt: skip
    add("--test-classes", nargs="+", default=[1, 2, 4], help="classes in memory in the table's rows (default 1 2 4)")
    add("--test-shots", nargs="+", default=[1, 2, 4, 8], help="examples a class in its columns (default 1 2 4 8)")
    parser.add_argument(
        "--protocol", choices=("vma", "gmn"), default="vma",
        help='of the test: "vma", a target is never in memory; "gmn", slots are drawn with replacement, a class each',
    )  # fmt: skip
    parser.add_argument(
        "--test-on", choices=("evaluation", "background"), default="evaluation",
        help="classes that training has not seen (default), or those that it has",
    )  # fmt: skip
    add("--curve", default=4, help="bounds of unseen classes on the way, 20 particles, diffusion 8 (default 4 of them)")
    add("--evaluate", default=128, help="test targets, shared by all rows (default 128)")
    add("--particles", default=100, help="K of the test bounds (default 100; diffusion: 8 is plenty of work)")
    add("--latent-dim", default=32)
    add("--channels", nargs="+", default=[16, 32, 48], help="maps at a half, a quarter, an eighth of the resolution")
    parser.add_argument("--learning-rate", metavar="X", type=float, default=2e-3)
    parser.add_argument(
        "--none-slot", action="store_true", help='give VMA a "none" slot and empty every eighth memory while training'
    )
    add("--seed", default=0)
    parser.add_argument("--lookup", metavar="NAME", help="hold the address of these weights; --base diffusion")
    parser.add_argument("--folder", metavar="DIR", help="where weights lie (default: the package's)")
    weights = parser.add_mutually_exclusive_group()
    both = "vae-NAME and vma-NAME (--base diffusion: diffusion-NAME and vma-diffusion-NAME)"
    weights.add_argument("--start", metavar="NAME", help=f"train on from the weights {both}")
    weights.add_argument("--pretrained", metavar="NAME", help=f"measure the weights {both}; train nothing")
    parser.add_argument("--name", help="of the weights that are left in --out/weights (default: the data's)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--fresh", action="store_true", help="start anew instead of resuming from --out")
    args = parser.parse_args()
    if max(len(args.classes), len(args.shots)) > 2:
        parser.error("--classes and --shots take a number, or the least and the most of a range")
    if args.lookup and (args.base == "vae" or args.start or args.pretrained):
        parser.error("--lookup is for a new model of --base diffusion; others have an address")
    if args.lookup and args.lookup not in (known := [n for n in pretrained() if n.startswith("vma")]):
        parser.error(f"--lookup must be one of {', '.join(known)}; got {args.lookup}")
    if args.base == "diffusion":  # nothing depends on these
        args.latent_dim = args.train_particles = None
    return args


def files(args):
    """How weights and checkpoints of the model without memory and of VMA are named."""
    return dict(zip((ALONE[args.base], "VMA"), FILES[args.base], strict=True))


def checkpoint(name, args):
    parts = [files(args)[name], f"from-{args.start}" if args.start else ""]
    parts.append(f"lookup-of-{args.lookup}" if args.lookup and name == "VMA" else "")
    return "-".join(filter(None, parts))


def train(name, model, guide, tasks, evaluation, args):
    print(f"\ntraining the {name}: {args.steps} steps of {args.batch} images")
    unseen = test_tasks(evaluation, 1, 4, args)
    particles = 20 if args.base == "vae" else 8

    def on_the_way(step):
        parts = []
        for i in range(len(unseen)):
            x, memory = (t.to(args.device) for t in unseen[i])
            parts.append(importance_bound(model, guide, x, memory, particles=particles, max_plate_nesting=1))
        return {"unseen": BoundEstimate.cat(parts).mean}

    if args.base == "vae":
        objective = VIMCO(args.train_particles, max_plate_nesting=1)
    elif name == "VMA" and not args.lookup:  # an address that learns is judged by particles that share the noise
        objective = LeaveOneOutELBO(2, max_plate_nesting=1)
    else:  # one noisy step an image is enough
        objective = Trace_ELBO(max_plate_nesting=1)

    return fit(
        model,
        guide,
        tasks,
        objective,
        steps=args.steps,
        learning_rate=args.learning_rate,
        schedule=warm_cosine(args.steps),
        clip_norm=5000.0,
        information_every=100 if args.base == "vae" else None,  # a path's KL costs as much as many steps
        checkpoint=args.out / f"{checkpoint(name, args)}.safetensors",
        resume=not args.fresh,
        seed=args.seed,
        device=args.device,
        evaluate=on_the_way,
        evaluate_every=max(1, args.steps // max(1, args.curve)),
    )


def begin(background, args):
    """The pairs to train or to measure, and how ``load_pretrained`` builds them again."""
    weights = args.pretrained or args.start
    if weights:
        names = {name: f"{file}-{weights}" for name, file in files(args).items()}
        folder = (args.folder,) if args.folder else ()
        pairs = {name: load_pretrained(file, *folder) for name, file in names.items()}
        if args.start:
            pairs = {name: tuple(part.train() for part in pair) for name, pair in pairs.items()}
        build = {name: pretrained(*folder)[file].build for name, file in names.items()}
        size = build["VMA"]["model"][1]  # of the record: what was built, not what was asked for
        args.none_slot = size["none_slot"]
        size = size["base"]["build"][1] if args.base == "diffusion" else size
        args.channels, args.latent_dim = size["channels"], size.get("latent_dim")
        return pairs, build
    torch.manual_seed(args.seed)
    return (begin_vae if args.base == "vae" else begin_diffusion)(background.shape, args)


def begin_vae(shape, args):
    size = {"shape": list(shape), "latent_dim": args.latent_dim, "channels": args.channels}
    sizes = {"VAE": size, "VMA": size | {"none_slot": args.none_slot}}
    classes = {"VAE": (VAE, VAEGuide), "VMA": (VMA, VMAGuide)}
    build = {
        name: {"model": (f"{name}.convolutional", sizes[name]), "guide": (f"{name}Guide.convolutional", sizes[name])}
        for name in classes
    }
    return {name: tuple(c.convolutional(**sizes[name]) for c in pair) for name, pair in classes.items()}, build


def begin_diffusion(shape, args):
    size = {"shape": list(shape), "channels": args.channels}
    reading, none_slot = size | {"reads": True}, {"none_slot": args.none_slot}
    embedding = dict(size)
    if args.lookup:
        embedding["channels"] = pretrained()[args.lookup].build["guide"][1]["channels"]
    guide = AddressedGuide.convolutional(base=DiffusionBaseGuide(), **embedding, **none_slot)
    if args.lookup:
        guide.address.load_state_dict(load_pretrained(args.lookup)[1].address.state_dict())
        guide.address.requires_grad_(False)  # left to learn beside noisy steps, it sharpens until it is one slot
    pairs = {
        "diffusion": (DiffusionBase(**size), DiffusionBaseGuide()),
        "VMA": (Addressed(DiffusionBase(**reading), **none_slot), guide),
    }
    base_guide = ["DiffusionBaseGuide", {}]
    build = {
        "diffusion": {"model": ["DiffusionBase", size], "guide": base_guide},
        "VMA": {
            "model": ["Addressed", {"base": {"build": ["DiffusionBase", reading]}, **none_slot}],
            "guide": ["AddressedGuide.convolutional", {"base": {"build": base_guide}, **embedding, **none_slot}],
        },
    }
    return pairs, build


def leave_weights(pairs, build, results, numbers, args):
    """Weights in half precision with a card each, ready for ``load_pretrained``."""
    for name, pair in pairs.items():
        trained = f"{results[name].steps} steps of {args.batch} images, seed {args.seed}"
        if args.base == "vae":
            trained += f", K = {args.train_particles}"
        elif args.lookup and name == "VMA":
            trained += f", the address that of {args.lookup}, held"
        if args.start:
            trained += f", from the weights of the {name} of {args.start} on"
        if args.turned:
            trained += f", {args.turned:.0%} of the tasks turned or mirrored"
        if args.varied:
            trained += f", {args.varied:.0%} redrawn as another hand might"
        facts = {
            "about": f"{name}{' over a diffusion model' if name == 'VMA' and args.base != 'vae' else ''} trained on "
            f"{args.data}",
            "data": f"{args.data}, background classes; measured on {args.test_on} classes",
            "licence": LICENCES[args.data],
            "protocol": f"{PROTOCOLS[args.protocol]}; {args.evaluate} targets, K = {args.particles}",
            "numbers": numbers[name],
            "training": trained,
        }
        file = f"{files(args)[name]}-{args.name or args.data}"
        card = save_pretrained(file, *pair, build=build[name], facts=facts, folder=args.out / "weights")
        print(f"\n{card}" if args.name else f"weights of the {name}: {args.out / 'weights' / file}.safetensors")


def slope_by_classes(table, shots, args):
    """Mean and standard error, over images, of the least-squares slope of the bound against ln C."""
    bounds = torch.stack([table[c, shots].bound for c in args.test_classes]).double()
    along = torch.tensor(args.test_classes).double().log()
    along = along - along.mean()
    each = along @ (bounds - bounds.mean(0)) / along.square().sum()
    return each.mean().item(), (each.std() / len(each) ** 0.5).item()


class SometimesEmpty:
    """Tasks of which every eighth has an empty memory, so that a model with a "none" slot learns to do without."""

    def __init__(self, tasks):
        self.tasks = tasks

    def __getitem__(self, step):
        x, memory = self.tasks[step]
        return x, SlotMemory.empty(memory.event_shape) if step % 8 == 7 else memory


def test_tasks(data, classes, shots, args):
    """The same targets in every row; each with a memory of its own: its class and others."""
    generator = torch.Generator().manual_seed(args.seed)
    targets = torch.randperm(len(data), generator=generator)[: args.evaluate]
    return FewShotTasks(
        data, classes=classes, shots=shots, targets=8, per_target=True, seed=args.seed, target_indices=targets,
        protocol=args.protocol,
    )  # fmt: skip


def bound(name, model, guide, tasks, args, wrong=False):
    """The bound of each target; kept in --out, so that a long table goes on where it was cut off."""
    what = (
        "base", "lookup", "pretrained", "folder", "start", "steps", "data", "test_on", "evaluate", "particles", "seed",
        "protocol",
    )  # fmt: skip
    key = zlib.crc32(repr([str(getattr(args, k)) for k in what]).encode())
    path = args.out / "cells" / f"{name.lower().replace(' ', '-')}-{key:08x}.pt"
    if path.exists() and not args.fresh:
        return BoundEstimate(**torch.load(path), particles=args.particles)
    torch.manual_seed(args.seed)
    parts = []
    for i in tqdm(range(len(tasks)), desc=name, leave=False):
        x, memory = tasks[i]
        memory = tasks.wrong_classes(i) if wrong else memory
        x, memory = x.to(args.device), memory.to(args.device)
        parts.append(
            importance_bound(model, guide, x, memory, particles=args.particles, chunk_size=125, max_plate_nesting=1)
        )
    estimate = BoundEstimate.cat(parts)
    path.parent.mkdir(exist_ok=True)
    torch.save({"bound": estimate.bound, "effective_particles": estimate.effective_particles}, path)
    return estimate


def print_table(alone, table, args):
    print(f"\nlog p(x | memory) >=, nats per image, {len(alone.bound)} images of {kind(args)} classes (standard error)")
    print(f"  {f'{ALONE[args.base]}, no memory':<24}{alone.mean:>9.2f} ({alone.se:.2f})")
    print("  VMA, examples a class   " + "".join(f"{shots:>16}" for shots in args.test_shots))
    for classes in args.test_classes:
        row = "".join(f"{e.mean:>9.2f} ({e.se:.2f})" for e in (table[classes, shots] for shots in args.test_shots))
        print(f"    {classes} {'class  ' if classes == 1 else 'classes'} in memory   {row}")


def main():
    args = arguments()
    start = time.perf_counter()
    args.out.mkdir(parents=True, exist_ok=True)
    print(f"loading {args.data}")
    background, evaluation = (load_images(args.data, split, args.data_dir) for split in ("background", args.test_on))
    print(f"  train on {background}\n  test on  {evaluation}")
    tasks = FewShotTasks(
        background,
        classes=(args.classes[0], args.classes[-1]),
        shots=(args.shots[0], args.shots[-1]),
        targets=args.batch,
        seed=args.seed,
        turned=args.turned,
        varied=args.varied,
    )
    for classes in args.test_classes:  # what cannot be measured is refused before training
        for shots in args.test_shots:
            test_tasks(evaluation, classes, shots, args)
    pairs, build = begin(background, args)
    pairs = {name: tuple(part.to(args.device) for part in pair) for name, pair in pairs.items()}
    batches = SometimesEmpty(tasks) if args.none_slot else tasks
    results = {
        name: train(name, *pair, batches, evaluation, args) for name, pair in pairs.items() if not args.pretrained
    }
    if int(os.environ.get("RANK", "0")) > 0:  # under torchrun the first process measures
        return
    for model, guide in pairs.values():
        model.eval(), guide.eval()

    print("\nmeasuring")
    torch.manual_seed(args.seed)
    name = ALONE[args.base]
    alone = bound(name, *pairs[name], test_tasks(evaluation, 1, 1, args), args)
    table = {
        (c, s): bound(f"VMA {c}x{s}", *pairs["VMA"], test_tasks(evaluation, c, s, args), args)
        for c in args.test_classes
        for s in args.test_shots
    }
    print_table(alone, table, args)
    slopes = {}
    if len(args.test_classes) > 2:
        slopes = {s: slope_by_classes(table, s, args) for s in args.test_shots}
        for shots, (slope, se) in slopes.items():
            print(f"  {shots} examples a class: {slope:.2f} ({se:.2f}) nats for each factor of e in classes")
    given = bound("VMA 1x4", *pairs["VMA"], test_tasks(evaluation, 1, 4, args), args)
    wrong = bound("VMA 1x4 wrong", *pairs["VMA"], test_tasks(evaluation, 1, 4, args), args, wrong=True)
    contribution = MemoryContribution(given, {f"{name}, no memory": alone, "wrong classes": wrong})
    print(f"\nVMA with 4 examples of the target's class\n{contribution}")
    shared = FewShotTasks(evaluation, classes=8, shots=4, targets=128 if args.evaluate >= 128 else 32, seed=args.seed)
    x, memory = (t.to(args.device) for t in shared[0])
    gain = information_gain(*pairs["VMA"], x, memory, draws=10 if args.base == "vae" else 2)
    print(f"\none memory of 8 {kind(args)} classes, 4 examples each\n{gain}")

    if not args.pretrained:
        cells = {
            f"{c} class{'es' * (c > 1)}, {n} shot{'s' * (n > 1)}": f"{e.mean:.2f} ({e.se:.2f})"
            for (c, n), e in table.items()
        }
        numbers = {name: {"log p(x) >=": f"{alone.mean:.2f} ({alone.se:.2f})"}, "VMA": cells}
        leave_weights(pairs, build, results, numbers, args)

    fig, axes = plt.subplots(2, 2, figsize=(12, 8), layout="constrained")
    if results:
        draw_training(results, args.batch, axes[0, 0])
    else:
        contribution.plot(axes[0, 0])
    draw_bounds(alone, table, args, axes[0, 1])
    draw_address_histogram(*pairs["VMA"], evaluation, args, axes[1, 0])
    gain.plot(axes[1, 1]).set_title("Information gain per site")
    fig.savefig(args.out / "summary.png", dpi=120)
    fig, ax = plt.subplots(figsize=(6, 2.2), layout="constrained")
    contribution.plot(ax)
    fig.savefig(args.out / "contribution.png", dpi=120)
    draw_lookups(*pairs["VMA"], evaluation, args, args.out / "lookups.png")
    draw_samples(pairs["VMA"][0], evaluation, args, args.out / "samples.png")
    if args.base == "vae":
        draw_completion(*pairs["VMA"], evaluation, args, args.out / "completion.png")
    unused = {"data_dir", "out", "fresh", "name", "folder"}
    if args.pretrained:
        unused |= {
            "steps", "batch", "classes", "shots", "train_particles", "turned", "varied", "curve", "learning_rate",
        }  # fmt: skip
    record = {
        "arguments": {k: v for k, v in vars(args).items() if k not in unused},
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "training_seconds": {name: r.seconds for name, r in results.items()},
        "curves": {name: r.history["evaluation"] for name, r in results.items()},
        "alone": alone.to_dict(),
        "vma": [{"classes": c, "shots": s, **e.to_dict()} for (c, s), e in table.items()],
        "slopes": slopes,
        "contribution": contribution.to_dict(),
        "information": gain.to_dict(),
    }
    (args.out / "results.json").write_text(json.dumps(record, indent=1))
    print(f"\nfigures and results.json are in {args.out} ({time.perf_counter() - start:.0f} s)")


if __name__ == "__main__":
    main()
