"""What a checkpoint tells beside weights: how model and guide were built, and the stores that belong to them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pyro_memory.building import NotRebuildable, apart, make, recorded_build
from pyro_memory.gate import told
from pyro_memory.stores import ConceptMemory, EpisodicMemory, MappedMemory, ShardedMemory, SlotMemory, StructuredMemory
from pyro_memory.training.matching import BUFFERS, buffers_of, module_of, weights_of

STORES = "stores."
KINDS = {kind.__name__: kind for kind in (ConceptMemory, EpisodicMemory, SlotMemory, StructuredMemory)}


@dataclass(frozen=True)
class Built:
    """What the header tells, and the tensors that go with it."""

    header: dict[str, Any]
    tensors: dict[str, Tensor]


def built_of(model: Callable[..., Any], guide: Callable[..., Any]) -> Built:
    """Tells how a pair was built, or why no file can, and what of it is frozen."""
    weights = weights_of(model, guide)
    frozen = [key for key, t in weights.items() if isinstance(t, nn.Parameter) and not t.requires_grad]
    try:
        methods = {role: _method(role, program) for role, program in (("model", model), ("guide", guide))}
        description = recorded_build(module_of(model), module_of(guide))
    except Exception as error:  # whatever a user's classes do: the weights of a run are written all the same
        reason = str(error) if isinstance(error, NotRebuildable) else f"{type(error).__name__}: {error}"
        return Built({"build": None, "not_rebuildable": reason, "frozen": frozen}, {})
    named = {role: name for role, name in methods.items() if name}
    build = description.build | ({"methods": named} if named else {})
    return Built({"build": build, "frozen": frozen}, description.tensors | buffers_of(model, guide))


def _method(role: str, program: Callable[..., Any]) -> str | None:
    """The name of a method of a module; None for a module."""
    if isinstance(program, nn.Module):
        return None
    if module_of(program) is None or not inspect.ismethod(program):
        remedy = "EmptyGuide() is one without latents" if role == "guide" else "write it as `forward` of a module"
        raise NotRebuildable(f"`{role}` is {told(program)}, not a module or a method of one: {remedy}")
    return program.__name__


def stores_of(stores: Any) -> Built:
    """Tells of a store and gives its tensors.

    Raises:
        ValueError: for what is no store.
    """
    if stores is None:
        return Built({"stores": None}, {})
    kind = type(stores).__name__
    if isinstance(stores, MappedMemory):
        return Built({"stores": {"kind": kind, "folder": str(Path(stores.folder).resolve())}}, {})
    if isinstance(stores, ShardedMemory):  # the tensors of this process are not the memory
        return Built({"stores": {"kind": kind}}, {})
    if not hasattr(stores, "to_tensors"):
        raise ValueError(
            f"`stores` must be a store with `to_tensors`, such as a SlotMemory or StructuredMemory; got {told(stores)}"
        )
    return Built({"stores": {"kind": kind}}, {f"{STORES}{k}": t for k, t in stores.to_tensors().items()})


def stores_in(path: Path, header: Mapping[str, Any], tensors: Mapping[str, Tensor], model: Any) -> Any:
    """The stores of a file: those that were kept, or those that a ``Lifetime`` had lived to; or None.

    Raises:
        ValueError: for stores that do not lie in the file: files of another folder, or shards of several processes.
    """
    told_of = header.get("stores")
    if told_of is None:
        lived = {k.removeprefix("batches."): t for k, t in tensors.items() if k.startswith("batches.")}
        lived.pop("newest", None)
        lived_stores = lived and all(k.startswith(("concepts.", "episodes.")) for k in lived)
        return StructuredMemory.from_tensors(lived) if lived_stores else None
    kind = told_of["kind"]
    own = {k.removeprefix(STORES): t for k, t in tensors.items() if k.startswith(STORES)}
    if kind in KINDS:
        return KINDS[kind].from_tensors(own)
    if kind == "MappedMemory":
        return _mapped(path, told_of["folder"])
    if hasattr(model, "load_state"):
        return model.load_state(own)
    if hasattr(model, "initial_state"):
        return type(model.initial_state(1)).from_tensors(own)
    raise ValueError(
        f"`{path}` was written with a {kind}, which is not in it: each process saves its own part. Build the pair, "
        "`load_weights` it, and divide the memory again"
    )


def _mapped(path: Path, folder: str) -> MappedMemory:
    places = [Path(folder), path.resolve().parent / Path(folder).name]  # moved together with the file
    there = [place for place in places if (place / "memory.json").is_file()]
    if not there:
        raise ValueError(
            f"`{path}` was written with the MappedMemory of {folder}, which is not there. Put its folder there, or "
            f"beside the file as {places[1].name}"
        )
    return MappedMemory.open(there[0])


def pair_of(path: Path, header: Mapping[str, Any], tensors: Mapping[str, Tensor], own: Mapping[str, type]) -> Any:
    """Builds the pair of a file, its weights still to be copied: in the dtypes of the file, frozen as they were.

    What is a buffer and no weight has its values here already.

    Raises:
        ValueError: where the file does not tell how, or classes have changed since.
    """
    by_hand = "Build the pair by hand, as it was, and copy the weights: `load_weights(path, model, guide)`"
    if "build" not in header:
        raise ValueError(f"`{path}` does not tell how its pair was built: an earlier version wrote it. {by_hand}")
    build = header["build"]
    if build is None:
        raise ValueError(f"`{path}` cannot be built from the file alone: {header['not_rebuildable']}. {by_hand}")
    try:
        pair = apart(make(build, tensors, own))
        buffers = buffers_of(pair["model"], pair["guide"])
        saved = {k: t for k, t in tensors.items() if k.startswith(BUFFERS)}
        if odd := [k for k, t in saved.items() if k not in buffers or buffers[k].shape != t.shape]:
            raise LookupError(f"{odd[0]} is another one")
    except (LookupError, AttributeError, TypeError, RuntimeError) as error:
        raise ValueError(f"`{path}` was built by other classes than are here: {error}. {by_hand}") from error
    for key, mine in weights_of(pair["model"], pair["guide"]).items():
        mine.data = mine.data.to(tensors[key].dtype) if key in tensors else mine.data
        if isinstance(mine, nn.Parameter) and (mine.is_floating_point() or mine.is_complex()):
            mine.requires_grad_(key not in header["frozen"])
    for key, buffer in buffers.items():  # files of earlier versions have none
        buffer.data = saved[key].to(buffer.device) if key in saved else buffer.data
    methods = build.get("methods", {})
    return tuple(_program(pair[role], methods.get(role)) for role in ("model", "guide"))


def _program(module: nn.Module, method: str | None) -> Any:
    if method is None:
        return module
    found = None if method.startswith("_") else getattr(module, method, None)
    if not inspect.ismethod(found):
        raise ValueError(f"`build` must name a method of {told(module)}; got {method!r}")
    return found
