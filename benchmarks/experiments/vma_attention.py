"""A sampled slot against attention to all slots, over one autoregressive base: nats, cost, which example was used.

Trains both from the same start on the same tasks, and a model without memory, each for its own number of steps, so that
their minutes can be made equal; measures log p(x | memory), which is exact for all, on classes that none has seen; how
much of the address's posterior, and of the attention, lies on the target's class; and the seconds of an image against
the number of slots. Writes results.json, checkpoints and a figure to --out; run it again to go on from there.

    python benchmarks/experiments/vma_attention.py
    python benchmarks/experiments/vma_attention.py --data omniglot --data-dir FOLDER --steps 1500 --attended-steps 1800
"""

import time

import fewshot_measure as measured
import matplotlib.pyplot as plt
import study
import torch
from pyro.infer import Trace_ELBO
from tables_images import attention, attention_cost
from tqdm import tqdm

import pyro_memory as pm
from pyro_memory.data import FewShotTasks, load_images
from pyro_memory.guides import AddressedGuide, AutoregressiveBaseGuide, EmptyGuide
from pyro_memory.models import Addressed, Attended, AutoregressiveBase

NAMES, ALONE = ("addressed", "attended"), "no memory"


def arguments():
    return study.options(
        __doc__, "out/attention",
        steps=(300, "training steps of the addressed model"), attended_steps=(300, "of the attended one"),
        alone_steps=(300, "of the one without memory"),
        batch=(32, "targets a step"), classes=([1, 8], "range of classes in memory while training"),
        shots=([1, 19], "range of examples a class, likewise"), turned=(0.5, "share of tasks turned or mirrored"),
        reads=(2, "slots that VIMCO reads an image"), maps=(32, "features of a place"),
        layers=([2, 4], "layers that see the image alone, and that are told of the memory"),
        looks=(2, "times that a place looks at what is read"), learning_rate=(2e-3, "at its highest"),
        evaluate=(128, "test targets"), test_classes=([1, 8], "classes in memory in the table's rows"),
        test_shots=([1, 4, 10, 19], "examples a class in its columns"),
        cost=([1, 10, 100, 1000], "numbers of slots to time"),
    ).parse_args()  # fmt: skip


def pairs(shape, args):
    size = {"maps": args.maps, "layers": args.layers, "looks": args.looks}
    torch.manual_seed(args.seed)
    built = {ALONE: (AutoregressiveBase(shape, **size), EmptyGuide())}
    for name in NAMES:
        torch.manual_seed(args.seed)
        base = AutoregressiveBase(shape, **size, reads=True, code_dim=1)
        if name == "attended":
            built[name] = Attended(base), EmptyGuide()
        else:
            built[name] = Addressed(base), AddressedGuide.convolutional(shape, AutoregressiveBaseGuide(), (24, 48, 64))
    return built


def train(name, pair, tasks, unseen, args):
    def on_the_way(step):
        parts = [measured.lower_bound(*pair, *unseen[i]) for i in range(len(unseen))]
        return {"unseen": pm.BoundEstimate.cat(parts).mean}

    steps = {"addressed": args.steps, "attended": args.attended_steps, ALONE: args.alone_steps}[name]
    several = name == "addressed"
    objective = pm.VIMCO(args.reads, max_plate_nesting=1) if several else Trace_ELBO(max_plate_nesting=1)
    print(f"\ntraining, {name}: {steps} steps of {args.batch} images")
    return study.train(
        name.replace(" ", "_"), *pair, tasks, objective, args, steps=steps, schedule=pm.warm_cosine(steps),
        evaluate=on_the_way, evaluate_every=max(1, steps // 5),
    )  # fmt: skip


def on_own_class(pair, evaluation, args, classes=8, shots=4):
    """The share of 8 classes of 4 that lies on the target's: of the posterior over slots, or of attention."""
    shares = []
    for i in range(4):
        x, memory = FewShotTasks(evaluation, classes=classes, shots=shots, targets=32, seed=args.seed + 5)[i]
        if isinstance(pair[0], Attended):
            share = pair[0].attention(x, memory)
        else:
            share = pm.posterior_address(*pair, x, memory, exact=True, particles=1).probs
        by_class = share.reshape(len(x), classes, shots).sum(-1)
        shares.append(by_class[torch.arange(len(x)), torch.arange(len(x)) % classes])
    return dict(zip(("mean", "se"), study.mean_se(torch.cat(shares)), strict=True))


@torch.no_grad()
def cost(pair, evaluation, slots, args, images=4):
    """Seconds an image: told by attention to all slots, by one slot that the guide looks up, or by each of them."""
    generator = torch.Generator().manual_seed(args.seed)
    chosen = torch.randint(len(evaluation), (slots,), generator=generator)
    x, memory = evaluation[torch.arange(images)], pm.SlotMemory(evaluation[chosen])

    def seconds(f):
        f()
        begun = time.perf_counter()
        f()
        return (time.perf_counter() - begun) / images

    model, guide = pair
    if isinstance(model, Attended):
        return {"all slots": seconds(lambda: model.base.log_prob(x, model.context(memory)))}
    one = seconds(lambda: model.base.log_prob(x, model.context(guide.a_dist(x, memory).sample(), memory)))
    if slots > 1000:  # the rest is in proportion
        return {"one slot": one}
    return {"one slot": one, "all slots": seconds(lambda: measured.lower_bound(*pair, x, memory))}


def main():
    args = arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    background, evaluation = (load_images(args.data, split, args.data_dir) for split in ("background", "evaluation"))
    tasks = FewShotTasks(
        background, classes=tuple(args.classes), shots=tuple(args.shots), targets=args.batch, per_target=True,
        sizes="log-uniform", turned=args.turned, seed=args.seed,
    )  # fmt: skip
    args.protocol = "vma"
    unseen = measured.test_tasks(evaluation, 1, 4, args)
    built = pairs(background.shape, args)
    results = {name: train(name, pair, tasks, unseen, args) for name, pair in built.items()}

    print("\nmeasuring")

    def exact(pair, classes, shots):
        cell = measured.test_tasks(evaluation, classes, shots, args)
        return pm.BoundEstimate.cat([measured.lower_bound(*pair, *cell[i]) for i in range(len(cell))])

    cells = [(classes, shots) for classes in args.test_classes for shots in args.test_shots]
    alone = exact(built.pop(ALONE), 1, 1)
    table, own, costs, each = {}, {}, {}, {}
    for name, pair in built.items():
        bounds = [exact(pair, *cell) for cell in tqdm(cells, desc=name)]
        each[name] = [b.bound for b in bounds]
        table[name] = [{"classes": c, "shots": n, **b.to_dict()} for (c, n), b in zip(cells, bounds, strict=True)]
        own[name] = on_own_class(pair, evaluation, args)
        costs[name] = [{"slots": n, **cost(pair, evaluation, n, args)} for n in args.cost]
    ahead = [study.mean_se(one - other) for one, other in zip(*(each[n] for n in NAMES), strict=True)]
    del args.protocol

    fig, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for name in NAMES:
        for classes in args.test_classes:
            rows = [r for r in table[name] if r["classes"] == classes]
            errors = [2 * r["se"] for r in rows]
            label = f"{name}, {classes} class{'es' * (classes > 1)}"
            left.errorbar([r["shots"] for r in rows], [r["mean"] for r in rows], errors, marker="o", label=label)
        for what in ("one slot", "all slots"):
            if rows := [r for r in costs[name] if what in r]:
                right.plot([r["slots"] for r in rows], [r[what] for r in rows], marker="o", label=f"{name}, {what}")
    left.axhline(alone.mean, color="grey", linestyle="--", label=ALONE)
    left.set(xscale="log", xlabel="examples a class", ylabel="log p(x | memory), nats per image")
    left.set_xticks(args.test_shots, map(str, args.test_shots))
    left.minorticks_off()
    left.set_title("Unseen classes, exact (two standard errors)")
    right.set(xscale="log", yscale="log", xlabel="slots", ylabel="seconds an image", title="Likelihood of an image")
    left.legend(frameon=False), right.legend(frameon=False)
    fig.savefig(args.out / "attention.png", dpi=120)
    record = {
        "parameters": {n: sum(p.numel() for m in pair for p in m.parameters()) for n, pair in built.items()},
        "base_parameters": sum(p.numel() for p in built["attended"][0].parameters()),
        "cpu_seconds": {name: result.cpu_seconds for name, result in results.items()},
        "curves": {name: result.history["evaluation"] for name, result in results.items()},
        "alone": alone.to_dict(), "table": table, "ahead": ahead, "own_class": own, "cost": costs,
    }  # fmt: skip
    study.leave(record, args, attention, attention_cost)


if __name__ == "__main__":
    main()
