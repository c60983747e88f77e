"""Few-shot density estimation: what is a memory of a few examples worth, in nats?

Trains a VAE without memory and a VMA that reads one (8 random classes of 4 examples, new at every step) for equal
steps, then measures both on letters that neither has seen. With --base diffusion or autoregressive both draw images by
such a model in place of z and a decoder; the second has an exact likelihood, and log p(x | memory) is no bound then.
Writes results.json, checkpoints and figures to --out; run it again to go on from there.

    python benchmarks/experiments/vma_fewshot.py
    torchrun --nproc-per-node 2 benchmarks/experiments/vma_fewshot.py
    python benchmarks/experiments/vma_fewshot.py --data omniglot --data-dir FOLDER --steps 20000 --latent-dim 64
    python benchmarks/experiments/vma_fewshot.py --data omniglot --data-dir FOLDER --pretrained omniglot28
    python benchmarks/experiments/vma_fewshot.py --base diffusion --lookup vma-omniglot28 --steps 3000
    python benchmarks/experiments/vma_fewshot.py --base autoregressive --shots 1 19 --unread 0.1 --address enumerated
"""

import os

import fewshot_figures as figures
import fewshot_measure as measured
import matplotlib.pyplot as plt
import study
import torch
from fewshot_pairs import ALONE, PARTICLES, PROTOCOLS, begin, checkpoint, leave_weights
from pyro.infer import Trace_ELBO, TraceEnum_ELBO
from tables_images import few_shot, many_classes

import pyro_memory as pm
from pyro_memory.data import FewShotTasks, load_images

# What nothing depends on where nothing is trained.
TRAINING = {
    "steps", "batch", "classes", "shots", "sizes", "own_memory", "recalled", "turned", "varied", "curve",
    "learning_rate", "address", "reads", "maps", "layers", "looks", "unread",
}  # fmt: skip


def arguments():
    both = "vae-NAME and vma-NAME (--base diffusion: diffusion-NAME and vma-diffusion-NAME)"
    parser = study.options(
        __doc__, "out/fewshot", device=True,
        base=(tuple(ALONE), "what draws an image"), steps=(800, "training steps of each model"),
        batch=(32, "targets a step"), classes=([8], "classes in memory while training, or the range of them"),
        shots=([4], "examples a class while training, likewise"),
        sizes=(("uniform", "log-uniform"), "how numbers of these ranges are drawn"),
        own_memory=(False, "in training each target has a memory of its own, as in the test"),
        recalled=(0.0, "share of training targets that are in memory themselves"),
        turned=(0.0, "share of training tasks turned or mirrored"),
        varied=(0.0, "share of training tasks whose images are each redrawn, as another hand might"),
        test_classes=([1, 2, 4], "classes in memory in the table's rows"),
        test_shots=([1, 2, 4, 8], "examples a class in its columns"),
        protocol=(tuple(PROTOCOLS), 'of the test: "vma", a target is never in memory; "gmn", slots with replacement'),
        test_on=(("evaluation", "background"), "classes that training has not seen, or those that it has"),
        curve=(4, "bounds of unseen classes on the way, 20 particles, diffusion 8"),
        evaluate=(128, "test targets, shared by all rows"),
        particles=(100, "K of the test bounds; diffusion: 8 is plenty of work"), latent_dim=(32, "of z"),
        channels=([16, 32, 48], "maps at a half, a quarter, an eighth of the resolution"),
        learning_rate=(2e-3, "at its highest"),
        lookup=(None, "hold the address of these weights; not --base vae"), folder=(None, "where weights lie"),
        address=(("sampled", "enumerated", "held"), "taught by VIMCO, by a pass for every slot, or not at all"),
        reads=(PARTICLES, "slots that VIMCO reads an image; --base autoregressive"),
        maps=(32, "features of a place; --base autoregressive"),
        layers=([2, 4], "layers that see the image alone, and that are told the slot too; --base autoregressive"),
        looks=(2, "times that a place looks at the slot by attention; --base autoregressive"),
        unread=(0.0, "share of training images that are told nothing, in place of a model without memory; likewise"),
        start=(None, f"train on from the weights {both}"),
        pretrained=(None, f"measure the weights {both}; train nothing"),
        sets=(0, "measure sets of so many drawings as a whole too, each given those before it; 0 does not"),
        classifier_steps=(0, "train a classifier so long, to judge drawn images in its features; 0 does not"),
        guidance=([0.0], "how far to guide drawn images; each is judged, the last shown; needs --unread above 0"),
        name=(None, "of the weights that are left in --out/weights (default: the data's)"),
    )  # fmt: skip
    args = parser.parse_args()
    if max(len(args.classes), len(args.shots)) > 2:
        parser.error("--classes and --shots take a number, or the least and the most of a range")
    if args.start and args.pretrained:
        parser.error("--start trains on and --pretrained trains nothing; take one")
    if args.lookup and (args.base == "vae" or args.start or args.pretrained):
        parser.error("--lookup is for a new model of --base diffusion; others have an address")
    if args.lookup and args.lookup not in (known := [n for n in pm.pretrained() if n.startswith("vma")]):
        parser.error(f"--lookup must be one of {', '.join(known)}; got {args.lookup}")
    if args.address == "held" and not (args.lookup or args.start):
        parser.error("--address held needs one that was taught: --lookup or --start")
    if args.lookup:
        args.address = "held"
    if args.base != "vae":  # nothing depends on it
        args.latent_dim = None
    if args.base != "autoregressive":
        args.guidance = None
    elif min(args.guidance) < 0 or (any(args.guidance) and not (args.unread or args.start or args.pretrained)):
        parser.error("--guidance must be 0 or more, and above 0 needs a model that knows p(x) as well: --unread 0.1")
    return args


def objective_of(name, args):
    if args.base == "vae":
        return pm.VIMCO(PARTICLES, max_plate_nesting=1)
    if name != "VMA" or args.address == "held":  # one noisy step an image is enough, or one slot that is read
        return Trace_ELBO(max_plate_nesting=1)
    if args.address == "enumerated":
        return TraceEnum_ELBO(max_plate_nesting=1)
    if args.base == "diffusion":  # an address that learns is judged by particles that share the noise
        return pm.LeaveOneOutELBO(2, max_plate_nesting=1)
    return pm.VIMCO(args.reads, max_plate_nesting=1)


def train(name, model, guide, tasks, evaluation, args):
    print(f"\ntraining the {name}: {args.steps} steps of {args.batch} images")
    unseen = measured.test_tasks(evaluation, 1, 4, args)
    particles = 20 if args.base == "vae" else 8

    def on_the_way(step):
        parts = []
        for i in range(len(unseen)):
            x, memory = (t.to(args.device) for t in unseen[i])
            parts.append(measured.lower_bound(model, guide, x, memory, particles=particles))
        return {"unseen": pm.BoundEstimate.cat(parts).mean}

    return study.train(
        checkpoint(name, args), model, guide, tasks, objective_of(name, args), args,
        information_every=100 if args.base == "vae" else None,  # a path's KL costs as much as many steps
        evaluate=on_the_way, evaluate_every=max(1, args.steps // max(1, args.curve)),
    )  # fmt: skip


def main():
    args = arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    print(f"loading {args.data}")
    background, evaluation = (load_images(args.data, split, args.data_dir) for split in ("background", args.test_on))
    print(f"  train on {background}\n  test on  {evaluation}")
    tasks = FewShotTasks(
        background, classes=(args.classes[0], args.classes[-1]), shots=(args.shots[0], args.shots[-1]),
        targets=args.batch, seed=args.seed, turned=args.turned, varied=args.varied, recalled=args.recalled,
        sizes=args.sizes, per_target=args.own_memory,
    )  # fmt: skip
    for classes in args.test_classes:  # what cannot be measured is refused before training
        for shots in args.test_shots:
            measured.test_tasks(evaluation, classes, shots, args)
    pairs, build = begin(background, args)
    pairs = {name: tuple(part.to(args.device) for part in pair) for name, pair in pairs.items()}
    trained = {} if args.pretrained else {name: pair for name, pair in pairs.items() if name in build}
    results = {name: train(name, *pair, tasks, evaluation, args) for name, pair in trained.items()}
    if int(os.environ.get("RANK", "0")) > 0:  # under torchrun the first process measures
        return

    print("\nmeasuring")
    torch.manual_seed(args.seed)
    name = ALONE[args.base]
    alone = measured.bound(name, *pairs[name], measured.test_tasks(evaluation, 1, 1, args), args)
    table = {
        (c, s): measured.bound(f"VMA {c}x{s}", *pairs["VMA"], measured.test_tasks(evaluation, c, s, args), args)
        for c in args.test_classes
        for s in args.test_shots
    }
    several = len(args.test_classes) > 2
    slopes = {s: measured.slope_by_classes(table, s, args) for s in args.test_shots} if several else {}
    four = measured.test_tasks(evaluation, 1, 4, args)
    given = measured.bound("VMA 1x4", *pairs["VMA"], four, args)
    wrong = measured.bound("VMA 1x4 wrong", *pairs["VMA"], four, args, wrong=True)
    contribution = pm.MemoryContribution(given, {f"{name}, no memory": alone, "wrong classes": wrong})
    print(f"\nVMA with 4 examples of the target's class\n{contribution}")
    shared = FewShotTasks(evaluation, classes=8, shots=4, targets=128 if args.evaluate >= 128 else 32, seed=args.seed)
    x, memory = (t.to(args.device) for t in shared[0])
    gain = pm.information_gain(*pairs["VMA"], x, memory, draws=10 if args.base == "vae" else 2)
    print(f"\none memory of 8 {figures.kind(args)} classes, 4 examples each\n{gain}")

    more = {}
    if measured.exact(pairs["VMA"][0]):
        more["address"] = measured.addresses(*pairs["VMA"], evaluation, args)
    if args.sets:
        more["sets"] = measured.sets_as_a_whole(pairs[name], pairs["VMA"], evaluation, args)
    if args.classifier_steps:
        more["samples"] = measured.sample_quality(pairs["VMA"][0], background, evaluation, args)

    if not args.pretrained:
        cells = {
            f"{c} class{'es' * (c > 1)}, {n} shot{'s' * (n > 1)}": f"{e.mean:.2f} ({e.se:.2f})"
            for (c, n), e in table.items()
        }
        numbers = {name: {"log p(x) >=": f"{alone.mean:.2f} ({alone.se:.2f})"}, "VMA": cells}
        leave_weights(pairs, build, results, numbers, args)

    fig, axes = plt.subplots(2, 2, figsize=(12, 8), layout="constrained")
    if results:
        figures.draw_training(results, args.batch, axes[0, 0])
    else:
        contribution.plot(axes[0, 0])
    figures.draw_bounds(alone, table, args, axes[0, 1])
    figures.draw_address_histogram(*pairs["VMA"], evaluation, args, axes[1, 0])
    gain.plot(axes[1, 1]).set_title("Information gain per site")
    fig.savefig(args.out / "summary.png", dpi=120)
    figures.draw_lookups(*pairs["VMA"], evaluation, args, args.out / "lookups.png")
    how = {"guidance": args.guidance[-1]} if args.guidance else {}
    figures.draw_samples(pairs["VMA"][0], evaluation, args, args.out / "samples.png", **how)
    if args.base == "vae":
        figures.draw_completion(*pairs["VMA"], evaluation, args, args.out / "completion.png")
    unused = {"name", "folder"} | (TRAINING if args.pretrained else set())
    record = {
        "training_seconds": {name: r.seconds for name, r in results.items()},
        "curves": {name: r.history["evaluation"] for name, r in results.items()},
        "alone": alone.to_dict(),
        "vma": [{"classes": c, "shots": s, **e.to_dict()} for (c, s), e in table.items()],
        "slopes": slopes, "contribution": contribution.to_dict(), "information": gain.to_dict(), **more,
    }  # fmt: skip
    study.leave(record, args, many_classes if slopes else few_shot, unused=unused)


if __name__ == "__main__":
    main()
