"""What the contracts have in common: how they fail, and what they leave as it was."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from pyro_memory.gate import told
from pyro_memory.training import random_state, restore_random_state


def demand(condition: object, message: str) -> None:
    """Raises an AssertionError with the message unless the condition holds; survives ``python -O``."""
    if not condition:
        raise AssertionError(message)


def demand_close(actual: Tensor, expected: Tensor, message: str, *, tolerance: float = 1e-7) -> None:
    """Demands two tensors equal in shape, and in value but for rounding relative to the largest."""
    demand(actual.shape == expected.shape, f"{message} (shapes {list(actual.shape)} and {list(expected.shape)})")
    if not actual.numel():
        return
    scale = expected.abs().max().clamp(min=1.0)
    apart = (actual - expected).abs().max() / scale
    demand(bool(apart <= tolerance), f"{message} (they differ by {apart.item():.3g} of the largest value)")


@contextmanager
def isolated(seed: int = 0) -> Iterator[None]:
    """Runs its body with a random stream and a parameter store of its own."""
    state = random_state()
    try:
        with pyro.get_param_store().scope():
            pyro.set_rng_seed(seed)
            yield
    finally:
        restore_random_state(state)


def copied(thing: Any, name: str) -> Any:
    """Deepcopies."""
    try:
        return copy.deepcopy(thing)
    except Exception as error:
        raise AssertionError(
            f"{name} cannot be deepcopied: {error}. Hold no tensors that belong to a graph: detach what you keep"
        ) from error


def pickled(thing: Any, name: str) -> Any:
    """Pickles, and loads what was pickled."""
    try:
        return pickle.loads(pickle.dumps(thing))
    except Exception as error:
        raise AssertionError(
            f"{name} cannot be pickled: {error}. Define classes and functions at the top level of a module, and keep "
            "no lambda, generator or open file as an attribute"
        ) from error


def parameters_of(**modules: Any) -> dict[str, Tensor]:
    """The parameters of some modules by name, ``"guide.net.weight"``, each once; a plain function has none."""
    seen: set[int] = set()
    named: dict[str, Tensor] = {}
    for owner, module in modules.items():
        for name, parameter in module.named_parameters() if isinstance(module, nn.Module) else ():
            if id(parameter) not in seen:
                seen.add(id(parameter))
                named[f"{owner}.{name}"] = parameter
    return named


def demand_gradients(parameters: dict[str, Tensor], of: str, backward: Callable[[], None]) -> None:
    """Demands a finite gradient, not all zeros, of every parameter."""
    backward()
    without = [name for name, p in parameters.items() if p.grad is None or not p.grad.any()]
    demand(
        not without,
        f"parameters {', '.join(f'`{name}`' for name in without)} got no gradient from {of}: nothing there depends on "
        "them. Connect them (no .detach(), no .data) or remove them",
    )
    wild = [name for name, p in parameters.items() if not torch.isfinite(p.grad).all()]
    demand(not wild, f"the gradient of {', '.join(f'`{name}`' for name in wild)} from {of} is not finite")


def made(make: Callable[[], tuple[Any, Any]]) -> tuple[Any, Any]:
    """The pair that ``make`` returns, which must be one."""
    pair = make()
    if not isinstance(pair, tuple) or len(pair) != 2:
        raise TypeError(f"`make` must return two modules, such as lambda: (Model(), Guide()); got {told(pair)}")
    return pair
