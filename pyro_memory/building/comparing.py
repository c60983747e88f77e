"""Whether a module is still what its record says: the pair is built again and compared."""

from __future__ import annotations

import json
from typing import Any

from torch import nn

from pyro_memory.building.describing import Description, describe
from pyro_memory.building.making import make
from pyro_memory.building.names import NotRebuildable

PLAIN = (bool, int, float, str, type(None))
_last: list[Any] = []  # what was found right, so that a run does not build its pair at each checkpoint


def recorded_build(model: nn.Module, guide: nn.Module) -> Description:
    """Tells how a pair was built, after building it again and comparing: classes, weights, what is shared, ``repr``.

    Plain attributes that have changed since are told too. Cost: as building the pair, in memory for another one; less
    where the newest pair is asked for again unchanged.

    Raises:
        NotRebuildable: where no file can tell, or the pair was changed since in another way.
    """
    description = describe(model, guide)
    pair = {"model": model, "guide": guide}
    plain, looks = _plain_of(pair), _looks(pair)
    question = [json.dumps(description.build), [*description.own.values()], plain, looks, len(description.tensors)]
    if _last and _last[0] == question:
        description.build["set"] = _last[1]
        return _without_empty(description)
    try:
        twin = make(description.build, description.tensors, description.own)
        before = _plain_of(dict(twin.items()))
        changed = {k: v for k, v in plain.items() if k in before and not _same(v, before[k])}
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
        raise NotRebuildable(
            f"{what} is {looks.get(what, 'not there')}, and {built.get(what, 'not there')} where it is built again: it "
            "was changed after it was built. Give the new part to the constructor"
        )


def _looks(pair: dict[str, nn.Module]) -> dict[str, str]:
    """What is compared, in the order in which a difference is told."""
    looks: dict[str, str] = {}
    first: dict[int, str] = {}
    for role, root in pair.items():
        for path, module in root.named_modules():
            looks[f"{role}.{path}".rstrip(".")] = _kind(type(module))
    for role, root in pair.items():
        for key, tensor in root.state_dict(keep_vars=True).items():
            name = f"{role}.{key}"
            same = first.setdefault(id(tensor), name)
            kind = "the parameter" if isinstance(tensor, nn.Parameter) else "the buffer"
            looks[f"the weight {name}"] = f"{kind} {same} of shape {list(tensor.shape)}"
        hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in root.modules())
        looks[f"the number of hooks in {role}"] = str(hooks)
        looks[f"the text of {role}"] = repr(root)
    return looks


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


def _same(one: Any, other: Any) -> bool:
    return type(one) is type(other) and (one == other or one != one)
