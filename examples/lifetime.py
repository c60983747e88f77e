"""A memory that lives through a stream: letters come, are seen in a few sets, leave, and come back.

Each set of five drawings is written as an episode into a ring of slots; now and then inference decides for each episode
whether it stays, joins a concept or opens a new one. The ring forgets; concepts stay, each a Normal-Gamma posterior
over embeddings with a few drawings of what it took in. Several times in this life every letter that has left comes
back, with no example or with one: how much likelier are its drawings with concepts than with emptied ones?

    log p(x | S, memory) - log p(x | S, memory without concepts)    nats a drawing x, S its one example or none

Then an episode is converted on request, with the reasons; concepts that have become one are merged, and those that have
become two are split. Nothing is trained: the model comes with the package and has seen none of these letters; what is
learned is in the stores.

    python examples/lifetime.py
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from tqdm import trange

import pyro_memory as pm
from pyro_memory.data import ReturningClasses, glyphs
from pyro_memory.diagnostics import plot_concepts

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--steps", metavar="N", type=int, default=120, help="steps of the life, 8 sets each (default 120)")
parser.add_argument("--concepts", metavar="N", type=int, default=64, help="of the semantic store (default 64)")
parser.add_argument("--exemplars", metavar="N", type=int, default=8, help="drawings that a concept keeps (default 8)")
parser.add_argument("--particles", metavar="N", type=int, default=20, help="K of the bounds (default 20)")
parser.add_argument("--seed", metavar="N", type=int, default=0)
parser.add_argument("--out", metavar="DIR", type=Path, default=Path("out/lifetime"), help="of the figure")


def empty_stores(letters, recall, args):
    """Concepts, spread as those of other letters are, and a ring of 32 episodes."""
    sets = torch.stack([members[:15] for members in glyphs("background").members[:200]])
    parts = [recall.embed(pm.SlotMemory(glyphs("background")[part], batch_dim=-2)) for part in sets.split(5, 1)]
    prior = pm.fit_concept_prior(*(torch.stack(moment, 1) for moment in zip(*parts, strict=True)))
    kept = {"exemplars": args.exemplars, "event_shape": letters.shape}
    concepts = pm.ConceptMemory.reserve(args.concepts, recall.dim, concentration=64.0, **kept, **prior)
    return pm.StructuredMemory(concepts, pm.EpisodicMemory.reserve(32, 5, letters.shape, recall.dim, args.concepts))


def worth(model, guide, life, shots, args):
    """Nats that concepts are worth to each letter that has left by now and comes back; and how often it was met."""
    met, gained, times = life.tasks.met(life.newest), [], []
    for labels, x, support in life.tasks.returns(life.newest, shots=shots, tasks=10):
        memory = pm.remember(model.recall, life.memory, support)
        how = {"particles": args.particles, "max_plate_nesting": 2}
        with_them, without = (
            pm.importance_bound(model, guide, x, support, stores, **how).bound
            for stores in (memory, memory.without_concepts())
        )
        gained.append(with_them - without)
        times += [met[label][0] for label in labels]
    return torch.cat(gained), torch.tensor(times)


def mean_se(values):
    return f"{values.mean():.1f} ({values.std() / len(values) ** 0.5:.1f})" if len(values) > 1 else "-"


def draw(marks, rows, lived, path):
    """What concepts are worth as life goes on, and the concepts themselves."""
    fig, (left, right) = plt.subplots(1, 2, figsize=(16, 7), layout="constrained", width_ratios=(1, 2.4))
    for (shots, gained), style in zip(rows.items(), ("-o", ":s"), strict=True):
        mean, error = [row.mean() for row in gained], [2 * row.std() / len(row) ** 0.5 for row in gained]
        label = ("no", "one")[shots] + " example"
        left.errorbar([8 * m for m in marks], mean, error, fmt=style, capsize=3, label=label)
    left.axhline(0, color="0.6", linewidth=0.8)
    left.set(xlabel="episodes lived through", ylabel="nats a drawing", title="Worth of concepts to letters that return")
    left.legend(frameon=False)
    plot_concepts(lived, ax=right).set_title("The concepts that took in most")
    fig.savefig(path, dpi=120)


if __name__ == "__main__":
    args = parser.parse_args()
    if args.steps < 40:
        parser.error(f"--steps must be at least 40, for letters to have left; got {args.steps}")
    if min(args.concepts, args.exemplars, args.particles) < 1:
        parser.error("--concepts, --exemplars and --particles must be at least 1")
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    model, guide = pm.load_pretrained("vsm-returning-omniglot")
    letters, recall = glyphs("evaluation"), model.recall
    stream = ReturningClasses(letters, queries=1, shots=5, back=(1, 2), items=5, seed=args.seed)
    memory = empty_stores(letters, recall, args)
    life = pm.Lifetime(stream, recall, memory, consolidate_every=2, timescale=8.0, forgetting=1.0, room=16)
    marks = [args.steps * n // 4 for n in range(1, 5)]
    rows, lived = {0: [], 1: []}, {}
    for step in trange(args.steps, unit="step"):
        life[step]
        if step + 1 in marks:
            lived[f"{8 * (step + 1)} episodes"] = life.memory.concepts
            for shots, gained in rows.items():
                gain, times = worth(model, guide, life, shots, args)
                gained.append(gain)
    memory = life.memory
    print(f"\n{memory.concepts}\n{memory.episodes}\n\nThe newest episode, converted now:")
    memory, record = pm.consolidate(memory, int(memory.episodes.ages.argmin()))
    print(f"{record}\n{record.decisions[0]}\n")
    print(pm.reorganise(memory.concepts)[1])
    print("\nNats that concepts are worth to a drawing of a letter that comes back (standard error)")
    print(f"  {'':<24}{'no example':>14}{'one example':>14}")
    for mark, *gained in zip(marks, *rows.values(), strict=True):
        print(f"  after {8 * mark:>5} episodes{'':<5}", *(f"{mean_se(gain):>13}" for gain in gained))
    for low, high in ((1, 2), (3, 5), (6, 10**6)):
        part = (times >= low) & (times <= high)
        name = f"met {low} to {high} times" if high < 10**6 else f"met {low} times or more"
        print(f"  {name:<24}", *(f"{mean_se(gained[-1][part]):>13}" for gained in rows.values()))
    draw(marks, rows, lived, args.out / "lifetime.png")
    print(f"The figure is {args.out / 'lifetime.png'}")
