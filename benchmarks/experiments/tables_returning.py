"""Tables of classes that come back: gains of concepts, by rule, by how often a class was met, by size."""

import math
from statistics import fmean, stdev

from cells import paired, table

MET = ((1, 2), (3, 5), (6, 9), (10, 10**6))
AGO = ((0, 200), (200, 600), (600, 1200), (1200, 10**6))


def span(low, high):
    return f"{low} to {high}" if high < 10**6 else f"{low} or more"


def runs_of(record):
    """The runs of several seeds, or one alone."""
    runs = record.get("runs")
    return [record] if runs is None else [run for seeds in runs.values() for run in seeds.values()]


def cell(rows):
    """Mean over seeds of means over returns; in brackets the error over returns, then the one over seeds."""
    means, errors = zip(*rows, strict=True)
    between = f", {stdev(means) / math.sqrt(len(means)):.2f}" if len(means) > 1 else ""
    return f"{fmean(means):+.2f} ({math.hypot(*errors) / len(errors):.2f}{between})"


def examples(shots):
    return [f"{n} example{'s' * (n != '1')}" for n in shots]


def returning_gains(record, recipe):
    """What concepts are worth over each of the others, by examples of the class that came back."""
    runs = runs_of(record)
    shots = list(runs[0]["gained"])
    lines = [["nats by which concepts are ahead of", *examples(shots)]]
    for name in runs[0]["gained"][shots[0]]:
        lines.append([name, *(cell([run["gained"][n][name] for run in runs]) for n in shots)])
    return table([*lines, ["*the bound with concepts*", *(cell([run["bounds"][n] for run in runs]) for n in shots)]])


def returning_met(record, recipe):
    """What concepts are worth over emptied ones, by how often and how long ago a class was met; all seeds' returns."""
    runs = runs_of(record)
    shots = list(runs[0]["gained"])
    lines = [["", "returns", *examples(shots)]]
    for which, bins, name in (("met", MET, "met {} times"), ("ago", AGO, "last met {} episodes ago")):
        for there in (span(*part) for part in bins):
            rows = {n: [row[1:] for run in runs for row in run[which][n] if row[0] == there] for n in shots}
            if rows[shots[0]]:
                count = sum(row[0] for row in rows[shots[0]])
                lines.append([name.format(there), count, *(paired(*pooled(rows[n])) for n in shots)])
    return table(lines)


def pooled(rows):
    """Mean and error of all that rows of (count, mean, error) are of."""
    every = sum(count for count, _, _ in rows)
    mean = sum(count * mean for count, mean, _ in rows) / every
    return mean, math.hypot(*(count * error for count, _, error in rows)) / every


def returning_sizes(record, recipe):
    """What concepts are worth over emptied ones, by their number and by what they hold; nats a return and kilobyte."""
    runs = runs_of(record)
    lines = [["", "bytes", "0 examples", "1 example", "nats a kilobyte, 0 examples"]]
    for kind, name in (("exemplars", "{} exemplars a concept"), ("concepts", "{} concepts")):
        for size in runs[0]["sizes"][kind]:
            rows = [run["sizes"][kind][size] for run in runs]
            lines.append(sized(name.format(size), rows[0]["bytes"], [[r["gained"][n] for r in rows] for n in "01"]))
        if kind == "exemplars":
            own = "{exemplars} exemplars a concept, {concepts} concepts".format(**runs[0]["arguments"])
            gains = [[run["gained"][n]["emptied"] for run in runs] for n in "01"]
            lines.append(sized(own, runs[0]["concept_bytes"], gains))
    return table(lines)


def sized(name, size, gains):
    return [name, f"{size:,.0f}", *map(cell, gains), f"{fmean(m for m, _ in gains[0]) / size * 1000:.3f}"]
