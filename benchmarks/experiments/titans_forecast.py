"""Long-horizon forecasting with a Bayesian read-out: point forecasts beside a linear baseline, and predictive fans.

Each channel is a sequence of its own; its past, in patches, is scaled by its own mean and deviation, read by a sequence
model, and the future is explained by a read-out whose weights are random: a guide over them is trained by SVI. MSE and
MAE are of the whole test part, in units of the training part's deviation. Writes results.json, checkpoints and figures
to --out; run it again to go on from there.

    python benchmarks/experiments/titans_forecast.py
    python benchmarks/experiments/titans_forecast.py --data ETTh1 --data-dir FOLDER
"""

import math
from functools import partial

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroSample
from study import leave, options, train
from tables_titans import forecast
from titans_parts import MIXERS, leave_weights, mixers

from pyro_memory import load_pretrained, pretrained, warm_cosine
from pyro_memory.data import SERIES, load_series
from pyro_memory.diagnostics import BLUE, ORANGE
from pyro_memory.guides import EmptyGuide
from pyro_memory.models import DLinear, SequenceModel

HORIZONS = {"eeg": [24, 48]}  # the others: 96 192 336 720


def arguments():
    parser = options(
        __doc__, "out/titans_forecast", data=("eeg", *(name for name in SERIES if name != "eeg")), device=True,
        past=(96, "values that are known"), patch=(8, "values a token"), dim=(64, "of the hidden vectors"),
        heads=(4, "of attention and memory"), steps=(500, "training steps of each model and horizon"),
        batch=(32, "windows a batch, each of all channels"), learning_rate=(1e-3, "at its highest"),
        draws=(50, "of the read-out's weights for the fans"),
        pretrained=(False, "measure the package's titans-MODEL-DATA-HORIZON; train nothing"),
    )  # fmt: skip
    parser.add_argument("--models", nargs="+", choices=(*MIXERS, "DLinear"), default=["LMM", "DLinear"])
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


def weights_name(model, horizon, args):
    return f"titans-{model.lower()}-{args.data.lower()}-{horizon}"


class Patches:
    """Windows as the model's arguments: the past in patches and scaled, no mask, the future on the same scale."""

    def __init__(self, windows, patch):
        self.windows = windows
        self.patch = patch
        if windows.seed is None:
            self.count = len(windows)

    def scaled(self, index):
        past, future = self.windows[index]
        mean, scale = past.mean(-1, keepdim=True), past.std(-1, keepdim=True) + 1e-2
        return (past - mean) / scale, (future - mean) / scale, mean, scale

    def __getitem__(self, index):
        past, future, _, _ = self.scaled(index)
        return past.unflatten(-1, (-1, self.patch)), None, future.unsqueeze(1)


def build(mixer, horizon, series, args):
    """A forecaster and its guide: random read-out weights, or, for the linear baseline, nothing random."""
    if mixer is None:
        return DLinear(args.past, horizon), EmptyGuide()
    windows = series.windows("train", past=args.past, horizon=horizon, batch=1)
    count = len(windows) * len(series.channels)
    model = SequenceModel.series(args.patch, mixer, dim=args.dim, outputs=horizon, data_size=count)
    scale = torch.tensor(1 / math.sqrt(args.dim), device=args.device)
    model.readout.weight = PyroSample(dist.Normal(0 * scale, scale).expand([horizon, args.dim]).to_event(2))
    return model, AutoNormal(model, init_scale=0.01)


@torch.no_grad()
def errors(model, guide, patches, args):
    """MSE and MAE of the expected future; the location is linear in the weights, so their mean gives its mean."""
    center = guide.median() if isinstance(guide, AutoNormal) else {}
    square = absolute = count = 0
    for i in range(patches.count):
        past, future, _, scale = (t.to(args.device) for t in patches.scaled(i))
        expected = pyro.condition(model.next_dist, center)(past.unflatten(-1, (-1, args.patch))).mean
        error = (expected - future) * scale
        square, absolute, count = square + error.square().sum(), absolute + error.abs().sum(), count + error.numel()
    return {"mse": (square / count).item(), "mae": (absolute / count).item()}


@torch.no_grad()
def draws(model, guide, patches, index, args):
    """Futures ``[draw, sequence, horizon]``, each from weights drawn from the guide, with what was and the past."""
    past, future, mean, scale = (t.to(args.device) for t in patches.scaled(index))
    x = past.unflatten(-1, (-1, args.patch))
    futures = torch.stack([pyro.condition(model.next_dist, guide(x) or {})(x).sample() for _ in range(args.draws)])
    return futures * scale + mean, future * scale + mean, past * scale + mean


def run(name, mixer, horizon, series, args):
    torch.manual_seed(args.seed)
    file = weights_name(name, horizon, args)
    model, guide = load_pretrained(file) if args.pretrained else build(mixer, horizon, series, args)
    model = model.to(args.device)
    window = partial(series.windows, past=args.past, horizon=horizon)
    valid, test = (Patches(window(split, batch=64), args.patch) for split in ("valid", "test"))
    print(f"\n{name}, horizon {horizon}")
    result = None if args.pretrained else train(
        f"{name}-{horizon}", model, guide, Patches(window("train", batch=args.batch, seed=args.seed), args.patch),
        Trace_ELBO(max_plate_nesting=1), args, schedule=warm_cosine(args.steps, warm=0, floor=0.02), clip_norm=None,
        evaluate=lambda step: errors(model, guide, valid, args),
    )  # fmt: skip
    count = sum(p.numel() for p in model.parameters())
    row = {"model": name, "horizon": horizon, **errors(model, guide, test, args), "parameters": count}
    if result:
        row |= {"seconds": result.seconds, "valid": result.history["evaluation"]}
    inside = []
    torch.manual_seed(args.seed)
    for i in range(0, test.count, max(1, test.count // 4)):
        futures, truth, _ = draws(model, guide, test, i, args)
        low, high = futures.quantile(torch.tensor([0.05, 0.95], device=args.device), 0)
        inside.append(((truth >= low) & (truth <= high)).float().mean().item())
    row["coverage of 90%"] = sum(inside) / len(inside)
    print(f"  MSE {row['mse']:.4f}  MAE {row['mae']:.4f}  coverage of 90% intervals {row['coverage of 90%']:.3f}")
    if name == args.weights:
        leave_median(file, model, guide, mixer, row, series, args)
    return model, guide, row


def leave_median(file, model, guide, mixer, row, series, args):
    """Writes the forecaster with the guide's median for its read-out: without it, nothing of it is random."""
    horizon = row["horizon"]
    sizes = {"features": args.patch, "dim": args.dim, "outputs": horizon}
    plain = SequenceModel.series(mixer=mixer, **sizes)
    (weight,) = guide.median().values()
    plain.load_state_dict(model.state_dict() | {"readout.weight": weight})
    facts = {
        "about": f"Titans {args.weights}, {horizon} values ahead of {args.past}, trained on {args.data}",
        "data": f"{args.data}: {series}",
        "licence": "the series' own; ETT is CC BY-ND 4.0",
        "protocol": f"a channel at a time, scaled by the mean and deviation of its own past, in patches of "
        f"{args.patch}; errors over every window of the test part, in deviations of the training part",
        "numbers": {"MSE": f"{row['mse']:.4f}", "MAE": f"{row['mae']:.4f}"},
        "training": f"{args.steps} steps of {args.batch} windows, all channels, seed {args.seed}; read-out weights are "
        "the guide's median",
    }
    leave_weights(file, plain, "series", sizes, mixer, facts, args.out / "weights")


def draw_fans(shown, series, args, path):
    """One test window of the last channel at each horizon: the past, what came, and intervals of 50 and 90 percent."""
    columns = min(2, len(shown))
    lines = -(-len(shown) // columns)
    fig, axes = plt.subplots(lines, columns, figsize=(6.5 * columns, 3 * lines), layout="constrained", squeeze=False)
    for ax, (horizon, (name, model, guide)) in zip(axes.flat, shown.items(), strict=False):
        test = Patches(series.windows("test", past=args.past, horizon=horizon, batch=1), args.patch)
        torch.manual_seed(args.seed)
        futures, truth, past = (t[..., -1, :].cpu() for t in draws(model, guide, test, test.count // 3, args))
        levels = futures.quantile(torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95]), 0)
        for i, alpha, share in ((0, 0.2, "90%"), (1, 0.35, "50%")):
            ax.fill_between(range(horizon), levels[i], levels[4 - i], color=BLUE, alpha=alpha, linewidth=0, label=share)
        ax.plot(levels[2], color=BLUE, linewidth=1, label=f"{name}, median")
        ax.plot(range(-args.past, horizon), torch.cat([past, truth]), color="0.2", linewidth=0.8, label="measured")
        ax.axvline(0, color=ORANGE, linewidth=0.8)
        ax.set(title=f"horizon {horizon}", xlabel="time", ylabel=f"{series.channels[-1]}, deviations")
    axes[0, 0].legend(frameon=False, ncols=2, fontsize=8)
    fig.savefig(path, dpi=120)


def main():
    args = arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    series = load_series(args.data, args.data_dir)
    print(series)
    if args.past % args.patch:
        raise SystemExit(f"--patch must divide --past; got {args.patch} and {args.past}")
    made = mixers(args.heads, 4, 16) | {"DLinear": None}
    rows, shown = [], {}
    for horizon in args.horizons:
        for name in args.models:
            model, guide, row = run(name, made[name], horizon, series, args)
            rows.append(row)
            shown.setdefault(horizon, (name, model, guide))
    draw_fans(shown, series, args, args.out / "fans.png")
    leave({"series": repr(series), "runs": rows}, args, forecast)


if __name__ == "__main__":
    main()
