"""Steps of the optimizer, and what must be true before the first."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyro
import torch
from pyro.infer import ELBO
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from pyro_memory.inference import KeepFrozen, check_nesting, first_pass, told_by_site
from pyro_memory.nets import evaluating, modes_kept
from pyro_memory.training.checkpoints import random_state, restore_random_state
from pyro_memory.training.counting import DataCount
from pyro_memory.training.ranks import Ranks
from pyro_memory.training.reach import backward_watched, refuse_strangers

NAMES = "give each module a unique `name=`, or call pyro.clear_param_store() before building them"


class NotFinite(FloatingPointError):
    """Is raised by the loop itself: the checkpoint then stays as it was."""


@dataclass
class Loop:
    """One optimizer step, with the checks that keep it honest.

    Attributes:
        places: where to look for the name of what takes part in the loss and is not trained.
        data: how many data the last call explained, see ``DataCount``.
        whole: False while the optimizer moves parameters.
    """

    model: Callable[..., Any]
    guide: Callable[..., Any]
    compute: Callable[..., Any]
    parameters: dict[str, Tensor]
    optimizer: torch.optim.Optimizer
    clip_norm: float | None
    ranks: Ranks
    places: dict[str, Any]
    data: float | None = None
    checked: bool = False
    whole: bool = True

    def step(self, args: tuple[Any, ...], step: int, rate: float, last_good: str) -> float:
        self.optimizer.zero_grad()
        count = DataCount()
        with KeepFrozen(), count:
            loss = self.ranks.mean(self._loss_and_grads(args))
        if count.observed:  # a compiled objective runs no model
            self.data = count.data
        gradients = {name: p.grad for name, p in self.parameters.items() if p.grad is not None}
        norm = get_total_norm(gradients.values())
        if not (math.isfinite(loss) and math.isfinite(norm)):
            self._clip_huge(gradients, loss, step, rate, last_good)
        elif self.clip_norm is not None:
            clip_grads_with_norm_(self.parameters.values(), self.clip_norm, norm)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.whole = False
        self.optimizer.step()
        self.whole = True
        return loss

    def _loss_and_grads(self, args: tuple[Any, ...]) -> float:
        compute = partial(self.compute, *args)
        if self.checked:
            loss = compute()
        else:
            places = {f"argument {i}": arg for i, arg in enumerate(args)} | self.places
            watched = backward_watched(lambda tensors: refuse_strangers(tensors, [*self.parameters.values()], places))
            with watched, told_by_site():
                loss = compute()
            if all(p.grad is None for p in self.parameters.values()):
                raise ValueError(
                    "`objective` must give a gradient to some parameter of model and guide; its loss reaches none. "
                    "Look for `.detach()`, `.item()` or torch.no_grad() in them, make plain modules PyroModules, and "
                    "mark a method that is given as one of them by @pyro.nn.pyro_method"
                )
            self.checked = True
        # Wake-sleep gives a pair: the model's loss, then the guide's, which is no bound.
        return float(loss[0] if isinstance(loss, tuple) else loss)

    def _clip_huge(self, gradients: dict[str, Tensor], loss: float, step: int, rate: float, last_good: str) -> None:
        """Clips gradients that are finite, only their squares are not; refuses all else that is not."""
        broken = [name for name, g in gradients.items() if not g.isfinite().all()]
        largest = 1.0 if broken else max((g.abs().max().item() for g in gradients.values() if g.numel()), default=1.0)
        scaled = math.hypot(*(torch.linalg.vector_norm((g.abs() / largest).float()).item() for g in gradients.values()))
        if math.isfinite(loss) and not broken and self.clip_norm is not None:
            for gradient in gradients.values():
                gradient.mul_(min(1.0, self.clip_norm / scaled / largest))
            return
        remedy = (
            f"Lower `learning_rate` (now {rate:g}) or `clip_norm` (now {self.clip_norm}), and look at this batch"
            if step
            else "No step was taken yet, so the rate is not the cause: look at this batch, at the initial scales of "
            "model and guide, and at divisions, logarithms and square roots of what may be 0"
        )
        what = f"a loss of {loss}"
        if math.isfinite(loss) and broken:
            what = f"a finite loss of {loss:g} with a gradient that is not finite, of {', '.join(broken[:5])}"
        elif math.isfinite(loss):
            what = f"a finite gradient of norm {largest * scaled:g}, whose square is not"
            remedy = "Give `clip_norm`, which scales it down, and look at this batch"
        raise NotFinite(
            f"Step {step + 1} gave {what}; the parameters are still those before it. The last good checkpoint is "
            f"{last_good}. {remedy}"
        )


def make_parameters(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    trained: nn.Module,
    objective: ELBO,
    args: tuple[Any, ...],
) -> None:
    """Runs guide and model once, so that lazy parameters exist; refuses what does not fit together, names in Pyro's
    store that collide among it."""
    stored = {id(p): p for _, p in pyro.get_param_store().named_parameters()}
    before = {id(p): (name, p) for name, p in trained.named_parameters()}
    of_model, of_guide = first_pass(model, guide, args, {}, "batches")
    check_nesting(objective, [*of_guide.values(), *of_model.values()])
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


@contextmanager
def aside(trained: nn.Module) -> Iterator[None]:
    """Runs its body in evaluation mode and leaves no trace in training's random streams and modes."""
    state = random_state()
    with evaluating(trained):
        try:
            yield
        finally:
            restore_random_state(state)


@contextmanager
def as_trained(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Runs its body in training mode, but for parts that are in evaluation mode alone, and without gradients so far.

    Modes and gradients are afterwards as they were.
    """
    modules = list(modules)
    kept = [(p, p.grad) for module in modules for p in module.parameters()]
    for parameter, _ in kept:
        parameter.grad = None
    with modes_kept(nn.ModuleList(modules)):
        for module in modules:
            if not module.training:
                module.train()
        try:
            yield
        finally:
            for module in modules:  # of what was made meanwhile, too
                module.zero_grad()
            for parameter, gradient in kept:
                parameter.grad = None if gradient is None else gradient.to(parameter.device)
