"""Trained weights that come with the package, and how to make more of them."""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import nn

FOLDER = Path(__file__).parent / "shipped"
FACTS = ("about", "data", "licence", "protocol", "numbers", "training", "commit")


@dataclass(frozen=True, repr=False)
class Card:
    """What is known of a pair of trained modules.

    Attributes:
        name: what ``load_pretrained`` takes.
        facts: about, data, licence, protocol, numbers (nats, with standard errors), training, commit.
        build: for "model" and "guide" the constructor, such as ``"VMA.convolutional"``, and its arguments.
        sha256: of the safetensors file.
    """

    name: str
    facts: dict[str, Any]
    build: dict[str, tuple[str, dict[str, Any]]]
    sha256: str

    def __repr__(self) -> str:
        lines = [f"{self.name}: {self.facts['about']}"]
        for key in FACTS[1:]:
            value = self.facts[key]
            shown = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, Mapping) else value
            lines.append(f"  {key:<9} {shown}")
        return "\n".join(lines)


def pretrained(folder: str | Path = FOLDER) -> dict[str, Card]:
    """Lists the trained weights that are here, by name.

    Args:
        folder: where to look; by default what came with the package.
    """
    return {path.stem: _card(path) for path in sorted(Path(folder).glob("*.json"))}


def load_pretrained(name: str, folder: str | Path = FOLDER) -> tuple[nn.Module, nn.Module]:
    """Builds a pair and gives it its trained weights, in evaluation mode; needs no network.

    Weights are kept in half precision and become float32.

    Args:
        name: one of ``pretrained()``.
        folder: where its card and safetensors file lie.

    Raises:
        ValueError: for an unknown name, and where the file is not the one that the card describes.

    Example::

        model, guide = pyro_memory.load_pretrained("vma-omniglot28")
    """
    known = pretrained(folder)
    if name not in known:
        raise ValueError(f"`name` must be one of {', '.join(known) or 'none: there are no weights here'}; got {name!r}")
    card, path = known[name], Path(folder) / f"{name}.safetensors"
    content = path.read_bytes() if path.exists() else b""
    if hashlib.sha256(content).hexdigest() != card.sha256:
        raise ValueError(f"{path} is not the file that its card describes: it is missing or damaged. Install it again")
    tensors = load(content)
    pair = []
    for role in ("model", "guide"):
        module = _built(role, *card.build[role])
        own = {k.removeprefix(f"{role}."): t for k, t in tensors.items() if k.startswith(f"{role}.")}
        try:
            module.load_state_dict(own)
        except RuntimeError as error:
            raise ValueError(f"{name} was saved from other modules than this version builds: {error}") from error
        pair.append(module.eval())
    return tuple(pair)


def save_pretrained(
    name: str,
    model: nn.Module,
    guide: nn.Module,
    *,
    build: Mapping[str, tuple[str, Mapping[str, Any]]],
    facts: Mapping[str, Any],
    folder: str | Path,
) -> Card:
    """Writes a pair's weights in half precision and their card, and checks that they load.

    Args:
        name: of the two files.
        build: for "model" and "guide" the constructor in ``pyro_memory.models`` or ``guides`` and its arguments, which
            JSON must be able to hold.
        facts: about, data, licence, protocol, numbers, training, commit.
        folder: where to write.

    Raises:
        ValueError: if a fact is missing, or the constructors do not build these modules.
    """
    missing = [key for key in FACTS if key not in facts]
    if missing:
        raise ValueError(f"`facts` must tell {', '.join(FACTS)}; missing: {', '.join(missing)}")
    tensors = {
        f"{role}.{key}": (tensor.half() if tensor.is_floating_point() else tensor).detach().cpu().contiguous()
        for role, module in (("model", model), ("guide", guide))
        for key, tensor in module.state_dict().items()
    }
    content = save(tensors)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.safetensors").write_bytes(content)
    card = {"facts": dict(facts), "build": dict(build), "sha256": hashlib.sha256(content).hexdigest()}
    (folder / f"{name}.json").write_text(json.dumps(card, indent=1) + "\n")
    load_pretrained(name, folder)
    return _card(folder / f"{name}.json")


def _card(path: Path) -> Card:
    content = json.loads(path.read_text())
    return Card(path.stem, content["facts"], content["build"], content["sha256"])


def _built(role: str, constructor: str, arguments: Mapping[str, Any]) -> nn.Module:
    # Looked up when asked for: models and guides are made of this package's parts, not the other way round.
    home = importlib.import_module(f"pyro_memory.{role}s")
    kind, _, method = constructor.partition(".")
    if kind not in home.__all__:
        raise ValueError(f"`build` must name a class of pyro_memory.{role}s; got {constructor!r}")
    built = getattr(home, kind)
    state = torch.get_rng_state()  # what the weights replace must not use up the caller's randomness
    try:
        return (getattr(built, method) if method else built)(**arguments)
    finally:
        torch.set_rng_state(state)
