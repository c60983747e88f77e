"""A Bayesian Titans forecasts a recording: are its intervals honest, and what is it worth against a linear baseline?

The past of each electrode, in patches, is read by a Titans (Behrouz et al., 2025, https://arxiv.org/abs/2501.00663),
whose memory learns while it reads; a read-out with random weights explains the future,

    W ~ Normal(0, 1 / dim),   y ~ Normal(W h(past), scale)

and a guide over W is trained by SVI with all else. DLinear (Zeng et al., 2023, https://arxiv.org/abs/2205.13504), two
linear maps of the past, is trained for as many steps. The recording is matplotlib's EEG of 800 times: small, and hard.

    python examples/titans_forecast.py
"""

import argparse
import math
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroSample

from pyro_memory import fit, warm_cosine
from pyro_memory.data import load_series
from pyro_memory.guides import EmptyGuide
from pyro_memory.models import DLinear, SequenceModel, TitansLMM

PAST, HORIZON, PATCH, DIM = 96, 16, 8, 32
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--steps", metavar="N", type=int, default=400, help="training steps of each model (default 400)")
parser.add_argument("--draws", metavar="N", type=int, default=100, help="of the read-out's weights (default 100)")
parser.add_argument("--seed", metavar="N", type=int, default=0)
parser.add_argument("--out", metavar="DIR", type=Path, default=Path("out/titans_forecast"), help="figure, checkpoints")


class Patches:
    """Windows as a model's arguments: the past scaled by its own moments, in patches; the future on the same scale."""

    def __init__(self, windows):
        self.windows = windows

    def __getitem__(self, index):
        past, future = self.windows[index]
        mean, scale = past.mean(-1, keepdim=True), past.std(-1, keepdim=True) + 1e-2
        return ((past - mean) / scale).unflatten(-1, (-1, PATCH)), None, ((future - mean) / scale).unsqueeze(1)


def titans(count):
    """The forecaster and a mean-field guide over its read-out, the only thing that is random."""
    model = SequenceModel.series(
        PATCH, partial(TitansLMM, heads=2, chunk_size=4), dim=DIM, outputs=HORIZON, data_size=count
    )
    scale = torch.tensor(1 / math.sqrt(DIM))
    model.readout.weight = PyroSample(dist.Normal(0 * scale, scale).expand([HORIZON, DIM]).to_event(2))
    return model, AutoNormal(model, init_scale=0.01)


@torch.no_grad()
def forecast(model, guide, x, future, draws):
    """Futures ``[draw, sequence, horizon]``, and log p(future | past) by the mixture of draws, nats a value."""
    weights = [guide(x) or {} for _ in range(draws)]
    each = [pyro.condition(model.next_dist, w)(x) for w in weights]
    density = torch.stack([d.log_prob(future) for d in each]).logsumexp(0) - math.log(draws)
    return torch.stack([d.sample() for d in each]), density / HORIZON


def interval_holds(futures, future, share):
    low, high = futures.quantile(torch.tensor([(1 - share) / 2, (1 + share) / 2]), 0)
    return ((future >= low) & (future <= high)).float().mean(-1)


def draw(futures, x, future, path):
    fig, axes = plt.subplots(2, 2, figsize=(12, 5), layout="constrained", sharex=True)
    low, quarter, median, three, high = futures.quantile(torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95]), 0)
    for electrode, ax in enumerate(axes.flat):
        at = len(future) // 2 // 4 * 4 + electrode  # the four electrodes of a window follow each other
        ahead = range(HORIZON)
        ax.fill_between(ahead, low[at], high[at], color="C0", alpha=0.2, linewidth=0, label="90%")
        ax.fill_between(ahead, quarter[at], three[at], color="C0", alpha=0.35, linewidth=0, label="50%")
        ax.plot(ahead, median[at], color="C0", label="median")
        ax.plot(range(-32, HORIZON), torch.cat([x[at].flatten()[-32:], future[at]]), color="0.2", linewidth=0.8)
        ax.set(title=f"electrode {electrode + 1}", ylabel="deviations of its past")
    axes[1, 0].set_xlabel("time")
    axes[0, 0].legend(frameon=False, ncols=3)
    fig.savefig(path, dpi=120)


if __name__ == "__main__":
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    series = load_series("eeg")
    window = partial(series.windows, past=PAST, horizon=HORIZON)
    count = len(window("train", batch=1)) * len(series.channels)
    print(f"{series}, {count} training windows of {PAST} times and the {HORIZON} after them")
    every = window("test", batch=1)
    apart = [Patches(every)[i] for i in range(0, len(every), HORIZON)]  # no value is forecast twice
    x, future = (torch.cat(parts) for parts in zip(*((x, y.squeeze(1)) for x, _, y in apart), strict=True))
    densities = {}
    for name in ("DLinear", "Titans"):
        print(f"training the {name}")
        torch.manual_seed(args.seed)
        model, guide = titans(count) if name == "Titans" else (DLinear(PAST, HORIZON), EmptyGuide())
        fit(
            model, guide, Patches(window("train", batch=32, seed=args.seed)), Trace_ELBO(max_plate_nesting=1),
            steps=args.steps, learning_rate=2e-3, schedule=warm_cosine(args.steps), information_every=None,
            seed=args.seed, checkpoint=args.out / f"{name.lower()}-{args.seed}.safetensors",
        )  # fmt: skip
        model.eval()
        futures, densities[name] = forecast(model, guide, x, future, args.draws if name == "Titans" else 100)
        inside = {q: interval_holds(futures, future, q) for q in (0.5, 0.9)}
        error = (futures.median(0).values - future).square().mean()
        print(name, densities[name].mean(), inside, error)
    draw(futures, x, future, args.out / "titans_forecast.png")
    gain = densities["Titans"] - densities["DLinear"]
    print(gain.mean(), gain.std() / len(gain) ** 0.5)
