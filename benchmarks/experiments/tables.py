"""The tables of docs and README, each from the record that a recipe left."""

import math
from statistics import fmean, stdev


def table(rows):
    head, *body = rows
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def estimate(row):
    return f"{row['mean']:.2f} ({row['se']:.2f})"


def without_memory(record):
    return "diffusion model, no memory" if record["arguments"].get("base") == "diffusion" else "VAE, no memory"


def few_shot(record, recipe):
    shots = sorted({row["shots"] for row in record["vma"]})
    rows = [["", *(f"{n} example{'s' * (n > 1)}" if n == 1 else str(n) for n in shots)]]
    blank = [""] * (len(shots) - 1)
    rows.append([without_memory(record), estimate(record["alone"]), *blank])
    for classes in sorted({row["classes"] for row in record["vma"]}):
        own = {row["shots"]: row for row in record["vma"] if row["classes"] == classes}
        rows.append([f"VMA, {classes} class{'es' * (classes > 1)}", *(estimate(own[n]) for n in shots)])
    for name, values in recipe.get("published", {}).items():
        rows.append([f"*{name}*", *values, *[""] * (len(shots) - len(values))])
    return table(rows)


def few_shot_variants(record, recipe):
    """VMA trained in several ways on the same classes, one in memory."""
    runs = {variant: seeds["0"] for variant, seeds in record["runs"].items()}
    first = next(iter(runs.values()))
    rows = [["trained with", *(f"{row['shots']} example{'s' * (row['shots'] > 1)}" for row in first["vma"])]]
    for run in runs.values():
        memory = f"{run['arguments']['classes']} classes of {run['arguments']['shots']}"
        rows.append([memory, *(estimate(row) for row in run["vma"])])
    rows.append([without_memory(first), estimate(first["alone"]), *[""] * (len(first["vma"]) - 1)])
    return table(rows)


def many_classes(record, recipe):
    """The bound by the number of classes in memory, and its least-squares slope against their logarithm."""
    classes, shots = (sorted({row[key] for row in record["vma"]}) for key in ("classes", "shots"))
    cells = {(row["classes"], row["shots"]): row for row in record["vma"]}
    rows = [["VMA, examples a class", *(f"{c} class{'es' * (c > 1)}" for c in classes), "slope, nats for each ln C"]]
    for n in shots:
        slope, se = record["slopes"][str(n)]
        rows.append([n, *(estimate(cells[c, n]) for c in classes), f"{slope:.2f} ({se:.2f})"])
    rows.append([without_memory(record), estimate(record["alone"]), *[""] * len(classes)])
    return table(rows)


def few_shot_curve(record, recipe):
    """The bound of unseen classes with 20 particles on the way, by minutes of training."""
    minutes = {name: seconds / 60 for name, seconds in record["training_seconds"].items()}
    rows = [["model", *(str(row["step"]) for row in record["curves"]["VMA"])]]
    for name, points in record["curves"].items():
        last = points[-1]["step"]
        rows.append([name, *(f"{p['unseen']:.1f} ({minutes[name] * p['step'] / last:.0f} min)" for p in points)])
    return table(rows)


def recall(record, recipe):
    names = list(record["history"])
    sites = {name: [key for key in record["history"][name][-1] if key.startswith("KL_")] for name in names}
    rows = [["step", *(f"{name}: {key.replace('KL_', 'KL of ')}" for name in names for key in ["bound", *sites[name]])]]
    history = record["history"][names[0]]
    for i in sorted({round(x * (len(history) - 1)) for x in (0.02, 0.1, 0.3, 0.5, 1.0)}):
        values = [record["history"][name][i][key] for name in names for key in ["bound", *sites[name]]]
        rows.append([history[i]["step"], *(f"{v:.3f}" for v in values)])
    return table(rows)


def templates(record, recipe):
    rows = [["templates", "log p(x) >=", "over the VAE", "KL of the address", "log M", "KL of z", "unused"]]
    for r in record["rows"]:
        if not r["slots"]:
            rows.append(["none (VAE)", estimate(r), "", "", "", f"{r['kl_z']:.2f}", ""])
            continue
        gain = f"{r['gain']:.2f} ({r['gain_se']:.2f})"
        address = [f"{r['kl_a']:.2f}", f"{math.log(r['slots']):.2f}", f"{r['kl_z']:.2f}", r["unused"]]
        rows.append([f"{r['slots']:,}", estimate(r), gain, *address])
    return table(rows)


def step_cost(record, recipe):
    rows = [["networks", "batch", "slots", "Pyro, ms", "by hand, ms", "ratio (20% to 80%)"]]
    for r in record["rows"]:
        ratio = f"{r['ratio']:.2f} ({r['low']:.2f} to {r['high']:.2f})"
        rows.append([r["networks"], r["batch"], f"{r['slots']:,}", f"{r['pyro_ms']:.1f}", f"{r['hand_ms']:.1f}", ratio])
    return table(rows)


def training_speed(record, recipe):
    heads = ["model", "images a step", "processor ms a step (20% to 80%)", "images a second", "in convolutions"]
    rows = [[*heads, "under bfloat16, ms"]]
    for r in record["rows"]:
        lower = f"{r['bfloat16_ms']:.1f}" if r["bfloat16_ms"] else ""
        share = f"{r['convolutions']:.0%}"
        step = f"{r['ms']:.1f} ({r['low']:.1f} to {r['high']:.1f})"
        rows.append([r["model"], r["images"], step, f"{r['images_a_second']:,.0f}", share, lower])
    return table(rows)


def alphabets(record, recipe):
    rows = [["nats per image", "training alphabets", "evaluation alphabets", "difference"]]
    for name, row in record["rows"].items():
        own, other = row["background"], row["evaluation"]
        gap = f"{own['mean'] - other['mean']:.1f} ({math.hypot(own['se'], other['se']):.1f})"
        rows.append([name, estimate(own), estimate(other), gap])
    return table(rows)


def estimators(record, recipe):
    rows = [["slots", "objective", "total variance", "signal to noise", "steps", "ms a step", "bound"]]
    for r in record["rows"]:
        noise = f"{r['snr']:.3g}" if r["snr"] > 0 else "-"  # below what the draws can tell
        bound = f"{r['bound']:.1f} ({r['bound_se']:.1f})"
        milliseconds = f"{1000 * r['seconds_a_step']:.0f}"
        rows.append([r["slots"], r["estimator"], f"{r['variance']:.2g}", noise, r["steps"], milliseconds, bound])
    return table(rows)


def products(record, recipe):
    rows = [["slots", "`Bernoulli(logits[a])`", "`AddressedBernoulli(logits, a)`", "times faster"]]
    both = {(r["kind"], r["slots"]): r for r in record["rows"]}

    def cell(r):
        return f"{r['ms']:.1f} ms" + (f", {r['mb']:.0f} MB" if r["mb"] else "")

    for slots in dict.fromkeys(r["slots"] for r in record["rows"]):
        gather, product = both["gather", slots], both["product", slots]
        rows.append([f"{slots:,}", cell(gather), cell(product), f"{gather['ms'] / product['ms']:.1f}"])
    return table(rows)


def conversion(record, recipe):
    before, after = record["amortised"]["before"], record["amortised"]["after"]
    rows = [["separation, deviations", *(f"{float(d):g}" for d in after)]]
    for rule, cells in record["coverage"].items():
        rows.append(
            [f"90% intervals hold the truth, {rule}", *(f"{c['mean']:.3f} ({c['se']:.3f})" for c in cells.values())]
        )
    rows.append(
        ["KL(amortised \\|\\| exact), nats an episode", *(f"{c['kl']:.4f} ({c['se']:.4f})" for c in after.values())]
    )
    rows.append(["the same before training", *(f"{c['kl']:.2f}" for c in before.values())])
    rows.append(["entropy of the exact posterior, nats", *(f"{c['entropy']:.3f}" for c in after.values())])
    return table(rows)


def large_sizes(record, recipe):
    (rows,) = record["by_size"].values()
    chosen = "sharpness" in rows[0]
    heads = ["log p(x given M) >=", "over the VAE", "KL of the address", "effective slots"]
    lines = [["slots", *["sharpness"] * chosen, *heads]]
    for r in rows:
        gain, effective = f"{r['gain']:.2f} ({r['gain_se']:.2f})", f"{r['effective_slots']:,.1f}"
        sharpness = [r["sharpness"]] if chosen else []
        lines.append([f"{r['slots']:,}", *sharpness, estimate(r), gain, f"{r['kl_a']:.2f}", effective])
    return table(lines)


def large_sharpness(record, recipe):
    sizes = record["by_sharpness"]
    lines = [["slots", *(str(s) for s in sizes[0]["sharpness"]), "chosen"]]
    for r in sizes:
        cells = [f"{b:.2f} ({g[1][0]:+.2f})" for b, g in zip(r["bounds"], r["gaps"], strict=True)]
        lines.append([f"{r['slots']:,}", *cells, r["chosen"]])
    return table(lines)


def lookup_cost(record, recipe):
    names = {"dense": "dense Categorical", "fused": "streamed, keys in RAM", "mapped": "streamed, float16 file",
             "nearest": f"nearest {record['settings']['nearest']}, hnsw"}  # fmt: skip
    lines = [["", "slots", "forward", "memory", "with gradient", "memory"]]
    for r in sorted(record["rows"], key=lambda r: list(names).index(r["method"])):
        times = [f"{1000 * r[key]:,.1f} ms" for key in ("forward_s", "backward_s")]
        memory = [f"{r[key]:,.0f} MB" for key in ("forward_mb", "backward_mb")]
        lines.append([names[r["method"]], f"{r['slots']:,}", times[0], memory[0], times[1], memory[1]])
    return table(lines)


def large_nearest(record, recipe):
    gap = lambda pair: f"{pair[0]:+.3f} ({pair[1]:.3f})"  # noqa: E731
    lines = [
        ["slots", "k", "bound, validation", "bound, test", "ELBO, validation", "ELBO, test", "recall of the index"]
    ]
    for r in record["by_nearest"]:
        (elbo, bound), (test_elbo, test_bound) = r["chosen_validation"], r["test"]
        gaps = map(gap, (bound, test_bound, elbo, test_elbo))
        lines.append([f"{r['slots']:,}", r["chosen"], *gaps, f"{r['recall']:.3f}"])
    return table(lines)


def shots_of(runs):
    return list(next(iter(next(iter(runs.values())).values()))["bounds"])


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
    lines = [["", "seeds", "steps", "processor s", *(f"{n} shot{'s' * (n != '1')}" for n in shots)]]
    for variant, seeds in runs.items():
        first = next(iter(seeds.values()))
        cpu = fmean(run["training_cpu_seconds"] for run in seeds.values())
        cells = ["{:.2f} ({:.2f})".format(*mean_se(each(seeds, n)[0])) for n in shots]
        lines.append([named(variant), len(seeds), f"{first['arguments']['steps']:,}", f"{cpu:.0f}", *cells])
    return table(lines)


def set_row(record, recipe):
    """One model's bounds by shots, and what is published."""
    rows = [["", *(f"{n} shot{'s' * (n != '1')}" for n in record["bounds"])]]
    rows.append([f"{len(record['bounds']['5']['each']):,} queries", *map(estimate, record["bounds"].values())])
    rows += [[f"*{name}*", *values] for name, values in recipe.get("published", {}).items()]
    return table(rows)


def set_gains(record, recipe):
    """Gains on the base alone, paired by image; in brackets the error over images, then the error over seeds."""
    runs = record["runs"]
    shots = shots_of(runs)
    lines = [["less the base alone", *(f"{n} shot{'s' * (n != '1')}" for n in shots)]]
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
    runs = {
        v: [r["contribution"] for r in seeds.values() if "contribution" in r] for v, seeds in record["runs"].items()
    }
    runs = {variant: rows for variant, rows in runs.items() if rows}
    names = list(dict.fromkeys(name for rows in runs.values() for name in rows[0] if name != "given"))
    lines = [["nats lost", *map(named, runs)]]
    for name in names:
        cells = [
            f"{fmean(r[name]['lost'] for r in rows):.2f} ({fmean(r[name]['lost_se'] for r in rows):.2f})"
            if name in rows[0]
            else ""
            for rows in runs.values()
        ]
        lines.append([name, *cells])
    return table(lines)


def set_contribution(record, recipe):
    """What one model loses at five shots without what its memory held, paired by image."""
    rows = record["contribution"].items()
    lost = [(name, f"{r['lost']:.2f} ({r['lost_se']:.2f})") for name, r in rows if name != "given"]
    return table([["nats lost", *(name for name, _ in lost)], ["at five shots", *(cell for _, cell in lost)]])


def set_samples(record, recipe):
    """Images generated from five of each of 100 unseen classes, judged in a classifier's features; mean over seeds."""
    heads = [
        "",
        "its own class",
        "real images",
        "by chance",
        "Frechet distance",
        "of real images",
        "classifier's accuracy",
    ]
    lines = [heads]
    for variant, seeds in record["runs"].items():
        rows = [run["samples"] for run in seeds.values()]

        def cell(part, value, se, rows=rows):
            return f"{fmean(r[part][value] for r in rows):.2f} ({fmean(r[part][se] for r in rows):.2f})"

        agreement = [cell("agreement", "agreement", "se"), cell("agreement", "real", "real_se")]
        distances = [cell(part, "distance", "se") for part in ("frechet", "frechet_of_real")]
        accuracy = f"{fmean(r['classifier_accuracy'] for r in rows):.3f}"
        lines.append([named(variant), *agreement, rows[0]["agreement"]["chance"], *distances, accuracy])
    return table(lines)


def set_levels(record, recipe):
    """Nats of each level of recall by shots, both stores, first seed."""
    run = record["runs"]["both"]["0"]
    lines = [["", *(f"{n} shot{'s' * (n != '1')}" for n in run["told"])]]
    for name, kind in (("the support told", "told"), ("the query added", "added")):
        for site in next(iter(run[kind].values())):
            lines.append([f"{name}: {site}", *(f"{row[site]:.2f}" for row in run[kind].values())])
    return table(lines)


def stream(record, recipe):
    rows = [["nats per held-out image", "mean (standard error)", "by seed"]]
    seeds = record["forgetting_by_seed"]
    for name, key in (("forgetting with replay", "replay"), ("forgetting without", "none")):
        mean, se = record["summary"][name]
        rows.append([name, f"{mean:.2f} ({se:.2f})", ", ".join(f"{row[key]:.1f}" for row in seeds)])
    mean, se = record["summary"]["saved by replay"]
    rows.append(
        ["saved by replay", f"{mean:.2f} ({se:.2f})", ", ".join(f"{row['none'] - row['replay']:.1f}" for row in seeds)]
    )
    mean, se = record["summary"]["difference at the end"]
    rows.append(["bound at the end, with replay less without", f"{mean:.2f} ({se:.2f})", ""])
    return table(rows)


def dotted(value, digits=3):
    """.957, as accuracies and errors are printed; 1.000 keeps its one."""
    return f"{value:.{digits}f}".removeprefix("0")


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


def language(record, recipe):
    tests = [key for key in record["runs"][0] if key.startswith("test_")]
    rows = [["bits per character", *(f"windows of {key[5:]}" for key in tests), "seconds of training"]]
    for run in record["runs"]:
        # The record's errors are in nats.
        cells = [f"{run[t]['bits']:.3f} ({dotted(run[t]['se'] / math.log(2))})" for t in tests]
        rows.append([run["model"], *cells, f"{run['seconds']:.0f}"])
    return table(rows)


def forecast(record, recipe):
    horizons = list(dict.fromkeys(run["horizon"] for run in record["runs"]))
    rows = [["MSE / MAE", *map(str, horizons), "mean", "90% intervals cover"]]
    for model in dict.fromkeys(run["model"] for run in record["runs"]):
        runs = [run for run in record["runs"] if run["model"] == model]
        pairs = [(run["mse"], run["mae"]) for run in runs]
        pairs.append(tuple(fmean(column) for column in zip(*pairs, strict=True)))
        cover = " ".join(dotted(run["coverage of 90%"], 2) for run in runs)
        rows.append([model, *(" / ".join(map(dotted, pair)) for pair in pairs), cover])
    for name, cells in recipe.get("published", {}).items():
        rows.append([f"*{name}*", *cells, ""])
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


def peers(record, recipe):
    """Other implementations' time and memory over this one's, forward and backward; blank where not measured."""
    ours, *others = dict.fromkeys(row["setting"] for row in record["rows"])
    cells = {(r["head_dim"], r["chunk"], r["tokens"], r["setting"]): r for r in record["rows"]}
    rows = [["head width", "chunk", "tokens", "ours, ms", "MB", *others]]
    for *case, setting in cells:
        if setting != ours:
            continue
        own, row = cells[(*case, ours)], []
        for other in others:
            r = cells.get((*case, other))
            row.append(f"{r['both_ms'] / own['both_ms']:.1f}, {r['both_mb'] / own['both_mb']:.1f}" if r else "")
        if any(row):
            rows.append([*map(str, case), f"{own['both_ms']:,.0f}", f"{own['both_mb']:,}", *row])
    return table(rows)


def streamed(record, recipe):
    rows = [["tokens streamed", "us a token, in pieces of 1,000", "ms a single step", "MB resident"]]
    for r in record["streamed"]:
        rows.append([f"{r['tokens']:,}", r["piece_us_per_token"], r["step_ms"], r["resident_mb"]])
    return table(rows)


SETS = (set_bounds, set_gains, set_stores, set_levels)
TABLES = {
    "vma_fewshot_glyphs": (few_shot,),
    "gallery_letters": (few_shot,),
    "vma_fewshot_omniglot": (few_shot, few_shot_curve),
    "vma_fewshot_gmn": (few_shot,),
    "vma_fewshot_classes": (few_shot,),
    "vma_fewshot_many": (many_classes,),
    "vma_fewshot_shots": (few_shot_variants,),
    "vma_fewshot_varied": (few_shot, few_shot_curve),
    "vma_fewshot_varied_seen": (few_shot,),
    "vma_fewshot_seen": (few_shot,),
    "vma_diffusion": (few_shot, few_shot_curve),
    "vma_diffusion_table": (few_shot,),
    "vma_diffusion_classes": (few_shot,),
    "vma_diffusion_gmn": (few_shot,),
    "vma_diffusion_tight": (few_shot,),
    "vma_recall_glyphs": (recall,),
    "vma_templates_mnist": (templates,),
    "vma_large_omniglot": (large_sizes, large_nearest),
    "vma_large_pretrained": (large_sharpness, large_sizes, large_nearest),
    "addressing": (lookup_cost,),
    "vsm_omniglot": SETS,
    "vsm_hierarchical": SETS,
    "vsm_diffusion": (*SETS, set_samples),
    "vsm_diffusion_long": (set_row, set_contribution),
    "vsm_diffusion_more": (set_row, set_contribution),
    "vsm_diffusion_tight": (set_row,),
    "vsm_digit_pairs": SETS,
    "vsm_stream_mnist": (stream,),
    "titans_recall": (by_length, by_gap),
    "titans_recall_ablations": (by_length, by_gap),
    "titans_language": (language,),
    "titans_language_long": (language,),
    "titans_forecast": (forecast,),
    "titans_forecast_long": (forecast,),
    "titans_forecast_dlinear": (forecast,),
    "titans_addressing": (sequential,),
    "neural_memory_cpu": (peers, streamed),
    "step_cost": (step_cost,),
    "training_speed": (training_speed,),
    "alphabets": (alphabets,),
    "estimators": (estimators,),
    "addressed": (products,),
    "conversion": (conversion,),
}
