"""Files that are whole or not there."""

from __future__ import annotations

import os
import platform
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from secrets import token_hex
from typing import Any

from pyro_memory.gate import checked

HOST = f"{zlib.crc32(platform.node().encode()) & 0xFFFF:04x}"  # processes of others cannot be asked whether they live


@checked
def replace_file(path: Path, write: Callable[[Path], Any]) -> None:
    """Writes a new file beside the old one and swaps them only when it is on the disk.

    The file has the mode that the umask gives. What a killed process left of such a write is removed.
    """
    _remove_stale(path)
    temporary = _temporary(path)
    try:
        temporary.touch()  # with the mode of any new file, where some writers are stricter
        mode = temporary.stat().st_mode & 0o777
        write(temporary)
        if temporary.stat().st_mode & 0o777 != mode:
            temporary.chmod(mode)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@checked
def probe_file(path: Path) -> None:
    """Tries to write beside a path as ``replace_file`` would, making its folder where it is missing.

    What killed processes left of such writes is removed.

    Raises:
        OSError: if that cannot be.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(path)
    temporary = _temporary(path)
    try:
        temporary.write_bytes(b"0")
    finally:
        temporary.unlink(missing_ok=True)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}-{HOST}{token_hex(2)}.tmp")


def _remove_stale(path: Path) -> None:
    """Removes temporary files of ended processes: of this path, and of those named after it (``a``, ``a.json``)."""
    ours = re.compile(rf"\.{re.escape(path.name)}(?:\.[a-z]+)?\.(\d+)-{HOST}[0-9a-f]{{4}}\.tmp")
    names = os.listdir(path.parent) if path.parent.is_dir() else []
    for name, number in ((m[0], int(m[1])) for m in map(ours.fullmatch, names) if m):
        if not _alive(number):
            path.with_name(name).unlink(missing_ok=True)


def _alive(process: int) -> bool:
    if os.name != "posix":  # elsewhere asking would be a signal
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True
