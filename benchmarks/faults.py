"""Kills, starves and damages small runs of this package in the ways that machines do, and sees what is left.

Wanted each time: the last good state is there and loads, a run that is taken up ends bit for bit as one that nothing
disturbed, no temporary file stays once something was written again, and what cannot be done is said in a sentence.
Each trial runs in a child that was forked for it. The campaign may be cut off: it goes on from --out, as long as the
package and the campaign are the same. A whole one rewrites the table of docs/reliability.md.

    python benchmarks/faults.py            # some forty minutes of one core
    python benchmarks/faults.py --quick    # a few trials of each kind, under a minute
"""

import argparse
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import time
import traceback
from datetime import date
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: children are forked from a process of one thread

import torch
from faults_cases import PLAIN, RUN_KINDS
from faults_files import FILE_KINDS, drawings, pictures, small_archive_for_omniglot
from faults_runs import train
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
PARTS = {"runs": RUN_KINDS, "files": FILE_KINDS}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few trials of each kind; docs stay as they are")
    parser.add_argument("--part", choices=PARTS, help="faults of runs, or of files; docs stay as they are")
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="of moments and places (default 0)")
    parser.add_argument("--out", metavar="DIR", type=Path, default=ROOT / "out" / "faults")
    parser.add_argument("--fresh", action="store_true", help="try again what was tried")
    return parser.parse_args()


def cases(quick, seed, part=None):
    """All cases, in order: those of runs, then those of files."""
    for make in (make for name, makes in PARTS.items() if part in (None, name) for make in makes):
        yield from make(quick, Random(f"{seed} {make.__name__}"))


def source():
    """What package and campaign are: trials of other code are no trials of this."""
    total = hashlib.sha256(torch.__version__.encode())
    folders = [ROOT / name for name in ("pyro_memory", "models", "guides", "kernels")]
    for path in sorted([*(p for f in folders for p in f.rglob("*.py")), *(ROOT / "benchmarks").glob("faults*.py")]):
        total.update(path.read_bytes())
    return total.hexdigest()[:16]


def attempt(case):
    """What was lost in each trial of a case."""
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        try:
            return case.run(Path(folder))
        except Exception:
            return [f"the campaign itself: {traceback.format_exc(limit=-2)}"]


def warm_up():
    """Imports here, where every user may, what is imported late; knows the small archive."""
    torch.set_num_threads(1)
    with TemporaryDirectory() as folder:
        train(PLAIN, folder, steps=1)
        small_archive_for_omniglot(Path(folder))
        pictures(drawings(Path(folder) / "data"), Path(folder) / "cache")


def campaign(out, *, quick=False, seed=0, part=None, fresh=False):
    """Runs what was not yet run; gives the rows of the table."""
    place = out / f"{'quick' if quick else 'whole'}-{seed}-{source()}.jsonl"
    if fresh:
        place.unlink(missing_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    done = {}
    if place.exists():
        for line in place.read_text().splitlines():
            entry = json.loads(line)
            done[entry["kind"], entry["case"]] = entry
    warm_up()
    listed = list(cases(quick, seed, part))
    rows = {}
    with place.open("a") as file, tqdm(listed, unit="case") as bar:
        for case in bar:
            bar.set_postfix_str(case.kind, refresh=False)
            entry = done.get((case.kind, case.name))
            if entry is None:
                start = time.monotonic()
                lost = attempt(case)
                entry = {"kind": case.kind, "case": case.name, "tried": len(lost), "lost": [x for x in lost if x]}
                entry["seconds"] = round(time.monotonic() - start, 2)
                file.write(json.dumps(entry) + "\n")
                file.flush()
            row = rows.setdefault(case.kind, {"kind": case.kind, "tried": 0, "survived": 0, "lost": 0, "how": []})
            row["tried"] += entry["tried"]
            row["lost"] += len(entry["lost"])
            row["survived"] = row["tried"] - row["lost"]
            row["how"] += [f"{entry['case']}: {words}" for words in entry["lost"]]
    return list(rows.values())


def table(rows):
    """The rows as lines of text."""
    total = {k: sum(r[k] for r in rows) for k in ("tried", "survived", "lost")}
    lines = [f"{'kind of fault':<40}{'tried':>8}{'survived':>10}{'lost':>7}"]
    for r in [*rows, {"kind": "all"} | total]:
        lines.append(f"{r['kind']:<40}{r['tried']:>8}{r['survived']:>10}{r['lost']:>7}")
    return "\n".join(lines)


def main():
    args = arguments()
    start = time.monotonic()
    rows = campaign(args.out, quick=args.quick, seed=args.seed, part=args.part, fresh=args.fresh)
    for row in rows:
        for words in row["how"][:5]:
            print(f"{row['kind']}: {words}")
        if len(row["how"]) > 5:
            print(f"{row['kind']}: and {len(row['how']) - 5} more, see {args.out}")
    print(f"\n{table(rows)}\n{time.monotonic() - start:.0f} s")
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    record = {"seed": args.seed, "date": date.today().isoformat(), **versions, "rows": rows}
    path = args.out / "faults.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    if not args.quick and args.part is None:
        shutil.copy(path, ROOT / "docs" / "data" / "faults.json")
        subprocess.run([sys.executable, str(ROOT / "benchmarks/experiments/results.py"), "--tables"], check=True)
    return sum(r["lost"] for r in rows)


if __name__ == "__main__":
    sys.exit(min(main(), 1))
