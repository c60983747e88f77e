"""Signals wait until the step is done."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def deferred_signals(active: bool) -> Iterator[list[int]]:
    """Collects the first SIGINT or SIGTERM of the main thread; a second one meets the old handlers."""
    caught: list[int] = []
    old: dict[int, Any] = {}

    def restore() -> None:
        for number, handler in old.items():
            signal.signal(number, handler)

    def note(number: int, frame: Any) -> None:
        caught.append(number)
        restore()

    if active and threading.current_thread() is threading.main_thread():
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        # Ignored signals stay ignored (nohup); one with a handler from outside Python could not be put back.
        old = {number: h for number, h in handlers.items() if h not in (None, signal.SIG_IGN)}
        for number in old:
            signal.signal(number, note)
    try:
        yield caught
    finally:
        restore()
