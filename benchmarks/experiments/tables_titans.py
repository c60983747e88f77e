"""Tables of Titans: recall, language, forecasts, sequential addressing."""

import math
from statistics import fmean, stdev

from cells import dotted, table


def _by(kind, title, record):
    """Accuracy of each run with its error by what stands in a column; of several seeds the means beside each other."""
    groups = {}
    for run in record["runs"]:
        groups.setdefault(run["model"], []).append(run)
    first = record["runs"][0][kind]
    trained = int(next(iter(first)))
    heads = [n if kind == "by_gap" or int(n) == trained else f"{n} ({int(n) // trained}x)" for n in first]
    rows = [[title, *heads]]
    for model, runs in groups.items():
        cells = [[run[kind][n] for run in runs] for n in first]
        if len(runs) == 1:
            rows.append([model, *(f"{dotted(mean)} ({dotted(se)})" for ((mean, se),) in cells)])
        else:
            rows.append([model, *(" / ".join(dotted(mean) for mean, _ in cell) for cell in cells)])
    return table(rows)


def by_length(record, recipe):
    return _by("by_length", "accuracy at length", record)


def by_gap(record, recipe):
    return _by("by_gap", "accuracy at a gap of", record)


def _rungs(kind, title, record):
    """Accuracy of each rung of a ladder, with its error, by multiples of what it was trained on."""
    first = max(([int(n) for n in run[kind]] for run in record["runs"]), key=len)
    rows = [[title, "trained at length", "steps", *(f"{n // first[0]}x" for n in first)]]
    for run in record["runs"]:
        cells = [f"{dotted(mean)} ({dotted(se)})" for mean, se in run[kind].values()]
        cells += [""] * (len(first) - len(cells))
        rows.append([run["model"], next(iter(run["by_length"])), f"{run['steps']:,}", *cells])
    return table(rows)


def ladder(record, recipe):
    return _rungs("by_length", "the same pairs, at lengths of", record)


def ladder_pairs(record, recipe):
    return _rungs("by_pairs", "so many times the pairs and the length", record)


def language(record, recipe):
    tests = [key for key in record["runs"][0] if key.startswith("test_")]
    rows = [["bits per character", *(f"windows of {key[5:]}" for key in tests), "seconds of training"]]
    for run in record["runs"]:
        # The record's errors are in nats.
        cells = [f"{run[t]['bits']:.3f} ({dotted(run[t]['se'] / math.log(2))})" for t in tests]
        rows.append([run["model"], *cells, f"{run['seconds']:.0f}"])
    return table(rows)


def forecast(record, recipe):
    """Errors by horizon, over seeds the mean; where that is of several, the spread over them of the last column."""
    runs = record["runs"]
    horizons = list(dict.fromkeys(run["horizon"] for run in runs))
    scored = "crps" in runs[0]
    shares = [key for key in runs[0] if key.startswith("coverage")]
    rows = [["MSE / MAE", *map(str, horizons), "mean", *["CRPS"] * scored]]
    rows[0] += [f"{key.removeprefix('coverage of ')} intervals cover" for key in shares]
    for model in dict.fromkeys(run["model"] for run in runs):
        at = [[run for run in runs if (run["model"], run["horizon"]) == (model, h)] for h in horizons]

        def mean(key, at=at):
            return [fmean(run[key] for run in seeds) for seeds in at]

        pairs = [*zip(mean("mse"), mean("mae"), strict=True), (fmean(mean("mse")), fmean(mean("mae")))]
        cells = [" / ".join(map(dotted, pair)) for pair in pairs]
        if len(at[0]) > 1:
            each = [[fmean(run[key] for run in one) for one in zip(*at, strict=True)] for key in ("mse", "mae")]
            cells[-1] += f" ({' / '.join(dotted(stdev(column)) for column in each)})"
        cells += [dotted(fmean(mean("crps")))] if scored else []
        rows.append([model, *cells, *(" ".join(dotted(share, 2) for share in mean(key)) for key in shares)])
    for name, cells in recipe.get("published", {}).items():
        rows.append([f"*{name}*", *cells, *[""] * (len(rows[0]) - 1 - len(cells))])
    return table(rows)


def sequential(record, recipe):
    rows = [["", "-log p(x), nats a sequence, exact", "KL of a lookup, round 1", "later rounds"]]
    size = int(record["arguments"]["round"])
    for name in ("uniform prior", "Titans prior"):
        gains = record[name]["information_by_step"]
        rounds = [fmean(gains[k : k + size]) for k in range(0, len(gains), size)]
        later = [f"{r:.2f}" for r in sorted(rounds[1:])]
        rows.append([name, f"{record[name]['nats']:.1f}", f"{rounds[0]:.2f}", f"{later[0]} to {later[-1]}"])
    return table(rows)
