"""The weights of model and guide, and those of a file that go with them."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

BUFFERS = "buffers."
OF_AN_INDEX = re.compile(r"\.then\.(weight_\d+|calls|print)$")


def module_of(program: Callable[..., Any]) -> nn.Module | None:
    """Finds the module whose parameters a model or guide uses: itself, the owner of a method, or none."""
    owner = getattr(program, "__self__", program)
    return owner if isinstance(owner, nn.Module) else None


def kind_of(program: Callable[..., Any]) -> str:
    module = module_of(program)
    return "function" if module is None else type(module).__name__


def weights_of(model: Callable[..., Any], guide: Callable[..., Any]) -> dict[str, Tensor]:
    modules = {"model": module_of(model), "guide": module_of(guide)}
    return {
        f"{role}.{key}": value
        for role, module in modules.items()
        if module is not None
        for key, value in module.state_dict(keep_vars=True).items()
    }


def buffers_of(model: Callable[..., Any], guide: Callable[..., Any]) -> dict[str, Tensor]:
    """The buffers that are no weights: constructors make them, in the default dtype of their process, or draw them."""
    modules = {"model": module_of(model), "guide": module_of(guide)}
    weights = weights_of(model, guide)
    return {
        f"{BUFFERS}{role}.{key}": value
        for role, module in modules.items()
        if module is not None
        for key, value in module.named_buffers(remove_duplicate=False)
        if f"{role}.{key}" not in weights
    }


def matched(path, header, tensors, model, guide) -> list[tuple[Tensor, Tensor]]:
    """Pairs each weight of model and guide with its saved value, before anything is changed."""
    own = weights_of(model, guide)
    saved = {k: t for k, t in tensors.items() if k.startswith(("model.", "guide."))}
    without = {k for k in own.keys() ^ saved.keys() if OF_AN_INDEX.search(k)}  # one of both has an index, one none
    own, saved = ({k: t for k, t in side.items() if k not in without} for side in (own, saved))
    differences = [
        f"{role} is a {header[role]} in the file, a {kind_of(program)} here"
        for role, program in (("model", model), ("guide", guide))
        if header[role] != kind_of(program) and any(key.startswith(f"{role}.") for key in own | saved)
    ]
    differences += [f"{key} is missing in the file" for key in own if key not in saved]
    differences += [f"{key} is only in the file" for key in saved if key not in own]
    differences += [
        f"{key} is {_looks(saved[key])} in the file, {_looks(own[key])} here"
        for key in own
        if key in saved and _looks(saved[key]) != _looks(own[key])
    ]
    if differences:
        more = f"; and {len(differences) - 5} more" if len(differences) > 5 else ""
        raise ValueError(
            f"`{path}` holds another model: {'; '.join(differences[:5])}{more}. Build `model` and `guide` as they were "
            "saved (call a guide with lazy parameters once), or train anew with another path or `resume=False`"
        )
    return [(own[key], saved[key]) for key in own]


def _looks(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"


@torch.no_grad()
def copy(pairs: list[tuple[Tensor, Tensor]]) -> None:
    # In place, for optimizers, tied modules and Pyro's parameter store hold these very tensors.
    for own, saved in pairs:
        own.copy_(saved)
