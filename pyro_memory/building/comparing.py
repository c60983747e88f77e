"""Whether a module is still what its record says: the pair is built again and compared."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from types import FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Transform
from torch.distributions.constraints import Constraint

from pyro_memory.building.describing import Description, describe
from pyro_memory.building.making import make
from pyro_memory.building.names import NotRebuildable
from pyro_memory.gate import told

PLAIN = (bool, int, float, str, type(None))
PASSED = {*vars(nn.Module()), "_compiled_call_impl", "_pyro_name", "_pyro_context"}  # told otherwise, or no part
LONGEST = 100  # of a text in an error
_last: list[Any] = []  # what was found right, so that a run does not build its pair at each checkpoint


def recorded_build(model: nn.Module, guide: nn.Module) -> Description:
    """Tells how a pair was built, after building it again and comparing: classes, attributes, what is shared, ``repr``.

    Values of weights and buffers are not compared: files hold them. Plain attributes that have changed since are told
    too. Cost: as building the pair, in memory for another one; less where the newest pair is asked for again unchanged.

    Raises:
        NotRebuildable: where no file can tell, or the pair was changed since in another way.
    """
    description = describe(model, guide)
    pair = {"model": model, "guide": guide}
    looks = _looks(pair)
    question = [json.dumps(description.build), [*description.own.values()], looks, len(description.tensors)]
    if _last and _last[0] == question:
        description.build["set"] = _last[1]
        return _without_empty(description)
    try:
        twin = make(description.build, description.tensors, description.own)
        built = _looks(dict(twin.items()))
        plain = {k: v for k, v in _plain_of(pair).items() if k.rpartition(".")[0] in built}  # of modules that are there
        changed = {k: v for k, v in plain.items() if looks[k] != built.get(k)}
        description.build["set"] = changed
        again = make({**description.build}, description.tensors, description.own) if changed else twin
    except Exception as error:  # a user's constructor may raise anything
        raise NotRebuildable(f"it cannot be built again by its record: {error}") from error
    _compare(looks, _looks(dict(again.items())))
    _last[:] = [question, changed]
    return _without_empty(description)


def _without_empty(description: Description) -> Description:
    if not description.build["set"]:
        del description.build["set"]
    return description


def _compare(looks: dict[str, str], built: dict[str, str]) -> None:
    different = [what for what in [*looks, *built] if looks.get(what) != built.get(what)]
    if different:
        what = different[0]
        here, there = (side.get(what, "not there") for side in (looks, built))
        part = next((i for i, (a, b) in enumerate(zip(here, there, strict=False)) if a != b), 0)
        start = max(0, part - LONGEST // 2)  # long texts are shown where they part
        here, there = ("..." * (start > 0) + text[start : start + LONGEST] for text in (here, there))
        raise NotRebuildable(
            f"{what} is {here}, and {there} where it is built again: it was changed after it was built, or is drawn at "
            "random by a constructor. Give it to the constructor, or make it a buffer"
        )


def _looks(pair: dict[str, nn.Module]) -> dict[str, str]:
    """What is compared, in the order in which a difference is told."""
    looks: dict[str, str] = {}
    first: dict[int, str] = {}
    for role, root in pair.items():
        for path, module in root.named_modules():
            name = f"{role}.{path}".rstrip(".")
            first.setdefault(id(module), name)
            looks[name] = _kind(type(module))
    for role, root in pair.items():
        weights = dict(root.named_buffers(remove_duplicate=False)) | root.state_dict(keep_vars=True)
        for key, tensor in weights.items():
            name = f"{role}.{key}"
            if not isinstance(tensor, Tensor):  # what `get_extra_state` gives
                continue
            same = first.setdefault(id(tensor), name)
            kind = "the parameter" if isinstance(tensor, nn.Parameter) else "the buffer"
            looks[f"the weight {name}"] = f"{kind} {same} of shape {list(tensor.shape)}"
    for role, root in pair.items():
        for path, module in root.named_modules():
            kept = {name: value for name, value in vars(module).items() if name not in PASSED}
            looks |= {f"{role}.{path}.{name}".replace("..", "."): _look(v, first) for name, v in kept.items()}
        hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in root.modules())
        looks[f"the number of hooks in {role}"] = str(hooks)
        looks[f"the text of {role}"] = repr(root)
    return looks


def _look(value: Any, known: Mapping[int, str]) -> str:
    """What an attribute is, by its value; what is a part, a weight or a buffer, by its name."""
    if id(value) in known and isinstance(value, (nn.Module, Tensor)):
        return known[id(value)]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, PLAIN):
        return repr(value)
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        value = torch.from_numpy(value)
    if isinstance(value, Tensor):
        return _tensor(value)
    if isinstance(value, (list, tuple)):
        return f"{type(value).__name__}({', '.join(_look(item, known) for item in value)})"
    if isinstance(value, Mapping):
        items = (f"{key!r}: {_look(item, known)}" for key, item in value.items())
        return f"{type(value).__name__}({', '.join(items)})"
    if isinstance(value, FunctionType):
        return repr(value.__code__)
    if isinstance(value, nn.Module):  # no part, as it is in a list
        return f"{_kind(type(value))} of {_look(value.state_dict(), known)}"
    if isinstance(value, Distribution):
        given = {name: getattr(value, name) for name in sorted(value.arg_constraints)} | vars(value)
        return f"{_kind(type(value))} of {_look(dict(sorted(given.items())), known)}"
    if isinstance(value, (Constraint, Transform)):
        given = {name: item for name, item in vars(value).items() if not name.startswith("_")}
        return f"{_kind(type(value))} of {_look(given, known)}"
    return _kind(type(value))


def _tensor(tensor: Tensor) -> str:
    if tensor.is_meta or tensor.layout is not torch.strided:
        return told(tensor)
    content = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    return f"{told(tensor)} with checksum {hashlib.sha256(content).hexdigest()[:8]}"


def _kind(kind: type) -> str:
    inside = kind.__module__.startswith("pyro_memory.")
    return f"a {kind.__qualname__}" if inside else f"a {kind.__module__}.{kind.__qualname__}"


def _plain_of(pair: dict[str, nn.Module]) -> dict[str, Any]:
    """The public attributes that are numbers, texts, flags or None."""
    return {
        f"{role}.{path}.{name}".replace("..", "."): value
        for role, root in pair.items()
        for path, module in root.named_modules()
        for name, value in vars(module).items()
        if type(value) in PLAIN and not name.startswith("_") and name != "training"
    }
