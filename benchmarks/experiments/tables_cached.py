"""Tables of a memory of memories: accuracy against length, what look-ups are worth, what they cost."""

from cells import dotted, paired, table


def _lengths(record):
    return list(record["runs"][0]["by_length"])


def kinds(run):
    """What was measured by length, and its name."""
    if "keys" not in run:
        return [("by_length", "trained to choose by keys alone")]
    return [("by_length", "asking the memories"), ("keys", "the same model, answers not weighed")]


def cached_length(record, recipe):
    """Accuracy at each length, the seeds beside each other."""
    lengths = _lengths(record)
    trained = int(lengths[0])
    rows = [["accuracy at length", *(f"{n} ({int(n) // trained}x)" for n in lengths)]]
    for kind, name in kinds(record["runs"][0]):
        rows.append([name, *(" / ".join(dotted(run[kind][n][0]) for run in record["runs"]) for n in lengths)])
    return table(rows)


def cached_lookup(record, recipe):
    """Nats of a look-up and of an answer, each run at each length."""
    runs = record["runs"]
    others = list(next(iter(runs[0]["lookup"].values()))["lost"])
    head = [
        "length, seed",
        "slots",
        "right slot likeliest",
        "nats an answer",
        "entropy of p(a)",
        "KL(q, p) of a lookup",
    ]
    rows = [[*head, *(f"lost, {name}" for name in others)]]
    for length in runs[0]["lookup"]:
        for run in runs:
            found = run["lookup"][length]
            cells = [paired(*found[k], 3) for k in ("nats an answer", "entropy of the prior", "KL of a lookup")]
            lost = [paired(*found["lost"][name]) for name in others]
            right = paired(*found["found"], 3)
            rows.append([f"{length}, {run['seed']}", found["slots"], right, *cells, *lost])
    return table(rows)


def cached_cost(record, recipe):
    """Time and room against length, of the first seed."""
    run = record["runs"][0]
    rows = [["length", "us a token of the past", "ms an answer", "MB of cache"]]
    for length, cost in run["cost"].items():
        rows.append([length, *(f"{cost[k]:.{d}f}" for k, d in (("us a token", 0), ("ms an answer", 2), ("MB", 1)))])
    return table(rows)


def cached_needles(record, recipe):
    """Exact match of needles through a cache, and where its addresses look."""
    trained = record["arguments"]["length"]
    found = record["by_length"]
    rows = [["characters", *(f"{n} ({int(n) // trained}x)" for n in found)]]
    for key in ("exact", "on its slots"):
        name = {"exact": "exact match", "on its slots": "p(a) on slots that read the needle"}[key]
        rows.append([name, *(f"{dotted(mean)} ({dotted(se)})" for mean, se in (row[key] for row in found.values()))])
    return table([*rows, ["slots", *(row["slots"] for row in found.values())]])
