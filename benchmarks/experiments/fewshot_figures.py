"""The figures of vma_fewshot.py."""

import matplotlib.pyplot as plt
import torch
from fewshot_pairs import ALONE

from pyro_memory import complete
from pyro_memory.data import FewShotTasks
from pyro_memory.diagnostics import plot_images


def kind(args):
    return "unseen" if args.test_on == "evaluation" else "seen"


def draw_training(results, batch, ax):
    lowest = []
    for name, result in results.items():
        width = max(1, len(result.history["step"]) // 100)  # a running mean of a hundredth of the run
        curve = torch.tensor(result.history["bound"]).unfold(0, width, 1).mean(-1) / batch
        minutes = result.seconds / 60 / result.steps
        (line,) = ax.plot([minutes * s for s in result.history["step"][width - 1 :]], curve, linewidth=0.8)
        rows = result.history["evaluation"]
        style = {"marker": "o", "color": line.get_color(), "markeredgecolor": "black", "linestyle": "none"}
        ax.plot([minutes * r["step"] for r in rows], [r["unseen"] for r in rows], label=name, **style)
        lowest.append(curve[len(curve) // 10 :].min().item())
    ax.set(xlabel="minutes", ylabel="bound, nats per image", title="Training (line); unseen classes, 4 examples (dots)")
    ax.set_ylim(bottom=min(lowest) - 5)
    ax.legend(frameon=False, loc="lower right")


def draw_bounds(alone, table, args, ax):
    """Bounds against examples, a line for each number of classes, or the other way round where these are more."""
    by_class = len(args.test_classes) <= len(args.test_shots)
    lines, along = (args.test_classes, args.test_shots) if by_class else (args.test_shots, args.test_classes)
    name = "examples of each class" if by_class else "classes"
    for n in lines:
        rows = [table[(n, m) if by_class else (m, n)] for m in along]
        what = f"{n} class{'es' * (n > 1)} in memory" if by_class else f"{n} example{'s' * (n > 1)} a class"
        errors = [2 * r.se for r in rows]
        ax.errorbar(along, [r.mean for r in rows], errors, marker="o", capsize=3, label=f"VMA, {what}")
    ax.axhline(alone.mean, color="0.5", linestyle="--", label=f"{ALONE[args.base]}, no memory")
    ax.margins(y=0.08)
    ax.set_xscale("log", base=2)
    ax.set_xticks(along, map(str, along))
    ax.minorticks_off()
    ax.set(xlabel=f"{name} in memory", ylabel="log p(x | memory) >=, nats per image")
    ax.set_title(f"{kind(args).capitalize()} classes (two standard errors over images)")
    ax.legend(frameon=False, loc="best")


@torch.no_grad()
def draw_lookups(model, guide, data, args, path):
    """Targets, the slots they look up, what the model makes of them, and how sure the address is."""
    tasks = FewShotTasks(data, classes=4, shots=3, targets=12, seed=args.seed + 1)
    x, memory = (t.to(args.device) for t in tasks[0])
    address = guide.a_dist(x, memory)
    slot = address.probs.argmax(-1)
    third = {"drawn from it": model.generate(memory, a=slot)} if args.base != "vae" else {
        "rebuilt": model.x_dist(guide.z_dist(x, memory[slot]).mean, model.content(memory[slot])).mean
    }  # fmt: skip
    fig, (left, right) = plt.subplots(1, 2, figsize=(14, 4), width_ratios=[3, 2], layout="constrained")
    rows = {"target": x, "likeliest slot": memory[slot], **third, "": x[:0], "memory": memory.values}
    plot_images(list(rows.values()), list(rows), ax=left)
    left.set_title(f"Lookups among 4 {kind(args)} classes of 3 examples")
    image = right.imshow(address.probs.cpu(), cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for edge in (2.5, 5.5, 8.5):
        right.axvline(edge, color="0.6", linewidth=0.6)
    right.set(xlabel="slot (lines divide classes)", ylabel="target", title="q(a | x, M)")
    fig.colorbar(image, ax=right)
    fig.savefig(path, dpi=120)


@torch.no_grad()
def draw_samples(model, data, args, path, **how):
    """Few-shot generation: new images given a memory of one unseen class, drawn as ``generate`` is told."""
    torch.manual_seed(args.seed)
    rows = []
    for i in range(6):
        _, memory = FewShotTasks(data, classes=1, shots=4, targets=1, seed=args.seed + 2)[i]
        memory = memory.to(args.device)
        a = model.a_dist(memory).sample((10,))
        x, gap = model.generate(memory, a=a, **how), torch.zeros_like(memory.values[:1])
        rows += [torch.cat([memory.values, gap, memory[a]]), torch.cat([gap.expand(5, *gap.shape[1:]), x])]
    fig, ax = plt.subplots(figsize=(9, 7), layout="constrained")
    plot_images(rows, ax=ax)
    ax.set_title(f"Four examples of one {kind(args)} class; ten slots that were read, and a sample below each")
    fig.savefig(path, dpi=120)


def draw_completion(model, guide, data, args, path):
    """Lower halves filled in and flipped pixels repaired, by sampling back and forth between image and latents."""
    tasks = FewShotTasks(data, classes=4, shots=4, targets=12, seed=args.seed + 4)
    x, memory = (t.to(args.device) for t in tasks[0])
    upper = torch.arange(x.shape[-2], device=x.device)[:, None].expand_as(x) < x.shape[-2] // 2
    flips = torch.rand(x.shape, generator=torch.Generator().manual_seed(args.seed)).to(x.device) < 0.05
    halves, noisy = torch.where(upper, x, 0), torch.where(flips, 1 - x, x)
    rows = {"target": x, "upper half": halves}
    chain = complete(model, guide, halves, memory, known=upper, sweeps=20)
    rows |= {f"{n} sweep{'s' * (n > 1)}": chain[n] for n in (1, 5, 20)}
    rows |= {"": x[:0], "5% flipped": noisy}
    chain = complete(model, guide, noisy, memory, sweeps=5)
    rows |= {"1 sweep ": chain[1], "5 sweeps ": chain[5]}
    fig, ax = plt.subplots(figsize=(7, 5.5), layout="constrained")
    plot_images(list(rows.values()), list(rows), ax=ax)
    ax.set_title(f"Completion from a memory of 4 {kind(args)} classes")
    fig.savefig(path, dpi=120)


def draw_address_histogram(model, guide, data, args, ax):
    """How much of q(a | x, M) lands on slots of the target's class, by number of classes in memory."""
    for classes in (2, 4, 8):
        tasks = FewShotTasks(data, classes=classes, shots=4, targets=32, seed=args.seed + 3)
        shares = []
        for i in range(4):
            x, memory = (t.to(args.device) for t in tasks[i])
            with torch.no_grad():
                by_class = guide.a_dist(x, memory).probs.reshape(len(x), classes, 4).sum(-1)
            shares.append(by_class[torch.arange(len(x)), torch.arange(len(x)) % classes])
        share = torch.cat(shares)
        label = f"{classes} classes: mean {share.mean():.2f}, chance {1 / classes:.2f}"
        ax.hist(share.cpu(), bins=20, range=(0, 1), histtype="step", label=label)
    ax.set(xlabel="probability on the target's own class", ylabel="targets", title=f"Addresses on {kind(args)} classes")
    ax.legend(frameon=False)
