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

from types import SimpleNamespace

import matplotlib.pyplot as plt
import torch
from pyro.infer import Trace_ELBO
from study import leave, mean_se, options, train
from tables_sets import stream as stream_table

import pyro_memory as pm
from pyro_memory.data import ClassStream, SetTasks, glyphs, load_images
from pyro_memory.diagnostics import plot_images
from pyro_memory.guides import EmptyGuide, VAEBaseGuide, VSMGuide
from pyro_memory.models import VSM, VAEBase

CODE_DIM, DIM, ITEMS, QUERIES, SLOTS, CONCEPTS = 32, 16, 6, 8, 40, 64


def arguments():
    return options(
        __doc__, "out/vsm_stream",
        stages=(5, "groups of classes"), steps=(200, "training steps a stage"),
        tasks=(8, "new tasks a step; with replay as many imagined ones beside them"),
        recognition=(600, "steps in which recall learns to recognise letters"),
        evaluate=(60, "held-out images of each stage"), particles=(50, "K of the bounds"),
        seeds=(1, "how many repetitions"),
    ).parse_args()  # fmt: skip


class Tasks(SimpleNamespace):
    """The tasks of each stage, for ``steps`` steps each."""

    def __getitem__(self, step):
        return self.stages[min(step // self.steps, len(self.stages) - 1)][step]


def taught(stream, args, seed):
    """A recall that tells letters apart: those of the first stage where they are many, otherwise printed ones."""
    torch.manual_seed(seed)
    first = stream.train(0)
    letters = first if first.classes >= 40 else glyphs("background")
    recall = pm.Recall(letters.shape, dim=DIM, code_dim=CODE_DIM, channels=[8, 16, 32])
    recall.calibrate(letters[torch.randperm(len(letters))[:500]])
    train(
        f"recognition_{seed}", pm.Recognition(recall), EmptyGuide(),
        SetTasks(letters, tasks=40, queries=2, shots=range(1, ITEMS), seed=seed + 1, turned=0.5),
        Trace_ELBO(max_plate_nesting=2), args, steps=args.recognition, learning_rate=2e-3, clip_norm=None,
        schedule=pm.warm_cosine(args.recognition), seed=seed,
    )  # fmt: skip
    recall.fixed = True
    return recall


def new_model(data, recall):
    sizes = {"channels": [16, 32, 48], "code_dim": CODE_DIM}
    return VSM(VAEBase(data.shape, **sizes), recall), VSMGuide(VAEBaseGuide(data.shape, **sizes), recall)


def build(data, stream, args, seed, replay):
    recall = taught(stream, args, seed)
    torch.manual_seed(seed)
    model, guide = new_model(data, recall)
    memory = pm.StructuredMemory(
        pm.ConceptMemory.reserve(CONCEPTS, DIM, prior_alpha=10.0, prior_beta=0.9),
        pm.EpisodicMemory.reserve(SLOTS, QUERIES + 4, data.shape, DIM, CONCEPTS),
    )
    sets = {"tasks": args.tasks, "queries": QUERIES, "shots": range(ITEMS + 1), "items": ITEMS, "seed": seed}
    stages = [stream.tasks(stage, **sets) for stage in range(args.stages)]
    life = pm.Lifetime(
        Tasks(stages=stages, steps=args.steps), recall, memory,
        consolidate_every=5, timescale=SLOTS / 4, rehearse=args.tasks if replay else 0,
        forgetting=1.0,  # embeddings stay, and so may what is known of them
    )  # fmt: skip
    return model, guide, life


def imagine_as_of(path, data):
    """What replay draws with: the model as it was at the end of a stage."""
    recall = pm.Recall(data.shape, dim=DIM, code_dim=CODE_DIM, channels=[8, 16, 32])
    before, _ = new_model(data, recall)
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
        now = pm.remember(model.recall, memory, support)
        parts.append(pm.importance_bound(model, guide, x, support, now, particles=args.particles, max_plate_nesting=2))
    return pm.BoundEstimate.cat(parts).bound


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
        life.replay = imagine_as_of(stage_file(done[-1]), data)

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
            life.replay = imagine_as_of(stage_file(step // args.steps), data)
        return {f"stage_{s + 1}": b.mean().item() for s, b in enumerate(bounds)}

    train(
        f"{name}/model", model, guide, life, pm.LeaveOneOutELBO(2, max_plate_nesting=2), args, schedule=None,
        steps=args.stages * args.steps, learning_rate=4e-3, evaluate=evaluate, evaluate_every=args.steps, seed=seed,
    )  # fmt: skip
    return [torch.load(stage_file(s + 1)) for s in range(args.stages)]


def forgetting(bounds):
    """For each image of the stages before the last: the bound after its own stage minus the bound at the end."""
    own = torch.cat([bounds[s, s] for s in range(len(bounds) - 1)])
    return own - bounds[-1, :-1].flatten()


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
    names = {"replay": True, "none": False}
    by_seed = [{n: forgetting(runs[s, r]).mean().item() for n, r in names.items()} for s in range(args.seeds)]
    draw_curves(runs, args, args.out / "forgetting.png")
    draw_stores(snapshots[0, True], args.out / "stores.png")
    bounds = {f"seed {s}, {'replay' if r else 'none'}": b.mean(-1).tolist() for (s, r), b in runs.items()}
    leave({"summary": rows, "forgetting_by_seed": by_seed, "bounds": bounds}, args, stream_table, unused=("seed",))


if __name__ == "__main__":
    main()
