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

from types import SimpleNamespace

import study
import torch
from pyro.infer import Trace_ELBO
from sets_figures import draw_alone, draw_generations, draw_summary
from sets_measure import contribution, levels, measure, sample_quality, test_sets
from sets_pairs import BASES, QUERIES, TASKS, build, leave_weights, teach
from tables_sets import set_row

from pyro_memory import LeaveOneOutELBO, load_memory, load_pretrained
from pyro_memory.data import load_images
from pyro_memory.models import VSM


def arguments():
    parser = study.options(
        __doc__, "out/vsm_fewshot", device=True,
        base=(tuple(BASES), "what draws an image"),
        memory=(
            ("both", "episodic", "semantic", "support", "none"),
            'stores that the model may read; "support": both empty; "none": the base model alone',
        ),
        rule=(("projected", "fractional", "hard"), "of conversion"), no_replay=(False, "leave converted slots free"),
        steps=(1500, "training steps"), recognition=(800, "steps in which recall learns to recognise sets first"),
        turned=(0.0, "share of training tasks that are turned or mirrored"),
        channels=([16, 32, 48], "maps of the base model's pyramids"), learning_rate=(4e-3, "at its highest"),
        shots=([0, 1, 2, 5, 10], "images in a support to test with, 5 among them; training has up to the most"),
        evaluate=(200, "test images, shared by all rows"),
        skip=(0, "leave out the first test images: others than those that choices were made on"),
        bounds_only=(False, "measure nothing but bounds by shots, draw nothing"),
        classifier_steps=(0, "train a classifier so long, to judge generated images in its features"),
        pretrained=(None, "measure weights that come with the package; train nothing"),
        folder=(None, "where the weights of --pretrained lie, if not in the package"),
    )  # fmt: skip
    parser.add_argument("--particles", metavar="N", type=int, help="K of the bounds (default 100; diffusion: 8 paths)")
    args = parser.parse_args()
    if 5 not in args.shots:
        parser.error("--shots must hold 5, at which stores are compared")
    if args.pretrained and args.memory == "none":
        parser.error("--pretrained weights have a memory; --memory support empties its stores")
    if args.bounds_only and not args.pretrained:
        parser.error("--bounds-only is for --pretrained weights; a training run leaves its own")
    return args


def train(model, guide, batches, args):
    nesting = 2 if isinstance(model, VSM) else 1
    # Alone, a diffusion model's one noisy step an image is enough; beside addresses, particles share the noise.
    one = args.base == "diffusion" and nesting == 1
    objective = Trace_ELBO(max_plate_nesting=1) if one else LeaveOneOutELBO(2, max_plate_nesting=nesting)
    print(f"\ntraining {args.steps} steps of {TASKS} x {QUERIES} images: base {args.base}, memory {args.memory}")
    return study.train("model", model, guide, batches, objective, args)


def main():
    args = arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    print(f"loading {args.data}")
    background, evaluation = (load_images(args.data, split, args.data_dir) for split in ("background", "evaluation"))
    print(f"  train on {background}\n  test on  {evaluation}")
    for shots in args.shots:  # what cannot be measured is refused before training
        sets = test_sets(evaluation, shots, args)
        for i in range(len(sets)):
            sets[i]
    if args.pretrained:
        folder = (args.folder,) if args.folder else ()
        model, guide = (part.to(args.device) for part in load_pretrained(args.pretrained, *folder))
        life = SimpleNamespace(memory=load_memory(args.pretrained, *folder).to(args.device), consolidation=None)
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
    unused = {"steps", "recognition", "turned", "channels", "learning_rate", "rule", "no_replay"}
    unused = {"folder"} | (unused if args.pretrained else set())
    record = training | {
        "bounds": {s: b.to_dict() | {"each": [round(v, 2) for v in b.bound.tolist()]} for s, b in bounds.items()}
    }
    if args.bounds_only:
        return study.leave(record, args, set_row, unused=unused)
    if args.classifier_steps:
        record["samples"] = sample_quality(model, life, background, evaluation, args)
    if life is None:
        draw_alone(model, args, args.out / "samples.png")
    else:
        gained = contribution(model, guide, life, evaluation, bounds, args)
        told, added = levels(model, guide, life, evaluation, args)
        print(f"\nfive shots\n{gained}")
        draw_generations(model, life, evaluation, args, args.out / "generations.png")
        draw_summary(result, bounds, told, added, gained, args.out / "summary.png", args)
        record |= {
            "contribution": gained.to_dict(), "told": told, "added": added,
            "consolidation": life.consolidation.to_dict() if life.consolidation else None,
            "concepts_in_use": int((life.memory.concepts.counts > 0).sum()),
        }  # fmt: skip
        if not args.pretrained:
            leave_weights(model, guide, life, bounds, background.shape, args)
    study.leave(record, args, set_row, unused=unused)


if __name__ == "__main__":
    main()
