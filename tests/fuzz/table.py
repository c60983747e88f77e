"""The table of all calls, and the names that it must hold."""

import importlib
import inspect

from fuzz import (
    calls_cached,
    calls_data,
    calls_estimates,
    calls_measures,
    calls_models,
    calls_parts,
    calls_samples,
    calls_saving,
    calls_sequences,
    calls_stores,
)
from torch import autograd, nn

ROOMS = {
    "stores": calls_stores.ROWS,
    "parts": calls_parts.ROWS,
    "estimates": calls_estimates.ROWS,
    "models": calls_models.ROWS,
    "sequences": calls_sequences.ROWS,
    "cached": calls_cached.ROWS,
    "data": calls_data.ROWS,
    "measures": calls_measures.ROWS,
    "samples": calls_samples.ROWS,
    "saving": calls_saving.ROWS,
}
DOORS = (
    "addressing", "data", "diagnostics", "distributions", "guides", "inference", "kernels", "models", "nets",
    "recall", "stores", "testing", "training", "zoo",
)  # fmt: skip
EXEMPT = {
    "MappedMemory.from_tensors": "raises whatever it is given",
    "ShardedMemory.from_tensors": "raises whatever it is given",
    "SlotIndex.follow": "is NearestAddress's, which keeps what `then` is",
    "SameData.check": "is the objectives', of what they traced",
    "check_sites": "is the objectives', of what they traced",
    "check_given": "is the objectives', of what they traced",
    "check_call": "is fit's and the objectives'",
    "check_nesting": "is the objectives'",
    "first_pass": "is fit's and the objectives', which look at their arguments first",
    "posterior_of": "is posterior_address's, of what it traced",
    "check_same_globals": "is the objectives', of what they weighed",
    "global_sites": "is the objectives', of what they traced",
    "Objective": "is the base of those that have rows",
    "Objective.per_datum": "is the objectives', of what they traced",
    "Objective.weights": "is the objectives', of what they traced",
    "VIMCO.per_datum": "is the objectives', of what they traced",
    "LeaveOneOutELBO.per_datum": "is the objectives', of what they traced",
    "DReG.weights": "is the objectives', of what they traced",
    "WakeWake.weights": "is the objectives', of what they traced",
    "WakeWake.per_datum": "is the objectives', of what they traced",
    "RaoBlackwellELBO.per_datum": "is the objectives', of what they traced",
    "Ranks.begin_step": "is fit's",
    "restore_random_state": "takes what random_state gave",
    "AddressRead": "a named tuple of results",
    "EmptyGuide.forward": "takes anything",
    "StreamedCategorical.enumerate_support": "raises whatever it is given",
    "MappedMemory.write": "raises whatever it is given",
    "ShardedMemory.write": "raises whatever it is given",
    **{f"{name}.to": "takes what torch's `to` takes" for name in (
        "SlotMemory", "MappedMemory", "ShardedMemory", "ConceptMemory", "EpisodicMemory", "StructuredMemory",
        "Exemplars", "SequenceState",
    )},
}  # fmt: skip
UNTRIED = {
    "MappedMemory": ("manifest",),  # which `create` and `open` make
    "ClassStream.tasks": ("tasks", "queries", "shots"),  # which SetTasks takes
    "replace_file": ("path",),  # whose folder is there
}
OF_ZOO = ("Card", "load", "load_memory", "load_pretrained", "pretrained", "save_pretrained")


def public():
    """The names of all callables that take arguments, as rows are named."""
    names = set()
    for door in DOORS:
        module = importlib.import_module(f"pyro_memory.{door}")
        for name in getattr(module, "__all__", ("Card", *OF_ZOO)):
            thing = getattr(module, name)
            if not name.startswith("_") and getattr(thing, "__module__", "").startswith("pyro_memory"):
                names |= callables(thing)
    return names


def callables(thing):
    if inspect.isfunction(thing):
        return {thing.__name__} if takes_arguments(thing, 0) else set()
    if not isinstance(thing, type) or issubclass(thing, (autograd.Function, BaseException)):
        return set()
    found = set()
    for base in thing.__mro__:
        hidden = base is not thing and (base.__name__.startswith("_") or base.__name__ not in public_classes())
        if base.__module__.startswith("pyro_memory") and (base is thing or hidden):
            found |= {row for name, member in vars(base).items() if (row := row_of(thing, name, member))}
    return found


def public_classes():
    return {name for door in DOORS for name in getattr(importlib.import_module(f"pyro_memory.{door}"), "__all__", ())}


def row_of(owner, name, member):
    bare = getattr(member, "__func__", member)
    if name == "__call__" and issubclass(owner, nn.Module):
        return None  # it is forward's, which has a row
    if not inspect.isfunction(bare) or (name.startswith("_") and name not in ("__init__", "__getitem__", "__call__")):
        return None
    if not takes_arguments(bare, 0 if isinstance(member, staticmethod) else 1):
        return None
    return owner.__name__ if name == "__init__" else f"{owner.__name__}.{name}"


def takes_arguments(function, bound):
    return len(inspect.signature(function).parameters) > bound
