"""Tables of variational memory addressing: few shots, recall, templates, large memories."""

import math

from cells import estimate, paired, table

ALONE = {"diffusion": "diffusion model, no memory", "autoregressive": "autoregressive model, told nothing"}


def without_memory(record):
    return ALONE.get(record["arguments"].get("base"), "VAE, no memory")


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
        rows.append([n, *(estimate(cells[c, n]) for c in classes), paired(*record["slopes"][str(n)])])
    rows.append([without_memory(record), estimate(record["alone"]), *[""] * len(classes)])
    return table(rows)


def few_shot_sets(record, recipe):
    """Sets of drawings explained as a whole, and each drawing given those before it; nats an image."""
    told = record["sets"]
    places = [f"given {n}" if n else "given none" for n in range(told["size"])]
    lines = [["", f"a set of {told['size']}, for each drawing", *places]]
    lines.append([f"VMA, {told['sets']:,} sets", estimate(told), *map(estimate, told["by_place"])])
    for name, value in recipe.get("published_sets", {}).items():
        lines.append([f"*{name}*", value, *[""] * len(places)])
    return table(lines)


def exact_address(record, recipe):
    """What the exact posterior over slots says, and the guide's address."""
    told = record["address"]
    lines = [[f"{told['slots']} slots of 8 classes", "exact posterior", "guide"]]
    kl = estimate(told["exact_kl"], 3), estimate(told["guide_kl"], 3)
    lines.append([f"KL of the address, at most {told['ceiling']:.3f} nats", *kl])
    lines.append(["on the target's own class", estimate(told["exact_own"], 3), estimate(told["guide_own"], 3)])
    lines.append(["effective slots", estimate(told["exact_effective"]), ""])
    lines.append(["KL from guide to posterior, nats", "", estimate(told["apart"], 3)])
    return table(lines)


def addresses_taught(record, recipe):
    """The same weights trained on with their address taught in several ways."""
    runs = {variant: seeds["0"] for variant, seeds in record["runs"].items()}
    first = next(iter(runs.values()))
    cells = [f"{r['classes']} class{'es' * (r['classes'] > 1)} of {r['shots']}" for r in first["vma"]]
    lines = [["address", "minutes", *cells, "another class costs", "KL, exact", "KL, guide", "guide to exact"]]
    for variant, run in runs.items():
        (seconds,), lost, told = run["training_seconds"].values(), run["contribution"]["wrong classes"], run["address"]
        kl = (estimate(told[key]) for key in ("exact_kl", "guide_kl", "apart"))
        bounds = map(estimate, run["vma"])
        lines.append([variant, f"{seconds / 60:.0f}", *bounds, paired(lost["lost"], lost["lost_se"]), *kl])
    return table(lines)


def judged_samples(record, recipe):
    """Images drawn given five of each of 100 unseen classes, judged in a classifier's features."""
    lines = [["", "its own class", "Frechet distance"]]
    for told in sorted(record["samples"], key=lambda told: told.get("guidance", 0)):
        agreement, ours, real = told["agreement"], told["frechet"], told["frechet_of_real"]
        own = paired(100 * agreement["agreement"], 100 * agreement["se"], 1)
        drawn = f"drawn, guidance {told['guidance']:g}" if told.get("guidance") else "drawn"
        lines.append([drawn, f"{own}%", paired(ours["distance"], ours["se"])])
    own = paired(100 * agreement["real"], 100 * agreement["real_se"], 1)
    return table([*lines, ["real images", f"{own}%", paired(real["distance"], real["se"])]])


def attention(record, recipe):
    """A sampled slot against attention to all slots: nats by memory, and what lies on the target's own class."""
    cells = [(r["classes"], r["shots"]) for r in record["table"]["addressed"]]
    heads = [f"{c} class{'es' * (c > 1)}, {n} example{'s' * (n > 1)}" for c, n in cells]
    lines = [["", "minutes of processor", *heads, "on the own class, of 8 classes of 4"]]
    blank = [""] * len(cells)
    lines.append(["no memory", f"{record['cpu_seconds']['no memory'] / 60:.0f}", estimate(record["alone"]), *blank])
    for name, rows in record["table"].items():
        minutes = f"{record['cpu_seconds'][name] / 60:.0f}"
        lines.append([name, minutes, *map(estimate, rows), estimate(record["own_class"][name], 3)])
    ahead = (paired(mean, se) for mean, se in record["ahead"])
    return table([*lines, ["the address ahead, paired by image", "", *ahead, ""]])


def attention_cost(record, recipe):
    """Seconds an image against the number of slots."""
    rows = record["cost"]
    lines = [["slots", *(f"{r['slots']:,}" for r in rows["addressed"])]]
    named = {
        "addressed, the slot that is looked up": ("addressed", "one slot"),
        "addressed, every slot, exact": ("addressed", "all slots"), "attended": ("attended", "all slots"),
    }  # fmt: skip
    for label, (name, what) in named.items():
        lines.append([label, *(f"{r[what]:.3f} s" if what in r else "" for r in rows[name])])
    return table(lines)


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
        gain = paired(r["gain"], r["gain_se"])
        address = [f"{r['kl_a']:.2f}", f"{math.log(r['slots']):.2f}", f"{r['kl_z']:.2f}", r["unused"]]
        rows.append([f"{r['slots']:,}", estimate(r), gain, *address])
    return table(rows)


def large_sizes(record, recipe):
    (rows,) = record["by_size"].values()
    chosen = "sharpness" in rows[0]
    heads = ["log p(x given M) >=", "over the VAE", "KL of the address", "effective slots"]
    lines = [["slots", *["sharpness"] * chosen, *heads]]
    for r in rows:
        gain, effective = paired(r["gain"], r["gain_se"]), f"{r['effective_slots']:,.1f}"
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
    parts = ["bound, validation", "bound, test", "ELBO, validation", "ELBO, test"]
    lines = [["slots", "k", *parts, "recall of the index"]]
    for r in record["by_nearest"]:
        (elbo, bound), (test_elbo, test_bound) = r["chosen_validation"], r["test"]
        gaps = map(gap, (bound, test_bound, elbo, test_elbo))
        lines.append([f"{r['slots']:,}", r["chosen"], *gaps, f"{r['recall']:.3f}"])
    return table(lines)
