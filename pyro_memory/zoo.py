"""Trained weights that come with the package, and how to make more of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, overload

from safetensors.torch import save
from torch import Tensor, nn

from pyro_memory import guides, models
from pyro_memory.building import Description, NotRebuildable, apart, make, own_classes, recorded_build
from pyro_memory.cards import FACTS, Card, Cards, checksum, commit, fewest_bits, holds, opened, read_card
from pyro_memory.gate import checked
from pyro_memory.stores import StructuredMemory, replace_file
from pyro_memory.training import read_header, rebuild

FOLDER = Path(__file__).parent / "shipped"
MEMORY, BUILD = "memory.", "build."  # of what is no weight
NEW = ".new"  # follows the name of weights whose card is being written


@checked
def pretrained(folder: str | Path = FOLDER) -> Cards:
    """Lists the trained weights that are here: a dict of their cards by name, which prints an overview.

    Other files of JSON are passed over.

    Args:
        folder: where to look; by default what came with the package.

    Raises:
        ValueError: if a card is damaged.
    """
    found = {path.stem: read_card(path) for path in sorted(Path(folder).glob("*.json"))}
    return Cards({name: card for name, card in found.items() if card is not None})


Forecasters = Literal["titans-lmm-etth1-96", "titans-lmm-etth1-192", "titans-lmm-etth1-336", "titans-lmm-etth1-720"]
Titans = Literal["titans-lmm-needles", "titans-lmm-recall", "titans-lmm-recall32", "titans-mag-tinyshakespeare"]
Drawn = Literal["vma-autoregressive-omniglot28", "vma-diffusion-omniglot28"]
Sets = Literal["vsm-autoregressive-omniglot", "vsm-returning-omniglot", "vsm-vae-omniglot"]
Diffusion = Literal["diffusion-omniglot28"]
Cached = Literal["titans-cached-recall32"]


@overload
def load_pretrained(name: Literal["vae-omniglot28"]) -> tuple[models.VAE, guides.VAEGuide]: ...
@overload
def load_pretrained(name: Literal["vma-omniglot28"]) -> tuple[models.VMA, guides.VMAGuide]: ...
@overload
def load_pretrained(name: Diffusion) -> tuple[models.DiffusionBase, guides.DiffusionBaseGuide]: ...
@overload
def load_pretrained(name: Drawn) -> tuple[models.Addressed, guides.AddressedGuide]: ...
@overload
def load_pretrained(name: Sets) -> tuple[models.VSM, guides.VSMGuide]: ...
@overload
def load_pretrained(name: Titans) -> tuple[models.SequenceModel, guides.EmptyGuide]: ...
@overload
def load_pretrained(name: Cached) -> tuple[models.CachedTitans, guides.CachedTitansGuide]: ...
@overload
def load_pretrained(name: Forecasters) -> tuple[models.PatchForecaster, guides.EmptyGuide]: ...
@overload
def load_pretrained(name: str, folder: str | Path = FOLDER) -> tuple[Any, Any]: ...
@checked
def load_pretrained(name: str, folder: str | Path = FOLDER) -> tuple[Any, Any]:
    """Builds a pair and gives it its trained weights, in evaluation mode; needs no network.

    Weights are kept in half precision where that holds them (``save_pretrained``) and come in torch's default dtype.

    Args:
        name: one of ``pretrained()``.
        folder: where its card and safetensors file lie.

    Raises:
        ValueError: for an unknown name, a folder without weights, a damaged card, and where the file is not the one
            that the card describes.

    Example::

        model, guide = pyro_memory.load_pretrained("vma-omniglot28")
    """
    card, tensors = _read(name, folder)
    pair = apart(_loaded(name, card.build, tensors, {}))
    return pair["model"].eval(), pair["guide"].eval()


@checked
def load_memory(name: str, folder: str | Path = FOLDER) -> StructuredMemory:
    """Gives the stores that a pair was saved with: what a ``VSM`` had learned of concepts, and its last episodes.

    Args:
        name, folder: as of ``load_pretrained``.

    Raises:
        ValueError: likewise, and if the pair was saved without stores.

    Example::

        model, guide = load_pretrained("vsm-vae-omniglot")
        x, support = SetTasks(glyphs("evaluation"), tasks=4, shots=5)[0]
        memory = remember(model.recall, load_memory("vsm-vae-omniglot"), support)
        new = model.generate(support, memory, 10)  # ten images of each task's letter
    """
    if (stores := _memory(_read(name, folder)[1])) is None:
        raise ValueError(f"{name} was saved without a memory; it reads the one that you give it")
    return stores


@checked
def load(path: str | Path, own: Sequence[type] = ()) -> tuple[Any, Any, Any]:
    """Builds a pair from its file alone, with its trained weights, in evaluation mode: ``(model, guide, stores)``.

    Takes a file of ``save``, a checkpoint of ``fit``, the card or the weights of ``save_pretrained``, and the name of
    weights that came with the package. Stores are None where the file has none. What was frozen is frozen; random
    streams stay as they are. A module that was given its ``name=`` keeps it unless one of this process has it; one with
    a ``PyroSample`` keeps it always, as sites are called by it, and a warning tells where Pyro's store may mix the two.

    Only classes that this package exports, those of ``torch.nn`` and those of ``own`` are ever built, whatever a file
    says, and nothing is imported or unpickled for it.

    Args:
        path: the file, or one of ``pretrained()``.
        own: the classes of yours that the pair was built of, as they are decorated with ``rebuildable``.

    Raises:
        ValueError: if the file is damaged or none of these, does not tell how its pair was built (it says why), or was
            built of classes that are not here.
        FileNotFoundError: if there is none.

    Example::

        fit(model, guide, tasks, VIMCO(), steps=1000, checkpoint="run.safetensors")
        model, guide, memory = load("run.safetensors")
    """
    path = Path(path)
    if not path.exists() and path.parent == Path() and path.name in pretrained():
        path = FOLDER / f"{path.name}.json"
    card = path.with_suffix(".json") if path.suffix == ".safetensors" and not _is_checkpoint(path) else path
    if path.exists() and card.suffix == ".json" and card.is_file() and read_card(card) is not None:
        told, tensors = _read(card.stem, card.parent)
        pair = apart(_loaded(card.stem, told.build, tensors, own_classes(own)))
        return pair["model"].eval(), pair["guide"].eval(), _memory(tensors)
    if not path.exists():
        raise FileNotFoundError(
            f"`path` must be a file, or one of {', '.join(pretrained())}; there is no {path}, seen from {Path.cwd()}"
        )
    if path.is_file() and path.suffix == ".json":
        remedy = f"Give {path.with_suffix('')}" if path.with_suffix("").is_file() else "Give the safetensors file"
        raise ValueError(f"`path` must be a checkpoint, a pair or its card; {path} tells of one. {remedy}")
    return rebuild(path, own)


def _is_checkpoint(path: Path) -> bool:
    try:
        return bool(read_header(path))
    except (ValueError, OSError, RecursionError):
        return False


def _memory(tensors: Mapping[str, Tensor]) -> StructuredMemory | None:
    stores = {k.removeprefix(MEMORY): t for k, t in tensors.items() if k.startswith(MEMORY)}
    return StructuredMemory.from_tensors(stores) if stores else None


@checked
def save_pretrained(
    name: str,
    model: nn.Module,
    guide: nn.Module,
    *,
    build: Mapping[str, Any] | None = None,
    facts: Mapping[str, Any],
    folder: str | Path,
    memory: StructuredMemory | None = None,
) -> Card:
    """Writes a pair's weights in half precision and their card, and checks that they load as they were.

    A tensor is kept in half precision if that leaves each value within a thousandth of itself, or of its tensor's root
    mean square, and makes none zero; in more bits otherwise. After a crash at any point the old pair loads, or the new
    one: its weights lie under ``<name>.safetensors.new`` until the card is there.

    Args:
        name: of the two files, without a folder.
        build: for "model" and "guide" the constructor and its arguments, see ``Card``; by default as they were built,
            see ``save``. A part that both use is written once.
        facts: about, data, licence, protocol, numbers, training, and what else the card should tell. The commit is that
            of the running script's repository, unless it is given.
        folder: where to write.
        memory: the stores that belong to the pair, for ``load_memory``.

    Raises:
        ValueError: if a fact is missing, a weight is not finite, JSON cannot hold ``facts`` or ``build``, these do
            not build the modules, no file can tell how these were built, or a file of that name is no card. Nothing is
            written then.
    """
    folder = Path(folder)
    path = folder / f"{name}.json"
    if Path(name).name != name:
        raise ValueError(f"`name` must be that of a file, without a folder; got {name!r}")
    old = read_card(path) if path.exists() else None
    if path.exists() and old is None:
        raise ValueError(f"`name` must be free, or that of a card; {path} is another file. Choose another name")
    facts = {"commit": commit()} | dict(facts)
    if missing := [key for key in FACTS if key not in facts]:
        raise ValueError(f"`facts` must tell {', '.join(FACTS)}; missing: {', '.join(missing)}")
    told_of = _description(model, guide) if build is None else Description(dict(build))
    try:
        facts, build = json.loads(json.dumps([facts, told_of.build]))
    except (TypeError, ValueError) as error:
        raise ValueError(f"`facts` and `build` must be what JSON can hold: {error}") from error
    pair = nn.ModuleDict({"model": model, "guide": guide})
    weights = pair.state_dict()
    kept = {key: weights[key] for key, first in _first_names(pair).items() if key == first}
    kept |= {f"{MEMORY}{k}": t for k, t in ({} if memory is None else memory.to_tensors()).items()}
    if infinite := [k for k, t in kept.items() if t.is_floating_point() and not bool(t.isfinite().all())]:
        raise ValueError(f"weights must be finite to be saved; {infinite[0]} holds NaN or infinity")
    exact = {k: t.cpu().contiguous() for k, t in told_of.tensors.items()}
    content = save({k: fewest_bits(t) for k, t in kept.items()} | exact)
    twin = _loaded(name, build, opened(content), told_of.own)
    given, made = (dict(p.named_buffers(remove_duplicate=False)) | p.state_dict() for p in (pair, twin))
    like = {k for k, t in made.items() if k in given and t.shape == given[k].shape and holds(given[k].detach(), t)}
    if different := [k for k in made if k not in like]:
        raise ValueError(
            f"`build` must share the parts that model and guide share, and no others; {different[0]} differs. A buffer "
            "that a constructor draws must be persistent"
        )
    card = {"facts": facts, "build": build, "sha256": hashlib.sha256(content).hexdigest()}
    told = json.dumps(card | {"check": checksum(card)}, indent=1) + "\n"
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"`folder` must be a folder; {folder} is a file")
    folder.mkdir(parents=True, exist_ok=True)
    weights_file, new = (folder / f"{name}.safetensors{suffix}" for suffix in ("", NEW))
    if old is not None and _described(new, old):  # an earlier call ended when it had replaced the card
        new.replace(weights_file)
    replace_file(new, lambda temporary: temporary.write_bytes(content))
    replace_file(path, lambda temporary: temporary.write_text(told))
    new.replace(weights_file)
    return Card(name, **card)


def _read(name: str, folder: str | Path) -> tuple[Card, dict[str, Tensor]]:
    """A card and its tensors."""
    path = Path(folder) / f"{name}.safetensors"
    told = path.with_name(f"{name}.json")
    card = read_card(told) if told.is_file() else None
    if card is None:
        if not (known := pretrained(folder)):
            raise ValueError(f"`folder` must hold weights with their cards; {folder} has none")
        raise ValueError(f"`name` must be one of {', '.join(known)}; got {name!r}")
    for place in (path, path.with_name(path.name + NEW)):
        if content := _described(place, card):
            return card, opened(content)
    raise ValueError(f"{path} is not the file that its card describes: it is missing or damaged. Install it again")


def _described(path: Path, card: Card) -> bytes | None:
    """The content of a file, if it is what the card describes."""
    content = path.read_bytes() if path.exists() else b""
    return content if hashlib.sha256(content).hexdigest() == card.sha256 else None


def _first_names(pair: nn.Module) -> dict[str, str]:
    """For the name of each weight the first name of the same tensor: what model and guide share has two."""
    first: dict[int, str] = {}
    return {key: first.setdefault(id(tensor), key) for key, tensor in pair.state_dict(keep_vars=True).items()}


def _loaded(name: str, build: Mapping[str, Any], tensors: Mapping[str, Tensor], own: Mapping[str, type]) -> Any:
    """Builds a pair and gives it its weights."""
    weights = {k: t for k, t in tensors.items() if not k.startswith((MEMORY, BUILD))}
    try:
        pair = make(build, tensors, own)
        pair.load_state_dict(
            weights | {key: weights[first] for key, first in _first_names(pair).items() if first in weights}
        )
    except (RuntimeError, LookupError, AttributeError, TypeError) as error:
        raise ValueError(f"`{name}` was saved from other modules than its `build` makes here: {error}") from error
    return pair


def _description(model: nn.Module, guide: nn.Module) -> Description:
    try:
        return recorded_build(model, guide)
    except NotRebuildable as error:
        raise ValueError(f"`build` must be given, as the modules do not tell it: {error}") from error
