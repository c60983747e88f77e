"""What the experiments share: their options, how they train, and the record that a run leaves."""

import argparse
import json
import math
import time
from pathlib import Path

import torch

from pyro_memory import fit, warm_cosine
from pyro_memory.data import NAMES

BEGUN = time.perf_counter()
# Arguments that choose what is trained, where, and how it is measured; the others are of the training itself.
CHOOSING = {"out", "fresh", "data_dir", "device", "models", "seeds", "ablations", "parts", "evaluate", "weights"}


def options(doc, out, data=NAMES, device=False, **more):
    """A parser with what every experiment takes, and ``more``: ``name=(default, what it is)``.

    The type is the default's: a list takes several, a tuple of words names the choices and the first is the default,
    False is a switch, None a word or nothing.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.set_defaults(device="cpu")
    parser.add_argument("--out", metavar="DIR", type=Path, default=Path(out), help=f"default {out}")
    common = {"fresh": (False, "start anew instead of resuming from --out"), "seed": (0, "of data and parameters")}
    if data:
        common |= {"data": (data, "to learn from"), "data_dir": (None, f"of the official files ({data[0]} needs none)")}
    if device:
        common["device"] = ("cpu", "where to run")
    for name, (default, what) in (common | more).items():
        first = default[0] if isinstance(default, list | tuple) else default
        kind = {"type": type(first)} if first is not None else {}
        if default is False:
            kind = {"action": "store_true"}
        elif isinstance(default, tuple):
            kind |= {"choices": default}
        elif isinstance(default, list):
            kind |= {"nargs": "+", "metavar": type(first).__name__}
        default = first if isinstance(default, tuple) else default
        told = f"{what} (default {default})" if default else what
        parser.add_argument(f"--{name.replace('_', '-')}", **kind, default=default, help=told)
    return parser


def train(name, model, guide, batches, objective, args, **more):
    """``fit`` as the experiments call it, from ``--out/NAME.safetensors`` on; leaves the pair ready to be measured."""
    common = {
        "steps": args.steps, "schedule": warm_cosine(args.steps), "clip_norm": 5000.0, "information_every": None,
        "checkpoint": args.out / f"{name}.safetensors", "resume": not args.fresh, "seed": args.seed,
        "device": args.device,
    }  # fmt: skip
    if "learning_rate" in args:
        common["learning_rate"] = args.learning_rate
    _tell_changes(name, args)
    result = fit(model, guide, batches, objective, **(common | more))
    getattr(model, "__self__", model).eval(), guide.eval()  # a method trains the module it is of
    return result


def _tell_changes(name, args):
    """Says which arguments differ from those that a checkpoint was begun with: ``fit`` goes on from it all the same."""
    file = args.out / f"{name}.arguments.json"
    now = {k: str(v) for k, v in vars(args).items() if k not in CHOOSING}
    before = json.loads(file.read_text()) if file.exists() and not args.fresh else {}
    changed = [f"{k} {before[k]}, now {now[k]}" for k in now if before.get(k, now[k]) != now[k]]
    if changed:
        print(f"note: {name} was begun with {'; '.join(changed)}. It goes on from there; --fresh starts anew")
    elif not before:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(now))


def leave(record, args, *tables, unused=()):
    """Writes results.json: the arguments that count, the versions, what was found; prints the tables that docs have."""
    kept = {k: v for k, v in vars(args).items() if k not in {"data_dir", "out", "fresh", *unused}}
    seconds = time.perf_counter() - BEGUN
    about = {"torch": torch.__version__, "threads": torch.get_num_threads(), "seconds": seconds}
    text = json.dumps({"arguments": kept, **about, **record}, indent=1)
    (args.out / "results.json").write_text(text)
    for table in tables:
        print(f"\n{table(json.loads(text), {})}")
    print(f"\nfigures and results.json are in {args.out} ({seconds:.0f} s)")


class Curriculum:
    """Batches of one stage after the other: ``(tasks, until what share of the steps)`` each, the last to the end."""

    def __init__(self, steps, stages):
        self.stages = [(tasks, share * steps) for tasks, share in stages]

    def __getitem__(self, index):
        return next((tasks for tasks, end in self.stages if index < end), self.stages[-1][0])[index]


def mean_se(values):
    """Mean and standard error."""
    return values.mean().item(), (values.std() / math.sqrt(len(values))).item()
