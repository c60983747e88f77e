"""What vma_fewshot.py measures: bounds by protocol, addresses, sets as a whole, the quality of new images."""

import zlib

import study
import torch
from sets_measure import judged
from tqdm import tqdm

import pyro_memory as pm
from pyro_memory.data import FewShotTasks
from pyro_memory.diagnostics import posterior_address, train_classifier
from pyro_memory.models import Addressed, AutoregressiveBase

CELLS = {"test_classes", "test_shots"}  # which cells there are changes none of them


def exact(model):
    """Whether all that is latent is which slot to read."""
    return isinstance(model, Addressed) and isinstance(model.base, AutoregressiveBase)


def lower_bound(model, guide, x, memory, **how):
    """The bound by importance weights; log p(x | memory) itself where the slots can be summed or nothing is latent."""
    if isinstance(getattr(model, "base", model), AutoregressiveBase):
        how = {"particles": 1, "exact": ("a",) if exact(model) else ()}
    return pm.importance_bound(model, guide, x, memory, **how, max_plate_nesting=1)


def test_tasks(data, classes, shots, args):
    """The same targets in every row; each with a memory of its own: its class and others."""
    generator = torch.Generator().manual_seed(args.seed)
    targets = torch.randperm(len(data), generator=generator)[: args.evaluate]
    return FewShotTasks(
        data, classes=classes, shots=shots, targets=8, per_target=True, seed=args.seed, target_indices=targets,
        protocol=args.protocol,
    )  # fmt: skip


def bound(name, model, guide, tasks, args, wrong=False):
    """The bound of each target; kept in --out, so that a long table goes on where it was cut off."""
    unlike = {"out", "fresh", "device", "data_dir", "name", "sets", "classifier_steps", "guidance", "curve", *CELLS}
    key = zlib.crc32(repr(sorted((k, str(v)) for k, v in vars(args).items() if k not in unlike)).encode())
    path = args.out / "cells" / f"{name.lower().replace(' ', '-')}-{key:08x}.pt"
    if path.exists() and not args.fresh:
        return pm.BoundEstimate(**torch.load(path))
    torch.manual_seed(args.seed)
    parts = []
    for i in tqdm(range(len(tasks)), desc=name, leave=False):
        x, memory = tasks[i]
        memory = tasks.wrong_classes(i) if wrong else memory
        given = x.to(args.device), memory.to(args.device)
        parts.append(lower_bound(model, guide, *given, particles=args.particles, chunk_size=125))
    estimate = pm.BoundEstimate.cat(parts)
    path.parent.mkdir(exist_ok=True)
    kept = ("bound", "effective_particles", "particles")
    torch.save({name: getattr(estimate, name) for name in kept}, path)
    return estimate


def slope_by_classes(table, shots, args):
    """Mean and standard error, over images, of the least-squares slope of the bound against ln C."""
    bounds = torch.stack([table[c, shots].bound for c in args.test_classes]).double()
    along = torch.tensor(args.test_classes).double().log()
    along = along - along.mean()
    return study.mean_se(along @ (bounds - bounds.mean(0)) / along.square().sum())


class Sets:
    """Disjoint sets of drawings of one class, each drawing given those of its set before it: ``sets[i]`` has those at
    place ``place`` of eight sets, with a memory each."""

    def __init__(self, data, size, place, args):
        generator = torch.Generator().manual_seed(args.seed)
        mixed = (members[torch.randperm(len(members), generator=generator)] for members in data.members)
        sets = torch.cat([m[: len(m) // size * size].reshape(-1, size) for m in mixed])
        chosen = torch.randperm(len(sets), generator=generator)[: -(-args.evaluate // size)]
        self.sets, self.data, self.place = sets[chosen].split(8), data, place

    def __len__(self):
        return len(self.sets)

    def __getitem__(self, i):
        images = self.data[self.sets[i].flatten()].unflatten(0, self.sets[i].shape)
        return images[:, self.place], pm.SlotMemory(images[:, : self.place], batch_dim=-1)


def sets_as_a_whole(alone, pair, data, args):
    """log p(set) / set size, by the chain rule over its drawings in random order; nats an image."""
    places = [bound(f"sets{args.sets} 0", *alone, Sets(data, args.sets, 0, args), args)]
    places += [bound(f"sets{args.sets} {n}", *pair, Sets(data, args.sets, n, args), args) for n in range(1, args.sets)]
    bounds = torch.stack([place.bound for place in places])
    mean, se = study.mean_se(bounds.mean(0))
    by_place = [{"mean": place.mean, "se": place.se} for place in places]
    return {"size": args.sets, "mean": mean, "se": se, "sets": bounds.shape[1], "by_place": by_place}


def addresses(model, guide, data, args, classes=8, shots=4):
    """How the guide's address compares with the exact posterior, one memory of 8 classes for each task of targets."""
    rows = {name: [] for name in ("exact_kl", "guide_kl", "apart", "exact_own", "guide_own", "exact_effective")}
    for i in range(8):
        x, memory = FewShotTasks(data, classes=classes, shots=shots, targets=32, seed=args.seed + 5)[i]
        x, memory = x.to(args.device), memory.to(args.device)
        p = posterior_address(model, guide, x, memory, exact=True, particles=1, max_plate_nesting=1).probs
        with torch.no_grad():
            q = guide.a_dist(x, memory).probs.double()
        own = torch.arange(len(x), device=x.device) % classes
        log_p, log_q = (t.clamp(min=1e-300).log() for t in (p, q))
        uniform = -torch.tensor(float(classes * shots)).log()
        rows["exact_kl"].append((p * (log_p - uniform)).sum(-1))
        rows["guide_kl"].append((q * (log_q - uniform)).sum(-1))
        rows["apart"].append((q * (log_q - log_p)).sum(-1))
        rows["exact_effective"].append((-(p * log_p).sum(-1)).exp())
        for name, probs in (("exact_own", p), ("guide_own", q)):
            rows[name].append(probs.reshape(len(x), classes, shots).sum(-1)[torch.arange(len(x)), own])
    found = {name: dict(zip(("mean", "se"), study.mean_se(torch.cat(v)), strict=True)) for name, v in rows.items()}
    return found | {"ceiling": -uniform.item(), "slots": classes * shots}


def sample_quality(model, background, evaluation, args):
    """Images drawn given five of each of 100 unseen classes, judged in a classifier's features."""
    judge = train_classifier(background, steps=args.classifier_steps, seed=args.seed)

    def drawn(**how):
        def draw(part):
            memory = pm.SlotMemory(evaluation[part], batch_dim=-1).to(args.device)
            return model.generate(memory, (7,), **how).transpose(0, 1)

        torch.manual_seed(args.seed)
        return how | judged(draw, judge, evaluation)

    return [drawn(guidance=w) for w in args.guidance] if args.guidance else [drawn()]
