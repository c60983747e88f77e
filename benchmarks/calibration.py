"""What a calibrated guide looks like, and one that is too narrow, seen through by calibrate.

Two causes of one observation: z ~ N(0, I) in two dimensions, x ~ N(W z, 0.5^2) with columns of W that are nearly alike.
The posterior is correlated. One guide is that posterior. The other is the best guide whose dimensions are independent:
the posterior's mean, and the inverse diagonal of its precision, which is what the ELBO trains a factorised guide to.
Writes calibration.json and calibration.png to --out.

    python benchmarks/calibration.py

References: Validating Bayesian Inference Algorithms with Simulation-Based Calibration (Talts et al., 2018),
https://arxiv.org/abs/1804.06788
"""

import argparse
import json
from pathlib import Path

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch

from pyro_memory import calibrate
from pyro_memory.diagnostics import BLUE, ORANGE

WEIGHTS = torch.tensor([[1.0, 0.8], [0.8, 1.0]])
NOISE = 0.5
PRECISION = torch.eye(2) + WEIGHTS.T @ WEIGHTS / NOISE**2
SHOWN = 40  # intervals in the figure


def model(x):
    with pyro.plate("batch", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z @ WEIGHTS.T, NOISE).to_event(1), obs=x)


def mean(x):
    return x @ WEIGHTS @ torch.linalg.inv(PRECISION) / NOISE**2


def exact(x):
    with pyro.plate("batch", len(x)):
        pyro.sample("z", dist.MultivariateNormal(mean(x), precision_matrix=PRECISION))


def factorised(x):
    with pyro.plate("batch", len(x)):
        pyro.sample("z", dist.Normal(mean(x), PRECISION.diagonal().rsqrt()).to_event(1))


GUIDES = {"the exact posterior": exact, "independent dimensions": factorised}


def intervals(ax, guide):
    """Ninety percent intervals of the first latent for data from the model, by the truth, which misses in orange."""
    truth = pyro.poutine.trace(pyro.poutine.uncondition(model)).get_trace(torch.zeros(SHOWN, 2)).nodes
    x, z = truth["x"]["value"], truth["z"]["value"][:, 0]
    with pyro.plate("draws", 999, dim=-2):
        drawn = pyro.poutine.trace(guide).get_trace(x).nodes["z"]["value"][..., 0]
    low, high = drawn.quantile(torch.tensor([0.05, 0.95]), dim=0)
    for i, place in enumerate(z.argsort()):
        color = BLUE if low[place] < z[place] < high[place] else ORANGE
        ax.plot([i, i], [low[place], high[place]], color=color, alpha=0.5, linewidth=3, solid_capstyle="butt")
        ax.plot(i, z[place], "o", color=color, markersize=3)
    ax.set(xticks=[], xlabel=f"{SHOWN} data", ylabel="a latent: truth and 90% interval")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/calibration"), metavar="DIR")
    parser.add_argument("--simulations", type=int, default=200, metavar="N", help="data sets of 4 (default 200)")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    fig, axes = plt.subplots(2, 3, figsize=(12, 6.5), layout="constrained")
    record = {}
    for row, (name, guide) in zip(axes, GUIDES.items(), strict=True):
        calibration = calibrate(model, guide, torch.zeros(4, 2), simulations=args.simulations, seed=args.seed)
        print(f"\n{name}\n{calibration}")
        pyro.set_rng_seed(args.seed)
        intervals(row[0], guide)
        calibration["z"].plot(row[1])
        calibration.plot(row[2])
        row[0].set_title(name)
        held, _ = calibration["z"].coverage(0.9)
        row[1].set_title(f"90% intervals hold {100 * held:.0f}% of the truths")
        row[2].set_title(calibration["z"].brief)
        row[2].get_legend().remove()
        record[name] = calibration.to_dict()
    for column in axes.T:
        limits = [ax.get_ylim() for ax in column]
        for ax in column:
            ax.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))
    (args.out / "calibration.json").write_text(json.dumps(record, indent=1))
    fig.savefig(args.out / "calibration.png", dpi=110)


if __name__ == "__main__":
    main()
