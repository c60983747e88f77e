"""The pairs that vsm_fewshot.py trains: base model, recall and stores, and how their weights are left."""

import torch
from pyro.infer import Trace_ELBO
from study import train

import pyro_memory as pm
from pyro_memory.data import LICENCES, ReturningClasses, SetTasks
from pyro_memory.guides import DiffusionBaseGuide, EmptyGuide, HierarchicalBaseGuide, VAEBaseGuide, VSMGuide
from pyro_memory.models import VSM, DiffusionBase, HierarchicalBase, VAEBase

BASES = {
    "vae": (VAEBase, VAEBaseGuide),
    "hierarchical": (HierarchicalBase, HierarchicalBaseGuide),
    "diffusion": (DiffusionBase, DiffusionBaseGuide),
}
DIM, CODE_DIM = 16, 32  # of embeddings and of contexts
TASKS, QUERIES = 8, 8  # tasks a step, and the images that each asks for
SLOTS, CONCEPTS = 24, 64


def sizes(shape, args):
    """Arguments of the base model and its guide, and of recall."""
    base = {"shape": list(shape), "channels": args.channels, "code_dim": 0 if args.memory == "none" else CODE_DIM}
    recall = {"shape": list(shape), "dim": DIM, "code_dim": CODE_DIM, "channels": [8, 16, 32]}
    return base, {} if args.base == "diffusion" else base, recall


def build(background, args):
    """The pair, and what it trains on."""
    model_class, guide_class = BASES[args.base]
    of_base, of_guide, of_recall = sizes(background.shape, args)
    torch.manual_seed(args.seed)
    base, base_guide = model_class(**of_base), guide_class(**of_guide)
    most = min(max(args.shots), min(len(m) for m in background.members) - QUERIES)
    tasks = SetTasks(
        background, tasks=TASKS, queries=QUERIES, shots=range(most + 1), seed=args.seed, turned=args.turned
    )
    if args.memory == "none":
        return base, base_guide, lambda step: (tasks[step][0].flatten(0, 1),), None
    some = torch.randperm(len(background), generator=torch.Generator().manual_seed(args.seed))[:500]
    recall = pm.Recall(**of_recall).calibrate(background[some])
    model, guide = VSM(base, recall), VSMGuide(base_guide, recall)
    memory = pm.StructuredMemory(
        pm.ConceptMemory.reserve(CONCEPTS, DIM, prior_alpha=100.0, prior_beta=9.0),
        pm.EpisodicMemory.reserve(SLOTS, max(args.shots), background.shape, DIM, CONCEPTS),
    )
    imagine = None if args.no_replay else lambda s, items, memory: model.decode_concepts(s, memory, items)
    life = pm.Lifetime(
        tasks, recall, memory.to(args.device), rule=args.rule, replay=imagine, timescale=SLOTS / 3,
        consolidate_every=None if args.memory in ("episodic", "support") else 25,
    )  # fmt: skip
    return model, guide, Seen(life, args.memory), life


def returning_stores(shape, args, prior, concepts=None, exemplars=None, slots=32, items=10):
    """Concepts that keep exemplars, and a ring, as yet empty."""
    concepts = args.concepts if concepts is None else concepts
    exemplars = args.exemplars if exemplars is None else exemplars
    return pm.StructuredMemory(
        pm.ConceptMemory.reserve(
            concepts, args.dim, exemplars=exemplars, event_shape=shape, concentration=64.0, **prior
        ),
        pm.EpisodicMemory.reserve(slots, items, shape, args.dim, concepts),
    )  # fmt: skip


def returning_life(data, recall, args, prior):
    """A memory that lives through classes of the data that come, leave and come back, for training."""
    queries = min(QUERIES, min(len(m) for m in data.members) // 2)
    stream = ReturningClasses(
        data, tasks=TASKS, queries=queries, shots=range(1, 11), back=(0, 0, 1, 2), items=10, returning=0.6, present=12,
        life=100, turned=args.turned > 0, held_out=0.4, seed=args.seed,
    )  # fmt: skip
    memory = returning_stores(data.shape, args, prior)
    how = {"consolidate_every": 2, "timescale": 8.0, "forgetting": 1.0, "room": 16, "life": stream.life}
    return pm.Lifetime(stream, recall, memory, **how)


@torch.no_grad()
def learned_prior(recall, data, seed):
    """What concepts are like, from three supports of five of 200 training classes."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randperm(data.classes, generator=generator)[:200].tolist()
    rows = torch.stack(
        [data.members[c][torch.randperm(len(data.members[c]), generator=generator)[:15]] for c in labels]
    )
    parts = [recall.embed(pm.SlotMemory(data[part], batch_dim=-2)) for part in rows.split(5, 1)]
    return pm.fit_concept_prior(*(torch.stack(moment, 1) for moment in zip(*parts, strict=True)))


def teach(recall, background, evaluation, args):
    """Teaches the recall to tell which set an image belongs to; what it finds is then worth reading."""
    tasks, others = min(40, background.classes), min(20, evaluation.classes)
    print(f"\nteaching recall to recognise: {args.recognition} steps of {tasks} sets")
    sets = SetTasks(background, tasks=tasks, queries=2, shots=range(1, 6), seed=args.seed + 1, turned=args.turned)
    recognition = pm.Recognition(recall)
    taught = train(
        "recognition", recognition, EmptyGuide(), sets, Trace_ELBO(max_plate_nesting=2), args, steps=args.recognition,
        learning_rate=2e-3, schedule=pm.warm_cosine(args.recognition), clip_norm=None,
    )  # fmt: skip
    recall.fixed = True
    unseen = SetTasks(evaluation, tasks=others, queries=10, shots=5, seed=1)
    found = sum(recognition.accuracy(*(t.to(args.device) for t in unseen[i])) for i in range(20)) / 20
    print(f"  an image of one of {others} unseen classes finds its own set of five: {found:.1%}")
    return found, taught.cpu_seconds


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
        "training": f"{args.steps} steps of {TASKS} x {QUERIES} images, {args.turned:.0%} of the tasks "
        f"turned or mirrored, after {args.recognition} of recognition; memory {args.memory}, conversion {args.rule}, "
        f"{'no ' * args.no_replay}replay; seed {args.seed}",
    }  # fmt: skip
    card = pm.save_pretrained(
        f"vsm-{args.base}-{args.data}", model, guide, memory=life.memory, facts=facts, folder=args.out / "weights",
        build={"shared": {"recall": ["Recall", recall]}, "model": ["VSM", parts], "guide": ["VSMGuide", guide_parts]},
    )  # fmt: skip
    print(f"\n{card}")
