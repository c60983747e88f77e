"""Where files of published data sets come from: a folder of the user's, or a download with a checksum."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import pooch

VARIABLE = "PYRO_MEMORY_DATA"


def cache_dir() -> Path:
    """The folder of this user's for downloads and decoded images. It may be absent, read-only or shared.

    Raises:
        OSError: if this user has no home.
    """
    try:
        folder = Path(pooch.os_cache("pyro-memory"))
    except RuntimeError:  # of newer platformdirs
        folder = Path("~")
    if not folder.is_absolute():  # "~", where neither HOME nor the system knows one
        raise FileNotFoundError("there is no home folder for a cache: HOME is not set")
    return folder


def check_content(path: Path, content: bytes, sha256: str, url: str) -> None:
    """Raises a ValueError unless a file holds what was published under its name."""
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise ValueError(
            f"`root`: {path} is damaged or another file: the sha256 of its content begins with {found[:12]}, that of "
            f"the published one with {sha256[:12]}. Fetch it again from {url}; images of your own go into image_folder"
        )


def find_file(
    name: str,
    *,
    folder: str,
    root: str | Path | None,
    url: str,
    sha256: str,
    others: Sequence[str] = (),
) -> Path:
    """Gives the path of a file: in a folder that was named, of this data set or of all, or downloaded once.

    Args:
        name: of the file.
        folder: what the folder of this data set is called in that of all.
        root: either of the two; by default ``$PYRO_MEMORY_DATA``, or a download.
        url, sha256: of the download.
        others: where else the content may lie below ``root``, as files or folders of other packages' layouts.

    Raises:
        FileNotFoundError: if a folder was named and the file is not there.
        ConnectionError: if it cannot be downloaded.
    """
    if root is None and VARIABLE in os.environ:
        root = os.environ[VARIABLE]
        first = f"{folder}/{name}"
    else:
        first = name
    if root is not None:
        for place in (name, f"{folder}/{name}", *others):
            if (Path(root) / place).exists():
                return Path(root) / place
        raise FileNotFoundError(
            f"`root` must be a folder that holds {name}, or {folder}/{name}; there is no {Path(root) / first}. Put the "
            f"file from {url} there, or give no folder (and no {VARIABLE}) to have it downloaded"
        )
    try:
        return Path(pooch.retrieve(url, known_hash=f"sha256:{sha256}", fname=name, path=cache_dir(), progressbar=True))
    except (OSError, ValueError) as error:  # ValueError where another file was sent
        raise ConnectionError(
            f"{name} could not be downloaded from {url} ({error}). Fetch it on another machine and give its folder as "
            f"`root` or in {VARIABLE}"
        ) from error
