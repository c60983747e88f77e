"""Long-horizon forecasting: a linear map of the past, the same and a mixer over its patches, and DLinear.

Each channel is a sequence of its own, without its daily profile, the mean of each hour or quarter of an hour over the
training part (ETT has days). DLinear gets it whole, as where it was published, and so do "linear-daily" and
"linear-daily-squared", which learns by squared errors. The step with the least absolute error in the validation part is
kept; errors, CRPS and coverage are over every window of the test part, in deviations of the training part. Writes
results.json, checkpoints and figures to --out; run it again to go on from there.

    python benchmarks/experiments/titans_forecast.py
    python benchmarks/experiments/titans_forecast.py --data ETTh1 --data-dir FOLDER
"""

import json
import math
import time
from contextlib import suppress
from statistics import fmean

import matplotlib.pyplot as plt
import pyro.distributions as dist
import torch
from pyro.infer import Trace_ELBO
from safetensors.torch import load_file, save_file
from study import leave, options, train
from tables_titans import forecast
from titans_parts import MIXERS, mixers

from pyro_memory import load_pretrained, pretrained, save_pretrained, warm_cosine
from pyro_memory.data import SERIES, load_series
from pyro_memory.diagnostics import BLUE, ORANGE
from pyro_memory.guides import EmptyGuide
from pyro_memory.models import DLinear, PatchForecaster

HORIZONS = {"eeg": [24, 48]}  # the others: 96 192 336 720
DAYS = {"ETTh1": 24, "ETTh2": 24, "ETTm1": 96}
QUARTERS = (0.05, 0.25, 0.75, 0.95)
MEASURES = ("mse", "mae", "crps", "coverage of 50%", "coverage of 90%")
# Mean MSE and MAE: Titans (Behrouz et al., 2025, https://arxiv.org/abs/2501.00663), Table 3; DLinear (Zeng et al.,
# 2023, https://arxiv.org/abs/2205.13504) as run at input 96 by Liu et al., 2023, https://arxiv.org/abs/2310.06625.
PUBLISHED = {
    "ETTh1": {"neural memory": (0.420, 0.421), "DLinear": (0.456, 0.452)},
    "ETTh2": {"neural memory": (0.336, 0.382)},
    "ETTm1": {"neural memory": (0.358, 0.387)},
}


class Enough(Exception):
    """The validation error has not fallen for so many evaluations."""


def arguments():
    parser = options(
        __doc__, "out/titans_forecast", data=("eeg", *(name for name in SERIES if name != "eeg")), device=True,
        past=(96, "values that are known"), patch=(8, "values a token"), dim=(32, "of the hidden vectors"),
        heads=(4, "of attention and memory"), steps=(1000, "training steps at most"),
        every=(125, "steps between evaluations"), patience=(3, "evaluations without a gain that end a run"),
        batch=(32, "windows a batch, each of all channels"), learning_rate=(2e-3, "at its highest"),
        seeds=(1, "how many, from --seed on"),
        pretrained=(False, "measure the package's titans-MODEL-DATA-HORIZON; train nothing"),
    )  # fmt: skip
    models = (*MIXERS, "linear", "linear-daily", "linear-daily-squared", "DLinear")
    parser.add_argument("--models", nargs="+", choices=models, default=["LMM", "linear", "DLinear"])
    parser.add_argument("--horizons", metavar="N", type=int, nargs="+", help="default 96 192 336 720 (eeg: 24 48)")
    parser.add_argument("--weights", choices=MIXERS, help="leave this model's weights in --out/weights")
    args = parser.parse_args()
    args.horizons = args.horizons or HORIZONS.get(args.data, [96, 192, 336, 720])
    if args.weights and (args.weights not in args.models or args.pretrained):
        parser.error(f"--weights must be one of --models {' '.join(args.models)}, trained")
    if args.pretrained:
        missing = [n for h in args.horizons for m in args.models if (n := weights_name(m, h, args)) not in pretrained()]
        if missing:
            parser.error(f"--pretrained: no weights {', '.join(missing)}; there are {', '.join(pretrained())}")
    return args


def without_profile(series, day):
    """The series minus the mean of each time of the day in the training part, of each channel; whole without days."""
    if day is None:
        return series.values
    profile = series.values[: series.ends[0] // day * day].unflatten(0, (-1, day)).mean(0)
    return series.values - profile[torch.arange(len(series.values)) % day]


def whole(name):
    """Whether a model gets the daily profile."""
    return name == "DLinear" or "daily" in name


class Windows:
    """``(past [batch * channel, past, 1], None, future [batch * channel, 1, horizon])`` of one part of a series."""

    def __init__(self, values, starts, horizon, args, batch, seed=None):
        self.windows = values.unfold(0, args.past + horizon, 1)  # [start, channel, time]
        self.starts, self.past, self.batch, self.seed = starts, args.past, batch, seed
        self.count = -(-len(starts) // batch)

    def __getitem__(self, index):
        if self.seed is None:
            chosen = self.starts[index * self.batch : (index + 1) * self.batch]
        else:  # by seed and step only, so that a run that was cut off goes on with the same
            generator = torch.Generator().manual_seed(1_000_003 * self.seed + index)
            chosen = self.starts[torch.randint(len(self.starts), (self.batch,), generator=generator)]
        past, future = self.windows[chosen].flatten(0, 1).split([self.past, self.windows.shape[2] - self.past], 1)
        return past.unsqueeze(-1), None, future.unsqueeze(1)


def crps(future, y):
    """The continuous ranked probability score of a Laplace or normal distribution, in closed form."""
    scale = future.scale
    z = (y - future.loc) / scale
    if isinstance(future, dist.Laplace):
        return scale * (z.abs() + (-z.abs()).exp() - 0.75)
    normal = dist.Normal(0.0, 1.0)
    return scale * (z * (2 * normal.cdf(z) - 1) + 2 * normal.log_prob(z).exp() - math.pi**-0.5)


@torch.no_grad()
def errors(model, windows, args):
    """MSE and MAE of the location, CRPS, and how much of the future lies in intervals of 50 and 90 percent."""
    sums, count = torch.zeros(5, dtype=torch.double), 0
    for i in range(windows.count):
        past, _, y = (None if t is None else t.to(args.device) for t in windows[i])
        future, y = model.next_dist(past).base_dist, y.squeeze(1)
        low, lower, upper, high = (future.icdf(torch.tensor(q, device=args.device)) for q in QUARTERS)
        error = y - future.loc
        inside = [((y >= a) & (y <= b)).double() for a, b in ((lower, upper), (low, high))]
        found = [error.square(), error.abs(), crps(future, y), *inside]
        sums, count = sums + torch.stack([t.sum().double().cpu() for t in found]), count + y.numel()
    return dict(zip(MEASURES, (sums / count).tolist(), strict=True))


def build(name, horizon, args):
    if name == "DLinear":
        return DLinear(args.past, horizon)
    kind = SquaredForecaster if name.endswith("squared") else PatchForecaster
    return kind(args.past, horizon, mixer_of(name, args), patch=args.patch, dim=args.dim)


class SquaredForecaster(PatchForecaster):
    """The same with a normal likelihood."""

    def next_dist(self, x):
        return dist.Normal((future := super().next_dist(x).base_dist).loc, future.scale).to_event(1)


def mixer_of(name, args):
    return None if name.startswith("linear") else mixers(args.heads, 4, 16)[name]


def spent(history, patience):
    """Whether the least error lies so many evaluations back."""
    return bool(history) and len(history) - 1 - history.index(min(history, key=lambda h: h["mae"])) >= patience


def trained(label, model, seed, batches, valid, args):
    """Trains until the validation error stays; gives the evaluations, the model is as at the best of them."""
    left, best = args.out / f"{label}-valid.json", args.out / f"{label}-best.safetensors"
    history = json.loads(left.read_text()) if left.exists() and not args.fresh else []

    def evaluate(step):
        history[:] = [h for h in history if h["step"] < step]  # a run that was cut off measures its last step again
        found = errors(model, valid, args)
        history.append({"step": step, "mse": found["mse"], "mae": found["mae"]})
        if history[-1] is min(history, key=lambda h: h["mae"]):
            save_file(model.state_dict(), best)
        left.write_text(json.dumps(history))
        if spent(history, args.patience):
            raise Enough
        return found

    if not spent(history, args.patience):
        with suppress(Enough):
            train(
                label, model, EmptyGuide(), batches, Trace_ELBO(max_plate_nesting=1), args, clip_norm=None, seed=seed,
                schedule=warm_cosine(args.steps, warm=0, floor=0.02), evaluate=evaluate, evaluate_every=args.every,
                checkpoint_every=args.every,
            )  # fmt: skip
    model.load_state_dict(load_file(best))
    return history


def run(name, horizon, seed, values, series, args):
    """A trained model with what was measured, or as it was left where that is done."""
    label = f"{name}-{horizon}-{seed}"
    left, best = args.out / f"{label}.json", args.out / f"{label}-best.safetensors"
    torch.manual_seed(seed)
    model = load_pretrained(weights_name(name, horizon, args))[0] if args.pretrained else build(name, horizon, args)
    model = model.to(args.device)
    if left.exists() and best.exists() and not args.fresh:
        model.load_state_dict(load_file(best))
        return model.eval(), json.loads(left.read_text())

    def windows(part, batch, step=1, seed=None):
        starts = series.windows(part, past=args.past, horizon=horizon, batch=1).starts[::step]
        return Windows(series.values if whole(name) else values, starts, horizon, args, batch, seed)

    row = {"model": name, "horizon": horizon, "seed": seed, "parameters": sum(p.numel() for p in model.parameters())}
    print(f"\n{name}, horizon {horizon}, seed {seed}")
    start = time.perf_counter()
    if not args.pretrained:  # validation windows overlap: every fourth tells nearly as much
        batches = windows("train", args.batch, seed=seed)
        row["valid"] = trained(label, model, seed, batches, windows("valid", 64, 4), args)
    row |= {"seconds": time.perf_counter() - start, **errors(model.eval(), windows("test", 64), args)}
    print("  " + "  ".join(f"{key} {row[key]:.4f}" for key in MEASURES))
    if not args.pretrained:
        left.write_text(json.dumps(row))
    return model, row


def weights_name(model, horizon, args):
    return f"titans-{model.lower()}-{args.data.lower()}-{horizon}"


def leave_weights(model, row, series, args):
    """Writes the forecaster in half precision with a card, ready for ``load_pretrained``."""
    mixer = mixer_of(args.weights, args)
    sizes = {"past": args.past, "horizon": row["horizon"], "patch": args.patch, "dim": args.dim}
    made = {"partial": [mixer.func.__name__, mixer.keywords]}
    facts = {
        "about": f"Titans {args.weights}, {row['horizon']} values ahead of {args.past}, trained on {args.data}",
        "data": f"{args.data}: {series}",
        "licence": "the series' own; ETT is CC BY-ND 4.0",
        "protocol": "a channel at a time, in deviations of the training part, less its daily profile there; errors "
        "over every window of the test part",
        "numbers": {"MSE": f"{row['mse']:.4f}", "MAE": f"{row['mae']:.4f}"},
        "training": f"{row['valid'][-1]['step']} steps of {args.batch} windows, all channels, seed {row['seed']}; the "
        "step with the least absolute error in the validation part",
    }
    build = {"model": ["PatchForecaster", sizes | {"mixer": made}], "guide": ["EmptyGuide", {}]}
    name = weights_name(args.weights, row["horizon"], args)
    print(save_pretrained(name, model, EmptyGuide(), build=build, facts=facts, folder=args.out / "weights"))


@torch.no_grad()
def draw_fans(shown, values, series, args, path):
    """One test window of the last channel at each horizon: the past, what came, and intervals of 50 and 90 percent."""
    lines, columns = -(-len(shown) // 2), min(2, len(shown))
    fig, axes = plt.subplots(lines, columns, figsize=(6.5 * columns, 3 * lines), layout="constrained", squeeze=False)
    for ax, (horizon, (name, model)) in zip(axes.flat, shown.items(), strict=False):
        starts = series.windows("test", past=args.past, horizon=horizon, batch=1).starts
        at = int(starts[len(starts) // 3])
        given = series.values if whole(name) else values
        x = given[at : at + args.past, -1:].unsqueeze(0).to(args.device)
        future, span = model.next_dist(x).base_dist, slice(at, at + args.past + horizon)
        profile = (series.values - given)[span, -1]
        low, lower, upper, high = (
            future.icdf(torch.tensor(q, device=args.device))[0].cpu() + profile[args.past :] for q in QUARTERS
        )
        for a, b, alpha, share in ((low, high, 0.2, "90%"), (lower, upper, 0.35, "50%")):
            ax.fill_between(range(horizon), a, b, color=BLUE, alpha=alpha, linewidth=0, label=share)
        ax.plot(future.loc[0].cpu() + profile[args.past :], color=BLUE, linewidth=1, label=f"{name}, median")
        ax.plot(range(-args.past, horizon), series.values[span, -1], color="0.2", linewidth=0.8, label="measured")
        ax.axvline(0, color=ORANGE, linewidth=0.8)
        ax.set(title=f"horizon {horizon}", xlabel="time", ylabel=f"{series.channels[-1]}, deviations")
    axes[0, 0].legend(frameon=False, ncols=2, fontsize=8)
    fig.savefig(path, dpi=120)


def draw_errors(rows, args, path):
    """MSE and MAE by horizon with their mean on the right, each seed a point; the published means beside that."""
    fig, axes = plt.subplots(1, 2, figsize=(11, 3.5), layout="constrained")
    places = [*map(str, args.horizons), "mean"]
    for ax, key, at in zip(axes, ("mse", "mae"), (0, 1), strict=True):
        for i, name in enumerate(args.models):
            runs = [[r[key] for r in rows if (r["model"], r["horizon"]) == (name, h)] for h in args.horizons]
            runs.append([fmean(seed) for seed in zip(*runs, strict=True)])
            line = ax.plot(places, [fmean(r) for r in runs], color=f"C{i}", label=name)[0]
            for place, run in zip(places, runs, strict=True):
                ax.plot([place] * len(run), run, ".", color=line.get_color())
        for (name, pair), marker in zip(PUBLISHED.get(args.data, {}).items(), "xd", strict=False):
            ax.plot(["mean"], [pair[at]], marker, color="0.2", label=f"{name}, published")
        ax.set(xlabel="horizon", ylabel=f"{key.upper()} of the test part")
    axes[0].legend(frameon=False, fontsize=8)
    fig.savefig(path, dpi=120)


def main():
    args = arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    series = load_series(args.data, args.data_dir)
    print(series)
    if args.past % args.patch:
        raise SystemExit(f"--patch must divide --past; got {args.patch} and {args.past}")
    values = without_profile(series, DAYS.get(args.data))
    rows, shown = [], {}
    for seed in range(args.seed, args.seed + args.seeds):
        for horizon in args.horizons:
            for name in args.models:
                model, row = run(name, horizon, seed, values, series, args)
                rows.append(row)
                shown.setdefault(horizon, (name, model))
                if name == args.weights and seed == args.seed:
                    leave_weights(model, row, series, args)
    draw_fans(shown, values, series, args, args.out / "fans.png")
    draw_errors(rows, args, args.out / "errors.png")
    leave({"series": repr(series), "runs": rows}, args, forecast)


if __name__ == "__main__":
    main()
