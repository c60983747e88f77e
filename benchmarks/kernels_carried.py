"""Kernels that were compiled elsewhere for this GPU: one file, laid where Triton looks for them.

``kernels_ahead.py`` makes the file. ``use("carried/triton.tar.xz")`` comes before the first launch, with the same
version of Triton.
"""

import io
import json
import lzma
import os
import sys
import tarfile
import tempfile
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

# Triton is imported late: it reads TRITON_INTERPRET then, which must not be set in a process that compiles.

ABOUT = "about.json"


def share_keys():
    """Lets Triton find what another process compiled, of another build of its version as well; gives the module.

    Call it before the first launch. Triton's key hashes its shared library, and builds for two versions of Python
    differ. An entry's own key has the sources of the kernel, options, compute capability and ptxas's version besides.
    """
    import triton
    from triton.runtime import autotuner, build, cache
    from triton.runtime.jit import DependenciesFinder

    def key():
        return f"triton {triton.__version__}"

    cache.triton_key = autotuner.triton_key = key
    build.platform_key = lambda: sys.platform  # asks a program that need not be there
    os.environ.pop("TRITON_PTXAS_PATH", None)  # Triton's own is of the same version everywhere
    if not hasattr(DependenciesFinder, "update_hash"):
        DependenciesFinder.update_hash = DependenciesFinder._update_hash
        DependenciesFinder._update_hash = _update_hash
    return triton


def _update_hash(finder, function):
    """Triton 3.6 asks a function for its constants before it looks for them: a key was one of what came before, too."""
    _ = function.cache_key
    finder.update_hash(function)


@contextmanager
def counting():
    """Counts the kernels that Triton has "found" in its cache and those it has "compiled", within it."""
    import triton

    counts, compilation = Counter(), triton.knobs.compilation
    before = compilation.listener

    def count(cache_hit, **others):
        counts["found" if cache_hit else "compiled"] += 1

    compilation.listener = count
    try:
        yield counts
    finally:
        compilation.listener = before


def pack(folder, file, entries=None):
    """Puts what a cache folder has of this version of Triton, or of these entries, into one file; gives how many."""
    import triton

    folder, file = Path(folder), Path(file)
    groups = folder.glob("*/__grp__*.json")  # an entry without one is not complete
    paths = [group.with_name(group.name.removeprefix("__grp__")) for group in groups]
    told = {path: json.loads(path.read_text()) for path in paths if entries is None or path.parent.name in entries}
    told = {path: about for path, about in told.items() if about["triton_version"] == triton.__version__}
    capabilities = sorted({about["target"]["arch"] for about in told.values()})
    about = json.dumps({"triton": triton.__version__, "capabilities": capabilities, "entries": len(told)}).encode()
    found = sorted(told, key=lambda path: (path.name, path.with_suffix(".cubin").stat().st_size))  # like beside like
    # An entry's texts are for people; what launches go through is small, and no entry says which it needs.
    files = [*found, *(path.with_suffix(".cubin") for path in found), *sorted(folder.glob("*/*.so"))]
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f"{file.name}.part")
    with tarfile.open(part, "w:xz", preset=9) as archive:
        member = tarfile.TarInfo(ABOUT)
        member.size = len(about)
        archive.addfile(member, io.BytesIO(about))
        for path in files:
            archive.add(path, f"{path.parent.name}/{path.name}")
    part.replace(file)
    return len(found)


def unpack(file, folder):
    """Lays the entries of a file in a cache folder; gives how many. Refuses what cannot be used here."""
    folder, about, entries = Path(folder).resolve(), None, []
    try:
        with tarfile.open(file, "r|xz") as archive:
            for member in archive:
                if about is not None:
                    archive.extract(member, folder, filter="data")
                    if member.name.endswith(".json"):
                        entries.append(folder / member.name)
                    continue
                if member.name != ABOUT:
                    raise tarfile.TarError(f"it does not begin with {ABOUT}")
                about = json.load(archive.extractfile(member))
                _check(about, file)
    except (OSError, EOFError, tarfile.TarError, lzma.LZMAError) as error:
        raise ValueError(f"`file` {file} is missing or broken ({error}): {_again(file)}") from error
    for path in entries:
        group = {part.name: str(part) for part in (path, path.with_suffix(".cubin"))}  # Triton wants absolute paths
        path.with_name(f"__grp__{path.name}").write_text(json.dumps({"child_paths": group}))
    return len(entries)


def _check(about, file):
    import torch
    import triton

    if about["triton"] != triton.__version__:
        told = f"was compiled with triton {about['triton']}, this is triton {triton.__version__}"
        raise ValueError(f"`file` {file} {told}: {_again(file)}")
    if torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability()
        if 10 * major + minor not in about["capabilities"]:
            told = f"is for compute capability {about['capabilities']}, this GPU has {10 * major + minor}"
            raise ValueError(f"`file` {file} {told}: {_again(file)} and --capability {10 * major + minor}")


def _again(file):
    import triton

    command = f"python benchmarks/kernels_ahead.py --into {file}"
    return f"make it with `{command}` in a Python with triton {triton.__version__}"


def use(file, folder=None):
    """Makes Triton find what a file has; gives how many entries that are. Call it before the first launch.

    Processes started from here on look in the same folder, and find it there once they call ``share_keys``.
    """
    folder = folder or tempfile.mkdtemp(prefix="triton-")
    entries = unpack(file, folder)
    share_keys().knobs.cache.dir = str(Path(folder).resolve())
    return entries
