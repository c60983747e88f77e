"""Tables of bits per character by the position in a document."""

from itertools import pairwise

from cells import dotted, table


def by_position(record, recipe):
    """Bits per character of each stretch, and how much more the first model gains in the last one than in the first."""
    runs = record["runs"]
    begins = [int(b) for b in runs[0]["by_position"]]
    ends = [*begins[1:], record["arguments"]["read"]]
    heads = [f"{a} to {b}" for a, b in zip(begins, ends, strict=True)]
    rows = [["bits per character at", *heads, f"gain of {runs[0]['model']} grows by", "seconds"]]
    for run in runs:
        cells = [f"{mean:.3f} ({dotted(se)})" for mean, se in run["by_position"].values()]
        grown = "" if run is runs[0] else f"{run['grown'][0]:.3f} ({dotted(run['grown'][1])})"
        rows.append([run["model"], *cells, grown, f"{run['seconds']:.0f}" if "seconds" in run else "the same"])
    return table(rows)


def by_occurrence(record, recipe):
    """Bits per character of names that training never held, by how often the name has been in its document."""
    runs = record["runs"]
    times = runs[0]["by_occurrence"]
    heads = [a if int(b) - int(a) == 1 else f"{a} to {int(b) - 1}" for a, b in pairwise(times)]
    rows = [["bits per character at occurrence", *heads, f"{[*times][-1]} or more"]]
    rows += [
        [run["model"], *(f"{m:.2f} ({dotted(se)})" for m, se, _ in run["by_occurrence"].values())]
        for run in runs
        if run["by_occurrence"]
    ]
    rows.append(["names", *(f"{count:,}" for *_, count in times.values())])
    return table(rows)
