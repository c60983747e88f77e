"""Tables of the benchmarks: steps, training, estimators, products, conversion, kernels."""

import math
import statistics

from cells import estimate, paired, table


def step_cost(record, recipe):
    rows = [["networks", "batch", "slots", "Pyro, ms", "by hand, ms", "ratio (20% to 80%)"]]
    for r in record["rows"]:
        ratio = f"{r['ratio']:.2f} ({r['low']:.2f} to {r['high']:.2f})"
        rows.append([r["networks"], r["batch"], f"{r['slots']:,}", f"{r['pyro_ms']:.1f}", f"{r['hand_ms']:.1f}", ratio])
    return table(rows)


def bases(record, recipe):
    """Milliseconds an image of training, of a likelihood and of a draw, over each base model."""
    heads = ["base", "weights", "training", "its address held", "likelihood", "a draw"]
    what = {"VAE": "K = 1,000", "several layers": "K = 1,000", "diffusion": "8 paths", "autoregressive": "exact"}
    lines = [heads]
    for r in record["rows"]:
        times = [f"{1000 * r[key]['median']:.3g} ms" for key in ("training", "training_held", "likelihood", "draw")]
        times[2] += f" ({what[r['base']]})"
        lines.append([r["base"], f"{r['parameters']:,}", *times])
    return table(lines)


def training_speed(record, recipe):
    heads = ["model", "images a step", "processor ms a step (20% to 80%)", "images a second", "in convolutions"]
    rows = [[*heads, "under bfloat16, ms"]]
    for r in record["rows"]:
        lower = f"{r['bfloat16_ms']:.1f}" if r["bfloat16_ms"] else ""
        step = f"{r['ms']:.1f} ({r['low']:.1f} to {r['high']:.1f})"
        rows.append([r["model"], r["images"], step, f"{r['images_a_second']:,.0f}", f"{r['convolutions']:.0%}", lower])
    return table(rows)


def alphabets(record, recipe):
    rows = [["nats per image", "training alphabets", "evaluation alphabets", "difference"]]
    for name, row in record["rows"].items():
        own, other = row["background"], row["evaluation"]
        gap = paired(own["mean"] - other["mean"], math.hypot(own["se"], other["se"]), 1)
        rows.append([name, estimate(own), estimate(other), gap])
    return table(rows)


def estimators(record, recipe):
    at = record["arguments"]["at"]
    rows = [["slots", "objective", *(f"variance at {step}" for step in at), "signal to noise at " + str(at[-1])]]
    rows[0] += ["steps", "time of a step, VIMCO = 1", "bound"]
    for r in record["rows"]:
        along = list(r["along"].values())
        noise = f"{along[-1]['snr']:.2g}" if along[-1]["snr"] > 0 else "-"  # below what the draws can tell
        cost = [r["steps"], f"{r['times_vimco']:.2f}", paired(r["bound"], r["bound_se"], 1)]
        rows.append([r["slots"], r["estimator"], *(f"{n['variance']:.1e}" for n in along), noise, *cost])
    return table(rows)


def encoder_noise(record, recipe):
    particles = list(dict.fromkeys(r["particles"] for r in record["encoder"]))
    rows = [["particles", *particles]]
    for kind in dict.fromkeys(r["estimator"] for r in record["encoder"]):
        own = [r for r in record["encoder"] if r["estimator"] == kind]
        rows.append([f"`{kind}`, variance", *(f"{r['variance']:.1e}" for r in own)])
        rows.append([f"`{kind}`, signal to noise", *(f"{r['snr']:.3f}" for r in own)])
    return table(rows)


def growth(record, recipe):
    """The largest gradient of any seed at any longer length, times that at the shortest; of noise, of all the rest."""
    cells = {}
    for r in record["rows"]:
        first, *later = (math.inf if g is None or not math.isfinite(g) else g for g in r["gradients"])
        key = r["depth"], r["rule"], r["gates"], r["tokens"] == "noise"
        cells[key] = max(cells.get(key, 0), max(later) / first)
    gates = list(dict.fromkeys(r["gates"] for r in record["rows"]))
    rows = [["depth", "rule", *(f"{what}, gates {g}" for g in gates for what in ("noise", "hard"))]]
    for depth, rule in dict.fromkeys(key[:2] for key in sorted(cells, key=lambda key: key[:2])):
        found = [cells[depth, rule, g, noise] for g in gates for noise in (True, False)]
        rows.append([depth, rule, *("> 1e12" if x > 1e12 else f"{x:.2g}" if x < 1e4 else f"{x:.0e}" for x in found)])
    return table(rows)


def passes(record, recipe):
    rows = [["depth", "`max_lr`", "left of the loss after one pass"]]
    for r in record["passes"]:
        mean = statistics.mean(r["left"])
        se = statistics.stdev(r["left"]) / len(r["left"]) ** 0.5 if len(r["left"]) > 1 else math.nan
        rows.append([r["depth"], f"{r['max_lr']:g}", paired(mean, se)])
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
        rows.append([f"90% intervals hold the truth, {rule}", *(estimate(c, 3) for c in cells.values())])
    kl = (paired(c["kl"], c["se"], 4) for c in after.values())
    rows.append(["KL(amortised \\|\\| exact), nats an episode", *kl])
    rows.append(["the same before training", *(f"{c['kl']:.2f}" for c in before.values())])
    rows.append(["entropy of the exact posterior, nats", *(f"{c['entropy']:.3f}" for c in after.values())])
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


def tokens(record, recipe):
    """Milliseconds of a streamed token, a column a head width and chunk size."""
    told = {}
    for r in record["rows"]:
        own = told.setdefault(r["setting"], {})
        own[r["head_dim"], r["chunk"]] = "{:.2f} ({:.2f} to {:.2f})".format(r["ms"], *r["quartiles_ms"])
    cases = sorted({case for own in told.values() for case in own})
    heads = [["a token, ms", *(f"head width {width}, chunk {chunk}" for width, chunk in cases)]]
    return table(heads + [[name, *(own.get(case, "") for case in cases)] for name, own in told.items()])


def mixers(record, recipe):
    rows = [["mixer", "a step, s", "forward", "backward", "MB added"]]
    for r in record["rows"]:
        rows.append([r["case"], *(f"{r[key]:.1f}" for key in ("seconds", "forward", "backward")), f"{r['mb']:,}"])
    return table(rows)


def compiled(record, recipe):
    rows = [["mixer", "seconds to start", "graphs more at five lengths", "forward and backward, ms: eager, compiled"]]
    rows[0] += ["a token: seconds to start", "ms: eager, compiled", "nats: float32", "bfloat16 autocast"]
    for r in record["rows"]:
        train, step = (f"{r[key]['eager']:,.1f}, {r[key]['compiled']:,.1f}" for key in ("train_ms", "step_ms"))
        nats = [paired(*r["nats"][kind], 3) for kind in ("float32", "bfloat16")] if "nats" in r else ["", ""]
        rows.append([r["mixer"], r["seconds_to_start"], r["graphs_more_at_five_lengths"], train])
        rows[-1] += [r["seconds_to_start_step"], step, *nats]
    return table(rows)
