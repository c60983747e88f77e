"""A Bayesian Titans forecasts a recording: are its intervals honest, and what is it worth against the last value?

The past of each electrode, in patches, is read by a Titans (Behrouz et al., 2025, https://arxiv.org/abs/2501.00663),
whose memory learns while it reads; a read-out with random weights explains the future,

    W ~ Normal(0, 1 / dim),   y ~ Normal(W h(past), scale)

and a guide over W is trained by SVI with all else. Against it stands that the last value stays, as wrong as it was on
the training part. The recording is matplotlib's EEG of four electrodes and 800 times: small, and hard.

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
from pyro_memory.models import SequenceModel, TitansLMM

PAST, HORIZON, PATCH, DIM = 32, 8, 4, 16
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--steps", metavar="N", type=int, default=150, help="training steps (default 150)")
parser.add_argument("--draws", metavar="N", type=int, default=100, help="of the read-out's weights (default 100)")
parser.add_argument("--seed", metavar="N", type=int, default=0)
parser.add_argument("--out", metavar="DIR", type=Path, default=Path("out/titans_forecast"), help="figure, checkpoints")


def patches(past, future):
    """A window as a model's arguments, counted from the last value in deviations of the past; that in patches."""
    last, scale = past[:, -1:], past.std(-1, keepdim=True) + 1e-2
    return ((past - last) / scale).unflatten(-1, (-1, PATCH)), None, ((future - last) / scale).unsqueeze(1)


def titans(count):
    """The forecaster, and a mean-field guide over the weights of its read-out, which alone are random."""
    mixer = partial(TitansLMM, heads=2, chunk_size=4)
    model = SequenceModel.series(PATCH, mixer, dim=DIM, outputs=HORIZON, data_size=count)
    prior = dist.Normal(torch.zeros(()), 1 / math.sqrt(DIM)).expand([HORIZON, DIM])
    model.readout.weight = PyroSample(prior.to_event(2))
    return model, AutoNormal(model, init_scale=0.01)


@torch.no_grad()
def forecast(model, guide, x, future, draws):
    """Futures ``[draw, sequence, horizon]``, and log p(future | past) by the mixture of draws, nats a value."""
    each = [pyro.condition(model.next_dist, guide(x))(x) for _ in range(draws)]
    density = torch.stack([d.log_prob(future) for d in each]).logsumexp(0) - math.log(draws)
    return torch.stack([d.sample() for d in each]), density / HORIZON


def holds(futures, future, share):
    """The share of values that the central interval holds, in percent, and its standard error over sequences."""
    low, high = futures.quantile(torch.tensor([0.5 - share / 2, 0.5 + share / 2]), 0)
    return "{:.0f}% ({:.0f})".format(*mean_se(100 * ((future >= low) & (future <= high)).float().mean(-1)))


def mean_se(values):
    return values.mean().item(), (values.std() / math.sqrt(len(values))).item()


def draw(futures, x, future, path):
    fig, axes = plt.subplots(2, 2, figsize=(12, 5), layout="constrained", sharex=True)
    levels = futures.quantile(torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95]), 0)
    for electrode, ax in enumerate(axes.flat):
        at = len(future) // 8 * 4 + electrode
        for i, share in enumerate(("90%", "50%")):
            ax.fill_between(range(HORIZON), levels[i, at], levels[4 - i, at], color="C0", alpha=0.25, label=share)
        ax.plot(levels[2, at], color="C0", label="median")
        ax.plot(range(-PAST, HORIZON), torch.cat([x[at].flatten(), future[at]]), color="0.2", linewidth=0.8)
        ax.set(title=f"electrode {electrode + 1}", xlabel="time", ylabel="from the last value")
    axes[0, 0].legend(frameon=False, ncols=3)
    fig.savefig(path, dpi=120)


if __name__ == "__main__":
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    series = load_series("eeg")
    window = partial(series.windows, past=PAST, horizon=HORIZON)
    train, every = window("train", batch=16, seed=args.seed), window("test", batch=1)
    count = len(train.starts) * len(series.channels)
    print(f"{series}, {count} training windows of {PAST} times and the {HORIZON} after them")
    apart = [patches(*every[i]) for i in range(0, len(every), HORIZON)]  # no value is forecast twice
    x, future = (torch.cat(parts) for parts in zip(*((x, y.squeeze(1)) for x, _, y in apart), strict=True))
    wander = torch.cat([patches(*train[i])[2] for i in range(30)]).std((0, 1))
    stays = dist.Normal(0.0, wander).log_prob(future).mean(-1)
    torch.manual_seed(args.seed)
    model, guide = titans(count)
    fit(
        model, guide, lambda step: patches(*train[step]), Trace_ELBO(max_plate_nesting=1), steps=args.steps,
        learning_rate=2e-3, schedule=warm_cosine(args.steps), information_every=None, seed=args.seed,
        checkpoint=args.out / f"titans-{args.seed}.safetensors",
    )  # fmt: skip
    futures, nats = forecast(model.eval(), guide, x, future, args.draws)
    draw(futures, x, future, args.out / "titans_forecast.png")

    print(
        "\nThe Titans' intervals of 50% hold {} of the values and those of 90% hold {} (standard error over {} "
        "sequences of the\ntest part). It gives the future {:.2f} ({:.2f}) nats a value, the last value {:.2f} ({:.2f}), "
        "so gains {:.2f} ({:.2f}), paired.\nThe figure is {}".format(
            holds(futures, future, 0.5), holds(futures, future, 0.9), len(future), *mean_se(nats), *mean_se(stays),
            *mean_se(nats - stays), args.out / "titans_forecast.png",
        )
    )  # fmt: skip
