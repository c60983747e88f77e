"""Tables of needles in haystacks: exact match by model, length and depth."""

from statistics import fmean

from cells import dotted, table


def needles(record, recipe):
    """The share of texts whose answer is right in all its characters; the last row is what a guess reaches."""
    cases = record["runs"][0]["exact"]
    first = next(iter(cases.values()))
    depths = list(next(iter(first.values())))
    trained = int(next(iter(first)))
    rows = [["exact match", "case", "characters", *(f"depth {float(d):g}" for d in depths)]]
    for run in record["runs"]:
        for case, lengths in run["exact"].items():
            for length, cells in lengths.items():
                told = length if int(length) == trained else f"{length} ({int(length) // trained}x)"
                rows.append([run["model"], case, told, *map(dotted, cells.values())])
    rows += [["a guess", case, "any", *[f"{record['chance'][case]:g}"] * len(depths)] for case in cases]
    return table(rows)


def needles_by_length(record, recipe):
    """The same by length, over all depths: the same texts with the sentence moved, so that errors count each once."""
    rows = []
    for run in record["runs"]:
        for case, lengths in run["exact"].items():
            shares = [fmean(cells.values()) for cells in lengths.values()]
            texts = record["arguments"]["evaluate"]
            cells = [f"{dotted(p)} ({dotted((p * (1 - p) / texts) ** 0.5)})" for p in shares]
            rows.append([run["model"], case, *cells])
    return table([["exact match", "case", *(f"{n} characters" for n in lengths)], *rows])
