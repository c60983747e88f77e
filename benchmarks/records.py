"""What a record says of its making: command, hardware, versions of what was timed, day."""

import subprocess
import time
from importlib import metadata

TIMED = ("torch", "titans-pytorch", "open-titans")


def about(command):
    machine = subprocess.run(["lscpu"], capture_output=True, text=True).stdout
    names = [line.split(":")[1].strip() for line in machine.splitlines() if line.startswith("Model name")]
    installed = {d.metadata["Name"].lower().replace("_", "-"): d.version for d in metadata.distributions()}
    return {
        "command": command, "hardware": (names or [""])[0], "date": time.strftime("%Y-%m-%d"),
        "versions": {name: installed[name] for name in TIMED if name in installed},
    }  # fmt: skip
