"""A small call of each public callable of the stores and of recall."""

import json
from pathlib import Path

import torch
from fuzz.parts import (
    SHAPE,
    address,
    concepts,
    embedded,
    embedding,
    episodes,
    flat_slots,
    folder,
    fresh_recall,
    images,
    ink,
    kept,
    letters,
    longs,
    mapped,
    queries,
    recall,
    sharded,
    slots,
    slots_a_datum,
    structured,
    support,
)

from pyro_memory import (
    ConceptMemory,
    EpisodicMemory,
    MappedMemory,
    ShardedMemory,
    SlotMemory,
    StructuredMemory,
    TemplateMemory,
)
from pyro_memory.data import SetTasks
from pyro_memory.recall import (
    Consolidation,
    Lifetime,
    Recall,
    Recognition,
    Reorganisation,
    assign,
    check_remembered,
    check_task,
    consolidate,
    conversion_prior,
    conversion_scores,
    exact_posterior,
    fit_concept_prior,
    merge,
    merge_evidence,
    remember,
    remembered_at,
    reorganise,
    replay,
    split,
    split_evidence,
)
from pyro_memory.stores import Exemplars, probe_file, readable, replace_file


def manifest():
    store = mapped()
    return store.folder, json.loads((store.folder / "memory.json").read_text())


def ages():
    return longs(1, 9, 60, 3)


def weights(*shape):
    return torch.rand(*shape).softmax(-1)


def moments():
    loc, variance = embedded()
    return {"loc": loc, "variance": variance}


def of_concepts(**more):
    return {"concepts": concepts(), **moments(), **more}


def tasks():
    return SetTasks(letters(), tasks=2, queries=1, shots=2)


def lifetime(**options):
    return Lifetime(tasks(), recall(), structured(), **options)


def seen(count=2):
    return recall().look(ink(2, count, *SHAPE))


def evidence():
    return recall().gather(support())


@kept
def record():
    return consolidate(structured())[1]


def examples():
    """Two concepts of dimension 3 with places for two images, one of them with an image from each of two episodes."""
    store = ConceptMemory.reserve(2, 3, exemplars=2, event_shape=SHAPE)
    return store.update(torch.randn(2, 3), torch.full((2, 3), 0.2), torch.eye(2)[[0, 0]], items=list(ink(2, 1, *SHAPE)))


def called(**call):
    return call


SLOTS = {
    "SlotMemory": lambda: (
        SlotMemory,
        called(
            values=torch.rand(2, 4, 3), keys=torch.rand(2, 4, 2), mask=torch.rand(2, 4) < 0.9,
            ages=torch.ones(2, 4).long(), seen=longs(4, 4), batch_dim=-1,
        ),
    ),
    "SlotMemory.empty": lambda: (SlotMemory.empty, called(event_shape=(2, 3))),
    "SlotMemory.reserve": lambda: (SlotMemory.reserve, called(slots=2, event_shape=(2, 3))),
    "SlotMemory.align": lambda: (slots_a_datum().align, called(tensor=torch.rand(3, 4))),
    "SlotMemory.gather": lambda: (flat_slots().gather, called(tensor=torch.rand(5, 2), a=longs(0, 4, 1))),
    "SlotMemory.__getitem__": lambda: (slots().__getitem__, called(a=longs(0, 4, 1))),
    "SlotMemory.read": lambda: (slots().read, called(a=longs(0, 4, 1), f=torch.exp)),
    "SlotMemory.blend": lambda: (slots().blend, called(weights=weights(3, 5))),
    "SlotMemory.masked": lambda: (flat_slots().masked, called(logits=torch.randn(2, 5))),
    "SlotMemory.streamed": lambda: (flat_slots().streamed, called(query=torch.randn(2, 4), key=torch.randn(5, 4))),
    "SlotMemory.embedder": lambda: (slots().embedder, called(network=embedding())),
    "SlotMemory.write": lambda: (
        flat_slots().write,
        called(values=torch.rand(2, 3), keys=torch.rand(2, 3), policy="reservoir", generator=torch.Generator()),
    ),
    "SlotMemory.select": lambda: (slots_a_datum().select, called(indices=longs(2, 0))),
    "SlotMemory.from_tensors": lambda: (SlotMemory.from_tensors, called(tensors=flat_slots().to_tensors())),
    "TemplateMemory": lambda: (
        TemplateMemory,
        called(slots=4, event_shape=(2, 3), init=torch.rand(4, 2, 3), scale=0.5, name="templates"),
    ),
    "readable": lambda: (readable, called(contents=torch.rand(3))),
    "probe_file": lambda: (probe_file, called(path=Path("a_file"))),
    "replace_file": lambda: (
        replace_file,
        called(path=Path("a_file"), write=lambda path: path.write_text("new")),
    ),
}  # fmt: skip
FILES = {
    "MappedMemory": lambda: (MappedMemory, dict(zip(("folder", "manifest"), manifest(), strict=True))),
    "MappedMemory.create": lambda: (
        MappedMemory.create,
        called(folder=folder(), event_shape=(2, 3), dtype=torch.float32, key_dim=3, key_dtype=torch.float16),
    ),
    "MappedMemory.open": lambda: (MappedMemory.open, called(folder=mapped().folder)),
    "MappedMemory.append": lambda: (mapped(True).append, called(values=images(2), keys=torch.rand(2, 4))),
    "MappedMemory.with_keys": lambda: (mapped().with_keys, called(address=address(), dtype=torch.float16)),
    "MappedMemory.head": lambda: (mapped().head, called(slots=2)),
    "MappedMemory.gather": lambda: (mapped().gather, called(tensor=torch.rand(5, 2), a=longs(0, 4, 1))),
    "MappedMemory.read": lambda: (mapped().read, called(a=longs(0, 4, 1), f=torch.exp)),
    "ShardedMemory": lambda: (ShardedMemory, called(shard=SlotMemory(torch.rand(5, 4)), group=None)),
    "ShardedMemory.gather": lambda: (sharded().gather, called(tensor=torch.rand(5, 2), a=longs(0, 4, 1))),
    "ShardedMemory.read": lambda: (sharded().read, called(a=longs(0, 4, 1), f=torch.exp)),
    "ShardedMemory.streamed": lambda: (sharded().streamed, called(query=torch.randn(2, 4), key=torch.randn(5, 4))),
    "ShardedMemory.embedder": lambda: (sharded().embedder, called(network=embedding())),
}
CONCEPTS = {
    "ConceptMemory": lambda: (
        ConceptMemory,
        called(
            loc=torch.randn(2, 3), kappa=torch.ones(2, 3), alpha=torch.full((2, 3), 2.0), beta=torch.ones(2, 3),
            counts=torch.ones(2), concentration=1.0, prior_loc=0.0, prior_kappa=0.1, prior_alpha=2.0, prior_beta=0.09,
        ),
    ),
    "ConceptMemory.reserve": lambda: (
        ConceptMemory.reserve,
        called(concepts=2, dim=3, dtype=torch.float32, device="cpu", prior_kappa=0.2),
    ),
    "ConceptMemory.emptied": lambda: (concepts().emptied, called(concepts=3)),
    "ConceptMemory.predictive": lambda: (concepts().predictive, called(k=longs(0, 1, 1))),
    "ConceptMemory.expected_log_predictive": lambda: (concepts().expected_log_predictive, moments()),
    "ConceptMemory.responsibilities": lambda: (concepts().responsibilities, moments()),
    "ConceptMemory.kl_to": lambda: (concepts().kl_to, called(other=concepts().emptied())),
    "ConceptMemory.update": lambda: (
        concepts().update,
        called(**moments(), responsibilities=weights(4, 2), rule="projected"),
    ),
    "ConceptMemory.forget": lambda: (concepts().forget, called(rate=0.5)),
    "ConceptMemory.from_tensors": lambda: (ConceptMemory.from_tensors, called(tensors=concepts().to_tensors())),
    "Exemplars": lambda: (Exemplars, vars(examples().exemplars).copy()),
    "Exemplars.reserve": lambda: (Exemplars.reserve, called(concepts=2, places=3, event_shape=SHAPE, dim=3)),
    "Exemplars.take_in": lambda: (
        examples().exemplars.take_in,
        called(items=ink(1, 2, *SHAPE)[0], loc=torch.randn(3), variance=torch.ones(3), shares=weights(2)),
    ),
    "Exemplars.merge": lambda: (examples().exemplars.merge, called(one=0, other=1)),
    "Exemplars.split": lambda: (
        examples().exemplars.split,
        called(k=0, new=1, second=torch.tensor([True, False])),
    ),
    "Exemplars.forget": lambda: (examples().exemplars.forget, called(rate=0.5)),
    "Exemplars.shuffle": lambda: (examples().exemplars.shuffle, called(seed=1)),
    "Exemplars.from_tensors": lambda: (Exemplars.from_tensors, called(tensors=examples().exemplars.to_tensors())),
    "EpisodicMemory": lambda: (EpisodicMemory, called(store=episodes().store, dim=3)),
    "EpisodicMemory.reserve": lambda: (
        EpisodicMemory.reserve,
        called(slots=2, items=3, event_shape=SHAPE, dim=3, concepts=2),
    ),
    "EpisodicMemory.write": lambda: (
        episodes().write,
        called(
            **moments(), items=ink(4, 2, *SHAPE), counts=longs(1, 2, 1, 2), responsibilities=weights(4, 2),
            replayed=True,
        ),
    ),
    "EpisodicMemory.free": lambda: (episodes().free, called(which=torch.tensor([True, False, True]))),
    "EpisodicMemory.replace_responsibilities": lambda: (
        episodes().replace_responsibilities,
        called(responsibilities=weights(3, 2)),
    ),
    "EpisodicMemory.shuffle_items": lambda: (episodes().shuffle_items, called(seed=1)),
    "EpisodicMemory.from_tensors": lambda: (EpisodicMemory.from_tensors, called(tensors=episodes().to_tensors())),
    "StructuredMemory": lambda: (StructuredMemory, called(concepts=concepts(), episodes=episodes())),
    "StructuredMemory.page": lambda: (structured().page, called(k=longs(0, 1), j=longs(3, 1))),
    "StructuredMemory.there": lambda: (structured().there, called(page=longs(0, 4))),
    "StructuredMemory.which": lambda: (structured().which, called(page=longs(0, 1, 3))),
    "StructuredMemory.images": lambda: (structured().images, called(page=longs(0, 1, 3), i=longs(1, 2, 0))),
    "StructuredMemory.read": lambda: (structured().read, called(page=longs(0, 1, 3), i=longs(1, 2, 0), f=torch.exp)),
    "StructuredMemory.shuffled_concepts": lambda: (structured().shuffled_concepts, called(seed=1)),
    "StructuredMemory.shuffled": lambda: (structured().shuffled, called(seed=1)),
    "StructuredMemory.from_tensors": lambda: (
        StructuredMemory.from_tensors,
        called(tensors=structured().to_tensors()),
    ),
}  # fmt: skip
RECALL = {
    "Recall": lambda: (
        Recall,
        called(shape=SHAPE, dim=3, code_dim=3, channels=(4, 5), hidden=8, key_dim=4, name="recall"),
    ),
    "Recall.calibrate": lambda: (fresh_recall().calibrate, called(images=images(6))),
    "Recall.look": lambda: (recall().look, called(images=images())),
    "Recall.evidence": lambda: (recall().evidence, called(seen=seen())),
    "Recall.gather": lambda: (fresh_recall().gather, called(support=support())),
    "Recall.gather_all": lambda: (fresh_recall().gather_all, called(support=support(), seen=seen())),
    "Recall.embed": lambda: (recall().embed, called(support=support())),
    "Recall.likeness": lambda: (recall().likeness, called(x=ink(2, 2, *SHAPE), support=support())),
    "Recall.k_dist": lambda: (recall().k_dist, called(memory=structured(), evidence=evidence()[0])),
    "Recall.s_dist": lambda: (
        recall().s_dist,
        called(k=longs(0, 1).reshape(2, 1), memory=structured(), evidence=evidence()[1]),
    ),
    "Recall.j_dist": lambda: (
        recall().j_dist,
        called(k=longs(0, 1).reshape(2, 1), memory=structured(), evidence=evidence()[0]),
    ),
    "Recall.episode": lambda: (recall().episode, called(j=longs(0, 3).reshape(2, 1), memory=structured())),
    "Recall.c_dist": lambda: (
        recall().c_dist,
        called(s=torch.randn(2, 1, 3), episode=torch.randn(2, 1, 4), evidence=evidence()[2]),
    ),
    "Recall.matches": lambda: (
        recall().matches,
        called(seen=seen(), page=longs(0, 1).reshape(2, 1), memory=structured()),
    ),
    "Recall.forward": lambda: (fresh_recall(), called(memory=structured(), evidence=evidence())),
    "Recognition": lambda: (Recognition, called(recall=recall(), name="recognition")),
    "Recognition.own_dist": lambda: (Recognition(recall()).own_dist, called(x=queries(), support=support())),
    "Recognition.forward": lambda: (Recognition(recall()), called(x=queries(), support=support())),
    "Recognition.accuracy": lambda: (Recognition(recall()).accuracy, called(x=queries(), support=support())),
    "Consolidation": lambda: (
        Consolidation,
        {name: getattr(record(), name) for name in Consolidation.__dataclass_fields__},
    ),
    "Consolidation.plot": lambda: (record().plot, called(ax=None)),
    "Lifetime": lambda: (
        Lifetime,
        called(
            tasks=tasks(), recall=recall(), memory=structured(), consolidate_every=2, timescale=8.0, rule="projected",
            forgetting=0.9, room=1, hypotheses=1, life=4, replay=lambda s, n, memory: ink(len(s), n, *SHAPE),
            replayed=1, rehearse=1,
        ),
    ),
    "Lifetime.__getitem__": lambda: (lifetime().__getitem__, called(step=1)),
    "Lifetime.load_state_dict": lambda: (lifetime().load_state_dict, called(state=lifetime().state_dict())),
    "check_remembered": lambda: (
        check_remembered,
        called(support=support(), memory=remember(recall(), structured(), support())),
    ),
    "check_task": lambda: (
        check_task,
        called(x=queries(), support=support(), memory=structured(), recall=recall(), likelihood=None),
    ),
    "consolidate": lambda: (
        consolidate,
        called(
            memory=structured(), episodes=None, guide=None, timescale=8.0, rule="projected", forgetting=0.9, room=1,
            hypotheses=2,
        ),
    ),
    "assign": lambda: (
        assign,
        of_concepts(hypotheses=3, went=longs(-1, 0, -1, 1), opens=True, items=list(ink(4, 1, *SHAPE))),
    ),
    "fit_concept_prior": lambda: (
        fit_concept_prior,
        called(loc=torch.randn(4, 3, 2), variance=torch.full((4, 3, 2), 0.1)),
    ),
    "merge": lambda: (merge, called(concepts=examples(), one=0, other=1)),
    "merge_evidence": lambda: (merge_evidence, called(concepts=concepts())),
    "remembered_at": lambda: (remembered_at, called(support=support(), memory=structured())),
    "reorganise": lambda: (reorganise, called(concepts=examples(), threshold=1.0)),
    "Reorganisation": lambda: (Reorganisation, called(merged=[(0, 1, 4.0)], split=[(2, 3, 5.5)])),
    "split": lambda: (split, called(concepts=examples(), k=0, second=torch.tensor([True, False]))),
    "split_evidence": lambda: (split_evidence, called(concepts=examples(), k=0)),
    "conversion_prior": lambda: (conversion_prior, called(concepts=concepts(), ages=ages(), timescale=8.0)),
    "conversion_scores": lambda: (conversion_scores, of_concepts()),
    "exact_posterior": lambda: (exact_posterior, of_concepts(ages=ages(), timescale=8.0)),
    "remember": lambda: (remember, called(recall=recall(), memory=structured(), support=support())),
    "replay": lambda: (
        replay,
        called(
            concepts=concepts(), episodes=episodes(), generate=lambda s, n: ink(len(s), n, *SHAPE), count=1, items=2,
        ),
    ),
}  # fmt: skip
ROWS = SLOTS | FILES | CONCEPTS | RECALL
