"""The optimizer of a run: made from what a user gives, and its state by the names of the parameters."""

from __future__ import annotations

import inspect
import json
import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from pyro.optim import PyroOptim
from torch import Tensor

from pyro_memory.gate import told

OF_FIT = {"params", "lr", "initial_lr"}  # what each step sets
OF_SPEED = {"fused", "foreach", "capturable", "differentiable"}  # what changes no result
WANTED = "`optimizer` must be a class, or a partial of one, that `fit` calls with the parameters and `lr=`"


@runtime_checkable
class OptimizerMaker(Protocol):
    """Makes an optimizer: a torch optimizer class, or a partial of one."""

    def __call__(self, params: Any, /, *, lr: float) -> torch.optim.Optimizer: ...


def make_optimizer(optimizer: OptimizerMaker, parameters: list[Tensor], learning_rate: float) -> torch.optim.Optimizer:
    """Makes the optimizer, fused where torch can."""
    _check_maker(optimizer)
    # One fused kernel over all parameters is what brings a Pyro step to the speed of plain torch.
    places = {(p.dtype, p.device.type, p.device.index) for p in parameters}
    fusible = optimizer in (torch.optim.Adam, torch.optim.AdamW) and len(places) == 1
    if fusible and next(iter(places))[:2] in {(torch.float32, "cpu"), (torch.float32, "cuda")}:
        return partial(optimizer, fused=True)(parameters, lr=learning_rate)
    try:
        made = optimizer(parameters, lr=learning_rate)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{WANTED}; that call fails: {error}. Look at its options") from error
    if not isinstance(made, torch.optim.Optimizer):
        raise ValueError(f"`optimizer` must make a torch optimizer; it made a {type(made).__name__}")
    closure = inspect.signature(made.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise ValueError(
            f"`optimizer` must take its step from gradients that are there; {type(made).__name__} computes the loss "
            "anew, several times a step, which an estimated bound does not allow. Use torch.optim.Adam"
        )
    return made


def _check_maker(optimizer: Any) -> None:
    if isinstance(optimizer, torch.optim.Optimizer):
        kind = type(optimizer).__name__
        raise TypeError(
            f"{WANTED}; got an instance of {kind}: give the class, its rate as `learning_rate` and other options by "
            f"functools.partial({kind}, ...)"
        )
    maker = inspect.isfunction(optimizer) and optimizer.__module__.startswith("pyro.optim")
    if isinstance(optimizer, PyroOptim) or maker:
        raise TypeError(
            f"{WANTED}; got one of pyro.optim, which steps each parameter alone: give the class of torch.optim, its "
            "rate as `learning_rate`"
        )
    if isinstance(optimizer, partial) and "lr" in optimizer.keywords:
        raise ValueError(f"`optimizer` must leave the rate to `learning_rate`; got lr={optimizer.keywords['lr']} in it")
    if not callable(optimizer):
        raise TypeError(f"{WANTED}, such as torch.optim.Adam; got {told(optimizer)}")


def parameter_names(optimizer: torch.optim.Optimizer, weights: Mapping[str, Tensor]) -> list[str]:
    """Names the optimizer's parameters in its order: as the weights that they are, or by position."""
    names: dict[int, str] = {}
    for name, weight in weights.items():
        names.setdefault(id(weight), name)
    held = [p for group in optimizer.param_groups for p in group["params"]]
    return [names.get(id(p), f"#{i}") for i, p in enumerate(held)]


def optimizer_options(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """The options of each group, as JSON gives them back; without the rate, which ``fit`` sets at each step."""
    groups = [{k: v for k, v in g.items() if k not in OF_FIT | OF_SPEED} for g in optimizer.param_groups]
    return json.loads(json.dumps(groups, default=str))


def optimizer_state(
    optimizer: torch.optim.Optimizer | None, names: list[str]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state as flat tensors and scalars, ``optimizer.<parameter>.<key>``."""
    state = {} if optimizer is None else optimizer.state_dict()["state"]
    flat = {f"optimizer.{names[i]}.{key}": value for i, entry in state.items() for key, value in entry.items()}
    tensors = {key: value for key, value in flat.items() if isinstance(value, Tensor)}
    return tensors, {key: value for key, value in flat.items() if key not in tensors}


def matched_state(
    path: str | Path,
    header: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    names: list[str],
) -> dict[int, dict[str, Any]]:
    """The saved state for each parameter of the optimizer; says what differs, and changes nothing.

    Raises:
        ValueError: for an optimizer of another class, or a file of format 1 whose positions do not fit.
    """
    own = type(optimizer).__name__
    if header["optimizer"] != own:
        raise ValueError(
            f"`optimizer` must be {header['optimizer']}, as in `{path}`; got {own}. To change it, start from "
            "`load_weights` with another checkpoint path"
        )
    saved: dict[str, dict[str, Any]] = {}
    for name, value in (dict(tensors) | header["optimizer_scalars"]).items():
        if name.startswith("optimizer."):
            parameter, _, key = name.removeprefix("optimizer.").rpartition(".")
            saved.setdefault(parameter, {})[key] = value
    if header["format"] == 1:
        return _by_position(path, saved, optimizer)
    _tell_differences(path, header, optimizer, names)
    return {i: saved[name] for i, name in enumerate(names) if name in saved}


def _by_position(
    path: str | Path, saved: Mapping[str, dict[str, Any]], optimizer: torch.optim.Optimizer
) -> dict[int, dict[str, Any]]:
    """The state of a file that knows parameters by their position only, if these can be the same ones."""
    held = [p for group in optimizer.param_groups for p in group["params"]]
    state = {int(index): entry for index, entry in saved.items()}
    fits = not state or max(state) == len(held) - 1
    fits = fits and all(
        value.shape in ((), held[i].shape)
        for i, entry in state.items()
        for value in entry.values()
        if isinstance(value, Tensor)
    )
    if not fits:
        raise ValueError(
            f"`{path}` (format 1) holds the optimizer's state by position, for other parameters than the {len(held)} "
            "that train here. Freeze what was frozen then, or start from `load_weights` with another checkpoint path"
        )
    return state


def _tell_differences(
    path: str | Path, header: Mapping[str, Any], optimizer: torch.optim.Optimizer, names: list[str]
) -> None:
    known, options = header["optimizer_parameters"], optimizer_options(optimizer)
    told = []
    if new := [name for name in names if name not in known]:
        told.append(f"it did not train {_some(new)}, whose optimizer state starts fresh")
    if gone := [name for name in known if name not in names]:
        told.append(f"it trained {_some(gone)}, frozen here, whose optimizer state is dropped")
    if len(options) != len(header["optimizer_options"]):
        told.append(f"it had {len(header['optimizer_options'])} groups of parameters, {len(options)} here")
    else:
        changed = {
            f"{key} was {old.get(key)}, is {value}"
            for old, new_group in zip(header["optimizer_options"], options, strict=True)
            for key, value in new_group.items()
            if old.get(key) != value
        }
        told += sorted(changed)
    if told:
        warnings.warn(
            f"`{path}` goes on with another {type(optimizer).__name__} than wrote it: {'; '.join(told)}", stacklevel=2
        )


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
