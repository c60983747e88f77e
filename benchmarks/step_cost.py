"""What Pyro costs: an SVI step of VMA against the same step written by hand in plain PyTorch.

Same networks, same samples, same VIMCO gradient, same fused Adam, validation off on both sides. Networks are small
convolutions, those of the Omniglot results, and the paper's MLPs, whose steps are so short that Pyro's share is at its
largest. First checks that both give one loss and one gradient from one seed; then times them in turn, in one run, at
batches of 64 and 256 and memories of 32 to 4,096 slots (convolutions: to 512), and prints medians of pairs. Writes
step_cost.json and step_cost.png to --out.

    python benchmarks/step_cost.py
"""

import argparse
import json
import math
import statistics
import time
from pathlib import Path

import matplotlib.pyplot as plt
import pyro
import torch
from torch.nn.functional import binary_cross_entropy_with_logits, normalize, softplus
from tqdm import tqdm

from pyro_memory import VIMCO, SlotMemory
from pyro_memory.guides import VMAGuide
from pyro_memory.models import VMA

K, SHAPE = 4, (1, 28, 28)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=("conv", "mlp"), default=["conv", "mlp"])
    parser.add_argument("--batches", metavar="N", nargs="+", type=int, default=[64, 256])
    parser.add_argument("--slots", metavar="N", nargs="+", type=int, default=[32, 128, 512, 2048, 4096])
    parser.add_argument("--repeats", metavar="N", type=int, default=40, help="pairs of steps at each size (default 40)")
    parser.add_argument("--threads", metavar="N", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", metavar="DIR", type=Path, default=Path("out/step_cost"))
    return parser.parse_args()


def normal(head, hidden):
    loc, scale = head.project(hidden).chunk(2, -1)
    return loc, softplus(scale) + 1e-4


def log_normal(z, loc, scale):
    return (-((z - loc) ** 2) / (2 * scale**2) - scale.log() - 0.5 * math.log(2 * math.pi)).sum(-1)


def by_hand(model, guide, x, slots):
    """The negative bound with VIMCO's surrogate, as one would write it for this model alone."""
    batch, count = len(x), len(slots)
    query, key = guide.address.query(x), guide.address.query(slots)
    log_q = (query @ normalize(key, dim=-1).mT).log_softmax(-1)
    a = log_q.detach().exp().expand(K, batch, count).reshape(-1, count).multinomial(1).reshape(K, batch)
    log_q_a = log_q.expand(K, batch, count).gather(-1, a.unsqueeze(-1)).squeeze(-1)
    both = torch.cat([x.expand(K, *x.shape), slots[a]], -3)
    loc, scale = normal(guide.encoder.head, guide.encoder.features(both)[-1].flatten(2))
    z = loc + scale * torch.randn_like(loc)
    once = count < K * batch  # each slot's features once, or each read's
    content = model.content(slots if once else slots[a])
    prior_loc, prior_scale = normal(model.prior.head, content[-1].flatten(-model.prior.event_dim))
    if once:
        content, prior_loc, prior_scale = tuple(t[a] for t in content), prior_loc[a], prior_scale[a]
    logits = model.likelihood.decoder(z, content).flatten(2)
    target = x.flatten(1).expand(K, -1, -1)
    log_x = -binary_cross_entropy_with_logits(logits, target, reduction="none").sum(-1)
    log_w = log_x + log_normal(z, prior_loc, prior_scale) - math.log(count) - log_normal(z, loc, scale) - log_q_a
    bound = log_w.logsumexp(0) - math.log(K)
    with torch.no_grad():
        mean_of_others = (log_w.sum(0) - log_w) / (K - 1)
        rows = log_w.expand(K, K, batch).clone()
        rows[torch.arange(K), torch.arange(K)] = mean_of_others
        signal = bound - (rows.logsumexp(1) - math.log(K))
    score = (signal * log_q_a).sum(0)
    return -(bound + score - score.detach()).sum()


def pair(networks):
    torch.manual_seed(0)
    if networks == "mlp":
        return VMA.mlp(SHAPE), VMAGuide.mlp(SHAPE)
    return tuple(c.convolutional(SHAPE, 64, (24, 48, 64)) for c in (VMA, VMAGuide))


def check(networks, x, slots):
    """Both give one loss and one gradient from one seed."""
    model, guide = pair(networks)
    parameters = [*model.parameters(), *guide.parameters()]
    found = []
    for loss in (
        lambda: VIMCO(K, max_plate_nesting=1).differentiable_loss(model, guide, x, SlotMemory(slots)),
        lambda: by_hand(model, guide, x, slots),
    ):
        torch.manual_seed(1)
        value = loss()
        found.append((value, *torch.autograd.grad(value, parameters)))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3 * other.abs().max().item())


def steppers(networks, x, slots):
    """A step by Pyro and one by hand, each on a pair of its own."""
    steps = []
    for name in ("pyro", "hand"):
        model, guide = pair(networks)
        parameters = [*model.parameters(), *guide.parameters()]
        optimizer = torch.optim.Adam(parameters, 1e-4, fused=True)
        objective, memory = VIMCO(K, max_plate_nesting=1), SlotMemory(slots)

        def step(name=name, model=model, guide=guide, optimizer=optimizer, objective=objective, memory=memory):
            optimizer.zero_grad()
            if name == "pyro":
                objective.loss_and_grads(model, guide, x, memory)
            else:
                loss = by_hand(model, guide, x, slots)
                loss.backward()
                loss.item()
            optimizer.step()

        steps.append(step)
    return steps


def measure(networks, batch, count, repeats):
    torch.manual_seed(0)
    x, slots = ((torch.rand(n, *SHAPE) < 0.1).float() for n in (batch, count))
    check(networks, x, slots)
    steps = steppers(networks, x, slots)
    times = [[], []]
    for repeat in range(repeats + 3):
        for which in (0, 1) if repeat % 2 else (1, 0):
            start = time.perf_counter()
            steps[which]()
            if repeat >= 3:
                times[which].append(time.perf_counter() - start)
    ratios = sorted(a / b for a, b in zip(*times, strict=True))
    low, high = ratios[len(ratios) // 5], ratios[4 * len(ratios) // 5]
    return {
        "networks": networks, "batch": batch, "slots": count, "pyro_ms": 1e3 * statistics.median(times[0]),
        "hand_ms": 1e3 * statistics.median(times[1]), "ratio": statistics.median(ratios), "low": low, "high": high,
    }  # fmt: skip


def draw(rows, path):
    fig, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for i, case in enumerate(dict.fromkeys((row["networks"], row["batch"]) for row in rows)):
        own = [row for row in rows if (row["networks"], row["batch"]) == case]
        slots, label = [row["slots"] for row in own], f"{case[0]}, batch {case[1]}"
        left.plot(slots, [row["pyro_ms"] for row in own], f"C{i}-o", label=label)
        left.plot(slots, [row["hand_ms"] for row in own], f"C{i}--")
        bars = [[row["ratio"] - row["low"] for row in own], [row["high"] - row["ratio"] for row in own]]
        right.errorbar(slots, [row["ratio"] for row in own], bars, fmt=f"C{i}-o", capsize=3, label=label)
    right.axhline(1, color="0.6", linewidth=0.8)
    left.set(
        xscale="log",
        yscale="log",
        xlabel="slots in memory",
        ylabel="ms a step (median)",
        title="Time of a step (dashed: by hand)",
    )
    right.set(xscale="log", xlabel="slots in memory", ylabel="Pyro / by hand", title="Ratio (median, 20% to 80%)")
    left.set_ylim(top=4 * max(row["pyro_ms"] for row in rows))  # room for the legend
    left.legend(frameon=False, loc="upper left", ncols=2)
    right.legend(frameon=False)
    fig.savefig(path, dpi=120)


def main():
    args = arguments()
    torch.set_num_threads(args.threads)
    pyro.enable_validation(False)
    sizes = [(n, b, s) for n in args.networks for b in args.batches for s in args.slots if n == "mlp" or s <= 512]
    rows = [measure(*size, args.repeats) for size in tqdm(sizes, leave=False)]
    head = f"{'networks':>9}{'batch':>6}{'slots':>7}{'Pyro, ms':>11}{'hand, ms':>11}{'ratio':>8}"
    print(f"{head}   20% to 80%")
    for r in rows:
        print(
            f"{r['networks']:>9}{r['batch']:>6}{r['slots']:>7}{r['pyro_ms']:>11.2f}{r['hand_ms']:>11.2f}"
            f"{r['ratio']:>8.3f}   {r['low']:.3f} to {r['high']:.3f}"
        )
    args.out.mkdir(parents=True, exist_ok=True)
    draw(rows, args.out / "step_cost.png")
    record = {"torch": torch.__version__, "pyro": pyro.__version__, "threads": args.threads, "rows": rows}
    (args.out / "step_cost.json").write_text(json.dumps(record, indent=1))
    print(f"step_cost.png and step_cost.json are in {args.out}")


if __name__ == "__main__":
    main()
