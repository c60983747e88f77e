"""A memory that lives through a stream: episodes become concepts, with their uncertainty, and old letters stay known.

Letters come in stages that do not come back. Each set of five drawings is written as an episode into a ring of slots;
now and then inference decides for each episode whether it stays, joins a concept or opens a new one (assumed-density
filtering: doubt about which stays doubt in the concepts). A concept is a Normal-Gamma posterior over the embeddings of
one kind of letter. After each stage: what do concepts, and a ring without them, still know of the letters so far?

    log p(S | store) - log p(S | nothing)    nats a set S of other drawings, by the evidence that recall addresses with

The recall that embeds drawings, and the VAE that shows what a concept looks like, come with the package and have seen
none of these letters. Nothing is trained: what is learned is in the stores.

    python examples/lifetime.py
"""

import argparse
import math
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from tqdm import tqdm

from pyro_memory import ConceptMemory, EpisodicMemory, Lifetime, StructuredMemory, load_pretrained
from pyro_memory.data import ClassStream, SetTasks, glyphs
from pyro_memory.diagnostics import plot_images

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--stages", metavar="N", type=int, default=4, help="groups of some 14 letters (default 4)")
parser.add_argument("--steps", metavar="N", type=int, default=60, help="steps a stage, of 3 episodes each (default 60)")
parser.add_argument("--slots", metavar="N", type=int, default=24, help="episodes that the ring holds (default 24)")
parser.add_argument("--seed", metavar="N", type=int, default=0)
parser.add_argument("--out", metavar="DIR", type=Path, default=Path("out/lifetime"), help="of the figure")


@torch.no_grad()
def known(recall, memory, letters):
    """Nats a held-out set that concepts, or the episodes in a ring, save against N(0, 1), the embeddings' prior."""
    _, support = SetTasks(letters, tasks=letters.classes, shots=4, seed=0)[0]
    evidence, _, _ = recall.gather(support)
    nothing = evidence.log_marginal(torch.zeros(1, recall.dim), torch.ones(1, recall.dim))
    score = memory.concepts.prior().logits + evidence.log_marginal(*memory.concepts.moments())
    if not bool((memory.concepts.counts > 0).any()):
        full = memory.episodes.filled
        score = evidence.log_marginal(memory.episodes.loc[full], memory.episodes.variance[full]) - full.sum().log()
    return (score.logsumexp(-1, keepdim=True) - nothing).flatten()


def mean_se(values):
    return f"{values.mean():.1f} ({values.std() / math.sqrt(len(values)):.1f})"


@torch.no_grad()
def draw(nats, model, memory, stream, args):
    fig, (left, middle, right) = plt.subplots(1, 3, figsize=(16, 4.6), layout="constrained")
    for stage in range(args.stages):
        lived = range(stage + 1, args.stages + 1)
        for store, style in (("concepts", "-o"), ("ring alone", ":x")):
            values = [nats[store][n - 1][stage].mean() for n in lived]
            left.plot(lived, values, style, color=f"C{stage}", label=f"stage {stage + 1}, {store}")
    left.set(xlabel="stages lived through", ylabel="nats a held-out set", title="What each store still knows")
    left.set_xticks(range(1, args.stages + 1))
    left.legend(frameon=False, fontsize=7, ncols=2)
    concepts, used = memory.concepts, memory.concepts.counts > 0.5
    centre = (concepts.beta / ((concepts.alpha - 1) * concepts.kappa)).sqrt().mean(-1)  # of mu's Student-t
    for width, what in ((concepts.widths(), "of its letters"), (centre, "of what is known of its centre")):
        middle.scatter(concepts.counts[used], width[used], s=14, label=what)
    middle.set(xlabel="episodes taken in", ylabel="mean deviation", title="Each concept's uncertainty")
    middle.legend(frameon=False)
    rows = {}
    for stage, letters in enumerate(map(stream.held_out, range(args.stages))):
        _, support = SetTasks(letters, tasks=letters.classes, shots=4, seed=0)[0]
        k = model.recall.k_dist(memory, model.recall.gather(support)[0]).probs.argmax(-1).flatten()[:12]
        rows[f"stage {stage + 1}"] = support.values[:12, 0]
        rows["its concept" + " " * stage] = model.decode_concepts(concepts.loc[k], memory, 16).mean(1)
    plot_images(list(rows.values()), list(rows), ax=right).set_title("Held-out letters, and the concepts they recall")
    fig.savefig(args.out / "lifetime.png", dpi=120)


if __name__ == "__main__":
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    model, _ = load_pretrained("vsm-vae-omniglot")
    letters = glyphs("evaluation")
    stream = ClassStream(letters, stages=20, seed=args.seed)
    stages = [stream.tasks(s, tasks=3, shots=5, seed=args.seed) for s in range(args.stages)]
    tasks = [stages[step // args.steps][step] for step in range(args.stages * args.steps)]  # (drawing, set of five)
    memory = StructuredMemory(
        ConceptMemory.reserve(96, model.recall.dim, prior_alpha=10.0, prior_beta=0.9, concentration=30.0),
        EpisodicMemory.reserve(args.slots, 5, letters.shape, model.recall.dim, 96),
    )
    lives = {
        name: Lifetime(tasks, model.recall, memory, consolidate_every=every, timescale=6, forgetting=1.0)
        for name, every in (("concepts", 4), ("ring alone", None))
    }
    nats = {name: [] for name in lives}
    for step in tqdm(range(len(tasks)), unit="step"):
        for name, life in lives.items():
            life[step]
            if (step + 1) % args.steps == 0:
                so_far = map(stream.held_out, range(len(nats[name]) + 1))
                nats[name].append([known(model.recall, life.memory, letters) for letters in so_far])
    memory, classes = lives["concepts"].memory, sum(stream.held_out(s).classes for s in range(args.stages))
    draw(nats, model, memory, stream, args)
    print(f"\n{lives['concepts'].consolidation}\n{memory.concepts}\n")
    used, episodes = int((memory.concepts.counts > 0.5).sum()), 3 * len(tasks)
    print(f"{episodes} episodes of {classes} letters became {used} concepts. Sets of the first stage's letters,")
    print(f"  nats saved (standard error){'right after it':>20}{'at the end':>16}")
    for name, own in nats.items():
        print(f"  {name:<31}{mean_se(own[0][0]):>16}{mean_se(own[-1][0]):>16}")
    kept = mean_se(nats["concepts"][-1][0] - nats["ring alone"][-1][0])
    print(f"What {args.slots} slots gave up, concepts kept: {kept} nats a set at the end.")
    print(f"The figure is {args.out / 'lifetime.png'}")
