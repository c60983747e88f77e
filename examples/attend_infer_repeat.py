"""How many letters are in an image? The count is a latent, learned without labels: how soon, by which objective?

Attend-infer-repeat (Eslami et al., 2016, https://arxiv.org/abs/1603.08575) draws letters while present_t says so,

    present_t ~ Bernoulli(present_{t-1} / 2),  where_t, what_t ~ Normal(0, 1),  x ~ Bernoulli(ink of all letters)

and the guide goes to a place, reads what is there, erases it and looks again. Presence has no pathwise gradient: VIMCO
and LeaveOneOutELBO compare particles, NVIL (Pyro's TraceGraph_ELBO) keeps a running baseline, and Pyro's RenyiELBO does
not train it (https://github.com/pyro-ppl/pyro/issues/3289).

    python examples/attend_infer_repeat.py
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import nn

from pyro_memory import VIMCO, LeaveOneOutELBO, fit, information_gain
from pyro_memory.data import glyphs
from pyro_memory.diagnostics import plot_images

SIDE, LETTER, REACH, LATENT, TIMES = 28, 12, 8, 10, (1, 2)  # pixels: image, letter, centre to border; size of what
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--steps", metavar="N", type=int, default=400, help="by each objective (default 400)")
parser.add_argument("--seed", metavar="N", type=int, default=0, help="of images, parameters and training")
parser.add_argument("--out", metavar="DIR", type=Path, default=Path("out/attend_infer_repeat"), help="of the figure")


def window(where):
    """Bilinear maps [..., SIDE, LETTER] of a window's rows and columns to the image's; (-1, -1) is the top left."""
    start = REACH * (1 + where[..., None, None])
    return (1 - (torch.arange(SIDE)[:, None] - torch.arange(LETTER) - start).abs()).relu().unbind(-3)


def scatter(letters, n):
    """Images of 0, 1 or 2 letters side by side, and how many there are."""
    corners = torch.randint(2 * REACH + 1, (20 * n, 2, 2))
    rows, cols = window(corners[(corners[:, 0] - corners[:, 1]).abs().amax(-1) >= LETTER - 2][:n] / REACH - 1)
    drawn = (rows @ letters[torch.randint(len(letters), (n, 2))] @ cols.mT).round()
    counts = torch.randint(3, (n,))
    return (drawn * (torch.arange(2) < counts[:, None])[..., None, None]).amax(1), counts


class AIR(pyro.nn.PyroModule):
    def __init__(self, name):
        super().__init__(name)
        self.decode = nn.Sequential(nn.Linear(LATENT, 128), nn.ReLU(), nn.Linear(128, LETTER**2))
        self.look = nn.Sequential(nn.Linear(SIDE**2, 128), nn.ReLU(), nn.Linear(128, 5))
        self.read = nn.Sequential(nn.Linear(LETTER**2, 128), nn.ReLU(), nn.Linear(128, 2 * LATENT))

    @pyro.nn.pyro_method
    def model(self, x):
        with pyro.plate("batch", len(x)):
            present, blank = torch.ones(()), torch.ones(SIDE, SIDE)
            for t in TIMES:
                present = pyro.sample(f"present_{t}", dist.Bernoulli(present / 2))
                with poutine.mask(mask=present > 0):  # an absent letter has no place, which weighs nothing
                    rows, cols = window(pyro.sample(f"where_{t}", dist.Normal(torch.zeros(2), 1.0).to_event(1)))
                    what = pyro.sample(f"what_{t}", dist.Normal(torch.zeros(LATENT), 1.0).to_event(1))
                ink = rows @ (self.decode(what) - 2).sigmoid().unflatten(-1, (LETTER, LETTER)) @ cols.mT
                blank = blank * (1 - present[..., None, None] * ink)
            pyro.sample("x", dist.Bernoulli((1 - blank).clamp(0.01, 0.99)).to_event(2), obs=x)
        return 1 - blank

    @pyro.nn.pyro_method
    def guide(self, x):
        found, present, left = 0, torch.ones(()), x
        with pyro.plate("batch", len(x)):
            for t in TIMES:
                logit, loc, scale = self.look(left.flatten(-2)).split([1, 2, 2], -1)
                seen = dist.Bernoulli(present * logit.squeeze(-1).sigmoid())
                present = pyro.sample(f"present_{t}", seen, infer={"baseline": {"use_decaying_avg_baseline": True}})
                with poutine.mask(mask=present > 0):
                    rows, cols = window(pyro.sample(f"where_{t}", dist.Normal(loc, scale.exp() / 3).to_event(1)))
                    loc, scale = self.read((rows.mT @ left @ cols).flatten(-2)).chunk(2, -1)
                    pyro.sample(f"what_{t}", dist.Normal(loc, scale.exp() / 3).to_event(1))
                left = left * (1 - present[..., None, None] * rows.sum(-1)[..., None] * cols.sum(-1)[..., None, :])
                found = found + present
        return found


if __name__ == "__main__":
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    pyro.set_rng_seed(args.seed)
    letters = nn.functional.avg_pool2d(glyphs("background", size=2 * LETTER).images.float(), 2)[:, 0].gt(0.4).float()
    (images, _), (test, counts) = scatter(letters, 4000), scatter(letters, 1000)
    fig, (left, right) = plt.subplots(1, 2, figsize=(14, 3.4), layout="constrained", width_ratios=[2.2, 1])
    same = {"num_particles": 5, "vectorize_particles": True, "max_plate_nesting": 1}
    pyros = {"RenyiELBO": pyro.infer.RenyiELBO(**same), "NVIL": pyro.infer.TraceGraph_ELBO(**same)}
    ours = {"VIMCO": VIMCO(5, max_plate_nesting=1), "LeaveOneOutELBO": LeaveOneOutELBO(5, max_plate_nesting=1)}
    for name, objective in {**pyros, **ours}.items():
        torch.manual_seed(args.seed)
        air = AIR(name)
        run = fit(
            air.model, air.guide, [(x,) for x in images.split(32)], objective, steps=args.steps, learning_rate=3e-3,
            evaluate=lambda _, air=air: {"right": (air.guide(test) == counts).double().mean()}, evaluate_every=50,
        )  # fmt: skip
        steps, shares = zip(*map(dict.values, run.history["evaluation"]), strict=True)
        right.plot([n * run.cpu_seconds / args.steps for n in steps], shares, marker=".", label=name)
        error = (shares[-1] * (1 - shares[-1]) / len(test)) ** 0.5
        print(f"{name} counts {shares[-1]:.1%} ({error:.1%}) of {len(test)} new images right, {run.cpu_seconds:.0f} s")
    trace = poutine.trace(air.guide).get_trace(x := test[:8])
    rows = torch.stack([x, poutine.replay(air.model, trace=trace)(x)]).clamp(min=0.1)  # grey, to show empty images too
    plot_images([*rows[:, :, None]], ["image", "rebuilt"], ax=left)
    for t in TIMES:
        for i in trace.nodes[f"present_{t}"]["value"].nonzero().flatten().tolist():
            row, col = (0.5 + REACH * (1 + trace.nodes[f"where_{t}"]["value"][i])).tolist()
            left.add_patch(plt.Rectangle((col + i * (SIDE + 2), row), LETTER, LETTER, edgecolor=f"C{t}", fill=False))
    left.set_title(f"Where the guide looks first (orange) and second (green), trained by {name}")
    right.set(xlabel="seconds of one core", title="New images counted right", xlim=(0, None), ylim=(0, 1))
    right.legend(frameon=False)
    fig.savefig(args.out / "attend_infer_repeat.png", dpi=110)
    print(information_gain(air.model, air.guide, test), f"The figure is {args.out}/attend_infer_repeat.png", sep="\n")
