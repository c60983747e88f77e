"""Steps of the optimizer, and what must be true before the first."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from pyro_memory.inference import KeepFrozen
from pyro_memory.training.checkpoints import random_state, restore_random_state
from pyro_memory.training.ranks import Ranks

NAMES = "give each module a unique `name=`, or call pyro.clear_param_store() before building them"


@dataclass
class Loop:
    """One optimizer step, with the checks that keep it honest."""

    model: Callable[..., Any]
    guide: Callable[..., Any]
    compute: Callable[..., Any]
    parameters: list[Tensor]
    optimizer: torch.optim.Optimizer
    clip_norm: float | None
    ranks: Ranks
    checked: bool = False

    def step(self, args: tuple[Any, ...], step: int, rate: float, last_good: str) -> float:
        self.optimizer.zero_grad()
        with KeepFrozen():
            loss = self.ranks.mean(self._loss_and_grads(args))
        norm = get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise FloatingPointError(
                f"Step {step + 1} gave a loss of {loss} and a gradient of norm {norm:g}; the parameters are still "
                f"those before it. The last good checkpoint is {last_good}. Lower "
                f"`learning_rate` (now {rate:g}) or `clip_norm` (now {self.clip_norm}), and look at this batch"
            )
        if self.clip_norm is not None:
            clip_grads_with_norm_(self.parameters, self.clip_norm, norm)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        return loss

    def _loss_and_grads(self, args: tuple[Any, ...]) -> float:
        compute = partial(self.compute, *args)
        if self.checked:
            loss = compute()
        else:
            _check_arguments(args, self.parameters)
            loss = _with_capture(compute, self.parameters)
            self.checked = True
        # Wake-sleep gives a pair: the model's loss, then the guide's, which is no bound.
        return float(loss[0] if isinstance(loss, tuple) else loss)


def _with_capture(compute: Callable[[], Any], parameters: list[Tensor]) -> Any:
    """Computes gradients and refuses those that would go to something the optimizer does not hold.

    The test is the gradient, not membership in the parameter store: a store entry left by an earlier module of the same
    name is harmless, as modules use their own ``nn.Parameter``.
    """
    for _, parameter in pyro.get_param_store().named_parameters():
        parameter.grad = None
    with poutine.trace(param_only=True) as capture:
        loss = compute()
    own = {id(p) for p in parameters}
    values = {name: site["value"] for name, site in capture.trace.nodes.items()}
    leaves = {name: v.unconstrained() if hasattr(v, "unconstrained") else v for name, v in values.items()}
    strangers = [name for name, leaf in leaves.items() if id(leaf) not in own and leaf.grad is not None]
    if strangers:
        raise ValueError(
            f"`model` and `guide` must own all they train; got global parameters {strangers}, which would stay as they "
            "are. Make them `nn.Parameter` or `PyroParam` attributes of a module"
        )
    return loss


def _check_arguments(args: tuple[Any, ...], parameters: list[Tensor]) -> None:
    own = {id(p) for p in parameters}
    for index, arg in enumerate(args):
        held = arg.parameters() if isinstance(arg, nn.Module) else [arg, *getattr(arg, "__dict__", {}).values()]
        if any(isinstance(t, Tensor) and t.requires_grad and t.is_leaf and id(t) not in own for t in held):
            raise ValueError(
                f"`batches` must give data; argument {index} holds a parameter that is not of `model` or `guide` and "
                "would not train. Make it an attribute of one of them (a TemplateMemory, for slots)"
            )


def make_parameters(
    model: Callable[..., Any], guide: Callable[..., Any], trained: nn.Module, args: tuple[Any, ...]
) -> None:
    """Runs guide and model once, so that lazy parameters exist, and refuses names that collide in Pyro's store."""
    stored = {id(p): p for _, p in pyro.get_param_store().named_parameters()}
    before = {id(p): (name, p) for name, p in trained.named_parameters()}
    guide_trace = poutine.trace(guide).get_trace(*args)
    poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args)
    after = {id(p): (name, p) for name, p in trained.named_parameters()}
    if not after:
        raise ValueError(
            "`model` and `guide` must own parameters; got none. Global `pyro.param` statements do not train here: make "
            "them `nn.Parameter` or `PyroParam` attributes of a module"
        )
    # A PyroParam whose name is taken in the store is replaced there, silently, by the other module's.
    replaced = {name for i, (name, _) in before.items() if i not in after}
    replaced |= {name for i, (name, _) in after.items() if i not in before and i in stored}
    if replaced:
        raise ValueError(
            f"`model` and `guide` must have names of their own in Pyro's parameter store; another module's parameters "
            f"took the place of {sorted(replaced)} (index 0: model, 1: guide). Build them anew and {NAMES}"
        )


def make_optimizer(
    optimizer: Callable[..., torch.optim.Optimizer], parameters: list[Tensor], learning_rate: float
) -> torch.optim.Optimizer:
    """Makes the optimizer, fused where torch can."""
    # One fused kernel over all parameters is what brings a Pyro step to the speed of plain torch.
    places = {(p.dtype, p.device.type, p.device.index) for p in parameters}
    fusible = optimizer in (torch.optim.Adam, torch.optim.AdamW) and len(places) == 1
    if fusible and next(iter(places))[:2] in {(torch.float32, "cpu"), (torch.float32, "cuda")}:
        return optimizer(parameters, lr=learning_rate, fused=True)
    return optimizer(parameters, lr=learning_rate)


@contextmanager
def aside(trained: nn.Module) -> Iterator[None]:
    """Runs its body in evaluation mode and leaves no trace in training's random streams."""
    state = random_state()
    trained.eval()
    try:
        yield
    finally:
        trained.train()
        restore_random_state(state)
