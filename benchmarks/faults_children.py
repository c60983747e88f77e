"""Work done in a forked child, which may be killed, starved or refused at any point without harm to its parent."""

import io
import os
import pickle
import re
import resource
import signal
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

NOBODY = 65534
DISK_OPERATIONS = (
    "open", "replace", "rename", "unlink", "remove", "mkdir", "fsync", "ftruncate", "link", "chmod", "utime",
)  # fmt: skip
FILE_OPERATIONS = ("write", "writelines", "flush", "truncate", "close", "__exit__")


@dataclass(frozen=True)
class Outcome:
    """What came of a child: a value, an error (its type, its words), a signal, or nothing in time."""

    value: Any = None
    error: str | None = None
    words: str = ""
    signal: int | None = None
    hung: bool = False

    @property
    def ended(self):
        """In a few words."""
        if self.hung:
            return "hung"
        if self.signal:
            return f"ended by {signal.Signals(self.signal).name}"
        return f"{self.error}: {self.words}" if self.error else "finished"


def child(work, *, timeout=60.0, watch=lambda pid: time.sleep(0.002)):
    """Calls ``work()`` in a fork of this process; ``watch(pid)`` is called again and again until it ends."""
    return children(work, timeout=timeout, watch=watch)[0]


def children(*works, timeout=60.0, watch=lambda pid: time.sleep(0.002)):
    """The same for several side by side."""
    started = [_fork(work) for work in works]
    content, ended, end = dict.fromkeys(started, b""), {}, time.monotonic() + timeout
    while len(ended) < len(started):
        for pid, pipe in started:
            if (pid, pipe) in ended:
                continue
            done, status = os.waitpid(pid, os.WNOHANG)
            content[pid, pipe] += _available(pipe)
            if done:
                ended[pid, pipe] = _outcome(status, content[pid, pipe])
            elif time.monotonic() > end:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                ended[pid, pipe] = Outcome(hung=True)
            else:
                watch(pid)
    for _, pipe in started:
        os.close(pipe)
    return [ended[one] for one in started]


def _fork(work):
    read, write = os.pipe()
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        os.close(write)
        os.set_blocking(read, False)
        return pid, read
    try:
        os.close(read)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # progress bars of many children
        signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what a shell started in the background
        left = {"value": work()}
    except BaseException as error:
        sys.setprofile(None)
        kind = type(error)
        name = kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"
        left = {"error": name, "words": str(error)}
    try:
        os.write(write, pickle.dumps(left))
    finally:
        os._exit(0)


def _available(pipe):
    content = b""
    try:
        while part := os.read(pipe, 1 << 16):
            content += part
    except BlockingIOError:
        pass
    return content


def _outcome(status, content):
    return Outcome(signal=os.WTERMSIG(status)) if os.WIFSIGNALED(status) else Outcome(**pickle.loads(content))


def kill_me():
    os.kill(os.getpid(), signal.SIGKILL)


class Operations:
    """Counts the operations on files from ``start`` on, and acts before or after the chosen one.

    They are seen where Python calls into C, whatever the package's own functions are called.
    """

    def __init__(self, at=None, act=kill_me):
        self.at, self.act, self.names = at, act, []

    def start(self):
        sys.setprofile(self._see)

    def stop(self):
        sys.setprofile(None)

    def _see(self, frame, event, function):
        if event not in ("c_call", "c_return", "c_exception"):
            return
        name, owner = getattr(function, "__name__", ""), getattr(function, "__self__", None)
        module = getattr(owner, "__name__", "")
        on_disk = module in ("posix", "io", "_io") and name in DISK_OPERATIONS
        on_file = isinstance(owner, io.IOBase) and name in FILE_OPERATIONS
        rust = name in ("serialize_file", "_serialize_file")
        if on_disk or on_file or rust:
            self.names.append(f"{'before' if event == 'c_call' else 'after'} {name.strip('_')}")
            if len(self.names) - 1 == self.at:
                self.stop()
                self.act()


def limit_files(size, *, kill):
    """From here on no file of this process grows beyond ``size`` bytes: the write that would fails, or kills."""
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL if kill else signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def unlimit_files():
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))


@contextmanager
def failing(module, name, code):
    """``module.name`` raises the system's error ``code``, such as ENOSPC."""
    real = getattr(module, name)

    def fail(*args, **kwargs):
        raise OSError(code, os.strerror(code))

    setattr(module, name, fail)
    try:
        yield
    finally:
        setattr(module, name, real)


def become_nobody(*folders, user=NOBODY):
    """Gives up root, whom no permission binds; ``folders`` go to the other user."""
    if os.geteuid() == 0:
        for folder in folders:
            for place in (folder, *folder.rglob("*")):
                os.chown(place, user, user)
        os.setgroups([])
        os.setgid(user)
        os.setuid(user)


OURS = ("ValueError", "TypeError", "OSError", "PermissionError", "FileNotFoundError", "NotADirectoryError")
OURS += ("IsADirectoryError", "FileExistsError", "ConnectionError")


def told(end, *about):
    """Whether a child ended by an error that a person can read: a sentence that names one of ``about``."""
    system = re.match(r"\[Errno (\d+)\] (.*)", end.words)
    raw = system and system[2].startswith(os.strerror(int(system[1])))
    sentence = len(end.words.split()) > 5 and not raw
    return end.error in OURS and sentence and any(word in end.words for word in about)
