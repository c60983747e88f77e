"""Runs named parts of a measurement against the clock, and loses nothing of what was measured.

A part has jobs, and a mark on the clock after which none of them starts; what an early part leaves of its time goes to
the later ones. A job gives rows, written to ``rows.csv`` as they come. One that raises, or outlasts its part by
``GRACE`` seconds, becomes a row that says so, and the run goes on.
"""

import csv
import signal
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

COLUMNS = ("part", "case", "what", "predicted", "measured", "low", "high", "unit", "note")
GRACE = 20.0
FILES, FILE_BYTES = 8, 16 * 2**20  # at most, so that OUT is easily brought back from elsewhere


@dataclass(frozen=True)
class Part:
    """``jobs`` gives pairs of a case's name and a call for its rows; ``until``: its mark, in shares of the run."""

    name: str
    until: float
    jobs: Callable[[], Iterable[tuple[str, Callable[[], Iterable[dict]]]]]
    apart: bool = False  # it needs nothing of this process's device


class Overrun(BaseException):
    """Raised inside a job that outlasts its part; no handler of errors there takes it for one."""


class Run:
    """Writes to ``out``, with ``about`` in every row, for ``seconds`` from the moment of construction."""

    def __init__(self, out: Path, seconds: float, about: dict, clock: Callable[[], float] = time.monotonic) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self.out, self.seconds, self.about, self.clock = out, seconds, about, clock
        self.start = clock()
        self.rows: list[dict] = []
        self.skipped: dict[str, int] = {}

    @property
    def path(self) -> Path:
        return self.out / "rows.csv"

    def left(self, until: float = 1.0) -> float:
        """Seconds to a mark."""
        return self.start + until * self.seconds - self.clock()

    def run(self, parts: Iterable[Part], after: Callable[[], None] = lambda: None) -> None:
        """Runs every part, and ``after`` behind every job; where that fails, only the parts apart from the device."""
        lost = False
        for part in parts:
            if lost and not part.apart:
                continue
            print(f"{part.name} ({self.clock() - self.start:.0f} s, until {part.until * self.seconds:.0f})", flush=True)
            try:
                jobs = list(part.jobs())
            except Exception as error:
                jobs = [("all", lambda error=error: _raise(error))]
            for case, job in jobs:
                if self.left(part.until) <= 0:
                    self.skipped[part.name] = self.skipped.get(part.name, 0) + 1
                    continue
                try:
                    with _stopping(self.left(part.until) + GRACE):
                        for row in job():
                            self.write({"part": part.name, "case": case} | row)
                except (Exception, Overrun) as error:
                    self.write({"part": part.name, "case": case, "what": "failed", "note": _said(error)})
                try:
                    after()
                except Exception as error:
                    self.write({"part": part.name, "case": case, "what": "failed: device lost", "note": _said(error)})
                    lost = True
                    break

    def write(self, row: dict) -> None:
        self.rows.append(row)
        new = not self.path.exists()  # else rows are added to those of earlier runs
        with open(self.path, "a", newline="") as file:
            writer = csv.DictWriter(file, (*self.about, *COLUMNS))
            if new:
                writer.writeheader()
            writer.writerow(self.about | row)
        print("  " + line(row), flush=True)

    def table(self, most: int = 60) -> str:
        """What failed, what was predicted, then the other rows while there is room; last what is not in it."""
        order = sorted(self.rows, key=lambda row: (not has_failed(row), not row.get("predicted")))
        last = [f"not started for want of time: {n} of {name}" for name, n in self.skipped.items()]
        room = most - 2 - len(last)
        if len(order) > room:
            last.append(f"{len(order) - room} more rows in {self.path.name}")
        return "\n".join([HEAD, *map(line, order[:room]), *last])

    def too_large(self) -> list[str]:
        """What is more than ``FILES`` files of ``FILE_BYTES`` in ``out``."""
        files = sorted(path for path in self.out.rglob("*") if path.is_file())
        large = [
            f"{path} has {path.stat().st_size / 2**20:.0f} MB" for path in files if path.stat().st_size > FILE_BYTES
        ]
        return large + [f"{path} is one more than {FILES} files" for path in files[FILES:]]


HEAD = f"{'part':12} {'case':44} {'what':34} {'predicted':>9} {'measured':>9} {'ratio':>6}"


def has_failed(row: dict) -> bool:
    return row["what"].startswith("failed")


def line(row: dict) -> str:
    predicted, measured = row.get("predicted"), row.get("measured")
    shown = [f"{x:9.3g}" if x is not None else " " * 9 for x in (predicted, measured)]
    ratio = f"{measured / predicted:6.2f}" if predicted and measured is not None else " " * 6
    words = f"{row['part']:12} {row['case']:44.44} {row['what']:34.34} {' '.join(shown)} {ratio}"
    return f"{words} {row.get('unit', ''):4} {row.get('note', '')}".rstrip()[:200]


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".split("\n")[0][:300]


def _raise(error: Exception) -> Iterable[dict]:
    raise error


@contextmanager
def _stopping(seconds: float):
    """Raises ``Overrun`` in the main thread after these seconds."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_):
        raise Overrun(f"stopped {GRACE:.0f} s after its part's end")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.001))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
