"""A trained pair in one file, and back from the file alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pyro_memory.building import own_classes
from pyro_memory.gate import checked
from pyro_memory.training.built import built_of, pair_of, stores_in
from pyro_memory.training.checkpoints import read, write_checkpoint
from pyro_memory.training.matching import copy, matched, module_of


@checked
def save(path: str | Path, model: Callable[..., Any], guide: Callable[..., Any], stores: Any = None) -> Path:
    """Writes a pair to one file, from which ``load`` builds it again without being told its sizes.

    The file is a checkpoint without an optimizer: weights in full precision, how model and guide were built, what of
    them is frozen, and the stores. After a crash the old file is there, or the new one. Cost: the pair is built once
    more in memory and compared, so that what was changed after it was built is found.

    Args:
        path: the safetensors file; its folder is made where it is missing.
        model: a module of this package, of torch.nn, or of a class decorated with ``rebuildable``; or a method of one.
        guide: likewise. What both share is written once, and shared again.
        stores: what the pair reads or writes: any store with ``to_tensors``, or the state of a sequence model. Of a
            ``MappedMemory``, which is in files already, the folder's path is kept.

    Raises:
        ValueError: if no file can tell how the pair was built (a lambda, a class without a record, a part put in
            another's place afterwards), the stores cannot be kept, or ``path`` is a folder. Nothing is written then.
        OSError: if the file cannot be written; what was there before stays.

    Example::

        save("letters.safetensors", model, guide, memory)
        model, guide, memory = load("letters.safetensors")
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"`path` must be a file; got the folder {path}. Give {path / 'pair.safetensors'}")
    if reason := built_of(model, guide).header.get("not_rebuildable"):
        raise ValueError(
            f"`model` and `guide` cannot be built again from a file: {reason}. `save_checkpoint` writes the weights "
            "alone, for `load_weights` into a pair that you build"
        )
    write_checkpoint(path, model, guide, None, step=0, record=None, batches=None, stores=stores)
    return path


@checked
def rebuild(path: str | Path, own: Sequence[type] = ()) -> tuple[Any, Any, Any]:
    """Builds the pair of a checkpoint, in evaluation mode, and gives it with its stores: what ``load`` does of one."""
    path = Path(path)
    try:
        header, tensors = read(path)
    except RecursionError as error:
        raise ValueError(f"`{path}` is not a checkpoint: its header is nested too deeply. Restore a copy") from error
    model, guide = pair_of(path, header, tensors, own_classes(own))
    copy(matched(path, header, tensors, model, guide))
    for program in (model, guide):
        module_of(program).eval()
    return model, guide, stores_in(path, header, tensors, model)
