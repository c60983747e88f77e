"""Runs the recipes of examples/recipes and rebuilds the tables of docs from what they leave.

A recipe names a script, its arguments, the data that it needs and the minutes that it took. Each runs in
--out/RECIPE, goes on from there if it was cut off, and is left alone if it is done with the same arguments. One with
variants runs each of them for each of its seeds, --jobs at a time. Its
results.json and figures go to docs, its weights, where it ships them, to the package. Tables of docs and README between
`<!-- TABLE RECIPE -->` and `<!-- end -->` are written anew from the records: no number in them is typed by hand.

    python examples/results.py
    python examples/results.py --only vma_fewshot_omniglot --minutes 200
    python examples/results.py --tables

Recipes on real data need PYRO_MEMORY_DATA, a folder with a folder for each data set (omniglot, mnist) in it.
"""

import argparse
import json
import math
import os
import platform
import re
import shutil
import subprocess
import sys
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path
from statistics import fmean, stdev

ROOT = Path(__file__).resolve().parent.parent
RECIPES, DOCS = ROOT / "examples" / "recipes", ROOT / "docs"


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="RECIPE", nargs="+", help="these and no others")
    parser.add_argument(
        "--minutes", metavar="X", type=float, default=15, help="leave out what takes longer (default 15)"
    )
    parser.add_argument("--out", metavar="DIR", type=Path, default=ROOT / "out" / "results", help="where recipes run")
    parser.add_argument("--jobs", metavar="N", type=int, default=1, help="variants to run at once, a thread each")
    parser.add_argument("--fresh", action="store_true", help="run again what is done")
    parser.add_argument("--tables", action="store_true", help="run nothing: rebuild the tables from docs/data")
    return parser.parse_args()


def load_recipes():
    return {path.stem: tomllib.loads(path.read_text()) for path in sorted(RECIPES.glob("*.toml"))}


def command(recipe, **more):
    words = ["examples/" + recipe["script"]]
    for name, value in {**recipe.get("arguments", {}), **more}.items():
        if value is True:
            words.append(f"--{name}")
        else:
            words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return words


def why_not(recipe, minutes):
    """Why a recipe is left out, or None."""
    if recipe["minutes"] > minutes:
        return f"it takes about {recipe['minutes']} minutes; --minutes {recipe['minutes']} runs it"
    if "data" in recipe:
        folder = os.environ.get("PYRO_MEMORY_DATA")
        if folder is None or not (Path(folder) / recipe["data"]).is_dir():
            return f"it needs {recipe['data']} in the folder that PYRO_MEMORY_DATA names"
    return None


def run(name, recipe, out, fresh=False, jobs=1):
    """Runs a recipe, or finds it done, and copies what it left to docs."""
    out = out.resolve() / name
    if fresh:
        shutil.rmtree(out, ignore_errors=True)
    if "variants" in recipe:
        record = run_variants(name, recipe, out, jobs)
    else:
        record = run_one(name, command(recipe), out, recipe["about"])
    (DOCS / "data" / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    for figure, kept in recipe.get("figures", {}).items():
        shutil.copy(out / figure, DOCS / "figures" / kept)
    for file in (out / "weights").glob("*") if recipe.get("weights") else ():
        shutil.copy(file, ROOT / "pyro_memory" / "shipped" / file.name)


def run_variants(name, recipe, out, jobs):
    """Runs every variant for every seed; the record of each keeps what the recipe names under ``keep``."""

    def one(job):
        (variant, extra), seed = job
        place = out / f"{variant}_{seed}"
        left = run_one(
            f"{name}, {variant}, seed {seed}", command(recipe, **extra, seed=seed), place, recipe["about"], jobs
        )
        return variant, seed, {key: left[key] for key in (*recipe["keep"], "run") if key in left}

    runs = {}
    with ThreadPoolExecutor(jobs) as pool:
        listed = ((v, s) for s in range(recipe["seeds"]) for v in recipe["variants"].items())
        for variant, seed, left in pool.map(one, listed):
            runs.setdefault(variant, {})[str(seed)] = left
    return {"runs": {variant: runs[variant] for variant in recipe["variants"]}}


def run_one(name, words, out, about, jobs=1):
    stamp, left = out / "command.json", out / "results.json"
    if not (left.exists() and stamp.exists() and json.loads(stamp.read_text())["command"] == words):
        out.mkdir(parents=True, exist_ok=True)
        print(f"\n{name}: {about}\n    python {' '.join(words)} --out {out}", flush=True)
        start = time.perf_counter()
        several = {"env": os.environ | {"OMP_NUM_THREADS": "1"}} if jobs > 1 else {}
        subprocess.run([sys.executable, *words, "--out", str(out)], cwd=ROOT, check=True, **several)
        minutes = (time.perf_counter() - start) / 60
        facts = {
            "command": words, "date": date.today().isoformat(), "minutes_of_last_run": minutes,
            "machine": f"{os.cpu_count()} cores, {platform.machine()}", "python": platform.python_version(),
        }  # fmt: skip
        stamp.write_text(json.dumps(facts, indent=1))
    else:
        print(f"{name}: done before")
    return json.loads(left.read_text()) | {"run": json.loads(stamp.read_text())}


# --- tables


def table(rows):
    head, *body = rows
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def estimate(row):
    return f"{row['mean']:.2f} ({row['se']:.2f})"


def few_shot(record, recipe):
    shots = sorted({row["shots"] for row in record["vma"]})
    rows = [["", *(f"{n} example{'s' * (n > 1)}" if n == 1 else str(n) for n in shots)]]
    blank = [""] * (len(shots) - 1)
    rows.append(["VAE, no memory", estimate(record["vae"]), *blank])
    for classes in sorted({row["classes"] for row in record["vma"]}):
        own = {row["shots"]: row for row in record["vma"] if row["classes"] == classes}
        rows.append([f"VMA, {classes} class{'es' * (classes > 1)}", *(estimate(own[n]) for n in shots)])
    for name, values in recipe.get("published", {}).items():
        rows.append([f"*{name}*", *values, *[""] * (len(shots) - len(values))])
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


def large_sizes(record, recipe):
    (rows,) = record["by_size"].values()
    lines = [["slots", "sharpness", "log p(x given M) >=", "over the VAE", "KL of the address", "effective slots"]]
    for r in rows:
        gain, effective = f"{r['gain']:.2f} ({r['gain_se']:.2f})", f"{r['effective_slots']:,.1f}"
        lines.append([f"{r['slots']:,}", r["sharpness"], estimate(r), gain, f"{r['kl_a']:.2f}", effective])
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
    return variant.replace("_", ", ")


def set_bounds(record, recipe):
    """Bounds of variants by shots; the error is over images."""
    runs = record["runs"]
    shots = shots_of(runs)
    lines = [["", "seeds", "steps", "processor s", *(f"{n} shot{'s' * (n != '1')}" for n in shots)]]
    for variant, seeds in runs.items():
        first = next(iter(seeds.values()))
        cpu = fmean(run["training_cpu_seconds_this_call"] for run in seeds.values())
        cells = ["{:.2f} ({:.2f})".format(*mean_se(each(seeds, n)[0])) for n in shots]
        lines.append([named(variant), len(seeds), f"{first['arguments']['steps']:,}", f"{cpu:.0f}", *cells])
    return table(lines)


def set_gains(record, recipe):
    """Gains on the base alone, paired by image; in brackets the error over images, then the error over seeds."""
    runs = record["runs"]
    shots = shots_of(runs)
    lines = [["less the base alone", *(f"{n} shot{'s' * (n != '1')}" for n in shots)]]
    for variant, seeds in runs.items():
        prefix = variant[: variant.rfind("_") + 1]
        base = runs[prefix + "none" if prefix + "none" in runs else "none"]
        if base is seeds:
            continue
        cells = []
        for n in shots:
            (own, by_seed), (other, base_by_seed) = each(seeds, n), each(base, n)
            mean, se = mean_se([a - b for a, b in zip(own, other, strict=True)])
            _, spread = mean_se([a - b for a, b in zip(by_seed, base_by_seed, strict=False)])
            cells.append(f"{mean:+.2f} ({se:.2f}, {spread:.2f})")
        lines.append([named(variant), *cells])
    return table(lines)


def set_stores(record, recipe):
    """What a trained model loses at five shots without what its memory held, paired by image, mean over seeds."""
    runs = {v: [r["contribution"] for r in seeds.values()] for v, seeds in record["runs"].items()}
    runs = {variant: rows for variant, rows in runs.items() if rows[0] is not None}
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


def set_levels(record, recipe):
    """Nats of each level of recall by shots, first seed of the last variant that has them."""
    run = [seeds["0"] for seeds in record["runs"].values() if seeds["0"].get("told")][-1]
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


SETS = (set_bounds, set_gains, set_stores, set_levels)
TABLES = {
    "vma_fewshot_glyphs": (few_shot,),
    "gallery_letters": (few_shot,),
    "vma_fewshot_omniglot": (few_shot, few_shot_curve),
    "vma_recall_glyphs": (recall,),
    "vma_templates_mnist": (templates,),
    "vma_large_pretrained": (large_sharpness, large_sizes, large_nearest),
    "addressing": (lookup_cost,),
    "vsm_omniglot": SETS,
    "vsm_bases": SETS,
    "vsm_digit_pairs": SETS,
    "vsm_stream_mnist": (stream,),
    "vsm_stream_omniglot": (stream,),
    "step_cost": (step_cost,),
}
BLOCK = re.compile(r"<!-- (\w+) (\w+) -->\n.*?<!-- end -->", re.DOTALL)


def with_tables(text):
    """The text of a document with its tables written anew."""
    recipes = load_recipes()

    def write(found):
        kind, name = found.groups()
        record = json.loads((DOCS / "data" / f"{name}.json").read_text())
        (render,) = (f for f in TABLES[name] if f.__name__ == kind)
        return f"<!-- {kind} {name} -->\n\n{render(record, recipes.get(name, {}))}\n\n<!-- end -->"

    return BLOCK.sub(write, text)


def main():
    args = arguments()
    recipes = load_recipes()
    unknown = set(args.only or []) - set(recipes)
    if unknown:
        raise SystemExit(f"--only must name recipes of {', '.join(recipes)}; got {', '.join(sorted(unknown))}")
    for name in [] if args.tables else args.only or recipes:
        reason = why_not(recipes[name], args.minutes)
        if reason:
            print(f"{name}: left out, {reason}")
        else:
            run(name, recipes[name], args.out, args.fresh, args.jobs)
    for path in [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]:
        text = path.read_text()
        new = with_tables(text)
        if new != text:
            path.write_text(new)
            print(f"{path.relative_to(ROOT)}: tables rebuilt")


if __name__ == "__main__":
    main()
