"""Tables of structured memory: bounds and gains by shots, stores, levels, streams."""

import math
from statistics import fmean, stdev

from cells import estimate, paired, table


def shots_of(runs):
    return list(next(iter(next(iter(runs.values())).values()))["bounds"])


def heads(shots):
    return [f"{n} shot{'s' * (n != '1')}" for n in shots]


def each(seeds, shots):
    """The bound of each image, mean over seeds, and that of each seed over images."""
    rows = [run["bounds"][shots]["each"] for run in seeds.values()]
    return [fmean(column) for column in zip(*rows, strict=True)], [fmean(row) for row in rows]


def mean_se(values):
    return fmean(values), stdev(values) / math.sqrt(len(values))


def named(variant):
    return variant.replace("_", " ")


def set_bounds(record, recipe):
    """Bounds of variants by shots; the error is over images."""
    runs = record["runs"]
    shots = shots_of(runs)
    lines = [["", "seeds", "steps", "processor s", *heads(shots)]]
    for variant, seeds in runs.items():
        first = next(iter(seeds.values()))
        cpu = fmean(run["training_cpu_seconds"] for run in seeds.values())
        cells = [paired(*mean_se(each(seeds, n)[0])) for n in shots]
        lines.append([named(variant), len(seeds), f"{first['arguments']['steps']:,}", f"{cpu:.0f}", *cells])
    return table(lines)


def set_row(record, recipe):
    """One model's bounds by shots, and what is published."""
    rows = [["", *heads(record["bounds"])]]
    rows.append([f"{len(record['bounds']['5']['each']):,} queries", *map(estimate, record["bounds"].values())])
    rows += [[f"*{name}*", *values] for name, values in recipe.get("published", {}).items()]
    return table(rows)


def set_gains(record, recipe):
    """Gains on the base alone, paired by image; in brackets the error over images, then the error over seeds."""
    runs = record["runs"]
    shots = shots_of(runs)
    lines = [["less the base alone", *heads(shots)]]
    for variant, seeds in runs.items():
        if variant == "none":
            continue
        cells = []
        for n in shots:
            (own, by_seed), (other, base_by_seed) = each(seeds, n), each(runs["none"], n)
            mean, se = mean_se([a - b for a, b in zip(own, other, strict=True)])
            gaps = [a - b for a, b in zip(by_seed, base_by_seed, strict=True)]
            spread = f", {mean_se(gaps)[1]:.2f}" if len(gaps) > 1 else ""
            cells.append(f"{mean:+.2f} ({se:.2f}{spread})")
        lines.append([named(variant), *cells])
    return table(lines)


def set_stores(record, recipe):
    """What a trained model loses at five shots without what its memory held, paired by image, mean over seeds."""
    runs = {v: [r["contribution"] for r in seeds.values()] for v, seeds in record["runs"].items() if v != "none"}
    names = dict.fromkeys(name for rows in runs.values() for name in rows[0] if name != "given")

    def cell(rows, name):
        return estimate({k: fmean(r[name][v] for r in rows) for k, v in (("mean", "lost"), ("se", "lost_se"))})

    lines = [[name, *(cell(rows, name) if name in rows[0] else "" for rows in runs.values())] for name in names]
    return table([["nats lost", *map(named, runs)], *lines])


def set_contribution(record, recipe):
    """What one model loses at five shots without what its memory held, paired by image."""
    rows = record["contribution"].items()
    lost = [(name, paired(r["lost"], r["lost_se"])) for name, r in rows if name != "given"]
    return table([["nats lost", *(name for name, _ in lost)], ["at five shots", *(cell for _, cell in lost)]])


def set_samples(record, recipe):
    """Images generated from five of each of 100 unseen classes, judged in a classifier's features; mean over seeds."""
    agreements, frechet = ["its own class", "real images", "by chance"], ["Frechet distance", "of real images"]
    lines = [["", *agreements, *frechet, "classifier's accuracy"]]
    for variant, seeds in record["runs"].items():
        rows = [run["samples"] for run in seeds.values()]

        def cell(part, value, se, rows=rows):
            return paired(fmean(r[part][value] for r in rows), fmean(r[part][se] for r in rows))

        agreement = [cell("agreement", "agreement", "se"), cell("agreement", "real", "real_se")]
        distances = [cell(part, "distance", "se") for part in ("frechet", "frechet_of_real")]
        accuracy = f"{fmean(r['classifier_accuracy'] for r in rows):.3f}"
        lines.append([named(variant), *agreement, rows[0]["agreement"]["chance"], *distances, accuracy])
    return table(lines)


def set_levels(record, recipe):
    """Nats of each level of recall by shots, both stores, first seed."""
    run = record["runs"]["both"]["0"]
    lines = [["", *heads(run["told"])]]
    for name, kind in (("the support told", "told"), ("the query added", "added")):
        for site in next(iter(run[kind].values())):
            lines.append([f"{name}: {site}", *(f"{row[site]:.2f}" for row in run[kind].values())])
    return table(lines)


def stream(record, recipe):
    rows = [["nats per held-out image", "mean (standard error)", "by seed"]]
    seeds = record["forgetting_by_seed"]
    for name, key in (("forgetting with replay", "replay"), ("forgetting without", "none")):
        rows.append([name, paired(*record["summary"][name]), ", ".join(f"{row[key]:.1f}" for row in seeds)])
    saved = ", ".join(f"{row['none'] - row['replay']:.1f}" for row in seeds)
    rows.append(["saved by replay", paired(*record["summary"]["saved by replay"]), saved])
    end = paired(*record["summary"]["difference at the end"])
    return table([*rows, ["bound at the end, with replay less without", end, ""]])


def drawings(record, recipe):
    """Drawings of unseen classes by examples given, drawn plainly and as chosen on other classes."""
    lines = [["", "images", "its own class", "Frechet distance", "of real images", "diversity", "copies"]]
    lines += [drawing(row) for row in record["samples"]]
    real = record["samples"][1]
    of_real, apart = paired(real["agreement"]["real"], real["agreement"]["real_se"]), real["diversity"]["real_copies"]
    return table([*lines, ["real images", real["images"], of_real, "", "", "100%", f"{apart:.1%}"]])


def drawings_bounds(record, recipe):
    """One model's bounds by shots."""
    return table([heads(record["bounds"]), [estimate(row) for row in record["bounds"].values()]])


def drawings_tried(record, recipe):
    """The ways of drawing among which one was chosen, on the classes that it was chosen on."""
    lines = [["", "its own class", "Frechet distance", "diversity", "copies"]]
    for row in record["tried"]:
        how, _, own, frechet, _, *others = drawing(row)
        lines.append([how.split(", ", 1)[1], own, frechet, *others])
    return table(lines)


def drawing(row):
    plain = {"guidance": 0.0, "temperature": 1.0, "candidates": 1}
    told = [f"{'1 of' if n == 'candidates' else n} {row[n]:g}" for n in plain if row[n] != plain[n]]
    how = ", ".join(told) or "as the model draws"
    agreement, diversity = row["agreement"], row["diversity"]
    return [
        f"{row['shots']} example{'s' * (row['shots'] > 1)}, {how}", row["images"],
        paired(agreement["agreement"], agreement["se"]), estimate_of(row["frechet"]),
        estimate_of(row["frechet_of_real"]), f"{diversity['ratio']:.0%}", f"{diversity['copies']:.1%}",
    ]  # fmt: skip


def estimate_of(distance):
    return paired(distance["distance"], distance["se"])
