"""A stream of classes that do not come back: does replay from semantic memory keep the old ones?

Alphabets (of MNIST, pairs of digits) arrive in stages. Recall has learned to recognise letters beforehand and is held,
so that embeddings stay where they are. A structured memory lives through the stages: each task is written as an
episode, episodes are converted to concepts, and from the second stage on converted slots are refilled with episodes
imagined from concepts, drawn by the model as it was when the stage began (deep generative replay; Shin et al., 2017,
https://arxiv.org/abs/1705.08690). With replay a step has as many imagined episodes beside its new tasks; the new tasks
are the same without it. After each stage the bound is measured on held-out images of every stage. Forgetting is the
bound on a stage right after it minus the bound at the end. Runs both for each seed; writes results.json,
checkpoints and figures to --out; run it again to go on from there.

    python benchmarks/experiments/vsm_stream.py
    python benchmarks/experiments/vsm_stream.py --data omniglot --data-dir FOLDER --seeds 3
"""

import argparse
import json
import time
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from pyro.infer import Trace_ELBO

from pyro_memory import (
    BoundEstimate,
    ConceptMemory,
    EpisodicMemory,
    LeaveOneOutELBO,
    Lifetime,
    Recall,
    Recognition,
    StructuredMemory,
    fit,
    importance_bound,
    remember,
    warm_cosine,
)
from pyro_memory.data import NAMES, ClassStream, SetTasks, glyphs, load_images
from pyro_memory.diagnostics import plot_images
from pyro_memory.guides import EmptyGuide, VAEBaseGuide, VSMGuide
from pyro_memory.models import VSM, VAEBase

CODE_DIM, DIM, ITEMS = 32, 16, 6


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = partial(parser.add_argument, metavar="N", type=int)
    parser.add_argument("--data", choices=NAMES, default="glyphs")
    parser.add_argument("--data-dir", metavar="DIR", help="folder with the official files (glyphs need none)")
    parser.add_argument("--out", metavar="DIR", type=Path, default=Path("out/vsm_stream"))
    add("--stages", default=5)
    add("--steps", default=200, help="training steps a stage (default 200)")
    add("--tasks", default=8, help="new tasks a step (default 8); with replay as many imagined ones beside them")
    add("--queries", default=8, help="images that a task asks for (default 8)")
    add("--recognition", default=600, help="steps in which recall learns to recognise letters (default 600)")
    add("--slots", default=40)
    add("--concepts", default=64)
    add("--channels", nargs="+", default=[16, 32, 48], help="maps of the base model's pyramids")
    add("--recall-channels", nargs="+", default=[8, 16, 32], help="maps of the pyramid that recalls")
    add("--evaluate", default=60, help="held-out images of each stage (default 60)")
    add("--particles", default=50, help="K of the bounds (default 50)")
    parser.add_argument("--learning-rate", metavar="X", type=float, default=4e-3)
    add("--seeds", default=1, help="how many repetitions (default 1)")
    parser.add_argument("--fresh", action="store_true", help="start anew instead of resuming from --out")
    return parser.parse_args()


class StreamOfTasks:
    """The tasks of a stage, for ``steps`` steps each."""

    def __init__(self, stream, args, seed):
        self.stages = [
            stream.tasks(s, tasks=args.tasks, queries=args.queries, shots=range(ITEMS + 1), items=ITEMS, seed=seed)
            for s in range(args.stages)
        ]
        self.steps = args.steps

    def __getitem__(self, step):
        return self.stages[min(step // self.steps, len(self.stages) - 1)][step]


def taught(stream, args, seed):
    """A recall that tells letters apart: those of the first stage where they are many, otherwise printed ones."""
    torch.manual_seed(seed)
    first = stream.train(0)
    letters = first if first.classes >= 40 else glyphs("background")
    recall = Recall(letters.shape, dim=DIM, code_dim=CODE_DIM, channels=args.recall_channels)
    recall.calibrate(letters[torch.randperm(len(letters))[:500]])
    fit(
        Recognition(recall), EmptyGuide(),
        SetTasks(letters, tasks=40, queries=2, shots=range(1, ITEMS), seed=seed + 1, turned=0.5),
        Trace_ELBO(max_plate_nesting=2), steps=args.recognition, learning_rate=2e-3,
        schedule=warm_cosine(args.recognition), information_every=None,
        checkpoint=args.out / f"recognition_{seed}.safetensors", resume=not args.fresh, seed=seed,
    )  # fmt: skip
    recall.fixed = True
    return recall


def new_model(data, recall, args):
    sizes = {"channels": args.channels, "code_dim": CODE_DIM}
    return VSM(VAEBase(data.shape, **sizes), recall), VSMGuide(VAEBaseGuide(data.shape, **sizes), recall)


def build(data, stream, args, seed, replay):
    recall = taught(stream, args, seed)
    torch.manual_seed(seed)
    model, guide = new_model(data, recall, args)
    memory = StructuredMemory(
        ConceptMemory.reserve(args.concepts, DIM, prior_alpha=10.0, prior_beta=0.9),
        EpisodicMemory.reserve(args.slots, args.queries + 4, data.shape, DIM, args.concepts),
    )
    life = Lifetime(
        StreamOfTasks(stream, args, seed),
        recall,
        memory,
        consolidate_every=5,
        timescale=args.slots / 4,
        forgetting=1.0,  # embeddings stay, and so may what is known of them
        rehearse=args.tasks if replay else 0,
    )
    return model, guide, life


def imagine_as_of(path, data, args):
    """What replay draws with: the model as it was at the end of a stage."""
    recall = Recall(data.shape, dim=DIM, code_dim=CODE_DIM, channels=args.recall_channels)
    before, _ = new_model(data, recall, args)
    before.load_state_dict(torch.load(path)["model"])
    return lambda s, items, memory: before.eval().decode_concepts(s, memory, items)


def held_out_sets(stream, stage, args):
    data = stream.held_out(stage)
    shots = min(len(m) for m in data.members) - 1
    targets = torch.randperm(len(data), generator=torch.Generator().manual_seed(stage))[: args.evaluate]
    return SetTasks(data, tasks=20, shots=min(shots, 4), targets=targets, seed=0)


def measure(model, guide, memory, sets, args):
    parts = []
    for x, support in (sets[i] for i in range(len(sets))):
        now = remember(model.recall, memory, support)
        parts.append(importance_bound(model, guide, x, support, now, particles=args.particles, max_plate_nesting=2))
    return BoundEstimate.cat(parts).bound


def live(data, stream, args, seed, replay):
    """Trains through all stages; gives the bounds ``[stage lived through, stage measured, image]``."""
    name = f"{'replay' if replay else 'no_replay'}_{seed}"
    print(f"\nseed {seed}, {'with' if replay else 'without'} replay: {args.stages} stages of {args.steps} steps")
    model, guide, life = build(data, stream, args, seed, replay)
    sets = [held_out_sets(stream, s, args) for s in range(args.stages)]
    folder = args.out / name
    folder.mkdir(parents=True, exist_ok=True)
    stage_file = lambda stage: folder / f"stage_{stage}.pt"  # noqa: E731
    done = [stage for stage in range(1, args.stages + 1) if stage_file(stage).exists() and not args.fresh]
    if replay and done:
        life.replay = imagine_as_of(stage_file(done[-1]), data, args)

    def evaluate(step):
        bounds = torch.stack([measure(model, guide, life.memory, s, args) for s in sets])
        shown = life.memory.concepts.counts.argsort(descending=True)[:12]
        drawn = model.decode_concepts(life.memory.concepts.loc[shown], life.memory, 16).mean(1)
        snapshot = {
            "bounds": bounds, "prototypes": drawn, "counts": life.memory.concepts.counts[shown],
            "widths": life.memory.concepts.widths()[shown], "assigned": life.memory.episodes.responsibilities[:, shown],
            "filled": life.memory.episodes.filled, "replayed": life.memory.episodes.replayed,
            "model": model.state_dict(),
        }  # fmt: skip
        torch.save(snapshot, stage_file(step // args.steps))
        if replay:
            life.replay = imagine_as_of(stage_file(step // args.steps), data, args)
        return {f"stage_{s + 1}": b.mean().item() for s, b in enumerate(bounds)}

    fit(
        model, guide, life, LeaveOneOutELBO(2, max_plate_nesting=2), steps=args.stages * args.steps,
        learning_rate=args.learning_rate, clip_norm=5000.0, evaluate=evaluate, evaluate_every=args.steps,
        information_every=None, checkpoint=folder / "model.safetensors", resume=not args.fresh, seed=seed,
    )  # fmt: skip
    return [torch.load(stage_file(s + 1)) for s in range(args.stages)]


def forgetting(bounds):
    """For each image of the stages before the last: the bound after its own stage minus the bound at the end."""
    own = torch.cat([bounds[s, s] for s in range(len(bounds) - 1)])
    return own - bounds[-1, :-1].flatten()


def mean_se(values):
    return values.mean().item(), (values.std() / len(values) ** 0.5).item()


def draw_curves(runs, args, path):
    fig, axes = plt.subplots(1, 2, figsize=(11, 4), layout="constrained", sharey=True)
    for ax, replay in zip(axes, (True, False), strict=True):
        mean = torch.stack([bounds for (_, r), bounds in runs.items() if r == replay]).mean((0, -1))
        for s in range(args.stages):
            line = ax.plot(range(1, args.stages + 1), mean[:, s], marker="o", markersize=3, label=f"stage {s + 1}")
            ax.plot(s + 1, mean[s, s], marker="o", color=line[0].get_color())
        ax.set(xlabel="stages lived through", title="with replay" if replay else "without replay")
        ax.set_xticks(range(1, args.stages + 1))
    axes[0].set_ylabel("log p(x | S) >=, nats per held-out image")
    axes[1].legend(frameon=False, title="images of")
    fig.savefig(path, dpi=120)


def draw_stores(snapshots, path):
    """The two stores after each stage: concepts as decoded prototypes with widths, episodes with their concepts."""
    fig, axes = plt.subplots(2, len(snapshots), figsize=(3 * len(snapshots), 6), layout="constrained")
    for stage, (shot, (top, bottom)) in enumerate(zip(snapshots, axes.T, strict=True), 1):
        images = shot["prototypes"]
        plot_images([images[i : i + 4] for i in range(0, 12, 4)], ax=top)
        width = shot["widths"].mean()
        top.set_title(f"after stage {stage}\nthe {len(images)} most used concepts, mean width {width:.2f}", fontsize=9)
        assigned = shot["assigned"] * shot["filled"].unsqueeze(-1)
        bottom.imshow(assigned, cmap="Blues", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
        for slot in (shot["filled"] & shot["replayed"]).nonzero().flatten().tolist():
            bottom.plot(-0.8, slot, marker=".", color="#d9822b", clip_on=False)
        bottom.set(xlabel="concept, by use", xticks=[])
    axes[1, 0].set_ylabel("episode (orange: replayed)")
    fig.savefig(path, dpi=110)


def main():
    args = arguments()
    begun = time.perf_counter()
    args.out.mkdir(parents=True, exist_ok=True)
    data = load_images(args.data, "background", args.data_dir)
    stream = ClassStream(data, stages=args.stages, shuffle=False)
    print(stream)
    runs, snapshots = {}, {}
    for seed in range(args.seeds):
        for replay in (True, False):
            snapshots[seed, replay] = live(data, stream, args, seed, replay)
            runs[seed, replay] = torch.stack([s["bounds"] for s in snapshots[seed, replay]])
    lost = {r: torch.stack([forgetting(runs[s, r]) for s in range(args.seeds)]).mean(0) for r in (True, False)}
    last = {r: torch.stack([runs[s, r][-1].flatten() for s in range(args.seeds)]).mean(0) for r in (True, False)}
    rows = {
        "forgetting with replay": mean_se(lost[True]), "forgetting without": mean_se(lost[False]),
        "saved by replay": mean_se(lost[False] - lost[True]),
        "bound at the end with replay": mean_se(last[True]), "bound at the end without": mean_se(last[False]),
        "difference at the end": mean_se(last[True] - last[False]),
    }  # fmt: skip
    print(f"\nnats per held-out image, mean over {args.seeds} seeds (standard error over images)")
    for name, (mean, se) in rows.items():
        print(f"  {name:<30}{mean:9.2f} ({se:.2f})")
    by_seed = [
        {"replay": forgetting(runs[s, True]).mean().item(), "none": forgetting(runs[s, False]).mean().item()}
        for s in range(args.seeds)
    ]
    draw_curves(runs, args, args.out / "forgetting.png")
    draw_stores(snapshots[0, True], args.out / "stores.png")
    record = {
        "arguments": {k: v for k, v in vars(args).items() if k not in ("data_dir", "out", "fresh")},
        "torch": torch.__version__, "seconds": time.perf_counter() - begun,
        "summary": rows, "forgetting_by_seed": by_seed,
        "bounds": {f"seed {s}, {'replay' if r else 'none'}": b.mean(-1).tolist() for (s, r), b in runs.items()},
    }  # fmt: skip
    (args.out / "results.json").write_text(json.dumps(record, indent=1))
    print(f"\nfigures and results.json are in {args.out} ({record['seconds']:.0f} s)")


if __name__ == "__main__":
    main()
