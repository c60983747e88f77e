"""Gradient estimators for an address, side by side on one model and guide, at equal decoder evaluations.

For memories of 8 to 1,024 glyphs: the signal-to-noise ratio of the gradient of the guide's address (squared norm of its
mean over its total variance, at one batch, after a short training), and the bound that each estimator reaches by
training from the same start. All estimators but enumeration decode 8 times a datum and step; enumeration decodes once a
slot, so that it gets 8 / slots of the others' steps. Writes estimators.json and estimators.png to --out.

    python benchmarks/estimators.py
"""

import argparse
import json
import time
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import pyro
import torch
from pyro import poutine
from pyro.infer import ReweightedWakeSleep, TraceEnum_ELBO, TraceGraph_ELBO
from tqdm import tqdm

from pyro_memory import VIMCO, RaoBlackwellELBO, importance_bound
from pyro_memory.data import FewShotTasks, glyphs
from pyro_memory.guides import VMAGuide
from pyro_memory.models import VMA

DECODES = 8
VECTORISED = {"num_particles": DECODES, "vectorize_particles": True, "max_plate_nesting": 1}
ESTIMATORS = {
    "VIMCO, geometric": lambda: VIMCO(DECODES, max_plate_nesting=1),
    "VIMCO, arithmetic": lambda: VIMCO(DECODES, baseline="arithmetic", max_plate_nesting=1),
    "NVIL (TraceGraph_ELBO)": lambda: TraceGraph_ELBO(**VECTORISED),
    "wake-sleep (ReweightedWakeSleep)": lambda: ReweightedWakeSleep(**VECTORISED),
    "Rao-Blackwell, 7 summed": lambda: RaoBlackwellELBO(DECODES - 1, max_plate_nesting=1),
    "enumeration (TraceEnum_ELBO)": lambda: TraceEnum_ELBO(max_plate_nesting=1),
}
ENUMERATION = "enumeration (TraceEnum_ELBO)"


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = lambda *names, **options: parser.add_argument(*names, metavar="N", type=int, **options)  # noqa: E731
    add("--slots", nargs="+", default=[8, 32, 128, 1024], help="memory sizes, multiples of 4")
    add("--steps", default=300, help="training steps (default 300)")
    add("--draws", default=100, help="gradients drawn for a variance (default 100)")
    add("--batch", default=32)
    add("--seeds", default=3, help="training runs for each bound (default 3)")
    parser.add_argument("--out", metavar="DIR", type=Path, default=Path("out/estimators"))
    return parser.parse_args()


def pair(seed):
    torch.manual_seed(seed)
    size = {"latent_dim": 16, "hidden": (128, 64)}
    return VMA.mlp((1, 28, 28), **size), VMAGuide.mlp((1, 28, 28), matching_dim=64, **size)


def with_baseline(guide):
    """Pyro's moving average of the cost as baseline of the address; it keeps it in its parameter store."""
    options = {"baseline": {"use_decaying_avg_baseline": True, "baseline_beta": 0.9}, "enumerate": None}
    return poutine.infer_config(guide, lambda site: options if site["name"] == "a" else {})


def gradients(name, model, guide, task):
    """Accumulates one gradient estimate; the pair itself is the same for all."""
    program = with_baseline(guide) if name.startswith("NVIL") else guide
    ESTIMATORS[name]().loss_and_grads(model, program, *task)


def train(name, model, guide, tasks, steps, learning_rate=1e-3):
    pyro.clear_param_store()
    optimizer = torch.optim.Adam([*model.parameters(), *guide.parameters()], learning_rate)
    for step in range(steps):
        optimizer.zero_grad()
        gradients(name, model, guide, tasks[step])
        optimizer.step()


def signal_to_noise(name, model, guide, task, draws):
    pyro.clear_param_store()
    parameters = list(guide.address.parameters())
    rows = []
    for draw in range(draws + 10):  # the moving average settles in the first ten
        for p in parameters:
            p.grad = None
        gradients(name, model, guide, task)
        if draw >= 10:
            rows.append(torch.cat([p.grad.reshape(-1) for p in parameters]).double())
    rows = torch.stack(rows)
    variance = rows.var(0).sum().item()
    signal = rows.mean(0).square().sum().item() - variance / draws  # the mean's own noise comes off
    return {"variance": variance, "signal": signal, "snr": signal / variance if variance else None}


def reached(name, slots, seed, args, data):
    tasks = FewShotTasks(data, classes=slots // 4, shots=4, targets=args.batch, seed=seed)
    steps = args.steps if name != ENUMERATION else max(1, args.steps * DECODES // slots)
    model, guide = pair(seed)
    start = time.perf_counter()
    train(name, model, guide, tasks, steps)
    seconds = time.perf_counter() - start
    tests = FewShotTasks(data, classes=slots // 4, shots=4, targets=args.batch, seed=10**6)  # the same for all
    bounds = [importance_bound(model, guide, *tests[i], particles=100, max_plate_nesting=1).mean for i in range(8)]
    return sum(bounds) / len(bounds), steps, seconds


def measure(slots, args, data):
    tasks = FewShotTasks(data, classes=slots // 4, shots=4, targets=args.batch, seed=0)
    model, guide = pair(0)
    train("VIMCO, geometric", model, guide, tasks, args.steps // 2)
    rows = []
    for name in tqdm(ESTIMATORS, desc=f"{slots} slots", leave=False):
        draws = args.draws if name != ENUMERATION else max(10, args.draws * DECODES // slots)
        noise = signal_to_noise(name, model, guide, tasks[10**6], draws)
        runs = [reached(name, slots, seed, args, data) for seed in range(args.seeds)]
        bounds = torch.tensor([bound for bound, _, _ in runs])
        rows.append(
            {"slots": slots, "estimator": name, **noise, "draws": draws, "steps": runs[0][1],
             "bound": bounds.mean().item(), "bound_se": (bounds.std() / len(bounds) ** 0.5).item(),
             "seconds_a_step": sum(s for _, _, s in runs) / sum(n for _, n, _ in runs)}
        )  # fmt: skip
    return rows


def print_table(rows):
    print(f"{'slots':>6}  {'estimator':<34}{'variance':>11}{'SNR':>9}{'steps':>7}{'ms/step':>9}{'bound':>10}{'se':>7}")
    for r in rows:
        snr = "inf" if r["snr"] is None else f"{r['snr']:.3g}"
        print(
            f"{r['slots']:>6}  {r['estimator']:<34}{r['variance']:>11.3g}{snr:>9}{r['steps']:>7}"
            f"{1e3 * r['seconds_a_step']:>9.1f}{r['bound']:>10.2f}{r['bound_se']:>7.2f}"
        )


def draw(rows, path):
    fig, axes = plt.subplots(1, 3, figsize=(15, 4.5), layout="constrained")
    for i, name in enumerate(ESTIMATORS):
        own = [r for r in rows if r["estimator"] == name]
        slots = [r["slots"] for r in own]
        positive = [(r["slots"], r["snr"]) for r in own if r["snr"] and r["snr"] > 0]
        if positive:
            axes[0].plot(*zip(*positive, strict=True), marker="o", color=f"C{i}", label=name)
        errors = [2 * r["bound_se"] for r in own]
        axes[1].errorbar(slots, [r["bound"] for r in own], errors, marker="o", capsize=3, color=f"C{i}", label=name)
        axes[2].plot(slots, [1e3 * r["seconds_a_step"] for r in own], marker="o", color=f"C{i}", label=name)
    axes[0].set(title="Gradient of the address, one batch", ylabel="|mean|² / total variance", yscale="log")
    axes[1].set(
        title="Bound reached at equal decoder evaluations", ylabel="log p(x | memory) >=, nats (2 se over seeds)"
    )
    sampled = [r["bound"] for r in rows if r["estimator"] != ENUMERATION]
    axes[1].set_ylim(min(sampled) - 15, max(sampled) + 10)  # enumeration has too few steps where slots are many
    axes[2].set(title="Time of a step", ylabel="ms", yscale="log")
    for ax in axes:
        ax.set_xscale("log", base=2)
        ax.set_xlabel("slots in memory")
    axes[0].legend(frameon=False, fontsize=8)
    fig.savefig(path, dpi=120)


def main():
    args = arguments()
    warnings.filterwarnings("ignore", message="[\\s\\S]*you need to use TraceEnum_ELBO")  # the guide serves both kinds
    start = time.perf_counter()
    data = glyphs("background")
    rows = [row for slots in args.slots for row in measure(slots, args, data)]
    print_table(rows)
    args.out.mkdir(parents=True, exist_ok=True)
    draw(rows, args.out / "estimators.png")
    record = {"torch": torch.__version__, "threads": torch.get_num_threads(), "rows": rows}
    record["arguments"] = {k: v for k, v in vars(args).items() if k != "out"}
    (args.out / "estimators.json").write_text(json.dumps(record, indent=1))
    print(f"estimators.png and estimators.json are in {args.out} ({time.perf_counter() - start:.0f} s)")


if __name__ == "__main__":
    main()
