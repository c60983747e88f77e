"""What was decoded once, kept in the user's cache: a convenience, whose failures cost time and nothing else."""

from __future__ import annotations

import hashlib
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import numpy as np

from pyro_memory.data.sources import cache_dir
from pyro_memory.stores import replace_file

# What zipfile, zlib and Pillow raise: RuntimeError and NotImplementedError where a flipped bit says "encrypted".
DAMAGE = (zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError, SyntaxError, struct.error)
Arrays = dict[str, np.ndarray]


def kept(name: str, key: str, make: Callable[[], Arrays]) -> Arrays:
    """Gives the arrays that the cache holds under a name, if they were made of what the key says; or makes them."""
    try:
        with open(cache_dir() / f"{name}.npz", "rb") as file, np.load(file) as stored:
            if str(stored["key"]) == key:
                return {part: stored[part] for part in stored.files if part != "key"}
    except (*DAMAGE, ValueError, KeyError):
        pass
    arrays = make()
    with suppress(OSError):
        _write(cache_dir() / f"{name}.npz", arrays | {"key": np.array(key)})
    return arrays


def state_of(files: Iterable[tuple[str, Path]]) -> str:
    """Gives what tells files from changed ones without reading them: their names, sizes and times of change."""
    digest = hashlib.sha256()
    for name, path in files:
        found = os.stat(path)
        digest.update(f"{name}\0{found.st_size}\0{found.st_mtime_ns}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _write(path: Path, arrays: Arrays) -> None:
    """Writes the cache whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:
            np.savez(file, **arrays)

    replace_file(path, write)
