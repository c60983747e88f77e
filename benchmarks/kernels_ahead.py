"""Compiles the kernels for a GPU that need not be here, and packs them into one file to carry there.

    python benchmarks/kernels_ahead.py --into carried/triton.tar.xz --capability 90
    python benchmarks/kernels_ahead.py --into carried/few.tar.xz --kinds kernels_check:CONFIGURED --first

``make gpu`` takes it there, with the same version of Triton (see kernels_carried.py): run this in a Python that has
that version, beside torch and numpy of any. If Python is the same there too, what Triton 3.6 has a C compiler build for
each launch comes along. What is compiled stays in the folder --cache: after an interruption the same command goes on.
"""

import argparse
import hashlib
import importlib
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import wait
from pathlib import Path
from unittest.mock import Mock

from kernels_carried import pack, share_keys

# Triton is imported late: it reads TRITON_INTERPRET then, which must not be set in a process that compiles.

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1  # Triton exists for Linux


@dataclass(frozen=True, eq=False)
class Job:
    """What Triton compiles for a launch, and the folder of its cache that the result lies in."""

    name: str
    entry: str
    rank: int  # of its configuration
    kernel: tuple[str, str]  # module and name
    source: tuple[dict, dict, dict]  # signature, constants, attributes
    options: dict

    def is_in(self, folder):
        return (Path(folder) / self.entry / f"__grp__{self.kernel[1]}.json").exists()  # written last


@dataclass(frozen=True)
class First:
    """A kind of call that launches the first configuration of each kernel only: where nothing is tuned."""

    kind: object


def needed(kind):
    """The jobs of a call; nothing is compiled or launched.

    Triton compiles anew for a pointer that is no multiple of 16 bytes, and for an integer that is 1 or no multiple of
    16. Tensors start at multiples of 16 bytes on a CPU as on a GPU. Of integers only the stride of the states that are
    kept counts, which time gives: time is that of the real call, batch and heads need not be.
    """
    import triton
    from kernels_cases import configured

    found, most, which = {}, 1, 0
    first = isinstance(kind, First)
    kind = kind.kind if first else kind

    def record(fn, compile, **others):
        job = _job(fn, compile, which)
        found.setdefault(job.entry, job)
        return True  # instead of compiling

    def choose(kernel, configurations):
        nonlocal most
        most = 1 if first else max(most, len(configurations))
        return (configurations[which % len(configurations)],)

    call = kind if callable(kind) else passes(kind)
    triton.knobs.runtime.jit_cache_hook = record
    with configured(choose):
        while which < most:
            call()
            which += 1
    return list(found.values())


def _job(fn, given, rank):
    from triton.compiler import ASTSource, compiler
    from triton.runtime import cache, driver

    options = json.loads(given["specialization_data"])["options"]
    options = {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}
    source = given["signature"], given["constants"], given["configs"][0]
    backend = compiler.make_backend(driver.active.get_current_target())
    key = cache.get_cache_key(
        ASTSource(fn.jit_function, *source), backend, backend.parse_options(options),
        compiler.get_cache_invalidating_env_vars(),
    )  # fmt: skip
    entry = cache._base32(hashlib.sha256(key.encode()).hexdigest())
    names = fn.jit_function.arg_names
    constants = {names[place]: value for (place, *_), value in given["constants"].items() if value is not None}
    shown = [f"{name} {value}" for name, value in constants.items() if name not in ("BI", "BO", "BC")]
    shown += [f"{options['num_warps']} warps", f"{options['num_stages']} stages"]
    return Job(f"{fn.name} {', '.join(shown)}", entry, rank, (fn.module, fn.name), source, options)


def alone(kind):
    """A check with one row, in the form of all; a case becomes a check; a function stays as it is."""
    from kernels_cases import plan_of
    from kernels_check import Case, Check

    if callable(kind):
        return kind
    if isinstance(kind, First):
        return First(alone(kind.kind))
    check = Check(kind) if isinstance(kind, Case) else kind
    case = replace(check.case, batch=1, heads=1)
    lengths = None if check.lengths is None else (case.time,)
    return replace(check, case=case, lengths=lengths, fused=check.fused or plan_of(check.case).form == "fused")


def passes(check):
    """A function that calls what checks and timings do: forward and backward, and forward alone."""
    import torch
    from kernels_cases import inputs, run, with_gradients
    from kernels_check import allowing

    arguments = inputs(check.case, "cpu")
    options = dict(check.options)
    if check.lengths is not None:
        options["lengths"] = torch.tensor(check.lengths)

    def call():
        with allowing(check):
            with_gradients(check.case, arguments, "triton", **options)
            with torch.no_grad():
                run(check.case, arguments, "triton", **options)

    return call


# --- processes


def begin(capability, scratch):
    """Makes this process one that compiles where it would launch; ``scratch`` is a folder that will be deleted."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # a GPU is left to who started this
    import kernels_check  # noqa: F401, sets TRITON_INTERPRET

    os.environ.pop("TRITON_INTERPRET", None)
    triton = share_keys()
    import kernels_compile
    import torch

    from pyro_memory.kernels.memory import limits, triton_launch
    from pyro_memory.kernels.scan import public as scan

    if triton_launch.interpreted():
        raise RuntimeError("Triton was imported under TRITON_INTERPRET=1, before this process could unset it")
    kernels_compile.install(capability)
    limits.reason_against = lambda *args: None
    scan.interpreting = lambda: True  # else it refuses a CPU
    triton.knobs.compilation.store_binary_only = True
    torch.set_num_threads(1)
    _prepare_launchers(triton, scratch)


def _prepare_launchers(triton, scratch):
    """Lets Triton 3.6 build what it launches kernels through, a second each, though libcuda is not here."""
    from triton.backends.nvidia import driver

    if not hasattr(driver, "make_launcher") or shutil.which("gcc") is None:
        return
    folder = Path(driver.__file__).parent
    names = set(re.findall(r"\bcu[A-Z]\w+", (folder / "driver.c").read_text() + (folder / "driver.py").read_text()))
    stand_in = Path(scratch) / str(os.getpid()) / "libcuda.so.1"
    stand_in.parent.mkdir()
    command = ["gcc", "-shared", "-x", "c", "-", "-Wl,-soname,libcuda.so.1", "-o", stand_in]
    subprocess.run(command, input="".join(f"void {name}(void) {{}}\n" for name in names), text=True, check=True)
    triton.knobs.nvidia.libcuda_path = str(stand_in.parent)
    triton.runtime.build._load_module_from_path = Mock()


def compile_one(job):
    """Leaves a job's result in Triton's cache; says so where no launch on such a GPU can use it."""
    from triton.compiler import ASTSource, compile
    from triton.runtime import build, cache, driver

    module, name = job.kernel
    source = ASTSource(getattr(importlib.import_module(module), name), *job.source)
    compiled = compile(source, target=driver.active.get_current_target(), options=job.options)
    if cache._base32(compiled.hash) != job.entry:
        raise RuntimeError("its source is not what it was when this began: run it again")
    if isinstance(build._load_module_from_path, Mock):
        from triton.backends.nvidia.driver import CudaLauncher, CudaUtils

        CudaUtils()
        CudaLauncher(source, compiled.metadata)
    taken, most = compiled.metadata.shared, driver.active.get_device_properties(0)["max_shared_mem"]
    return f"takes {taken} bytes of shared memory of {most}, so that nothing can launch it" if taken > most else None


def _serve(pipe, capability, scratch):
    os.setpgrp()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # where ptxas fails Triton prints all that it gave it
    begin(capability, scratch)
    with suppress(EOFError):
        while True:
            function, item = pipe.recv()
            try:
                answer = function(item), None
            except Exception as error:
                answer = None, " ".join(f"{type(error).__name__}: {error}".split())[:400]
            pipe.send(answer)


class Crew:
    """Processes that compile for a GPU that need not be here; one that dies takes only its job with it."""

    def __init__(self, workers, capability):
        self.context, self.capability = multiprocessing.get_context("spawn"), capability
        self.scratch = tempfile.TemporaryDirectory()
        self.workers = {}
        for _ in range(workers):
            self._start()

    def _start(self):
        here, there = self.context.Pipe()
        arguments = there, self.capability, self.scratch.name
        self.workers[here] = self.context.Process(target=_serve, args=arguments, daemon=True)
        self.workers[here].start()
        there.close()

    def run(self, function, items, deadline=None):
        """Yields each item with what the function gave of it and why it failed, as they end, until the deadline."""
        waiting, busy = deque(items), {}
        while (waiting or busy) and (deadline is None or time.monotonic() < deadline):
            for pipe in self.workers.keys() - busy.keys():
                if waiting:
                    busy[pipe] = waiting.popleft()
                    with suppress(BrokenPipeError):  # it is found dead below
                        pipe.send((function, busy[pipe]))
            for pipe in wait(busy, None if deadline is None else max(0, deadline - time.monotonic())):
                item = busy.pop(pipe)
                try:
                    answer = pipe.recv()
                except (EOFError, ConnectionResetError):
                    process = self.workers.pop(pipe)
                    process.join()
                    answer = None, f"its process ended with {process.exitcode}"
                    self._start()
                yield item, *answer

    def __enter__(self):
        return self

    def __exit__(self, *error):
        for process in self.workers.values():
            with suppress(ProcessLookupError):  # it leads no group yet
                os.killpg(process.pid, signal.SIGKILL)  # and the ptxas that it waits for
            process.kill()
            process.join()
        self.scratch.cleanup()


def plan(crew, kinds, deadline=None):
    """The jobs of all kinds, first configurations first; which kinds failed, with why; which were left out."""
    kinds = list(dict.fromkeys(map(alone, kinds)))
    found, failed = {}, []
    for kind, jobs, why in crew.run(needed, kinds, deadline):
        found[kind] = jobs or []
        if why is not None:
            failed.append(f"{kind}: {why}")
            print(f"  {failed[-1]}", flush=True)
    left_out = [str(kind) for kind in kinds if kind not in found]
    if left_out:
        print(f"  stopped at the deadline: {len(left_out)} kinds of call not looked at", flush=True)
    jobs = {}
    for job in (job for kind in kinds for job in found.get(kind, [])):
        jobs.setdefault(job.entry, job)
    return sorted(jobs.values(), key=lambda job: job.rank), failed, left_out


def carry_out(crew, jobs, deadline=None):
    """Names of jobs that are compiled now, of those that failed, with why, and of those left out."""
    folder = share_keys().knobs.cache.dir
    waiting = {job: job.name for job in jobs if not job.is_in(folder)}
    total, done, failed, start = len(waiting), [], [], time.monotonic()
    print(f"{total} of {len(jobs)} kernels to compile, on {len(crew.workers)} processes", flush=True)
    shown = start
    for job, note, why in crew.run(compile_one, list(waiting), deadline):
        name = waiting.pop(job)
        if why is None:
            done.append(name)
        else:
            failed.append(f"{name}: {why}")
        if why or note:
            print(f"  {name}: {why or note}", flush=True)
        now = time.monotonic()
        if now - shown > 10 or not waiting:
            print(f"  {total - len(waiting)} of {total}, {now - start:.0f} s", flush=True)
            shown = now
    if waiting:
        print(f"  stopped at the deadline: {len(waiting)} kernels left out", flush=True)
    return done, failed, list(waiting.values())


def compile_ahead(kinds, capability, deadline=None, workers=None):
    """Leaves what calls need in Triton's cache; gives what was compiled, what failed, with why, and what was left out.

    A kind of call is a ``Check``, a ``Case``, a function that calls kernels with tensors of the CPU and can be pickled,
    or ``First`` of one of these, for the first configuration of each kernel only. At ``deadline``, in
    ``time.monotonic``, everything stops; what is compiled of a kernel then is lost.
    """
    with Crew(workers or CORES, capability) as crew:
        jobs, failed, left_out = plan(crew, kinds, deadline)
        done, more_failed, more_left_out = carry_out(crew, jobs, deadline)
    return done, failed + more_failed, left_out + more_left_out


def _kinds(name):
    module, _, attribute = name.partition(":")
    found = getattr(importlib.import_module(module), attribute)
    return found() if callable(found) else found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--into", type=Path, required=True, help="the file to make, a .tar.xz")
    parser.add_argument("--capability", type=int, default=90, help="90 is an H100 or H200, 80 an A100, 89 a 4090")
    parser.add_argument(
        "--kinds", nargs="+", default=["kernels_gpu:kinds"], metavar="MODULE:NAME",
        help="lists of checks, cases and functions, or functions that give one (default: all that `make gpu` calls)",
    )  # fmt: skip
    parser.add_argument("--first", action="store_true", help="only the first configuration of each kernel")
    parser.add_argument("--cache", type=Path, default=Path("out/triton_ahead"), help="default: %(default)s")
    parser.add_argument("--workers", type=int, default=CORES, help="processes (default: a core each, %(default)s)")
    parser.add_argument("--minutes", type=float, help="stop compiling after so long, and pack what is there")
    options = parser.parse_args()
    start = time.monotonic()
    deadline = None if options.minutes is None else start + 60 * options.minutes
    os.environ["TRITON_CACHE_DIR"] = str(options.cache.resolve())
    try:
        kinds = [First(kind) if options.first else kind for name in options.kinds for kind in _kinds(name)]
    except (ImportError, AttributeError, ValueError) as error:
        parser.error(f"--kinds wants MODULE:NAME, as kernels_check:CHECKS: {error}")
    version = share_keys().__version__
    print(f"triton {version}, compute capability {options.capability}, {len(kinds)} kinds of call", flush=True)
    try:
        with Crew(options.workers, options.capability) as crew:
            jobs, failed, left_out = plan(crew, kinds, deadline)
            done, more_failed, more_left_out = carry_out(crew, jobs, deadline)
    except KeyboardInterrupt:
        print("interrupted: the same command goes on", file=sys.stderr)
        return 130
    if not any(job.is_in(options.cache) for job in jobs):
        print("nothing is compiled, so that there is nothing to pack", file=sys.stderr)
        return 1
    count = pack(options.cache, options.into, {job.entry for job in jobs})
    failed, left_out = failed + more_failed, left_out + more_left_out
    print(
        f"{options.into}: {count} entries, {options.into.stat().st_size / 2**20:.1f} MB; {len(done)} compiled now, "
        f"{len(failed)} failed, {len(left_out)} left out; {time.monotonic() - start:.0f} s"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(importlib.import_module("kernels_ahead").main())  # the module whose ``First`` a list of kinds imports
