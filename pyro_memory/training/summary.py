"""What people read beside a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pyro_memory.stores import replace_file

HEADER = "pyro_memory"  # marks what this package wrote


class Header(dict[str, Any]):
    """What a checkpoint tells besides its tensors; prints in one line."""

    def __repr__(self) -> str:
        kinds = ", ".join(str(self[key]) for key in ("model", "guide", "optimizer") if self.get(key))
        record = f"; record of {len(self['record'])} entries" if self.get("record") else ""
        return f"Header of a checkpoint at step {self.get('step')}: {kinds}{record}"


def write_summary(path: Path, summary: Mapping[str, Any]) -> str:
    """Writes what people read beside a checkpoint; says why where it could not, and leaves what is not a summary."""
    beside = path.with_name(f"{path.name}.json")
    try:
        if beside.exists() and not _is_summary(beside):
            return f"`{beside}` is not a summary of this package's, so it stays; {path.name} has none beside it"
        text = json.dumps({HEADER: "summary of a checkpoint"} | dict(summary), indent=2)
        replace_file(beside, lambda temporary: temporary.write_text(text + "\n"))
    except OSError as error:
        return f"`{beside}`, which repeats step and record for people, could not be written: {error}"
    return ""


def _is_summary(path: Path) -> bool:
    try:
        content = json.loads(path.read_text())
    except ValueError:
        return False
    return isinstance(content, dict) and HEADER in content
