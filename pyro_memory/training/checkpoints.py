"""Checkpoints of a training run: one safetensors file, replaced atomically, read without pickle."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch
from safetensors import SafetensorError
from torch import Tensor

from pyro_memory.gate import checked
from pyro_memory.stores import replace_file
from pyro_memory.training.built import built_of, stores_of
from pyro_memory.training.matching import copy, kind_of, matched, weights_of
from pyro_memory.training.optimizers import matched_state, optimizer_options, optimizer_state, parameter_names
from pyro_memory.training.seal import SEAL, Damaged, load_file, save_file
from pyro_memory.training.summary import HEADER, Header, write_summary

FORMAT = 2
READABLE = (1, 2)  # 1 has no checksums, and the optimizer's state by position


@checked
def random_state() -> dict[str, Any]:
    """Reads the global random states of torch (each device), Python and NumPy."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return pyro.util.get_rng_state() | {"cuda": cuda}


@checked
def restore_random_state(state: Mapping[str, Any]) -> None:
    """Sets what ``random_state`` read; states of devices that this machine lacks are left out."""
    pyro.util.set_rng_state(state)
    for index, device_state in enumerate(state["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(device_state, index)


@checked
def save_checkpoint(
    path: str | Path,
    model: Callable[..., Any],
    guide: Callable[..., Any],
    optimizer: torch.optim.Optimizer | None = None,
    *,
    step: int = 0,
    record: Mapping[str, Any] | None = None,
    batches: Mapping[str, Tensor] | None = None,
) -> Path:
    """Writes weights, optimizer state and random states to one file, so that a crash leaves the old file or the new.

    The file also tells how model and guide were built, or why no file can: ``load`` builds them again from it alone.

    Beside it ``<name>.json`` (``run.safetensors.json``) repeats step and record for people; loading never reads it, and
    a file of that name which is not such a summary stays as it is, with a warning. Parameters shared by model and guide
    are written under each of their names. The file has checksums and the mode that the umask gives. Cost: two copies
    of weights and optimizer state in host memory; the first time also building the pair once more, see ``save``.

    Args:
        path: the safetensors file; its folder is made where it is missing.
        model: a module, a method of one, or a plain function, which has no weights.
        guide: likewise.
        optimizer: the torch optimizer whose state is kept, by the names of its parameters.
        step: the number of optimizer steps taken.
        record: anything JSON can hold: hyperparameters, history.
        batches: the state of the source of batches, where it has one; a resumed run gets it back.

    Raises:
        ValueError: if ``path`` is a folder.
        OSError: if the file cannot be written; what was there before stays.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"`path` must be a file; got the folder {path}. Give {path / 'run.safetensors'}")
    summary = write_checkpoint(path, model, guide, optimizer, step=step, record=record, batches=batches)
    if trouble := write_summary(path, summary):
        warnings.warn(trouble, stacklevel=2)
    return path


def write_checkpoint(
    path: Path,
    model: Callable[..., Any],
    guide: Callable[..., Any],
    optimizer: torch.optim.Optimizer | None,
    *,
    step: int,
    record: Mapping[str, Any] | None,
    batches: Mapping[str, Tensor] | None,
    stores: Any = None,
) -> dict[str, Any]:
    """Writes the file itself, as ``save_checkpoint`` says, and gives its summary.

    Args:
        stores: what model and guide read at each step, for ``load``.
    """
    built, kept = built_of(model, guide), stores_of(stores)
    weights = weights_of(model, guide)
    names = [] if optimizer is None else parameter_names(optimizer, weights)
    state, scalars = optimizer_state(optimizer, names)
    rng = random_state()
    rng_tensors = {"random.torch": rng["torch"]} | {f"random.cuda.{i}": s for i, s in enumerate(rng["cuda"])}
    source = {f"batches.{key}": tensor for key, tensor in (batches or {}).items()}
    all_tensors = weights | state | rng_tensors | source | built.tensors | kept.tensors
    if empty := [key for key, tensor in all_tensors.items() if tensor.is_meta]:
        raise ValueError(
            f"`{empty[0].partition('.')[0]}` must hold values; {empty[0]} is on the meta device, without any"
        )
    # Clones, for safetensors refuses tensors that share memory.
    tensors = {
        key: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for key, tensor in all_tensors.items()
    }
    kind, keys, *rest = rng["numpy"]
    summary = {
        "format": FORMAT,
        "step": step,
        "model": kind_of(model),
        "guide": kind_of(guide),
        "optimizer": None if optimizer is None else type(optimizer).__name__,
        "record": dict(record or {}),
    }
    states = {
        "optimizer_parameters": names,
        "optimizer_options": None if optimizer is None else optimizer_options(optimizer),
        "optimizer_scalars": scalars,
        "python": rng["random"],
        "numpy": [kind, keys.tolist(), *rest],
    }
    states |= built.header | kept.header
    for name, part in (("record", summary), ("optimizer", states)):
        try:
            json.dumps(part)
        except TypeError as error:
            raise ValueError(f"`{name}` must hold what JSON can: numbers, texts, lists, dicts ({error})") from error
    metadata = {HEADER: json.dumps(summary | states)}
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, lambda temporary: save_file(tensors, temporary, metadata))
    return summary


@checked
def load_checkpoint(
    path: str | Path,
    model: Callable[..., Any],
    guide: Callable[..., Any],
    optimizer: torch.optim.Optimizer | None = None,
) -> dict[str, Any]:
    """Restores a training run: weights in place, optimizer state, and the global random states.

    The optimizer keeps its own hyperparameters; only its state is read, by the names of the parameters. One that did
    not train then starts fresh, the state of one that is frozen now is dropped, and a warning tells both, as it does
    other options than those of the file (the rate apart).

    Args:
        path: a file that ``save_checkpoint`` wrote.
        model: built as the one that was saved.
        guide: likewise; one that makes its parameters lazily must have been called once.
        optimizer: of the class that was saved; in a file of format 1, over the same parameters in the same order.

    Returns:
        The file's header: ``step``, ``record`` and class names.

    Raises:
        ValueError: if the file is damaged or holds another model, guide or optimizer. Nothing has changed then.
        FileNotFoundError: if there is none.
    """
    return restore(path, read(path), model, guide, optimizer)


def restore(path, content, model, guide, optimizer) -> dict[str, Any]:
    """Restores a run as ``load_checkpoint`` does, from what ``read`` gave: another process may write the file since."""
    header, tensors = content
    pairs = matched(path, header, tensors, model, guide)
    if optimizer is not None:
        names = parameter_names(optimizer, weights_of(model, guide))
        state = matched_state(path, header, tensors, optimizer, names)
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    copy(pairs)
    version, words, gauss = header["python"]
    kind, keys, *rest = header["numpy"]
    cuda = [tensors[k] for k in sorted(tensors, key=len) if k.startswith("random.cuda.")]
    restore_random_state(
        {
            "torch": tensors["random.torch"],
            "random": (version, tuple(words), gauss),
            "numpy": (kind, np.array(keys, dtype=np.uint32), *rest),
            "cuda": cuda,
        }
    )
    return header


@checked
def load_weights(path: str | Path, model: Callable[..., Any], guide: Callable[..., Any]) -> dict[str, Any]:
    """Copies the weights of a checkpoint into model and guide, and touches nothing else.

    Arguments, result and errors are those of ``load_checkpoint``.
    """
    header, tensors = read(path)
    copy(matched(path, header, tensors, model, guide))
    return header


def batches_of(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state of the source of batches among a checkpoint's tensors, empty where the run's had none."""
    return {k.removeprefix("batches."): t for k, t in tensors.items() if k.startswith("batches.")}


@checked
def read_header(path: str | Path) -> dict[str, Any]:
    """Reads a checkpoint's step, record and class names, without its tensors: a dict that prints in one line.

    Raises:
        ValueError: if the file is damaged or something else.
        FileNotFoundError: if there is none.
    """
    return read(path, tensors=False)[0]


def read(path: str | Path, *, tensors: bool = True) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Reads a checkpoint's header and tensors."""
    if os.path.isdir(path):
        raise ValueError(f"`path` must be the file of a checkpoint; `{path}` is a folder. Name the file in it")
    if not os.path.exists(path):
        raise FileNotFoundError(
            f"`path` must be a file that `fit` or `save_checkpoint` wrote; there is none at `{path}`. Look at its "
            f"name, seen from {os.getcwd()}"
        )
    try:
        metadata, content = load_file(path, tensors=tensors)
        header = Header(json.loads(metadata[HEADER]))
        if header["format"] != 1 and SEAL not in metadata:
            raise Damaged("its checksums are missing")
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f"`{path}` is not a whole pyro-memory checkpoint: it is another file, or damaged ({error}). If a run wrote "
            "it, restore a copy; if not, give another name"
        ) from error
    if header["format"] not in READABLE:
        raise ValueError(
            f"`{path}` must have format {' or '.join(map(str, READABLE))}; got {header['format']}: another version "
            "wrote it"
        )
    return header, content
