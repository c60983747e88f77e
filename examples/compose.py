"""Compose a model of your own: each datum follows a line read from memory, shifted by an offset of its own.

python examples/compose.py
"""

import argparse
import math
from pathlib import Path

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from torch import nn

from pyro_memory import VIMCO, ContentAddress, SlotMemory, broadcast_cat, fit, importance_bound, information_gain

T = torch.linspace(-1, 1, 12)


class Lines(PyroModule):
    def forward(self, y, memory):
        with pyro.plate("batch", len(y)):
            slope, intercept = memory[pyro.sample("a", memory.prior())].unbind(-1)
            offset = pyro.sample("offset", dist.Normal(torch.zeros(()), 0.5))
            mean = slope[..., None] * T + (intercept + offset)[..., None]
            return pyro.sample("y", dist.Normal(mean, 0.3).to_event(1), obs=y)


class LinesGuide(PyroModule):
    def __init__(self, name):
        super().__init__(name)
        key = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 8))
        self.address = ContentAddress(nn.Linear(len(T), 8), key)
        self.encode = nn.Linear(len(T) + 2, 2)

    def forward(self, y, memory):
        with pyro.plate("batch", len(y)):
            m = memory[pyro.sample("a", self.address(y, memory), infer={"enumerate": "parallel"})]
            loc, scale = self.encode(broadcast_cat([y, m])).unbind(-1)
            pyro.sample("offset", dist.Normal(loc, scale.exp()))


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--steps", metavar="N", type=int, default=2000, help="training steps (default 2000)")
parser.add_argument("--seed", metavar="N", type=int, default=0, help="of data and parameters")
parser.add_argument("--out", metavar="DIR", type=Path, default=Path("out/compose"), help="of the figure")

if __name__ == "__main__":
    args = parser.parse_args()
    pyro.set_rng_seed(args.seed)
    memory = SlotMemory(torch.tensor([[2.0, 0.0], [-2.0, 0.0], [0.3, 1.5], [0.3, -1.5], [1.0, 3.0]]))
    model, guide = Lines("lines"), LinesGuide("lines_guide")
    y = pyro.poutine.uncondition(model)(torch.zeros(200, len(T)), memory)
    print(fit(model, guide, [(y, memory)], VIMCO(8, max_plate_nesting=1), steps=args.steps, learning_rate=5e-3))
    gain = information_gain(model, guide, y, memory)
    bound = importance_bound(model, guide, y, memory, particles=500)
    print(gain, bound, sep="\n")
    fig, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for line, slot in zip(y[:60], guide.address(y, memory).probs.argmax(-1), strict=False):
        left.plot(T, line, color=f"C{slot.item()}", linewidth=0.7)
    left.set(xlabel="t", ylabel="y", title="Data, coloured by the line that they look up")
    gain.plot(right).set_title("What each latent carries")
    args.out.mkdir(parents=True, exist_ok=True)
    fig.savefig(args.out / "compose.png", dpi=120)
    print(
        f"The lookup carries {gain['a'].mean:.2f} ({gain['a'].se:.2f}) of at most log 5 = {math.log(5):.2f} nats; "
        f"a datum is explained by {bound.mean:.2f} ({bound.se:.2f}).\nThe figure is {args.out / 'compose.png'}"
    )
