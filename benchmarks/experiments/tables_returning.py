"""Tables of classes that come back: gains of concepts, by rule, by how often a class was met, by size."""

import math
from statistics import fmean, stdev

from cells import paired, table

MET = ((1, 2), (3, 5), (6, 9), (10, 10**6))
AGO = ((0, 200), (200, 600), (600, 1200), (1200, 10**6))


def runs_of(record):
    """The runs of several seeds, or one alone."""
    runs = record.get("runs")
    return [record] if runs is None else [run for seeds in runs.values() for run in seeds.values()]


def gained(run, shots, name="emptied"):
    rows = run["bounds"][shots]
    return [a - b for a, b in zip(rows["concepts"], rows[name], strict=True)]


def mean_se(values):
    return fmean(values), stdev(values) / math.sqrt(len(values))


def cell(rows):
    """Mean over seeds of means over returns; in brackets the error over returns, then the one over seeds."""
    means = [fmean(row) for row in rows]
    within = math.sqrt(sum(mean_se(row)[1] ** 2 for row in rows)) / len(rows)
    between = f", {stdev(means) / math.sqrt(len(means)):.2f}" if len(means) > 1 else ""
    return f"{fmean(means):+.2f} ({within:.2f}{between})"


def returning_gains(record, recipe):
    """What concepts are worth over each of the others, by examples of the class that came back."""
    runs = runs_of(record)
    shots = list(runs[0]["bounds"])
    lines = [["nats by which concepts are ahead of", *(f"{n} example{'s' * (n != '1')}" for n in shots)]]
    names = [name for name in runs[0]["bounds"][shots[0]] if name != "concepts"]
    for name in names:
        lines.append([name, *(cell([gained(run, n, name) for run in runs]) for n in shots)])
    bound = [paired(*mean_se([v for run in runs for v in run["bounds"][n]["concepts"]])) for n in shots]
    return table([*lines, ["*the bound with concepts*", *bound]])


def returning_met(record, recipe):
    """What concepts are worth over emptied ones, by how often and how long ago a class was met."""
    runs = runs_of(record)
    shots = list(runs[0]["bounds"])
    lines = [["", "returns", *(f"{n} example{'s' * (n != '1')}" for n in shots)]]
    for which, bins, name in ((0, MET, "met {} times"), (1, AGO, "last met {} episodes ago")):
        for low, high in bins:
            parts = [[low <= row[which] <= high for row in run["met"]] for run in runs]
            count = sum(map(sum, parts))
            if count < 2 * len(runs):
                continue
            rows = {
                n: [
                    v
                    for run, part in zip(runs, parts, strict=True)
                    for v, own in zip(gained(run, n), part, strict=True)
                    if own
                ]
                for n in shots
            }
            span = f"{low} to {high}" if high < 10**6 else f"{low} or more"
            lines.append([name.format(span), count, *(paired(*mean_se(rows[n])) for n in shots)])
    return table(lines)


def returning_sizes(record, recipe):
    """What concepts are worth over emptied ones, by their number and by what they hold; nats a return and kilobyte."""
    runs = runs_of(record)
    lines = [["", "bytes", "0 examples", "1 example", "nats a kilobyte, 0 examples"]]
    for kind, name in (("exemplars", "{} exemplars a concept"), ("concepts", "{} concepts")):
        for size in runs[0]["sizes"][kind]:
            rows = [run["sizes"][kind][size] for run in runs]
            lines.append(sized(name.format(size), rows[0]["bytes"], [[r["gained"][n] for r in rows] for n in "01"]))
        own = [[gained(run, n) for run in runs] for n in "01"]
        if kind == "exemplars":
            own_name = (
                f"8 exemplars a concept, {runs[0]['arguments']['concepts'] if 'arguments' in runs[0] else 64} concepts"
            )
            lines.append(sized(own_name, runs[0]["concept_bytes"], own))
    return table(lines)


def sized(name, size, gains):
    return [name, f"{size:,.0f}", *map(cell, gains), f"{fmean(map(fmean, gains[0])) / size * 1000:.3f}"]
