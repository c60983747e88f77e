"""Runs the recipes of benchmarks/experiments/recipes and rebuilds the tables of docs from what they leave.

A recipe names a script, its arguments, the data that it needs and the minutes that it took. Each runs in
--out/RECIPE, goes on from there if it was cut off, and is left alone if it is done with the same arguments. One with
variants runs each of them for each of its seeds, --jobs at a time. Its
results.json and figures go to docs, its weights, where it ships them, to the package. Tables of docs and README between
`<!-- TABLE RECIPE -->` and `<!-- end -->` are written anew from the records: no number in them is typed by hand.

    python benchmarks/experiments/results.py
    python benchmarks/experiments/results.py --only vma_fewshot_omniglot --minutes 200
    python benchmarks/experiments/results.py --tables

Recipes on real data need PYRO_MEMORY_DATA, a folder with a folder for each data set (omniglot, mnist) in it.
"""

import argparse
import importlib
import json
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

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("benchmarks", "cached", "documents", "images", "needles", "reliability", "returning", "sets", "titans")
TABLES = [importlib.import_module(f"tables_{part}") for part in PARTS]
RECIPES, DOCS = ROOT / "benchmarks" / "experiments" / "recipes", ROOT / "docs"


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="RECIPE", nargs="+", help="these and no others")
    parser.add_argument("--minutes", metavar="X", type=float, default=15, help="leave out what takes longer (15)")
    parser.add_argument("--out", metavar="DIR", type=Path, default=ROOT / "out" / "results", help="where recipes run")
    parser.add_argument("--jobs", metavar="N", type=int, default=1, help="variants to run at once, a thread each")
    parser.add_argument("--fresh", action="store_true", help="run again what is done")
    parser.add_argument("--tables", action="store_true", help="run nothing: rebuild the tables from docs/data")
    return parser.parse_args()


def load_recipes():
    return {path.stem: tomllib.loads(path.read_text()) for path in sorted(RECIPES.glob("*.toml"))}


def command(recipe, **more):
    words = [recipe["script"]]
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
    weights = recipe.get("arguments", {}).get("folder")
    if weights and not (ROOT / weights).is_dir():
        return f"it needs the weights that another recipe leaves in {weights}"
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
        folder = os.environ.get("PYRO_MEMORY_DATA", "")
        place = ("--data-dir", str(Path(folder) / recipe["data"])) if "data-dir" in recipe else ()
        record = run_one(name, command(recipe), out, recipe["about"], place=place)
    (DOCS / "data" / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    for figure, kept in recipe.get("figures", {}).items():
        shutil.copy(out / figure, DOCS / "figures" / kept)
    for file in (out / recipe["weights"]).glob("*") if "weights" in recipe else ():
        shutil.copy(file, ROOT / "pyro_memory" / "shipped" / file.name)


def run_variants(name, recipe, out, jobs):
    """Runs every variant for every seed; the record of each keeps what the recipe names under ``keep``."""

    def one(job):
        (variant, extra), seed = job
        place, told = out / f"{variant}_{seed}", f"{name}, {variant}, seed {seed}"
        left = run_one(told, command(recipe, **extra, seed=seed), place, recipe["about"], jobs)
        return variant, seed, {key: left[key] for key in (*recipe["keep"], "run") if key in left}

    runs = {}
    with ThreadPoolExecutor(jobs) as pool:
        listed = ((v, s) for s in range(recipe["seeds"]) for v in recipe["variants"].items())
        for variant, seed, left in pool.map(one, listed):
            runs.setdefault(variant, {})[str(seed)] = left
    return {"runs": {variant: runs[variant] for variant in recipe["variants"]}}


def same(before, now):
    """Whether two commands are one; the folder of the script may have changed since."""
    return (Path(before[0]).name, before[1:]) == (Path(now[0]).name, now[1:])


def run_one(name, words, out, about, jobs=1, place=()):
    """Runs a command; ``place`` says where its data are, which is no part of what makes it another command."""
    stamp, left = out / "command.json", out / "results.json"
    if not (left.exists() and stamp.exists() and same(json.loads(stamp.read_text())["command"], words)):
        out.mkdir(parents=True, exist_ok=True)
        print(f"\n{name}: {about}\n    python {' '.join(words)} --out {out}", flush=True)
        start = time.perf_counter()
        several = {"env": os.environ | {"OMP_NUM_THREADS": "1"}} if jobs > 1 else {}
        subprocess.run([sys.executable, *words, *place, "--out", str(out)], cwd=ROOT, check=True, **several)
        minutes = (time.perf_counter() - start) / 60
        facts = {
            "command": words, "date": date.today().isoformat(), "minutes_of_last_run": minutes,
            "machine": f"{os.cpu_count()} cores, {platform.machine()}", "python": platform.python_version(),
        }  # fmt: skip
        stamp.write_text(json.dumps(facts, indent=1))
    else:
        print(f"{name}: done before")
    return json.loads(left.read_text()) | {"run": json.loads(stamp.read_text())}


BLOCK = re.compile(r"<!-- (\w+) (\w+) -->\n.*?<!-- end -->", re.DOTALL)


def with_tables(text):
    """The text of a document with its tables written anew."""
    recipes = load_recipes()

    def write(found):
        kind, name = found.groups()
        path = DOCS / "data" / f"{name}.json"
        if not path.exists():
            print(f"{name} has no record; its table stays as it is")
            return found.group()
        record = json.loads(path.read_text())
        (render,) = (getattr(module, kind) for module in TABLES if hasattr(module, kind))
        return f"<!-- {kind} {name} -->\n\n{render(record, recipes.get(name, {}))}\n\n<!-- end -->"

    return BLOCK.sub(write, text)


def main():
    args = arguments()
    recipes = load_recipes()
    unknown = set(args.only or []) - set(recipes)
    if unknown:
        raise SystemExit(f"--only must name recipes of {', '.join(recipes)}; got {', '.join(sorted(unknown))}")
    for name in [] if args.tables else args.only or recipes:
        if reason := why_not(recipes[name], args.minutes):
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
