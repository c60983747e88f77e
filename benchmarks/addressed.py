"""Enumerating addresses where the likelihood reads the slot alone: one matrix product against a distribution a slot.

The model reads a slot and decodes it (784 numbers, no z); Pyro's TraceEnum_ELBO sums the address out, forward and
backward, with ``AddressedBernoulli`` and with ``Bernoulli(logits=logits[a])``, or with another likelihood and its
like: 784 pixels, counts, words, or 196 classes of four. Each case runs in a process of its own, whose peak resident
memory over that before the first step is what it took; times are of the processor, all threads together. Checks first
that both give one loss and gradient. Writes addressed.json and addressed.png to --out.

    python benchmarks/addressed.py
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import TraceEnum_ELBO
from torch import nn

from pyro_memory import (
    AddressedBernoulli,
    AddressedCategorical,
    AddressedMultinomial,
    AddressedPoisson,
    ContentAddress,
    SlotMemory,
)

LIKELIHOODS = {  # of all slots at once, of what was read, and its data from pixels
    "Bernoulli": (AddressedBernoulli, lambda t: dist.Bernoulli(logits=t).to_event(1), lambda x: x),
    "Poisson": (AddressedPoisson, lambda t: dist.Poisson(t.exp()).to_event(1), lambda x: x),
    "Multinomial": (AddressedMultinomial, lambda t: dist.Multinomial(784, logits=t), lambda x: x),
    "Categorical": (
        lambda t, a: AddressedCategorical(t.unflatten(-1, (196, 4)), a),
        lambda t: dist.Categorical(logits=t.unflatten(-1, (196, 4))).to_event(1),
        lambda x: x.unflatten(-1, (196, 4)).argmax(-1),
    ),
}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slots", metavar="N", nargs="+", type=int, default=[10, 30, 100, 300, 1000])
    parser.add_argument("--likelihood", choices=LIKELIHOODS, default="Bernoulli")
    parser.add_argument("--batch", metavar="N", type=int, default=64)
    parser.add_argument("--repeats", metavar="N", type=int, default=15, help="steps of which the median is taken")
    parser.add_argument("--threads", metavar="N", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", metavar="DIR", type=Path, default=Path("out/addressed"))
    parser.add_argument("--case", nargs=2, help=argparse.SUPPRESS)
    return parser.parse_args()


def mlp(*sizes):
    return nn.Sequential(nn.Linear(*sizes[:2]), nn.ReLU(), nn.Linear(*sizes[1:]))


class Model(nn.Module):
    def __init__(self, kind, likelihood):
        super().__init__()
        torch.manual_seed(0)
        self.decode, self.address = mlp(784, 256, 784), ContentAddress(mlp(784, 256, 64))
        self.kind, (self.addressed, self.plain, self.data) = kind, LIKELIHOODS[likelihood]

    def model(self, x, memory):
        with pyro.plate("batch", len(x)):
            a = pyro.sample("a", memory.prior())
            logits = self.decode(memory.values)
            fn = self.addressed(logits, a) if self.kind == "product" else self.plain(logits[a])
            pyro.sample("x", fn, obs=self.data(x))

    def guide(self, x, memory):
        with pyro.plate("batch", len(x)):
            pyro.sample("a", self.address(x, memory), infer={"enumerate": "parallel"})


def step(kind, slots, batch, likelihood):
    torch.manual_seed(1)
    x, memory = (torch.rand(batch, 784) < 0.1).float(), SlotMemory((torch.rand(slots, 784) < 0.1).float())
    module, objective = Model(kind, likelihood), TraceEnum_ELBO(max_plate_nesting=1)

    def run():
        module.zero_grad()
        loss = objective.differentiable_loss(module.model, module.guide, x, memory)
        loss.backward()
        return [loss.detach(), *(p.grad for p in module.parameters())]

    return run


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def case(kind, slots, args):
    torch.set_num_threads(args.threads)
    pyro.enable_validation(False)
    step(kind, 2, 2, args.likelihood)()
    run, before, times = step(kind, slots, args.batch, args.likelihood), peak(), []
    for _ in range(args.repeats):
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return {"kind": kind, "slots": slots, "ms": 1e3 * statistics.median(times), "mb": peak() - before}


def main():
    args = arguments()
    if args.case:
        print(json.dumps(case(args.case[0], int(args.case[1]), args)))
        return
    for one, other in zip(*(step(kind, 30, 16, args.likelihood)() for kind in ("product", "gather")), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3 * other.abs().max().item())
    rows = []
    for slots in args.slots:
        for kind in ("gather", "product"):
            command = [sys.executable, __file__, "--case", kind, str(slots), "--batch", str(args.batch)]
            command += ["--repeats", str(args.repeats), "--threads", str(args.threads)]
            command += ["--likelihood", args.likelihood]
            rows.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    print(f"batch {args.batch}, 784 numbers of each slot, forward and backward")
    print(f"{'slots':>6}{f'a {args.likelihood} a slot':>24}{'product':>20}{'times faster':>14}")
    for gather, product in zip(rows[::2], rows[1::2], strict=True):
        shown = [f"{row['ms']:.1f} ms {row['mb']:.0f} MB" for row in (gather, product)]
        print(f"{gather['slots']:>6}{shown[0]:>24}{shown[1]:>20}{gather['ms'] / product['ms']:>14.1f}")
    args.out.mkdir(parents=True, exist_ok=True)
    fig, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for ax, key, label in zip(axes, ("ms", "mb"), ("processor ms a step", "MB added at the peak"), strict=True):
        for kind, name in (("gather", f"a {args.likelihood} a slot"), ("product", f"Addressed{args.likelihood}")):
            own = [row for row in rows if row["kind"] == kind]
            ax.plot([row["slots"] for row in own], [row[key] for row in own], marker="o", label=name)
        ax.set(xscale="log", yscale="log" if key == "ms" else "linear", xlabel="slots in memory", ylabel=label)
    axes[0].legend(frameon=False)
    fig.savefig(args.out / "addressed.png", dpi=120)
    record = {"torch": torch.__version__, "threads": args.threads, "batch": args.batch}
    record |= {"likelihood": args.likelihood, "rows": rows}
    (args.out / "addressed.json").write_text(json.dumps(record, indent=1))
    print(f"addressed.png and addressed.json are in {args.out}")


if __name__ == "__main__":
    main()
