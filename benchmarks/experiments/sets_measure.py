"""What vsm_fewshot.py measures: bounds by shots, the nats of each level and store, the quality of new images."""

import torch
from sets_pairs import view
from tqdm import tqdm

import pyro_memory as pm
from pyro_memory.data import SetTasks
from pyro_memory.diagnostics import (
    class_agreement,
    frechet_distance,
    prototype_sets,
    sample_diversity,
    train_classifier,
)


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
            parts.append(pm.importance_bound(model, guide, x.flatten(0, 1), **few, **nesting))
            continue
        support = sets.wrong_classes(i).to(args.device) if wrong else support
        memory = view(alter(pm.remember(model.recall, life.memory, support)), args.memory)
        parts.append(pm.importance_bound(model, guide, x, support, memory, **few, **nesting))
    return pm.BoundEstimate.cat(parts)


def levels(model, guide, life, evaluation, args):
    """Nats of each level, by shots: what the support told, and what the query had to add."""
    recalled, added, draws = {}, {}, 2 if args.base == "diffusion" else 10
    for shots in args.shots:
        sets = test_sets(evaluation, shots, args)
        rows = []
        for i in range(min(len(sets), 5)):
            x, support = (t.to(args.device) for t in sets[i])
            memory = view(pm.remember(model.recall, life.memory, support), args.memory)
            took = pm.information_gain(model.imagined, model.recalled, support, memory, max_plate_nesting=2)
            gain = pm.information_gain(model, guide, x, support, memory, max_plate_nesting=2, draws=draws)
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
    given = pm.BoundEstimate(bounds[5].bound[:count], bounds[5].effective_particles[:count], args.particles)
    return pm.MemoryContribution(given, others)


def sample_quality(model, life, background, evaluation, args):
    """Images generated from five of each of 100 unseen classes, judged in a classifier's features."""

    def draw(part):
        if life is None:
            return model.generate(pm.Context(), (len(part), 7))
        given = pm.SlotMemory(evaluation[part], batch_dim=-2).to(args.device)
        stores = view(pm.remember(model.recall, life.memory, given), args.memory)
        return model.generate(given, stores, 7, remembered=args.memory not in ("semantic", "support"))

    judge = train_classifier(background, steps=args.classifier_steps, seed=args.seed)
    return judged(draw, judge, evaluation)


def judged(draw, judge, evaluation):
    """How well ``draw(support)``, seven images of each class, passes for the classes of the support."""
    print(judge)
    chosen = torch.randperm(evaluation.classes, generator=torch.Generator().manual_seed(3))[:100]
    support, real, examples = prototype_sets(evaluation, chosen, support=5)
    with torch.no_grad():
        images = torch.cat([draw(part) for part in tqdm(support.split(20), desc="generating", leave=False)])
        images = torch.bernoulli(images.cpu()), evaluation[real], evaluation[examples]
        new, real, examples = map(judge.features, images)
    distance, floor = (frechet_distance(t.flatten(0, 1), examples.flatten(0, 1)) for t in (new, real))
    agreement = class_agreement(new, real, examples)
    print(agreement, distance, f"of real images: {floor}", sep="\n")
    return {
        "classifier_accuracy": judge.accuracy, "agreement": agreement.to_dict(), "frechet": distance.to_dict(),
        "frechet_of_real": floor.to_dict(),
    }  # fmt: skip


def measure_bounds(model, guide, memory, evaluation, args):
    """The bound of each target given its support, which memory has seen too, by shots."""
    bounds = {}
    for shots in args.shots:
        sets, parts = test_sets(evaluation, shots, args), []
        for i in tqdm(range(len(sets)), leave=False, desc=f"{shots} shots"):
            x, support = sets[i]
            given = pm.remember(model.recall, memory, support)
            how = {"particles": args.particles, "chunk_size": 10, "max_plate_nesting": 2}
            parts.append(pm.importance_bound(model, guide, x, support, given, **how))
        bounds[shots] = pm.BoundEstimate.cat(parts)
        print(f"{shots} shots: {bounds[shots].mean:.2f} ({bounds[shots].se:.2f})", flush=True)
    return bounds


def drawn_sets(data, args, support, skip=0):
    """Images to draw from, to compare with and to make prototypes of, of ``--judged`` classes after some."""
    chosen = torch.randperm(data.classes, generator=torch.Generator().manual_seed(3))
    return prototype_sets(data, chosen[skip : skip + args.judged], support=support)


def judged_drawings(model, memory, judge, data, ways, args):
    """Drawings given five images, drawn in several ways, of the classes after the first ``--judged``; which way is best
    there; and those of the first classes, drawn so and plainly, given one image, five and ten."""

    def judged(sets, shots, how):
        support, real, examples = (data[part] for part in sets)
        support, seed = support[:, :shots], torch.random.fork_rng()
        with seed:
            torch.manual_seed(args.seed)
            parts = []
            for part in tqdm(support.split(10), desc=f"{shots} images, {how}", leave=False):
                given = pm.SlotMemory(part, batch_dim=-2)
                parts.append(model.generate(given, pm.remember(model.recall, memory, given), real.shape[1], **how))
        new = torch.cat(parts)
        features = [judge.features(images) for images in (new, real, examples)]
        flat = [f.flatten(0, 1) for f in features]
        found = {
            "agreement": class_agreement(*features), "frechet": frechet_distance(flat[0], flat[2]),
            "frechet_of_real": frechet_distance(flat[1], flat[2]),
            "diversity": sample_diversity(tuple(features[:2]), (new, real), support),
        }  # fmt: skip
        print(shots, how, *found.values(), sep="\n  ", flush=True)
        return how | {"shots": shots, "images": len(flat[0])} | {name: f.to_dict() for name, f in found.items()}

    others = drawn_sets(data, args, 5, skip=args.judged)
    tried = [judged(others, 5, how) for how in ways]
    least = min((row["frechet"] for row in tried), key=lambda found: found["distance"])
    near = [row for row in tried if row["frechet"]["distance"] <= least["distance"] + least["se"]]
    best = max(near, key=lambda row: row["agreement"]["agreement"])
    chosen = {name: best[name] for name in ways[0]}
    five, ten = drawn_sets(data, args, 5), drawn_sets(data, args, 10)
    cases = [(five, 1), (five, 5), (ten, 10)]
    shown = [ways[0]] if chosen == ways[0] else [ways[0], chosen]
    return chosen, tried, [judged(sets, shots, how) for how in shown for sets, shots in cases]
