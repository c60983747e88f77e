"""Small runs of ``fit`` that are cut off and taken up again: a pair, its batches, and what tells two ends apart."""

import hashlib
import json
import os
import signal
import sys
import warnings
from functools import partial
from pathlib import Path

import pyro
import torch
from torch import nn

from pyro_memory import (
    VIMCO,
    ConceptMemory,
    ContentAddress,
    EpisodicMemory,
    LeaveOneOutELBO,
    Lifetime,
    MappedMemory,
    NearestAddress,
    Recall,
    SlotIndex,
    SlotMemory,
    StructuredMemory,
    fit,
)
from pyro_memory.data import LabelledImages, SetTasks
from pyro_memory.guides import VAEBaseGuide, VMAGuide, VSMGuide
from pyro_memory.models import VMA, VSM, VAEBase
from pyro_memory.training import load_checkpoint

SHAPE, STEPS, EVERY = (1, 9, 7), 12, 4
CHECKPOINT = "run.safetensors"


def ink(*shape, seed=0):
    return (torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) < 0.3).float()


class Batches:
    """Two targets a step, and one memory."""

    def __init__(self, memory):
        self.memory = memory

    def __getitem__(self, step):
        return ink(2, *SHAPE, seed=step), self.memory


def vma(folder, memory=None):
    model = VMA.mlp(SHAPE, latent_dim=2, hidden=(8, 8))
    guide = VMAGuide.mlp(SHAPE, latent_dim=2, hidden=(8, 8), matching_dim=4)
    return model, guide, Batches(memory or SlotMemory(ink(12, *SHAPE, seed=-1))), VIMCO(2, max_plate_nesting=1), {}


def with_optimizer(optimizer, folder):
    return *vma(folder)[:4], {"optimizer": optimizer}


def index(folder, memory=None):
    """The lookup goes through an index, which is measured at every third call and built anew soon."""
    model, guide, *rest = vma(folder, memory)
    address = ContentAddress(nn.Sequential(nn.Flatten(), nn.Linear(63, 4)))
    guide.address = NearestAddress(address, 4, epsilon=0.1, index=SlotIndex(check_every=3, max_staleness=0.01))
    return model, guide, *rest


def mapped(folder):
    """The same with the slots in a file."""
    path = folder / "slots"
    memory = MappedMemory.open(path) if path.exists() else MappedMemory.create(path, SHAPE).append(ink(12, *SHAPE))
    return index(folder, memory)


def lifetime(folder):
    """A structured memory that is written, converted and replayed as the run goes on."""
    data = LabelledImages(ink(60, *SHAPE).byte(), torch.arange(60) // 10, tuple("abcdef"))
    recall = Recall(SHAPE, dim=3, code_dim=3, channels=(2, 3), hidden=8)
    size = {"latent_dim": 2, "code_dim": 3, "channels": (2, 3)}
    model, guide = VSM(VAEBase(SHAPE, **size), recall), VSMGuide(VAEBaseGuide(SHAPE, **size), recall)
    recall.calibrate(data[torch.arange(60)])
    memory = StructuredMemory(ConceptMemory.reserve(4, 3), EpisodicMemory.reserve(6, 3, SHAPE, 3, 4))
    source = SetTasks(data, tasks=2, queries=2, shots=range(1, 4), seed=0)
    life = Lifetime(
        source, recall, memory, consolidate_every=3, timescale=0.5, rehearse=1,
        replay=lambda s, items, memory: model.decode_concepts(s, memory, items),
    )  # fmt: skip
    return model, guide, life, LeaveOneOutELBO(2, max_plate_nesting=2), {}


RUNS = {
    "VMA, Adam": vma,
    "VMA, AdamW": partial(with_optimizer, partial(torch.optim.AdamW, weight_decay=0.1)),
    "VMA, SGD with momentum": partial(with_optimizer, partial(torch.optim.SGD, momentum=0.9)),
    "VMA, NearestAddress with a SlotIndex": index,
    "VMA, slots in a file, with a SlotIndex": mapped,
    "VSM in a Lifetime": lifetime,
}


class Disturbed:
    """Batches, where something happens before that of a step, or another takes its place."""

    def __init__(self, batches, events):
        self.batches, self.events = batches, events

    def __getitem__(self, step):
        given = self.events.get(step, lambda: None)()
        return self.batches[step] if given is None else given

    def __getattr__(self, name):
        if name == "batches":  # while it is being made
            raise AttributeError(name)
        return getattr(self.batches, name)


def train(name, folder, events=None, steps=STEPS, **options):
    """Trains a run from where it is to its end; gives what tells its end from another, and the warnings on the way."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    pyro.clear_param_store()
    pyro.set_rng_seed(3)
    model, guide, batches, objective, own = RUNS[name](folder)
    if events:
        batches = Disturbed(batches, events)
    settings = {"checkpoint": folder / CHECKPOINT, "checkpoint_every": EVERY, "learning_rate": 0.02, "seed": 1} | own
    settings |= {"information_every": None, "progress": False} | options
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = fit(model, guide, batches, objective, steps=steps, **settings)
    said = [str(w.message) for w in caught if issubclass(w.category, UserWarning)]
    return {"steps": result.steps, "digest": digest(model, guide, batches, result), "warnings": said}


def digest(model, guide, batches, result):
    """A checksum of weights, stores, random streams and the bounds on the way."""
    stores = batches.state_dict() if hasattr(batches, "state_dict") else {}
    return checksum(model.state_dict(), guide.state_dict(), stores, torch.get_rng_state(), result.history)


def checksum(*parts):
    """Of tensors, alone or by name, and of what JSON holds."""
    total = hashlib.sha256()
    for part in parts:
        named = {"": part} if isinstance(part, torch.Tensor) else part
        for key in named if all(isinstance(t, torch.Tensor) for t in named.values()) else ():
            total.update(key.encode() + named[key].detach().contiguous().numpy().tobytes())
        if not all(isinstance(t, torch.Tensor) for t in named.values()):
            total.update(json.dumps(named).encode())
    return total.hexdigest()


def look(name, folder):
    """Loads a run's checkpoint: the step that it holds."""
    model, guide, *_ = RUNS[name](Path(folder))
    return load_checkpoint(Path(folder) / CHECKPOINT, model, guide)["step"]


def worker(folder, rank, step):
    """One of several processes that train one VMA; that of a rank dies before a step, once."""
    mark, me = Path(folder) / "died", os.environ.get("RANK", "0")

    def die():
        if not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    # At a step the first process takes batch 2 * step, the second the next.
    end = train("VMA, Adam", folder, {2 * int(step) + int(me): die} if me == rank else None)
    if me == "0":
        (Path(folder) / "end").write_text(end["digest"])


if __name__ == "__main__":
    torch.set_num_threads(1)
    worker(*sys.argv[1:])
