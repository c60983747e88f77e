"""Classes that come, are seen in a few episodes, leave and come back: what is a semantic memory worth then?

Trains a structured memory over a VAE on background classes that come and go, its concepts keeping exemplars; recall has
learned to recognise sets before, and how concepts are spread is fitted to training classes. Then lives through
evaluation classes that neither has seen, more of them than concepts, thousands of episodes long; and lets everyone who
has left come back, with no example, one or two. The bound on held-out drawings is taken with concepts, with concepts
emptied, with their exemplars shuffled, by the other rules of conversion, with one ring of episodes of as many bytes in
their place, and without memory; by how often a class was met and how long ago; by the number of concepts and of
exemplars. Writes results.json, a checkpoint, weights and figures to --out; run it again to go on from there.

    python benchmarks/experiments/vsm_returning.py --steps 40 --recognition 40 --evaluate 30
    python benchmarks/experiments/vsm_returning.py --data omniglot --data-dir FOLDER --steps 4000 --recognition 2500
"""

import time
from dataclasses import replace

import matplotlib.pyplot as plt
import study
import torch
from sets_pairs import learned_prior, returning_life, returning_stores, teach
from tables_returning import AGO, MET, returning_gains, returning_met, returning_sizes, span

import pyro_memory as pm
from pyro_memory.data import LICENCES, ReturningClasses, load_images
from pyro_memory.diagnostics import plot_concepts
from pyro_memory.guides import VAEBaseGuide, VSMGuide
from pyro_memory.models import VSM, VAEBase

CODE_DIM = 32


def arguments():
    return study.options(
        __doc__, "out/vsm_returning",
        steps=(600, "training steps, 8 tasks of 8 images each"),
        recognition=(800, "steps in which recall learns to recognise sets first"),
        turned=(0.0, "above 0, a class turned or mirrored is a class of its own in training"),
        dim=(16, "dimensions of embeddings"), hidden=(256, "width of recall's layers"),
        recall_channels=([16, 32, 64], "maps of recall's pyramid"), channels=([16, 32, 48], "maps of the VAE's"),
        concepts=(64, "of the semantic store"), exemplars=(8, "images that a concept keeps"),
        learning_rate=(4e-3, "at its highest"), classes=(300, "of the life that is measured, at most"),
        lived=(250, "steps of it, 8 episodes each"), present=(16, "classes that are there at a time"),
        sizes=([16, 128, 256], "other numbers of concepts"), kept=([0, 1, 2, 4], "other numbers of exemplars"),
        evaluate=(0, "returns to measure, 0 for two of every class"), particles=(50, "K of the bounds"),
    ).parse_args()  # fmt: skip


def trained(background, evaluation, args):
    torch.manual_seed(args.seed)
    shape, sizes = background.shape, {"channels": args.channels, "code_dim": CODE_DIM}
    recall = pm.Recall(shape, dim=args.dim, code_dim=CODE_DIM, channels=args.recall_channels, hidden=args.hidden)
    recall.calibrate(background[torch.randperm(len(background))[:500]])
    found, _ = teach(recall, background, evaluation, args)
    prior = learned_prior(recall, background, args.seed)
    print("concepts beforehand:", ", ".join(f"{name} {value:.3g}" for name, value in prior.items()))
    model, guide = VSM(VAEBase(shape, **sizes), recall), VSMGuide(VAEBaseGuide(shape, **sizes), recall)
    life = returning_life(background, recall, args, prior)
    print(f"\ntraining {args.steps} steps of {life.tasks.tasks} x {life.tasks.queries} images")
    result = study.train("model", model, guide, life, pm.LeaveOneOutELBO(2), args)
    return model, guide, prior, {"recognised": found, "prior": prior, "training_seconds": result.seconds}


def lived(recall, stream, memory, args, rule="projected", consolidate=True):
    """The memory at the end of the life that is measured, and what it took: seconds and bytes as it went on."""
    torch.manual_seed(args.seed)
    how = {"consolidate_every": 2, "timescale": 8.0, "forgetting": 1.0, "room": 16, "rule": rule}
    life = pm.Lifetime(stream, recall, memory, **(how if consolidate else {"consolidate_every": None}))
    marks, start, tenth = [], time.perf_counter(), max(1, args.lived // 10)
    for step in range(args.lived):
        life[step]
        if (step + 1) % tenth == 0:
            now = time.perf_counter()
            size = sum(t.nbytes for t in life.memory.to_tensors().values())
            marks.append({"episodes": 8 * (step + 1), "milliseconds": 1e3 * (now - start) / 8 / tenth, "bytes": size})
            start = now
    return life.memory, marks


def measured(model, guide, memory, stream, shots, args, alter=lambda memory: memory):
    """The bound of every return, given its support, which memory has seen too; and whose it was."""
    parts, labels, most = [], [], args.evaluate or 10**9
    torch.manual_seed(args.seed)
    for label, x, support in stream.returns(args.lived - 1, shots=shots, each=2, tasks=10):
        now = alter(pm.remember(model.recall, memory, support))
        how = {"particles": args.particles, "max_plate_nesting": 2}
        parts.append(pm.importance_bound(model, guide, x, support, now, **how).bound)
        labels += label
        if len(labels) >= most:
            break
    return torch.cat(parts), labels


def fewer(memory, places):
    """Concepts that kept fewer exemplars: the first places of a weighted sample are one."""
    kept = memory.concepts.exemplars
    if not places:
        return replace(memory, concepts=replace(memory.concepts, exemplars=None))
    part = pm.Exemplars(*(t[:, :places] for t in kept.to_tensors().values()))
    return replace(memory, concepts=replace(memory.concepts, exemplars=part))


def prototypes(memory):
    """Concepts whose one exemplar is the mean of those that they keep."""
    mean = memory.concepts.exemplars.prototypes()[0].unsqueeze(1)
    part = replace(fewer(memory, 1).concepts.exemplars, values=mean)
    return replace(memory, concepts=replace(memory.concepts, exemplars=part))


def ring_of_equal_bytes(shape, args, prior):
    """A ring of episodes of five, without concepts, as large as both stores."""
    both = returning_stores(shape, args, prior, items=5)
    one = returning_stores(shape, args, prior, concepts=1, slots=1, items=5)
    size = lambda memory: sum(t.nbytes for t in memory.to_tensors().values())  # noqa: E731
    slots = (size(both) - size(one)) // sum(t.nbytes for t in one.episodes.to_tensors().values())
    return returning_stores(shape, args, prior, concepts=1, slots=int(slots), items=5)


def main():
    args = arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    background, evaluation = (load_images(args.data, split, args.data_dir) for split in ("background", "evaluation"))
    print(f"train on {background}\ntest on  {evaluation}")
    if args.exemplars < max(1, *args.kept):
        raise SystemExit(f"--exemplars must be 1 or more and as many as --kept tries; got {args.exemplars}")
    stream = ReturningClasses(
        evaluation, queries=1, shots=5, back=(1, 2), items=5, present=min(args.present, evaluation.classes // 3),
        classes=min(args.classes, evaluation.classes), seed=args.seed,
    )  # fmt: skip
    model, guide, prior, record = trained(background, evaluation, args)
    recall, shape = model.recall, evaluation.shape
    empty = returning_stores(shape, args, prior, items=5)
    memory, marks = lived(recall, stream, empty, args)
    print(f"{memory.concepts}\n{memory.episodes}")
    others = {rule: lived(recall, stream, empty, args, rule=rule)[0] for rule in ("hard", "fractional")}
    ring, _ = lived(recall, stream, ring_of_equal_bytes(shape, args, prior), args, consolidate=False)
    same = lambda memory: memory  # noqa: E731
    cases = {
        "concepts": (memory, same), "emptied": (memory, pm.StructuredMemory.without_concepts),
        "exemplars shuffled": (memory, pm.StructuredMemory.shuffled_concepts),
        "hard conversion": (others["hard"], same), "fractional conversion": (others["fractional"], same),
        f"a ring of {ring.episodes.slots} episodes, as many bytes": (ring, same),
        "no memory of before": (memory, lambda m: forgotten(m, memory)),
    }  # fmt: skip
    rows, met = {}, stream.met(args.lived - 1)
    for shots in (0, 1, 2):
        rows[shots] = {name: measured(model, guide, m, stream, shots, args, f) for name, (m, f) in cases.items()}
        print(
            f"{shots} shots:", *(f"{name} {bound.mean():.2f}" for name, (bound, _) in rows[shots].items()), sep="\n  "
        )
    sizes = {"exemplars": {}, "concepts": {}}
    for places in args.kept:
        sizes["exemplars"][places] = sized(model, guide, fewer(memory, places), stream, args)
    sizes["exemplars"][f"mean of {args.exemplars}"] = sized(model, guide, prototypes(memory), stream, args)
    for count in args.sizes:
        other, _ = lived(recall, stream, returning_stores(shape, args, prior, concepts=count, items=5), args)
        sizes["concepts"][count] = sized(model, guide, other, stream, args)
    of = {shots: r.pop("concepts") for shots, r in rows.items()}
    gained = {shots: {name: of[shots][0] - b for name, (b, _) in r.items()} for shots, r in rows.items()}
    history = torch.tensor([met[label] for label in of[0][1]])
    record |= {
        "marks": marks, "classes_met": len(met), "episodes": int(memory.episodes.store.seen),
        "returns": len(history), "sizes": sizes, "concept_bytes": stored(memory, args.exemplars),
        "bounds": {shots: study.mean_se(bound) for shots, (bound, _) in of.items()},
        "gained": {s: {name: study.mean_se(v) for name, v in r.items()} for s, r in gained.items()},
        "met": {s: binned(r["emptied"], history[:, 0], MET) for s, r in gained.items()},
        "ago": {s: binned(r["emptied"], history[:, 1], AGO) for s, r in gained.items()},
    }  # fmt: skip
    draw(record, args, args.out / "returning.png")
    fig, ax = plt.subplots(figsize=(9, 7), layout="constrained")
    plot_concepts(memory.concepts, ax=ax)
    fig.savefig(args.out / "concepts.png", dpi=120)
    leave_weights(model, guide, memory, record, args)
    study.leave(record, args, returning_gains, returning_met, returning_sizes)


def binned(gain, seen, bins):
    """For each span: its name, and of the returns in it how many they are, mean and error of their gain."""
    parts = [(low, high, gain[(seen >= low) & (seen <= high)]) for low, high in bins]
    return [[span(low, high), len(part), *study.mean_se(part)] for low, high, part in parts if len(part) > 1]


def forgotten(now, before):
    """Only what came with the return: neither concepts nor the episodes of before."""
    old = before.episodes.store.seen
    emptied = now.without_concepts()
    return replace(emptied, episodes=emptied.episodes.free(now.episodes.ages >= now.episodes.store.seen - old))


def stored(memory, places):
    """Bytes of what concepts hold: numbers of four bytes, images of one bit a pixel."""
    image = memory.episodes.items[0, 0].numel() / 8
    return memory.concepts.concepts * (4 * (4 * memory.concepts.dim + 1) + places * image)


def sized(model, guide, memory, stream, args):
    """What concepts of another size are worth over emptied ones, without an example and with one."""
    found = {}
    for shots in (0, 1):
        own, _ = measured(model, guide, memory, stream, shots, args)
        other, _ = measured(model, guide, memory, stream, shots, args, pm.StructuredMemory.without_concepts)
        found[shots] = study.mean_se(own - other)
    kept = memory.concepts.exemplars
    return {"gained": found, "bytes": stored(memory, 0 if kept is None else kept.places)}


def leave_weights(model, guide, memory, record, args):
    shots = {
        f"gained by concepts, {n} example{'s' * (n != 1)}": "{:.2f} ({:.2f})".format(*r["emptied"])
        for n, r in record["gained"].items()
    }
    facts = {
        "about": f"VSM over a VAE whose concepts keep exemplars, trained on {args.data} classes that come back",
        "data": f"{args.data}, background classes; measured on evaluation classes", "licence": LICENCES[args.data],
        "protocol": "{returns} returns of {classes_met} classes after {episodes} episodes; ".format(**record) +
        f"nats over emptied concepts; K = {args.particles}",
        "numbers": shots,
        "training": f"{args.steps} steps of 8 x 8 images after {args.recognition} of recognition; seed {args.seed}; "
        "the stores are those at the end of the life that was measured",
    }  # fmt: skip
    print(pm.save_pretrained(
        f"vsm-returning-{args.data}", model, guide, memory=memory, facts=facts, folder=args.out / "weights"
    ))  # fmt: skip


def draw(record, args, path):
    fig, axes = plt.subplots(1, 3, figsize=(15, 4.2), layout="constrained")
    for ax, which, name in ((axes[0], "met", "times met"), (axes[1], "ago", "episodes ago")):
        for shots, rows in record[which].items():
            spans, _, mean, se = zip(*rows, strict=True)
            label = f"{shots} example{'s' * (shots != 1)}"
            ax.errorbar(spans, mean, [2 * e for e in se], marker="o", capsize=3, label=label)
        ax.set(xlabel=name, ylabel="nats gained by concepts over emptied ones")
        ax.axhline(0, color="0.6", linewidth=0.8)
    axes[0].legend(frameon=False)
    axes[2].plot([m["episodes"] for m in record["marks"]], [m["milliseconds"] for m in record["marks"]], marker="o")
    axes[2].set(xlabel="episodes lived through", ylabel="milliseconds an episode", ylim=(0, None))
    fig.savefig(path, dpi=120)
    plt.close(fig)


if __name__ == "__main__":
    main()
