"""Few-shot generation with episodic and semantic memory over a base generative model.

Trains one model on few-shot sets of background classes: a VAE, a hierarchical or a diffusion model, alone or as the
base of a variational structured memory. There, recall first learns to recognise which set an image belongs to; then the
model is trained while its stores live through the tasks (episodes are written, converted to concepts and replayed as
training goes on). Then measures log p(x | support) on classes that it has not seen, by shots; the nats
that each level of memory carried; what each store was worth; and draws new images beside their support. Writes
results.json, a checkpoint (with the stores) and figures to --out; run it again to go on from there.

    python benchmarks/experiments/vsm_fewshot.py
    python benchmarks/experiments/vsm_fewshot.py --memory none --out out/vsm_none
    python benchmarks/experiments/vsm_fewshot.py --base diffusion --data omniglot --data-dir FOLDER --steps 4000
    python benchmarks/experiments/vsm_fewshot.py --data omniglot --data-dir FOLDER --pretrained vsm-vae-omniglot
"""

import argparse
import json
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import matplotlib.pyplot as plt
import torch
from pyro.infer import Trace_ELBO
from tqdm import tqdm

from pyro_memory import (
    BoundEstimate,
    ConceptMemory,
    Context,
    EpisodicMemory,
    LeaveOneOutELBO,
    Lifetime,
    MemoryContribution,
    Recall,
    Recognition,
    SlotMemory,
    StructuredMemory,
    fit,
    importance_bound,
    information_gain,
    load_memory,
    load_pretrained,
    remember,
    save_pretrained,
    warm_cosine,
)
from pyro_memory.data import LICENCES, NAMES, SetTasks, load_images
from pyro_memory.diagnostics import (
    class_agreement,
    frechet_distance,
    plot_images,
    plot_levels,
    prototype_sets,
    train_classifier,
)
from pyro_memory.guides import DiffusionBaseGuide, EmptyGuide, HierarchicalBaseGuide, VAEBaseGuide, VSMGuide
from pyro_memory.models import VSM, DiffusionBase, HierarchicalBase, VAEBase

BASES = {
    "vae": (VAEBase, VAEBaseGuide),
    "hierarchical": (HierarchicalBase, HierarchicalBaseGuide),
    "diffusion": (DiffusionBase, DiffusionBaseGuide),
}
MEMORY = ("both", "episodic", "semantic", "support", "none")
CODE_DIM = 32


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = partial(parser.add_argument, metavar="N", type=int)
    parser.add_argument("--base", choices=BASES, default="vae")
    parser.add_argument(
        "--memory", choices=MEMORY, default="both",
        help='stores that the model may read; "support": both empty; "none": the base model alone',
    )  # fmt: skip
    parser.add_argument(
        "--rule", choices=("projected", "fractional", "hard"), default="projected", help="of conversion"
    )
    parser.add_argument("--no-replay", action="store_true", help="leave converted slots free")
    parser.add_argument("--data", choices=NAMES, default="glyphs")
    parser.add_argument("--data-dir", metavar="DIR", help="folder with the official files (glyphs need none)")
    parser.add_argument("--out", metavar="DIR", type=Path, default=Path("out/vsm_fewshot"))
    add("--steps", default=1500, help="training steps (default 1500)")
    add("--recognition", default=800, help="steps in which recall learns to recognise sets, first of all (default 800)")
    add("--tasks", default=8, help="tasks a step (default 8)")
    add("--queries", default=8, help="images that a task asks for (default 8)")
    parser.add_argument(
        "--turned", metavar="X", type=float, default=0.0, help="share of training tasks that are turned or mirrored"
    )
    add("--slots", default=24, help="episodes in memory (default 24)")
    add("--concepts", default=64)
    add("--consolidate-every", default=25, help="steps between consolidations (default 25)")
    add("--dim", default=16, help="dimensions of an embedding (default 16)")
    add("--channels", nargs="+", default=[16, 32, 48], help="maps of the base model's pyramids")
    add("--recall-channels", nargs="+", default=[8, 16, 32], help="maps of the pyramid that recalls")
    add(
        "--shots", nargs="+", default=[0, 1, 2, 5, 10],
        help="images in a support to test with, 5 among them; training has up to the most, as the data allow",
    )  # fmt: skip
    add("--evaluate", default=200, help="test images, shared by all rows (default 200)")
    add("--skip", default=0, help="leave out the first test images: others than those that choices were made on")
    add("--particles", help="K of the test bounds (default 100; diffusion: 8 paths of many steps each)")
    parser.add_argument("--bounds-only", action="store_true", help="measure nothing but bounds by shots, draw nothing")
    add("--classifier-steps", default=0, help="train a classifier so long, to judge generated images in its features")
    parser.add_argument("--learning-rate", metavar="X", type=float, default=4e-3)
    parser.add_argument("--prior-alpha", metavar="X", type=float, default=100.0, help="how firm widths of concepts are")
    add("--seed", default=0)
    parser.add_argument(
        "--pretrained", metavar="NAME", help="measure weights that come with the package; train nothing"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--fresh", action="store_true", help="start anew instead of resuming from --out")
    args = parser.parse_args()
    if 5 not in args.shots:
        parser.error("--shots must hold 5, at which stores are compared")
    if args.pretrained and args.memory == "none":
        parser.error("--pretrained weights have a memory; --memory support empties its stores")
    if args.bounds_only and not args.pretrained:
        parser.error("--bounds-only is for --pretrained weights; a training run leaves its own")
    return args


def sizes(shape, args):
    """Arguments of the base model and its guide, and of recall."""
    base = {"shape": list(shape), "channels": args.channels, "code_dim": 0 if args.memory == "none" else CODE_DIM}
    recall = {"shape": list(shape), "dim": args.dim, "code_dim": CODE_DIM, "channels": args.recall_channels}
    return base, {} if args.base == "diffusion" else base, recall


def build(background, args):
    """The pair, and what it trains on."""
    model_class, guide_class = BASES[args.base]
    of_base, of_guide, of_recall = sizes(background.shape, args)
    torch.manual_seed(args.seed)
    base, base_guide = model_class(**of_base), guide_class(**of_guide)
    most = min(max(args.shots), min(len(m) for m in background.members) - args.queries)
    tasks = SetTasks(
        background, tasks=args.tasks, queries=args.queries, shots=range(most + 1), seed=args.seed,
        turned=args.turned,
    )  # fmt: skip
    if args.memory == "none":
        return base, base_guide, lambda step: (tasks[step][0].flatten(0, 1),), None
    some = torch.randperm(len(background), generator=torch.Generator().manual_seed(args.seed))[:500]
    recall = Recall(**of_recall).calibrate(background[some])
    model, guide = VSM(base, recall), VSMGuide(base_guide, recall)
    memory = StructuredMemory(
        ConceptMemory.reserve(
            args.concepts, args.dim, prior_alpha=args.prior_alpha, prior_beta=0.09 * args.prior_alpha
        ),
        EpisodicMemory.reserve(args.slots, max(args.shots), background.shape, args.dim, args.concepts),
    )
    imagine = None if args.no_replay else lambda s, items, memory: model.decode_concepts(s, memory, items)
    life = Lifetime(
        tasks, recall, memory.to(args.device), rule=args.rule, replay=imagine, timescale=args.slots / 3,
        consolidate_every=None if args.memory in ("episodic", "support") else args.consolidate_every,
    )  # fmt: skip
    return model, guide, Seen(life, args.memory), life


def teach(recall, background, evaluation, args):
    """Teaches the recall to tell which set an image belongs to; what it finds is then worth reading."""
    tasks, others = min(40, background.classes), min(20, evaluation.classes)
    print(f"\nteaching recall to recognise: {args.recognition} steps of {tasks} sets")
    sets = SetTasks(background, tasks=tasks, queries=2, shots=range(1, 6), seed=args.seed + 1, turned=args.turned)
    recognition = Recognition(recall)
    taught = fit(
        recognition, EmptyGuide(), sets, Trace_ELBO(max_plate_nesting=2), steps=args.recognition,
        learning_rate=2e-3, schedule=warm_cosine(args.recognition), information_every=None,
        checkpoint=args.out / "recognition.safetensors", resume=not args.fresh, seed=args.seed, device=args.device,
    )  # fmt: skip
    recall.fixed = True
    unseen = SetTasks(evaluation, tasks=others, queries=10, shots=5, seed=1)
    found = sum(recognition.accuracy(*(t.to(args.device) for t in unseen[i])) for i in range(20)) / 20
    print(f"  an image of one of {others} unseen classes finds its own set of five: {found:.1%}")
    return found, taught.cpu_seconds


def train(model, guide, batches, args):
    nesting = 2 if isinstance(model, VSM) else 1
    # Alone, a diffusion model's one noisy step an image is enough; beside addresses, particles share the noise.
    one = args.base == "diffusion" and nesting == 1
    objective = Trace_ELBO(max_plate_nesting=1) if one else LeaveOneOutELBO(2, max_plate_nesting=nesting)
    print(
        f"\ntraining {args.steps} steps of {args.tasks} x {args.queries} images: base {args.base}, memory {args.memory}"
    )
    return fit(
        model, guide, batches, objective, steps=args.steps, learning_rate=args.learning_rate,
        schedule=warm_cosine(args.steps), clip_norm=5000.0, information_every=None,
        checkpoint=args.out / "model.safetensors", resume=not args.fresh, seed=args.seed, device=args.device,
    )  # fmt: skip


def view(memory, stores):
    """What of the memory the model may read."""
    if stores in ("episodic", "support"):
        memory = memory.without_concepts()
    return memory.without_episodes() if stores in ("semantic", "support") else memory


class Seen:
    """A lifetime of which the model sees some stores only."""

    def __init__(self, life, stores):
        self.life, self.stores = life, stores
        self.state_dict, self.load_state_dict = life.state_dict, life.load_state_dict

    def __getitem__(self, step):
        x, support, memory = self.life[step]
        return x, support, view(memory, self.stores)


def leave_weights(model, guide, life, bounds, shape, args):
    """Weights in half precision and the stores, with a card, ready for ``load_pretrained`` and ``load_memory``."""
    base, base_guide, recall = sizes(shape, args)
    parts = {"base": {"build": [BASES[args.base][0].__name__, base]}, "recall": {"shared": "recall"}}
    guide_parts = parts | {"base": {"build": [BASES[args.base][1].__name__, base_guide]}}
    facts = {
        "about": f"VSM over a {args.base} base trained on {args.data}",
        "data": f"{args.data}, background classes; measured on evaluation classes",
        "licence": LICENCES[args.data],
        "protocol": f"supports of the query's class without the query; {args.evaluate} queries, the same in each cell, "
        f"after {args.skip} left out; K = {args.particles}",
        "numbers": {f"{n} shot{'s' * (n != 1)}": f"{b.mean:.2f} ({b.se:.2f})" for n, b in bounds.items()},
        "training": f"{args.steps} steps of {args.tasks} x {args.queries} images, {args.turned:.0%} of the tasks "
        f"turned or mirrored, after {args.recognition} of recognition; memory {args.memory}, conversion {args.rule}, "
        f"{'no ' * args.no_replay}replay; seed {args.seed}",
    }  # fmt: skip
    card = save_pretrained(
        f"vsm-{args.base}-{args.data}", model, guide, memory=life.memory, facts=facts, folder=args.out / "weights",
        build={"shared": {"recall": ["Recall", recall]}, "model": ["VSM", parts], "guide": ["VSMGuide", guide_parts]},
    )  # fmt: skip
    print(f"\n{card}")


def test_sets(evaluation, shots, args):
    """The same targets for each number of shots; of more shots the first are those of fewer."""
    targets = torch.randperm(len(evaluation), generator=torch.Generator().manual_seed(1))
    targets = targets[args.skip : args.skip + args.evaluate]
    if max(args.shots) + 2 > min(len(m) for m in evaluation.members):  # no image is left for a second of a class
        targets = apart(targets, evaluation.labels, 20)
    return SetTasks(evaluation, tasks=20, shots=shots, targets=targets, seed=1)


def apart(targets, labels, tasks):
    """The targets in an order in which no ``tasks`` of one index, in a row, have two of one class, while there are
    others; a target that has to wait stands first in the next."""
    waiting, ordered = targets.tolist(), []
    while waiting:
        seen, later = set(), []
        for target in waiting:
            label = int(labels[target])
            if len(seen) < tasks and label not in seen:
                seen.add(label)
                ordered.append(target)
            else:
                later.append(target)
        waiting = later
    return torch.tensor(ordered)


def measure(model, guide, life, sets, args, alter=lambda memory: memory, wrong=False, most=None):
    """The bound of each target given its support, which memory has seen too; of ``most`` indices at most."""
    nesting = {"max_plate_nesting": 1 if life is None else 2}
    few = {"particles": args.particles} | ({"chunk_size": 4} if args.base == "diffusion" else {})
    parts = []
    for i in tqdm(range(min(len(sets), most or len(sets))), leave=False, desc=f"{sets.items} shots"):
        x, support = (t.to(args.device) for t in sets[i])
        if life is None:
            parts.append(importance_bound(model, guide, x.flatten(0, 1), **few, **nesting))
            continue
        support = sets.wrong_classes(i).to(args.device) if wrong else support
        memory = view(alter(remember(model.recall, life.memory, support)), args.memory)
        parts.append(importance_bound(model, guide, x, support, memory, **few, **nesting))
    return BoundEstimate.cat(parts)


def levels(model, guide, life, evaluation, args):
    """Nats of each level, by shots: what the support told, and what the query had to add."""
    recalled, added = {}, {}
    for shots in args.shots:
        sets = test_sets(evaluation, shots, args)
        rows = []
        for i in range(min(len(sets), 5)):
            x, support = (t.to(args.device) for t in sets[i])
            memory = view(remember(model.recall, life.memory, support), args.memory)
            took = information_gain(model.imagined, model.recalled, support, memory, max_plate_nesting=2)
            gain = information_gain(
                model, guide, x, support, memory, max_plate_nesting=2, draws=2 if args.base == "diffusion" else 10
            )
            rows.append(({n: s.mean for n, s in took.sites.items()}, {n: s.mean for n, s in gain.sites.items()}))
        for store, part in ((recalled, 0), (added, 1)):
            store[shots] = {n: sum(r[part][n] for r in rows) / len(rows) for n in rows[0][part]}
    return recalled, added


def contribution(model, guide, life, evaluation, bounds, args):
    """What each store was worth to this model at five shots, and the right support against another class's, on 200
    targets at most."""
    changes = {"wrong class": {"wrong": True}}
    if args.memory in ("both", "semantic"):
        changes["concepts emptied"] = {"alter": lambda m: m.without_concepts()}
    if args.memory in ("both", "episodic"):
        changes["episodes emptied"] = {"alter": lambda m: m.without_episodes()}
        changes["episodes shuffled"] = {"alter": lambda m: m.shuffled()}
    if args.memory == "both":
        changes["both emptied"] = {"alter": lambda m: m.without_concepts().without_episodes()}
    sets = test_sets(evaluation, 5, args)
    others = {name: measure(model, guide, life, sets, args, most=10, **change) for name, change in changes.items()}
    count = len(others["wrong class"].bound)
    given = BoundEstimate(bounds[5].bound[:count], bounds[5].effective_particles[:count], args.particles)
    return MemoryContribution(given, others)


@torch.no_grad()
def sample_quality(model, life, background, evaluation, args):
    """Images generated from five of each of 100 unseen classes, judged in a classifier's features."""
    with torch.enable_grad():
        judge = train_classifier(background, steps=args.classifier_steps, seed=args.seed)
    print(judge)
    chosen = torch.randperm(evaluation.classes, generator=torch.Generator().manual_seed(3))[:100]
    support, real, examples = prototype_sets(evaluation, chosen, support=5)
    images = []
    for part in tqdm(support.split(20), desc="generating", leave=False):
        if life is None:
            images.append(model.generate(Context(), (len(part), 7)))
            continue
        given = SlotMemory(evaluation[part], batch_dim=-2).to(args.device)
        images.append(model.generate(given, view(remember(model.recall, life.memory, given), args.memory), 7))
    new, real, examples = (
        judge.features(i) for i in (torch.bernoulli(torch.cat(images).cpu()), evaluation[real], evaluation[examples])
    )
    distance, floor = (frechet_distance(t.flatten(0, 1), examples.flatten(0, 1)) for t in (new, real))
    agreement = class_agreement(new, real, examples)
    print(
        f"class agreement {agreement.agreement:.3f} ({agreement.se:.3f}); real images {agreement.real:.3f} "
        f"({agreement.real_se:.3f}), chance {agreement.chance:.3f}\n"
        f"Frechet distance {distance.distance:.2f} ({distance.se:.2f}); "
        f"real images {floor.distance:.2f} ({floor.se:.2f})"
    )
    return {
        "classifier_accuracy": judge.accuracy, "agreement": agreement.to_dict(), "frechet": distance.to_dict(),
        "frechet_of_real": floor.to_dict(),
    }  # fmt: skip


def draw_generations(model, life, evaluation, args, path):
    """Support images, and new ones of their class."""
    sets = SetTasks(evaluation, tasks=8, shots=5, seed=2)
    _, support = sets[0]
    support = support.to(args.device)
    memory = view(remember(model.recall, life.memory, support), args.memory)
    new = model.generate(support, memory, 10)
    rows = [torch.cat([s, torch.zeros_like(s[:1]), n]) for s, n in zip(support.values, new, strict=True)]
    fig, ax = plt.subplots(figsize=(8, 4.2), layout="constrained")
    plot_images([r.cpu() for r in rows], ax=ax)
    ax.set_title("Five images of an unseen class each, and ten new ones given them")
    fig.savefig(path, dpi=120, bbox_inches="tight")


def draw_alone(model, args, path):
    fig, ax = plt.subplots(figsize=(8, 2), layout="constrained")
    plot_images([model.generate(Context(), (16,)).cpu() for _ in range(3)], ax=ax)
    ax.set_title("Images from the base model alone")
    fig.savefig(path, dpi=120)


def draw_summary(result, bounds, told, added, gained, path, args):
    fig, axes = plt.subplots(2, 2, figsize=(12, 8), layout="constrained")
    if result is None:
        plot_levels(added, axes[0, 0]).set_title("What the query added: KL(q || r(. | S)), nats")
    else:
        result.plot(axes[0, 0]).set_title("Training")
        if later := result.history["bound"][len(result.history["bound"]) // 10 :]:
            axes[0, 0].set_ylim(min(later), max(later) + 0.05 * (max(later) - min(later)))
    shots = list(bounds)
    axes[0, 1].errorbar(
        shots, [b.mean for b in bounds.values()], [2 * b.se for b in bounds.values()], marker="o", capsize=3
    )
    axes[0, 1].set(xlabel="images in the support", ylabel="log p(x | S) >=, nats per image", title="Unseen classes")
    plot_levels(told, axes[1, 0]).set_title("What the support told: KL(r(. | S) || p), nats a task")
    gained.plot(axes[1, 1]).set_title("What each store is worth at five shots")
    fig.savefig(path, dpi=120)
    fig, ax = plt.subplots(figsize=(6, 4), layout="constrained")
    plot_levels(added, ax).set_title("What the query added: KL(q || r(. | S)), nats")
    fig.savefig(path.with_name("levels.png"), dpi=120)


def finish(record, args, begun):
    (args.out / "results.json").write_text(json.dumps(record))
    print(f"\nresults are in {args.out} ({time.perf_counter() - begun:.0f} s)")


def main():
    args = arguments()
    begun = time.perf_counter()
    args.out.mkdir(parents=True, exist_ok=True)
    print(f"loading {args.data}")
    background, evaluation = (load_images(args.data, split, args.data_dir) for split in ("background", "evaluation"))
    print(f"  train on {background}\n  test on  {evaluation}")
    for shots in args.shots:  # what cannot be measured is refused before training
        sets = test_sets(evaluation, shots, args)
        for i in range(len(sets)):
            sets[i]
    if args.pretrained:
        model, guide = (part.to(args.device) for part in load_pretrained(args.pretrained))
        life = SimpleNamespace(memory=load_memory(args.pretrained).to(args.device), consolidation=None)
        args.base = next(name for name, pair in BASES.items() if isinstance(model.base, pair[0]))
        result, training = None, {}
        if max(args.shots) > (most := life.memory.episodes.items.shape[1]):
            raise SystemExit(f"--shots must be at most {most}, the images of an episode of {args.pretrained}")
    else:
        model, guide, batches, life = build(background, args)
        found, cpu = (None, 0.0) if life is None else teach(model.recall, background, evaluation, args)
        result = train(model, guide, batches, args)
        training = {
            "training_seconds": result.seconds, "training_cpu_seconds": cpu + result.cpu_seconds, "recognised": found,
        }  # fmt: skip
        model.eval(), guide.eval()
    if life is not None:
        print(f"{life.memory.concepts}\n{life.memory.episodes}\n{life.consolidation or ''}")

    args.particles = args.particles or (8 if args.base == "diffusion" else 100)
    print("\nmeasuring")
    torch.manual_seed(args.seed)
    bounds = {shots: measure(model, guide, life, test_sets(evaluation, shots, args), args) for shots in args.shots}
    print(f"\nlog p(x | support) >=, nats per image, {args.evaluate} images of unseen classes (standard error)")
    for shots, b in bounds.items():
        print(f"  {shots:>2} shots  {b.mean:9.2f} ({b.se:.2f})")
    unused = {"data_dir", "out", "fresh"}
    if args.pretrained:
        unused |= {
            "steps", "recognition", "tasks", "queries", "turned", "slots", "concepts", "consolidate_every", "dim",
            "channels", "recall_channels", "prior_alpha", "learning_rate", "rule", "no_replay",
        }  # fmt: skip
    record = {
        "arguments": {k: v for k, v in vars(args).items() if k not in unused},
        "torch": torch.__version__, "threads": torch.get_num_threads(), **training,
        "bounds": {s: b.to_dict() | {"each": [round(v, 2) for v in b.bound.tolist()]} for s, b in bounds.items()},
    }  # fmt: skip
    if args.bounds_only:
        return finish(record, args, begun)
    if args.classifier_steps:
        record["samples"] = sample_quality(model, life, background, evaluation, args)
    if life is None:
        draw_alone(model, args, args.out / "samples.png")
    else:
        gained = contribution(model, guide, life, evaluation, bounds, args)
        told, added = levels(model, guide, life, evaluation, args)
        print(f"\nfive shots\n{gained}")
        for name, table in (("the support told", told), ("the query added", added)):
            print(f"\nnats that {name}, by shots")
            for shots, row in table.items():
                print(f"  {shots:>2}  " + "  ".join(f"{site} {nats:.3f}" for site, nats in row.items()))
        draw_generations(model, life, evaluation, args, args.out / "generations.png")
        draw_summary(result, bounds, told, added, gained, args.out / "summary.png", args)
        record |= {
            "contribution": gained.to_dict(), "told": told, "added": added,
            "consolidation": life.consolidation.to_dict() if life.consolidation else None,
            "concepts_in_use": int((life.memory.concepts.counts > 0).sum()),
        }  # fmt: skip
        if not args.pretrained:
            leave_weights(model, guide, life, bounds, background.shape, args)
    finish(record, args, begun)


if __name__ == "__main__":
    main()
