"""The figures of vsm_fewshot.py."""

import matplotlib.pyplot as plt
import torch
from sets_pairs import view

from pyro_memory import Context, remember
from pyro_memory.data import SetTasks
from pyro_memory.diagnostics import plot_images, plot_levels


def draw_generations(model, life, evaluation, args, path):
    """Support images, and new ones of their class."""
    sets = SetTasks(evaluation, tasks=8, shots=5, seed=2)
    _, support = sets[0]
    support = support.to(args.device)
    memory = view(remember(model.recall, life.memory, support), args.memory)
    new = model.generate(support, memory, 10, remembered=args.memory not in ("semantic", "support"))
    rows = [torch.cat([s, torch.zeros_like(s[:1]), n]) for s, n in zip(support.values, new, strict=True)]
    fig, ax = plt.subplots(figsize=(8, 4.2), layout="constrained")
    plot_images([r.cpu() for r in rows], ax=ax)
    ax.set_title("Five images of an unseen class each, and ten new ones given them")
    fig.savefig(path, dpi=120, bbox_inches="tight")


def draw_alone(model, args, path):
    fig, ax = plt.subplots(figsize=(8, 2), layout="constrained")
    plot_images([model.generate(Context(), (16,)).cpu() for _ in range(3)], ax=ax)
    ax.set_title("Images from the base model alone")
    fig.savefig(path, dpi=120)


def draw_summary(result, bounds, told, added, gained, path, args):
    fig, axes = plt.subplots(2, 2, figsize=(12, 8), layout="constrained")
    if result is None:
        plot_levels(added, axes[0, 0]).set_title("What the query added: KL(q || r(. | S)), nats")
    else:
        result.plot(axes[0, 0]).set_title("Training")
        if later := result.bounds[len(result.bounds) // 10 :]:
            axes[0, 0].set_ylim(min(later), max(later) + 0.05 * (max(later) - min(later)))
    shots = list(bounds)
    axes[0, 1].errorbar(
        shots, [b.mean for b in bounds.values()], [2 * b.se for b in bounds.values()], marker="o", capsize=3
    )
    axes[0, 1].set(xlabel="images in the support", ylabel="log p(x | S) >=, nats per image", title="Unseen classes")
    plot_levels(told, axes[1, 0]).set_title("What the support told: KL(r(. | S) || p), nats a task")
    gained.plot(axes[1, 1]).set_title("What each store is worth at five shots")
    fig.savefig(path, dpi=120)
