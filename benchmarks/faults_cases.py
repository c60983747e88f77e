"""What is done to runs of ``fit``, and what must be left: the last good state, and the end of an undisturbed run."""

import errno
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

from faults_children import (
    Operations,
    become_nobody,
    child,
    children,
    failing,
    kill_me,
    limit_files,
    told,
    unlimit_files,
)
from faults_runs import CHECKPOINT, EVERY, RUNS, SHAPE, STEPS, ink, look, train, worker

from pyro_memory import SlotMemory

PLAIN = "VMA, Adam"


@dataclass(frozen=True)
class Case:
    """``run(folder)`` gives, for each trial, what was lost, or None."""

    kind: str
    name: str
    run: Callable[[Path], list[str | None]]


@cache
def undisturbed(run):
    """How a run ends by itself: its digest, its files, the seconds it took, its operations on files after step 4."""
    folder, operations = Path(mkdtemp()), Operations()
    start = time.monotonic()
    plain = child(lambda: train(run, folder / "a"))
    seconds = time.monotonic() - start
    seen = child(lambda: (train(run, folder / "b", {EVERY: operations.start}), operations.stop(), operations.names)[-1])
    if plain.value is None or seen.value is None:
        raise SystemExit(f"{run} fails undisturbed: {plain.ended} {seen.ended}")
    return plain.value["digest"], listing(folder / "a"), seconds, seen.value


def listing(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


def taken_up(run, folder, steps=range(0, STEPS + 1, EVERY)):
    """Goes on from what a disturbed run left; ``steps``: those that its checkpoint may hold, 0 for none."""
    held = 0
    if (folder / CHECKPOINT).exists():
        seen = child(lambda: look(run, folder))
        if seen.value is None:
            return f"the checkpoint does not load: {seen.ended}"
        held = seen.value
    if held not in steps:
        return f"the checkpoint holds step {held}"
    digest, files, *_ = undisturbed(run)
    end = child(lambda: train(run, folder))
    if end.value is None:
        return f"going on: {end.ended}"
    if end.value["digest"] != digest:
        return "the end is not that of an undisturbed run"
    more = set(listing(folder)) - set(files)
    return f"left {', '.join(sorted(more))}" if more else None


def killed_between_steps(quick, random):
    for run in RUNS:
        for steps in [[6]] if quick else [[1], [3], [4], [6], [11], [2, 6, 10]]:

            def trial(folder, run=run, steps=steps):
                for step in steps:
                    child(lambda: train(run, folder, {step: kill_me}))  # noqa: B023
                return [taken_up(run, folder)]

            yield Case("killed between two steps", f"{run}, before step {steps}", trial)


def killed_at_a_moment(quick, random):
    for run in RUNS if not quick else [PLAIN]:
        for number in range(1 if quick else 8):
            share = random.random()

            def trial(folder, run=run, share=share):
                end = time.monotonic() + share * undisturbed(run)[2]

                def watch(pid):
                    time.sleep(0.001)
                    if time.monotonic() > end:
                        os.kill(pid, signal.SIGKILL)

                child(lambda: train(run, folder), watch=watch)
                return [taken_up(run, folder)]

            yield Case("killed at a random moment", f"{run}, {number}: {share:.3f} of its time", trial)


def killed_at_an_operation(quick, random):
    for run in RUNS if not quick else [PLAIN]:
        names = undisturbed(run)[3]
        # A few of each run, all of one: before and after each open, write, sync, rename.
        chosen = range(len(names)) if run == PLAIN else sorted(random.sample(range(len(names)), min(8, len(names))))
        for at in random.sample(chosen, 4) if quick else chosen:

            def trial(folder, run=run, at=at):
                operations = Operations(at)
                child(lambda: train(run, folder, {EVERY: operations.start}))
                return [taken_up(run, folder)]

            yield Case("killed at an operation on files", f"{run}, {at} {names[at]}", trial)


def killed_inside_a_write(quick, random):
    for run in [PLAIN, "VSM in a Lifetime"][: 1 if quick else 2]:
        for number in range(3 if quick else 16):
            size = random.randrange(1, 50_000)

            def trial(folder, run=run, size=size):
                end = child(lambda: train(run, folder, {EVERY + 1: lambda: limit_files(size, kill=True)}))
                if end.signal != signal.SIGXFSZ:
                    return [f"it was not killed: {end.ended}"]
                return [taken_up(run, folder, [EVERY])]

            yield Case("killed inside a write", f"{run}, {number}: at byte {size}", trial)


def went_on(end, run, folder, steps):
    """What a run lost that could not write for a while; ``steps``: those that its checkpoint may hold."""
    if end.value is None:
        return f"the run's result: {end.ended}"
    if end.value["digest"] != undisturbed(run)[0]:
        return "the end is not that of an undisturbed run"
    if not any(CHECKPOINT in words for words in end.value["warnings"]):
        return f"nothing names the file that was not written: {end.value['warnings']}"
    more = [f for f in listing(folder) if f.endswith(".tmp")]
    return f"left {', '.join(more)}" if more else taken_up(run, folder, steps)


def disk_full(quick, random):
    run = PLAIN
    for until in (STEPS - EVERY + 1, None):  # room again before the last write, or never
        for size in [20_000] if quick else [0, 100, 4096, *(random.randrange(1, 50_000) for _ in range(5))]:

            def trial(folder, size=size, until=until):
                events = {EVERY + 1: lambda: limit_files(size, kill=False)} | ({until: unlimit_files} if until else {})
                end = child(lambda: train(run, folder, events))
                return [went_on(end, run, folder, [STEPS if until else EVERY])]

            yield Case("disk full", f"at byte {size}, {'for good' if until is None else 'for a while'}", trial)
    for name in ("fsync", "replace"):
        for code in (errno.ENOSPC, errno.EIO, errno.EDQUOT)[: 1 if quick else 3]:

            def trial(folder, name=name, code=code):
                failure = failing(os, name, code)

                def ends():
                    failure.__exit__(None, None, None)  # whose False would be taken for a batch

                events = {EVERY + 1: failure.__enter__, STEPS - EVERY + 1: ends}
                return [went_on(child(lambda: train(run, folder, events)), run, folder, [STEPS])]

            yield Case("disk full", f"{name} gives {errno.errorcode[code]} for a while", trial)


def not_writable(quick, random):
    def stepped():
        raise RuntimeError("a step was taken")

    def refused(path, *folders):
        """Whether it is said before the first step, by a user whom permissions bind."""
        elsewhere = Path(mkdtemp())

        def work():
            if folders:
                become_nobody(*folders, elsewhere)
            return train(PLAIN, elsewhere, {1: stepped}, checkpoint=path)

        end = child(work)
        return None if told(end, path.name, path.parent.name) else f"not said in a sentence at the start: {end.ended}"

    def below_a_file(folder):
        (folder / "file").touch()
        return [refused(folder / "file" / CHECKPOINT)]

    def read_only(folder):
        inner = folder / "closed"
        inner.mkdir(mode=0o555)
        return [refused(inner / CHECKPOINT, inner)]

    def of_the_system(folder):
        return [refused(Path("/proc/1") / CHECKPOINT)]

    def a_folder(folder):
        (folder / CHECKPOINT).mkdir()
        return [refused(folder / CHECKPOINT)]

    def closed_later(folder):
        inner = folder / "run"
        inner.mkdir()

        def work():
            become_nobody(inner)
            return train(PLAIN, inner, {EVERY + 1: lambda: inner.chmod(0o555)})

        end = child(work)
        inner.chmod(0o755)
        return [went_on(end, PLAIN, inner, [EVERY])]

    for trial in (below_a_file, read_only, of_the_system, a_folder, closed_later):
        yield Case("checkpoint's folder not writable", trial.__name__.replace("_", " "), trial)


def a_batch_raises(quick, random):
    for run in [PLAIN, "VSM in a Lifetime"]:
        for step in [6] if quick else [1, 2, 5, 6, 11]:

            def trial(folder, run=run, step=step):
                def fail():
                    raise RuntimeError("no such image")

                end = child(lambda: train(run, folder, {step: fail}))
                if "no such image" not in end.words:
                    return [f"the error of the batch did not come out: {end.ended}"]
                return [taken_up(run, folder, [step])]

            yield Case("a batch that raises", f"{run}, at step {step}", trial)

    def not_finite(folder):
        """The step raises, after it has drawn its noise."""
        end = child(lambda: train(PLAIN, folder, {6: lambda: (ink(2, *SHAPE) / 0, SlotMemory(ink(12, *SHAPE)))}))
        if end.value is not None:
            return ["a batch that is not finite was trained on"]
        return [taken_up(PLAIN, folder, [EVERY, 6])]

    yield Case("a batch that raises", f"{PLAIN}, infinite at step 6", not_finite)


def signals(quick, random):
    for number in (signal.SIGTERM, signal.SIGINT):
        for step in [6] if quick else [1, 4, 6, 10]:

            def trial(folder, number=number, step=step):
                end = child(lambda: train(PLAIN, folder, {step: lambda: os.kill(os.getpid(), number)}))
                if end.error not in ("SystemExit", "KeyboardInterrupt"):
                    return [f"it did not stop: {end.ended}"]
                return [taken_up(PLAIN, folder, [step + 1])]

            yield Case("SIGTERM or SIGINT", f"{number.name} at step {step}", trial)
        names = undisturbed(PLAIN)[3]
        count = names.index("after replace") + 1
        for at in sorted(random.sample(range(count), 1 if quick else min(8, count))):

            def trial(folder, number=number, at=at):
                operations = Operations(at, lambda: os.kill(os.getpid(), number))

                def first():
                    os.kill(os.getpid(), number)
                    operations.start()

                end = child(lambda: train(PLAIN, folder, {6: first}))
                if end.value is not None or end.hung:
                    return [f"it did not stop: {end.ended}"]
                return [taken_up(PLAIN, folder, [EVERY, 7])]

            yield Case("SIGTERM or SIGINT", f"{number.name} twice, again {names[at]} ({at})", trial)


def one_checkpoint_two_processes(quick, random):
    for number in range(1 if quick else 8):
        delay = random.random() if number else 0.0

        def trial(folder, delay=delay):
            """Both make the same call; what may be said is that another is at work, never a broken file."""
            seconds, start = undisturbed(PLAIN)[2], time.monotonic()

            def other():
                time.sleep(max(0.0, start + delay * seconds - time.monotonic()))
                return train(PLAIN, folder)

            lost = []
            for end in children(lambda: train(PLAIN, folder), other):
                if end.value is None and not told(end, CHECKPOINT):
                    lost.append(f"one of the two: {end.ended}")
                elif end.value is not None and end.value["digest"] != undisturbed(PLAIN)[0]:
                    lost.append("the end of one is not that of an undisturbed run")
            return [lost[0] if lost else taken_up(PLAIN, folder)]

        yield Case("two processes, one checkpoint", f"{number}: {delay:.2f} of a run apart", trial)


def a_worker_dies(quick, random):
    """Two processes train one model; one is killed before a step, and they are started again."""

    def by_hand(folder, rank):
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]

        def work(mine):
            os.environ |= {"RANK": mine, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            worker(folder, rank, 6)

        return children(lambda: work("0"), lambda: work("1"))[0].ended

    def by_torchrun(folder, rank):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        command += [str(Path(__file__).with_name("faults_runs.py")), str(folder), rank, "6"]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        run = subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            start_new_session=True,
        )  # fmt: skip
        try:
            return run.communicate(timeout=300)[1][-300:]
        except subprocess.TimeoutExpired:
            return "hung"
        finally:
            with suppress(ProcessLookupError):
                os.killpg(run.pid, signal.SIGKILL)  # its workers, too

    @cache
    def alone():
        folder = Path(mkdtemp())
        return by_hand(folder, "none"), (folder / "end").read_text()

    def dies(folder, rank, launch):
        end = folder / "end"
        launch(folder, rank)
        if end.exists():
            return ["the run did not end with its worker"]
        seen = child(lambda: look(PLAIN, folder))
        if seen.value not in (EVERY, 6):
            return [f"the checkpoint: {seen.value or seen.ended}"]
        said = launch(folder, rank)
        if not end.exists():
            return [f"going on: {said}"]
        if more := [f for f in listing(folder) if f.endswith(".tmp")]:
            return [f"left {', '.join(more)}"]
        return [None if end.read_text() == alone()[1] else "the end is not that of an undisturbed run"]

    for rank in ("0", "1"):
        for launch in (by_hand,) if quick else (by_hand, by_torchrun):
            name = f"worker {rank} of 2, {launch.__name__.replace('_', ' ')}"
            yield Case("a worker of several dies", name, lambda folder, r=rank, n=launch: dies(folder, r, n))


RUN_KINDS = (
    killed_between_steps, killed_at_a_moment, killed_at_an_operation, killed_inside_a_write, disk_full, not_writable,
    a_batch_raises, signals, one_checkpoint_two_processes, a_worker_dies,
)  # fmt: skip
