"""What a record says of its making: command, hardware, versions of what was timed, day."""

import subprocess
import sys
import time
from importlib import metadata, util
from pathlib import Path

TIMED = ("torch", "titans-pytorch", "open-titans")


def command():
    """The command line without the place to write to; other places by the option's name."""
    words = [f"python benchmarks/{Path(sys.argv[0]).name}"]
    for before, word in zip(sys.argv, sys.argv[1:], strict=False):
        if before != "--out" and not word.startswith("--out"):
            words.append(before.removeprefix("--").upper() if "/" in word else word)
    return " ".join(words)


def about():
    machine = subprocess.run(["lscpu"], capture_output=True, text=True).stdout
    names = [line.split(":")[1].strip() for line in machine.splitlines() if line.startswith("Model name")]
    versions = {name: metadata.version(name) for name in TIMED if util.find_spec(name.replace("-", "_"))}
    return {
        "command": command(), "hardware": (names or [""])[0], "date": time.strftime("%Y-%m-%d"), "versions": versions,
    }  # fmt: skip
