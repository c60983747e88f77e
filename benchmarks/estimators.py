"""Gradient estimators for a guide, side by side on one model and guide, at equal decoder evaluations.

For memories of 8 to 256 glyphs: variance and signal-to-noise ratio (squared norm of the mean over total variance, at
one batch) of the gradient of the guide's address along one training, and the bound that each estimator reaches by
training from the same start. All estimators but enumeration decode 8 times a datum and step; enumeration decodes once a
slot, so that it gets 8 / slots of the others' steps. Then the signal to noise of the gradient of z's encoder against
the number of particles, by VIMCO and by DReG. Writes estimators.json and estimators.png to --out.

    python benchmarks/estimators.py
"""

import argparse
import json
import statistics
import time
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import pyro
import torch
from pyro import poutine
from pyro.infer import ReweightedWakeSleep, TraceEnum_ELBO, TraceGraph_ELBO
from tqdm import tqdm

from pyro_memory import VIMCO, DReG, LeaveOneOutELBO, RaoBlackwellELBO, WakeWake, importance_bound
from pyro_memory.data import FewShotTasks, glyphs
from pyro_memory.guides import VMAGuide
from pyro_memory.models import VMA

DECODES = 8
VECTORISED = {"num_particles": DECODES, "vectorize_particles": True, "max_plate_nesting": 1}
ESTIMATORS = {
    "VIMCO": lambda: VIMCO(DECODES, max_plate_nesting=1),
    "DReG": lambda: DReG(DECODES, max_plate_nesting=1),
    "leave one out": lambda: LeaveOneOutELBO(DECODES, max_plate_nesting=1),
    "NVIL (TraceGraph_ELBO)": lambda: TraceGraph_ELBO(**VECTORISED),
    "wake-wake": lambda: WakeWake(DECODES, max_plate_nesting=1),
    "wake-sleep (ReweightedWakeSleep)": lambda: ReweightedWakeSleep(**VECTORISED),
    "7 summed, 1 drawn": lambda: RaoBlackwellELBO(DECODES - 1, max_plate_nesting=1),
    "4 summed, 4 drawn": lambda: RaoBlackwellELBO(DECODES // 2, sampled=DECODES // 2, max_plate_nesting=1),
    "8 drawn without replacement": lambda: RaoBlackwellELBO(0, sampled=DECODES, max_plate_nesting=1),
    "enumeration (TraceEnum_ELBO)": lambda: TraceEnum_ELBO(max_plate_nesting=1),
}
ENUMERATION = "enumeration (TraceEnum_ELBO)"


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = lambda *names, **options: parser.add_argument(*names, metavar="N", type=int, **options)  # noqa: E731
    add("--slots", nargs="+", default=[8, 64, 256], help="memory sizes, multiples of 4")
    add("--steps", default=120, help="training steps (default 120)")
    add("--at", nargs="+", default=[0, 40, 80, 120], help="steps at which gradients are measured")
    add("--draws", default=30, help="gradients drawn for a variance (default 30)")
    add("--particles", nargs="+", default=[2, 4, 16, 64], help="of the comparison of VIMCO and DReG")
    add("--batch", default=32)
    add("--seeds", default=5, help="training runs for each bound (default 5)")
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
    """Yields at the start and after each step."""
    pyro.clear_param_store()
    optimizer = torch.optim.Adam([*model.parameters(), *guide.parameters()], learning_rate)
    yield 0
    for step in range(steps):
        optimizer.zero_grad()
        gradients(name, model, guide, tasks[step])
        optimizer.step()
        yield step + 1


def noise(estimate, part, draws):
    """Mean and variance over draws of the gradient of a part of the guide."""
    parameters, rows = list(part.parameters()), []
    for draw in range(draws + 10):  # a moving average settles in the first ten
        for p in parameters:
            p.grad = None
        estimate()
        if draw >= 10:
            rows.append(torch.cat([p.grad.reshape(-1) for p in parameters]).double())
    rows = torch.stack(rows)
    variance = rows.var(0).sum().item()
    signal = rows.mean(0).square().sum().item() - variance / draws  # the mean's own noise comes off
    return {"variance": variance, "snr": signal / variance}


def noise_along(slots, args, tasks):
    """Of each estimator, along one training by VIMCO."""
    model, guide = pair(0)
    found = {name: {} for name in ESTIMATORS}
    for step in train("VIMCO", model, guide, tasks, max(args.at)):
        if step not in args.at:
            continue
        store = pyro.get_param_store().get_state()
        for name in ESTIMATORS:
            draws = args.draws if name != ENUMERATION else max(10, args.draws * DECODES // slots)
            pyro.clear_param_store()
            here = noise(lambda name=name: gradients(name, model, guide, tasks[10**6]), guide.address, draws)
            found[name][step] = here | {"draws": draws}
        pyro.get_param_store().set_state(store)
    return found


def reached(name, slots, seed, args, data):
    tasks = FewShotTasks(data, classes=slots // 4, shots=4, targets=args.batch, seed=seed)
    steps = args.steps if name != ENUMERATION else max(1, args.steps * DECODES // slots)
    model, guide = pair(seed)
    start = time.process_time()
    for _ in train(name, model, guide, tasks, steps):
        pass
    seconds = time.process_time() - start
    tests = FewShotTasks(data, classes=slots // 4, shots=4, targets=args.batch, seed=10**6)  # the same for all
    bounds = [importance_bound(model, guide, *tests[i], particles=100, max_plate_nesting=1).mean for i in range(3)]
    return sum(bounds) / len(bounds), steps, seconds


def measure(slots, args, data):
    tasks = FewShotTasks(data, classes=slots // 4, shots=4, targets=args.batch, seed=0)
    along, runs = noise_along(slots, args, tasks), {name: [] for name in ESTIMATORS}
    for seed in tqdm(range(args.seeds), desc=f"{slots} slots", leave=False):
        for name in ESTIMATORS:  # in turn, so that a busy machine is so for all
            runs[name].append(reached(name, slots, seed, args, data))
    rows = []
    for name in ESTIMATORS:
        bounds = torch.tensor([bound for bound, _, _ in runs[name]])
        seconds = [s / n for _, n, s in runs[name]]
        rows.append(
            {"slots": slots, "estimator": name, "along": along[name], "steps": runs[name][0][1],
             "bound": bounds.mean().item(), "bound_se": (bounds.std() / len(bounds) ** 0.5).item(),
             "seconds_a_step": statistics.median(seconds)}
        )  # fmt: skip
    for row in rows:
        row["times_vimco"] = row["seconds_a_step"] / rows[0]["seconds_a_step"]
    return rows


def encoder_noise(slots, args, data):
    """Signal to noise of z's encoder against particles, after half of the training."""
    tasks = FewShotTasks(data, classes=slots // 4, shots=4, targets=args.batch, seed=0)
    model, guide = pair(0)
    for _ in train("VIMCO", model, guide, tasks, args.steps // 2):
        pass
    rows = []
    for particles in args.particles:
        for kind in (VIMCO, DReG):
            objective = kind(particles, max_plate_nesting=1)
            found = noise(
                lambda o=objective: o.loss_and_grads(model, guide, *tasks[10**6]), guide.encoder, 4 * args.draws
            )
            rows.append({"particles": particles, "estimator": kind.__name__, **found})
    return rows


def print_table(rows):
    for r in rows:
        along = "  ".join(f"{n['variance']:.2g} ({n['snr']:.2g})" for n in r["along"].values())
        cost = f"{r['steps']:>4} steps, {r['times_vimco']:.2f} times VIMCO's time"
        print(f"{r['slots']:>6}  {r['estimator']:<34}{r['bound']:>8.1f} ({r['bound_se']:.1f})  {cost}  {along}")


def draw(rows, encoder, path):
    largest = max(r["slots"] for r in rows)
    fig, axes = plt.subplots(1, 4, figsize=(19, 5.2), layout="constrained")
    colours = plt.colormaps["tab20"]
    for i, name in enumerate(ESTIMATORS):
        own = [r for r in rows if r["estimator"] == name]
        look = {"marker": "o", "color": colours(i), "label": name}
        steps, here = zip(*next(r for r in own if r["slots"] == largest)["along"].items(), strict=True)
        axes[0].plot(steps, [n["variance"] for n in here], **look)
        slots, errors = [r["slots"] for r in own], [2 * r["bound_se"] for r in own]
        axes[1].errorbar(slots, [r["bound"] for r in own], errors, capsize=3, **look)
        axes[2].plot(slots, [r["times_vimco"] for r in own], **look)
    axes[0].set(
        title=f"Gradient of the address, {largest} slots", ylabel="total variance", xlabel="steps trained", yscale="log"
    )
    axes[1].set(
        title="Bound reached at equal decoder evaluations", ylabel="log p(x | memory) >=, nats (2 se over seeds)"
    )
    sampled = [r["bound"] for r in rows if r["estimator"] != ENUMERATION]
    axes[1].set_ylim(min(sampled) - 15, max(sampled) + 10)  # enumeration has too few steps where slots are many
    axes[2].set(title="Time of a step", ylabel="times that of VIMCO", yscale="log")
    for ax in axes[1:3]:
        ax.set_xscale("log", base=2)
        ax.set_xlabel("slots in memory")
    for kind in ("VIMCO", "DReG"):
        own = [r for r in encoder if r["estimator"] == kind]
        snr = [max(r["snr"], 0) or float("nan") for r in own]  # below zero: less than the draws can tell
        axes[3].plot([r["particles"] for r in own], snr, marker="o", label=kind)
    axes[3].set(title="Gradient of z's encoder", ylabel="|mean|² / total variance", xlabel="particles", yscale="log")
    axes[3].set_xscale("log", base=2)
    axes[3].legend(frameon=False)
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=6, frameon=False)
    fig.savefig(path, dpi=110)


def main():
    args = arguments()
    warnings.filterwarnings("ignore", message="[\\s\\S]*you need to use TraceEnum_ELBO")  # the guide serves both kinds
    start = time.perf_counter()
    args.out.mkdir(parents=True, exist_ok=True)
    data = glyphs("background")
    record = {"torch": torch.__version__, "threads": torch.get_num_threads(), "rows": []}
    record["arguments"] = {k: v for k, v in vars(args).items() if k != "out"}
    middle = sorted(args.slots)[len(args.slots) // 2]
    record["encoder"] = encoder_noise(middle, args, data)
    for slots in args.slots:
        record["rows"] = sorted([*record["rows"], *measure(slots, args, data)], key=lambda r: r["slots"])
        (args.out / "estimators.json").write_text(json.dumps(record, indent=1))
    print_table(record["rows"])
    draw(record["rows"], record["encoder"], args.out / "estimators.png")
    print(f"estimators.png and estimators.json are in {args.out} ({time.perf_counter() - start:.0f} s)")


if __name__ == "__main__":
    main()
