"""A card and the file of weights that it describes: how values are kept, and what a damaged file says."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load
from torch import Tensor

from pyro_memory.diagnostics import Record, Rows
from pyro_memory.gate import checked

ROLES = ("model", "guide")
FACTS = ("about", "data", "licence", "protocol", "numbers", "training", "commit")
PARTS = ("facts", "build", "sha256")
CLOSE = 1e-3  # what a kept value may be away from the one that was given, relative to it or to its tensor's scale


@checked
@dataclass(frozen=True, repr=False)
class Card(Record):
    """What is known of a pair of trained modules.

    Attributes:
        name: what ``load_pretrained`` takes.
        facts: about, data, licence, protocol, numbers (with their units and standard errors), training, commit; others
            where a model needs them, as the vocabulary of a language model.
        build: for "model" and "guide" the constructor, such as ``"VMA.convolutional"``, and its arguments. An argument
            ``{"build": [constructor, arguments]}`` is built first; ``{"shared": name}`` is the part of that name under
            "shared", built once for both; ``{"partial": [constructor, arguments]}`` is one that the model calls itself,
            as a ``SequenceModel`` its mixer; ``{"tuple": [...]}``, ``{"class": name}`` and the like are what JSON has
            no word for.
        sha256: of the safetensors file.
    """

    name: str
    facts: dict[str, Any]
    build: dict[str, Any]
    sha256: str

    def _shown(self) -> tuple[str, Rows, Sequence[str]]:
        rows = []
        for key in FACTS[1:]:
            value = self.facts[key]
            rows.append((key, ", ".join(_listed(value)) if isinstance(value, Mapping) else str(value)))
        return f"{self.name}: {self.facts['about']}", rows, ()


class Cards(Record, dict[str, Card]):
    """Maps names to cards, and prints an overview of them."""

    def _shown(self) -> tuple[str, Rows, Sequence[str]]:
        rows = [("name", "model", "data", "measured"), *(_overview(card) for card in self.values())]
        return f"{len(self)} pairs with trained weights; each one's card tells more", rows, ()


def _overview(card: Card) -> tuple[str, str, str, str]:
    numbers = card.facts["numbers"]
    measured = _listed(numbers) if isinstance(numbers, Mapping) else [str(numbers)]
    more = f" and {len(measured) - 1} more" if len(measured) > 1 else ""
    data = re.split("[,:;(]", str(card.facts["data"]))[0].strip()
    return card.name, _kind(card.build["model"]), data, "".join(measured[:1]) + more


def _listed(numbers: Mapping[str, Any]) -> list[str]:
    return [f"{name} {value}" for name, value in numbers.items()]


def _kind(spec: Any) -> str:
    """The class that a constructor makes, and of what parts."""
    own = spec[0].partition(".")[0]
    parts = [part.get("build", part.get("partial")) for part in spec[1].values() if isinstance(part, Mapping)]
    inner = [_kind(part) for part in parts if part]
    return f"{own}({', '.join(inner)})" if inner else own


def read_card(path: Path) -> Card | None:
    """A card, or None if the file is not one of ours.

    Raises:
        ValueError: if it is damaged.
    """
    weights = path.with_name(f"{path.stem}.safetensors")
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        if not weights.exists():
            return None
        raise ValueError(f"{path}, the card of {weights.name}, is damaged: {error}. Install it again") from error
    if not isinstance(content, dict) or not content.keys() & set(PARTS):
        return None
    check, card = content.get("check"), {part: content.get(part) for part in PARTS}
    facts, build = card["facts"], card["build"]
    whole = (
        set(content) <= {*PARTS, "check"}
        and isinstance(facts, dict) and set(FACTS) <= set(facts)
        and isinstance(build, dict) and set(ROLES) <= set(build)
        and check in (None, checksum(card))  # cards of earlier versions had none
    )  # fmt: skip
    if not whole:
        raise ValueError(f"{path}, the card of {weights.name}, is damaged, not as it was written. Install it again")
    return Card(path.stem, **card)


def checksum(card: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(card, sort_keys=True).encode()).hexdigest()


def opened(content: bytes) -> dict[str, Tensor]:
    """The tensors of a file, in torch's default dtype."""
    dtype = torch.get_default_dtype()
    return {k: t.to(dtype) if t.is_floating_point() else t for k, t in load(content).items()}


def fewest_bits(tensor: Tensor) -> Tensor:
    """A tensor as it is written: in half precision if that holds it, in a byte where that loses nothing."""
    tensor = tensor.detach().cpu().contiguous()
    if not tensor.is_floating_point():
        return tensor
    byte = tensor.to(torch.float8_e4m3fn)
    if torch.equal(byte.double(), tensor.double()):  # as of binary images
        return byte
    fewer = (tensor.to(dtype) for dtype in (torch.half, torch.float))
    return next((kept for kept in fewer if holds(tensor, kept)), tensor)


def holds(tensor: Tensor, kept: Tensor) -> bool:
    """Whether what was kept is what was given, but for rounding."""
    given, kept = tensor.cpu().double(), kept.cpu().double()
    scale = given.square().mean().sqrt().item() if given.numel() else 0.0
    close = torch.allclose(kept, given, rtol=CLOSE, atol=CLOSE * scale)
    return close and torch.equal(kept == 0, given == 0)


def commit() -> str:
    """Of the git repository that holds the running script, or else the working directory."""
    script = getattr(sys.modules.get("__main__"), "__file__", None)
    folder = Path(script).parent if script else None
    try:
        return subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True, cwd=folder
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
