"""The command line, ``python -m pyro_memory``: what is installed here, and what a file holds."""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pooch
import torch
from safetensors import safe_open

from pyro_memory import __version__
from pyro_memory.cards import Card, read_card
from pyro_memory.training import FitResult, read_header
from pyro_memory.zoo import FOLDER, pretrained

ROLES = ("model", "guide")
EXTRAS = {"arviz": "arviz", "faiss-cpu": "scale", "pandas": "tables"}
DESCRIPTION = """\
Says which versions, devices, extras and trained weights are here; `info FILE` says what a file holds:
a checkpoint of `fit`, a pair of `save`, a pair of `save_pretrained` or its card, by its path, or weights
that came with the package, by their name."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; gives its exit status."""
    parser = argparse.ArgumentParser(
        "python -m pyro_memory", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"pyro-memory {__version__}")
    commands = parser.add_subparsers(dest="command", title="commands", metavar="COMMAND")
    info = commands.add_parser("info", help="say what a checkpoint, a saved pair or a card holds")
    info.add_argument("file", metavar="FILE", help="its path, or the name of weights that came with the package")
    given = parser.parse_args(arguments)
    try:
        print(_info(given.file) if given.command == "info" else _here())
    except (ValueError, OSError) as error:
        print(f"python -m pyro_memory: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


def _here() -> str:
    rows = [
        ("python", platform.python_version()),
        ("torch", torch.__version__),
        ("pyro", _version("pyro-ppl") or "unknown"),
        ("triton", _triton()),
        ("devices", ", ".join(_devices())),
        ("extras", _extras()),
        ("cache", str(pooch.os_cache("pyro-memory"))),
        ("PYRO_MEMORY_DATA", os.environ.get("PYRO_MEMORY_DATA", "not set: data sets are downloaded to the cache")),
    ]
    return f"{_laid_out(f'pyro-memory {__version__}', rows)}\n\n{pretrained()}"


def _laid_out(head: str, rows: Sequence[tuple[str, str]]) -> str:
    width = max(len(name) for name, _ in rows)
    return "\n".join([head, *(f"  {name.ljust(width)}  {text}" for name, text in rows)])


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _triton() -> str:
    version = _version("triton")
    if version is None:
        return "not installed (it is for Linux): kernels run in PyTorch"
    return version if torch.cuda.is_available() else f"{version}, without a GPU: kernels run in PyTorch"


def _devices() -> list[str]:
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    threads = torch.get_num_threads()
    return [f"CPU ({threads} thread{'s' if threads > 1 else ''})", *(gpus or ["no GPU"])]


def _extras() -> str:
    found = {name: _version(name) for name in EXTRAS}
    missing = [f"{name} (pip install 'pyro-memory[{EXTRAS[name]}]')" for name, version in found.items() if not version]
    here = [f"{name} {version}" for name, version in found.items() if version]
    return ", ".join(here or ["none"]) + (f"; not here: {', '.join(missing)}" if missing else "")


def _info(given: str) -> str:
    path = Path(given)
    if not path.exists() and given in pretrained():
        return _of_card(pretrained()[given], FOLDER / f"{given}.safetensors")
    if not path.is_file():
        kind = "a folder" if path.is_dir() else "not there"
        raise FileNotFoundError(f"`FILE` must be a file, or a name among {', '.join(pretrained())}; {given} is {kind}")
    if path.suffixes[-2:] == [".safetensors", ".json"] and path.with_suffix("").is_file():
        path = path.with_suffix("")  # of which it is the summary
    beside = path.with_suffix(".json")
    card = read_card(beside) if beside.is_file() and not _is_checkpoint(path) else None
    return _of_checkpoint(path) if card is None else _of_card(card, path.with_suffix(".safetensors"))


def _is_checkpoint(path: Path) -> bool:
    try:
        return path.suffix == ".safetensors" and bool(read_header(path))
    except ValueError:
        return False


def _of_card(card: Card, weights: Path) -> str:
    facts = [(key, _said(value)) for key, value in card.facts.items() if key != "about"]
    return _laid_out(f"{card.name}: {card.facts['about']}", [*_of_build(card.build), *_sizes(weights), *facts])


def _of_checkpoint(path: Path) -> str:
    header = read_header(path)
    kind = "checkpoint" if header["optimizer"] or header["step"] else "pair"
    rows: list[tuple[str, str]] = [("written", f"{datetime.fromtimestamp(path.stat().st_mtime):%Y-%m-%d %H:%M}")]
    if kind == "checkpoint":
        rows.append(("step", str(header["step"])))
    build = header.get("build")
    rows += _of_build(build) if build else [(role, header[role]) for role in ROLES]
    if not build:
        rows.append(("not loaded alone", header.get("not_rebuildable", "an earlier version wrote it")))
    rows += [("optimizer", header["optimizer"])] if header["optimizer"] else []
    rows += [row for row in _sizes(path) if row[0] != "stores"]
    frozen = header.get("frozen", [])
    rows += [("frozen", f"{len(frozen)} weights, the first {frozen[0]}")] if frozen else []
    if stores := header.get("stores"):
        rows.append(("stores", " ".join(stores.values())))
    return _laid_out(f"{path}: a {kind}", [*rows, *_of_record(path, header)])


def _of_record(path: Path, header: Mapping[str, Any]) -> list[tuple[str, str]]:
    record = header["record"]
    log = record.get("log")
    if not isinstance(log, Mapping):
        return [("record", _said(record))] if record else []
    history, pending = log["history"], log["pending"]
    if pending:  # the steps since the last entry
        counted = log.get("counted", [None])
        data = None if None in counted else sum(counted) / len(counted)
        newest = {"step": header["step"], "bound": sum(pending) / len(pending), "data": data}
        history = history | {key: [*history.get(key, []), value] for key, value in newest.items()}
    units = log.get("units", {}), log.get("unit", "datum")
    result = FitResult(header["step"], log["seconds"], log["cpu_seconds"], history, path, *units)
    return [(name, text) for name, text in result._shown()[1] if name != "checkpoint"]


def _of_build(build: Mapping[str, Any]) -> list[tuple[str, str]]:
    shared = [(f"shared {name}", _call(spec)) for name, spec in build.get("shared", {}).items()]
    roles = [(role, _call(build[role]) if isinstance(build[role], list) else _told(build[role])) for role in ROLES]
    return [*roles, *shared, *((path, f"set to {value!r}") for path, value in build.get("set", {}).items())]


def _call(spec: Any) -> str:
    """A constructor and its arguments, as Python writes the call."""
    name, arguments = spec
    given = [_told(item) for item in arguments.get("*", ())]
    given += [f"{key}={_told(value)}" for key, value in arguments.items() if key != "*"]
    return f"{name.removeprefix('own.').removeprefix('torch.')}({', '.join(given)})"


def _told(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_told, value))}]"
    if not isinstance(value, Mapping) or len(value) != 1:
        return repr(value)
    ((kind, what),) = value.items()
    if kind == "build":
        return _call(what)
    if kind == "partial":
        return f"partial({', '.join([what[0], *(f'{k}={_told(v)}' for k, v in what[1].items())])})"
    if kind == "tuple":
        return f"({', '.join(map(_told, what))}{',' * (len(what) == 1)})"
    if kind == "dict":
        return f"{{{', '.join(f'{k!r}: {_told(v)}' for k, v in what.items())}}}"
    if kind == "part":
        return f"model.{what}".rstrip(".")
    return "a tensor" if kind in ("tensor", "parameter") else str(what)


def _sizes(path: Path) -> list[tuple[str, str]]:
    """How many numbers parameters and buffers of each part are, by the names in the file."""
    if not path.is_file():
        return []
    sizes: dict[str, int] = {}
    met: set[bytes] = set()  # what model and guide share lies under each of its names
    with safe_open(path, "pt") as file:
        for key in file.keys():  # noqa: SIM118, it is no dict
            role, *inner = key.split(".")
            tensor = file.get_tensor(key)
            content = hashlib.sha256(tensor.flatten().view(torch.uint8).numpy()).digest()
            if content in met and tensor.any() and role in ROLES:
                continue
            met.add(content)
            part = f"{role}.{inner[0]}" if len(inner) > 1 and role in ROLES else role
            sizes[part] = sizes.get(part, 0) + tensor.numel()
    weights = {part: size for part, size in sizes.items() if part.startswith(ROLES)}
    rows = [("weights", f"{sum(weights.values()):,} numbers; the file has {path.stat().st_size:,} bytes")]
    rows += [(f"  {part}{' itself' if part in ROLES else ''}", f"{size:,}") for part, size in sorted(weights.items())]
    return rows + [(part, f"{sizes[part]:,} numbers") for part in ("memory", "stores") if part in sizes]


def _said(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_said(item)}" for key, item in value.items())
    whole = str(value)
    text = " ".join(whole.split())
    text = repr(whole) if whole != whole.strip() else text  # as a vocabulary, whose blanks count
    return text if len(text) <= 200 else f"{text[:197]}..."


if __name__ == "__main__":
    sys.exit(main())
