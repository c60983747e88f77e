"""The files of a memory in a folder: their layout, and how they are written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_memory.stores.files import replace_file

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

MANIFEST = "memory.json"
DTYPES = {"uint8": torch.uint8, "float16": torch.float16, "float32": torch.float32, "float64": torch.float64}


def entry_of(file: str, dtype: torch.dtype, shape: Iterable[int]) -> dict[str, Any]:
    return {"file": file, "dtype": str(dtype).removeprefix("torch."), "shape": list(shape)}


def bytes_of(entry: dict[str, Any], slots: int) -> int:
    return slots * math.prod(entry["shape"]) * DTYPES[entry["dtype"]].itemsize


def map_items(folder: Path, entry: dict[str, Any], slots: int) -> Tensor:
    shape, dtype, path = (slots, *entry["shape"]), DTYPES[entry["dtype"]], folder / entry["file"]
    size = path.stat().st_size if path.exists() else 0
    if size < bytes_of(entry, slots):
        raise ValueError(
            f"`{path}` is truncated: {slots} slots of {entry['shape']} {entry['dtype']} take {bytes_of(entry, slots)} "
            f"bytes, it has {size}. Restore a copy of it, or write the memory again"
        )
    if not slots:
        return torch.zeros(shape, dtype=dtype, device="cpu")
    return torch.from_file(str(path), shared=False, size=math.prod(shape), dtype=dtype).reshape(shape)


def fitting(items: Tensor, entry: dict[str, Any], name: str) -> Tensor:
    """Brings items to the file's dtype, if that loses no more than rounding."""
    dtype = DTYPES[entry["dtype"]]
    stored = items.detach().cpu().to(dtype)
    fits = stored.isfinite().all() if dtype.is_floating_point else (stored == items.detach().cpu()).all()
    if not fits:
        wanted = "finite in that dtype" if dtype.is_floating_point else "integers from 0 to 255"
        raise ValueError(
            f"`{name}` must be {wanted}, since the file holds {entry['dtype']}; got others. Create the memory with a "
            "wider `dtype`"
        )
    return stored


def write_items(folder: Path, entry: dict[str, Any], slots: int, items: Tensor) -> None:
    """Puts items after the first ``slots``, over what an earlier crash may have left there."""
    path = folder / entry["file"]
    path.touch()
    with path.open("r+b") as file:
        file.truncate(bytes_of(entry, slots))
        file.seek(0, os.SEEK_END)
        try:
            file.write(items.contiguous().numpy().tobytes())
            file.flush()
            os.fsync(file.fileno())
        except OSError:  # the disk is full: give back what was taken
            file.truncate(bytes_of(entry, slots))
            raise


def publish(folder: Path, manifest: dict[str, Any]) -> None:
    told = json.dumps(manifest | {"sum": _sum(manifest)}, indent=1) + "\n"
    replace_file(folder / MANIFEST, lambda temporary: temporary.write_text(told))


def read_manifest(folder: Path) -> dict[str, Any]:
    """What ``publish`` wrote.

    Raises:
        ValueError: if there is none, or it is damaged.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
        check = manifest.pop("sum", None)  # memories of earlier versions had none
        if check not in (None, _sum(manifest)) or set(manifest) != {"format", "slots", "values", "keys"}:
            raise ValueError("it is damaged: it is not as it was written")
        if manifest["format"] != 1 or not isinstance(manifest["slots"], int):
            raise ValueError(f"format {manifest['format']}")
        for entry in (manifest["values"], manifest["keys"]):
            if entry is not None:
                bytes_of(entry, manifest["slots"]), entry["file"]
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(
            f"`folder` must hold a memory that this version wrote; {path} cannot be read ({error}). Make one with "
            "`MappedMemory.create`"
        ) from error
    return manifest


def _sum(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def locked(file: Any) -> bool:
    """Locks a file until it is closed; False if another process has it. True where the system has no locks."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a network's files
        return True
    return True


@contextmanager
def said(folder: Path, slots: int) -> Iterator[None]:
    """Says what holds where the system refuses to write."""
    try:
        yield
    except OSError as error:
        raise OSError(
            error.errno, f"{folder} cannot be written ({error}); it holds the {slots} slots that it had"
        ) from error
