"""New drawings of an unseen class from one, five or ten examples, by a structured memory over an exact base.

Recall learns to tell which set an image belongs to; a VAE teaches it to look an image up among those of an episode;
then an autoregressive base, which looks at all images of the page that was read, is trained over stores that live
through classes that come, leave and come back. How it draws (guidance, temperature, and of how many candidates recall
keeps one) is chosen on other classes than those that are measured: the most drawings taken for their class among those
no farther from real ones than the nearest and its standard error. Measures the bound by shots, and of drawings how many
pass for their class, how far they lie from real ones, how varied they are, and how many copy an example. Writes
results.json, a checkpoint, weights with small stores, and figures to --out; run it again to go on from there. With
--pretrained it draws and does nothing else.

    python benchmarks/experiments/vsm_drawings.py --steps 20 --recognition 20 --lookup 20
    python benchmarks/experiments/vsm_drawings.py --data omniglot --data-dir FOLDER --start omniglot28 --steps 6000
"""

import matplotlib.pyplot as plt
import study
import torch
from pyro.infer import Trace_ELBO
from sets_measure import drawn_sets, judged_drawings, measure_bounds
from sets_pairs import learned_prior, returning_life, returning_stores, teach
from tables_sets import drawings

import pyro_memory as pm
from pyro_memory.data import LICENCES, load_images
from pyro_memory.diagnostics import plot_images, train_classifier
from pyro_memory.guides import AutoregressiveBaseGuide, VAEBaseGuide, VSMGuide
from pyro_memory.models import VSM, AutoregressiveBase, VAEBase

# Guidance, temperature, and candidates of which one is kept: first the model as it is, then what Omniglot chose.
WAYS = [(0.0, 1.0, 1), (0.25, 0.9, 4), (0.25, 1.0, 4), (0.5, 0.9, 4), (0.25, 1.0, 1), (0.5, 1.0, 1)]
CODE_DIM = 64


def named(way):
    return dict(zip(("guidance", "temperature", "candidates"), way, strict=True))


def arguments():
    return study.options(
        __doc__, "out/vsm_drawings",
        start=(None, "take the base's weights from vma-autoregressive-START"),
        steps=(300, "training steps of the base, 8 tasks of 8 images each"),
        recognition=(800, "steps in which recall learns to recognise sets first"),
        lookup=(400, "steps of the VAE that teaches it to look images up in an episode"),
        dim=(16, "dimensions of embeddings"), hidden=(256, "width of recall's layers"),
        recall_channels=([16, 32, 64], "maps of recall's pyramid"), maps=(48, "features of a block"),
        layers=([2, 4], "of the base, told nothing and told"), looks=(2, "at the page"), turned=(0.0, "share of sets"),
        exemplars=(8, "images that a concept keeps"), concepts=(64, "of the semantic store"),
        learning_rate=(1e-3, "of the base, at its highest"), classifier_steps=(600, "of the judge of drawings"),
        evaluate=(60, "test images"), particles=(50, "K of the bounds"), judged=(20, "classes that are drawn"),
        shots=([0, 1, 5, 10], "images in a support to measure bounds with"),
        skip=(0, "leave out the first test images"), ways=(6, "of drawing to choose among"),
        pretrained=(None, "only draw, with these weights of the package"),
    ).parse_args()  # fmt: skip


def base_sizes(shape, args):
    return {
        "shape": list(shape), "maps": args.maps, "layers": args.layers, "looks": args.looks, "reads": True,
        "unread": 0.06, "code_dim": CODE_DIM, "whole_page": True,
    }  # fmt: skip


def started(shape, args):
    """The base, with the weights of a VMA's where there is one; what tells it the code is its own."""
    torch.manual_seed(args.seed)
    base = AutoregressiveBase(**base_sizes(shape, args))
    if args.start:
        vma, _ = pm.load_pretrained(f"vma-autoregressive-{args.start}")
        same = {n: t for n, t in vma.base.state_dict().items() if not n.startswith("code.")}
        missing, strange = base.load_state_dict(same, strict=False)
        if strange or any(not n.startswith("code.") for n in missing):
            raise SystemExit(f"--start {args.start} is of another base; give its --maps, --layers and --looks")
    return base


def trained(background, evaluation, base, args):
    torch.manual_seed(args.seed)
    shape, sizes = background.shape, {"channels": [16, 32, 48], "code_dim": CODE_DIM}
    recall = pm.Recall(shape, dim=args.dim, code_dim=CODE_DIM, channels=args.recall_channels, hidden=args.hidden)
    recall.calibrate(background[torch.randperm(len(background))[:500]])
    found, _ = teach(recall, background, evaluation, args)
    prior = learned_prior(recall, background, args.seed)
    pair = VSM(VAEBase(shape, **sizes), recall), VSMGuide(VAEBaseGuide(shape, **sizes), recall)
    print(f"\nteaching it to look images up: {args.lookup} steps over a VAE")
    many = {"steps": args.lookup, "schedule": pm.warm_cosine(args.lookup), "learning_rate": 4e-3}
    study.train("lookup", *pair, returning_life(background, recall, args, prior), pm.LeaveOneOutELBO(2), args, **many)
    model, guide = VSM(base, recall), VSMGuide(AutoregressiveBaseGuide(), recall)
    for part in (recall.key, recall.similarity):
        part.requires_grad_(False)
    life = returning_life(background, recall, args, prior)
    print(f"\ntraining {args.steps} steps of {life.tasks.tasks} x {life.tasks.queries} images")
    result = study.train("model", model, guide, life, Trace_ELBO(max_plate_nesting=2), args)
    return model, guide, life, prior, {"training_seconds": result.seconds, "recognised": found}


def small_life(background, recall, args, prior):
    """Small stores to go with the weights, which have lived through some background classes."""
    life = returning_life(background, recall, args, prior)
    memory = returning_stores(background.shape, args, prior, concepts=32, exemplars=4, slots=24)
    few = pm.Lifetime(life.tasks, recall, memory, consolidate_every=1, timescale=4.0, forgetting=1.0, room=8)
    for step in range(60):
        few[step]
    return few.memory


def leave_weights(model, guide, memory, record, args):
    of_bounds = {f"{s} shot{'s' * (s != 1)}": f"{b['mean']:.2f} ({b['se']:.2f})" for s, b in record["bounds"].items()}
    of_drawings = {
        f"of drawings from {row['shots']}": f"{row['agreement']['agreement']:.0%} of their class, Frechet "
        f"{row['frechet']['distance']:.1f} ({row['frechet']['se']:.1f})"
        for row in record["samples"][-3:]
    }
    facts = {
        "about": f"VSM over an autoregressive base that looks at whole pages, trained on {args.data}",
        "data": f"{args.data}, background classes; measured on evaluation classes", "licence": LICENCES[args.data],
        "protocol": f"supports of the query's class without the query; {args.evaluate} queries after {args.skip}; "
        f"K = {args.particles}; {args.judged} classes drawn with {record['chosen']}, chosen on others",
        "numbers": of_bounds | of_drawings,
        "training": f"{args.steps} steps of 8 x 8 images, base begun from {args.start}, recall taught for "
        f"{args.recognition} and {args.lookup} steps before; seed {args.seed}",
    }  # fmt: skip
    name = f"vsm-autoregressive-{args.data}"
    print(pm.save_pretrained(name, model, guide, memory=memory, facts=facts, folder=args.out / "weights"))


def draw(model, memory, data, args, how, path):
    """Five examples of each of eight unseen classes, and new drawings given one of them and all."""
    support = drawn_sets(data, args, 5)[0][:8]
    rows = []
    for shots in (1, 5):
        given = pm.SlotMemory(data[support][:, :shots], batch_dim=-2)
        rows.append(model.generate(given, pm.remember(model.recall, memory, given), 8, **how))
    blank = torch.zeros_like(rows[0][:, :1])
    shown = torch.cat([data[support], blank, rows[0], blank, rows[1]], 1)
    fig, ax = plt.subplots(figsize=(13, 4.6), layout="constrained")
    plot_images(list(shown), ax=ax)
    ax.set_title("Five images of an unseen class each; eight drawn given the first of them, eight given all five")
    fig.savefig(path, dpi=120, bbox_inches="tight")
    plt.close(fig)


def main():
    args = arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    background, evaluation = (load_images(args.data, split, args.data_dir) for split in ("background", "evaluation"))
    print(f"train on {background}\ntest on  {evaluation}")
    if not 2 <= 2 * args.judged <= evaluation.classes:
        raise SystemExit(f"--judged must be 1 to {evaluation.classes // 2}: as many others say how to draw")
    if args.pretrained:
        model, memory = pm.load_pretrained(args.pretrained)[0], pm.load_memory(args.pretrained)
        draw(model, memory, evaluation, args, named(WAYS[1]), args.out / "drawings.png")
        return study.leave({}, args)
    model, guide, life, prior, record = trained(background, evaluation, started(background.shape, args), args)
    print(f"{life.memory.concepts}\n{life.memory.episodes}\nmeasuring")
    bounds = measure_bounds(model, guide, life.memory, evaluation, args)
    judge = train_classifier(background, steps=args.classifier_steps, seed=args.seed)
    ways = list(map(named, WAYS[: args.ways]))
    chosen, tried, samples = judged_drawings(model, life.memory, judge, evaluation, ways, args)
    draw(model, life.memory, evaluation, args, {}, args.out / "drawings_plain.png")
    draw(model, life.memory, evaluation, args, chosen, args.out / "drawings.png")
    record |= {
        "classifier_accuracy": judge.accuracy, "bounds": {s: b.to_dict() for s, b in bounds.items()},
        "chosen": chosen, "tried": tried, "samples": samples,
    }  # fmt: skip
    leave_weights(model, guide, small_life(background, model.recall, args, prior), record, args)
    study.leave(record, args, drawings)


if __name__ == "__main__":
    main()
