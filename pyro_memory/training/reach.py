"""What takes part in a loss: found once, by the graph that its first backward pass walks."""

from __future__ import annotations

import inspect
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from types import ModuleType
from typing import Any

import pyro
import torch
from torch import Tensor, nn

MOVED_BY_PYRO = "__baseline_avg_downstream_cost_"  # TraceGraph_ELBO steps these itself
ONE_AT_A_TIME = threading.RLock()


@contextmanager
def backward_watched(look: Callable[[Iterable[Tensor]], None]) -> Iterator[None]:
    """Calls ``look`` with the tensors of each backward pass in its body, before the pass.

    Not all objectives give a differentiable loss; all call ``backward``.
    """
    with ONE_AT_A_TIME:
        plain, thread = torch.autograd.backward, threading.get_ident()

        def backward(tensors: Any, *args: Any, **kwargs: Any) -> None:
            if threading.get_ident() == thread:
                look([tensors] if isinstance(tensors, Tensor) else tensors)
            plain(tensors, *args, **kwargs)

        torch.autograd.backward = backward
        try:
            yield
        finally:
            torch.autograd.backward = plain


def leaves(tensors: Iterable[Tensor]) -> list[Tensor]:
    """The tensors that a backward pass from these would give a gradient."""
    nodes = [torch.autograd.graph.get_gradient_edge(t).node for t in tensors if t.requires_grad]
    seen, found = set(nodes), []
    while nodes:
        node = nodes.pop()
        if type(node).__name__ == "AccumulateGrad":
            found.append(node.variable)
        following = {following for following, _ in node.next_functions if following is not None} - seen
        seen |= following
        nodes += following
    return found


def refuse_strangers(tensors: Iterable[Tensor], parameters: list[Tensor], places: Mapping[str, Any]) -> None:
    """Refuses a loss in which something takes part that the optimizer does not hold.

    The test is the gradient, not membership in Pyro's parameter store: an entry left there by an earlier module of the
    same name is harmless, as modules use their own ``nn.Parameter``.
    """
    own = {id(p) for p in parameters}
    stored = {id(p): name for name, p in pyro.get_param_store().named_parameters()}
    strangers = {id(leaf): leaf for leaf in leaves(tensors) if id(leaf) not in own}
    strangers = {i: t for i, t in strangers.items() if not stored.get(i, "").startswith(MOVED_BY_PYRO)}
    if not strangers:
        return
    told, found = [], named(strangers, places)
    if names := sorted(stored[i] for i in strangers if i in stored):
        told.append(f"global parameters {names}")
    for i, tensor in sorted(strangers.items(), key=lambda item: found.get(item[0], "")):
        if i not in stored:
            what, path = f"a parameter {str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}", found.get(i)
            holds = path is not None and path.startswith("argument")
            told.append(what if path is None else f"{path} holds {what}" if holds else f"{path} ({what})")
    more = f" and {len(told) - 5} more" if len(told) > 5 else ""
    raise ValueError(
        "`model` and `guide` must own all they train; these take part in the loss and would stay as they are: "
        f"{', '.join(told[:5])}{more}. Make them `nn.Parameter` or `PyroParam` attributes of model or guide, a list "
        "of modules an nn.ModuleList, slots a TemplateMemory; or freeze them with `requires_grad_(False)`"
    )


def named(tensors: Mapping[int, Tensor], places: Mapping[str, Any], limit: int = 10_000) -> dict[int, str]:
    """Where tensors are held, by their id; looks at ``limit`` objects of the places, nearest first."""
    found: dict[int, str] = {}
    queue = deque(places.items())
    seen: set[int] = set()
    while queue and len(seen) < limit and len(found) < len(tensors):
        path, held = queue.popleft()
        if id(held) in seen:
            continue
        seen.add(id(held))
        if id(held) in tensors:
            found[id(held)] = path
        queue.extend(_parts(path, held))
    return found


def _parts(path: str, held: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(held, Mapping):
        yield from ((f"{path}[{key!r}]", item) for key, item in held.items())
    elif isinstance(held, (list, tuple, set, frozenset)):
        yield from ((f"{path}[{i}]", item) for i, item in enumerate(held))
    elif isinstance(held, partial):
        yield from ((path, held.func), (path, held.args), (path, held.keywords))
    elif inspect.ismethod(held):
        yield path, held.__self__
    elif inspect.isfunction(held):
        with suppress(ValueError):  # a closure over a name that has no value yet
            inner = inspect.getclosurevars(held)
            yield from {**inner.globals, **inner.nonlocals}.items()
    elif isinstance(held, nn.Module):
        yield from ((f"{path}.{name}", p) for name, p in held.named_parameters())
        yield from ((f"{path}.{name}", item) for name, item in vars(held).items() if not name.startswith("_"))
        yield from ((f"{path}.{name}", child) for name, child in held.named_children())
    elif not isinstance(held, (Tensor, str, bytes, int, float, type, ModuleType)) and hasattr(held, "__dict__"):
        yield from ((f"{path}.{name}", item) for name, item in vars(held).items())
