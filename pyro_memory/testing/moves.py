"""Whether training moves every parameter of a pair."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pyro
import torch
from pyro.infer import ELBO, SVI
from pyro.nn import PyroModule
from torch import nn

from pyro_memory.naming import unique_name
from pyro_memory.testing.demands import isolated, made, parameters_of
from pyro_memory.training import fit

Pair = tuple[Any, Any]
ROUNDS = (2, 8, 40)  # optimizer steps, until every parameter has moved


def in_mode(pair: Pair, training: bool) -> Pair:
    """Puts both in training or evaluation mode."""
    for module in pair:
        if isinstance(module, nn.Module):
            module.train(training)
    return pair


def pair_parameters(pair: Pair) -> dict[str, torch.Tensor]:
    """Their parameters by name."""
    return parameters_of(model=pair[0], guide=pair[1])


def _by_torch(pair: Pair, objective: ELBO, args: tuple, steps: int) -> None:
    elbo = objective(*pair)
    optimizer = torch.optim.Adam(elbo.parameters(), 1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        elbo(*args).backward()
        optimizer.step()


def _by_svi(pair: Pair, objective: ELBO, args: tuple, steps: int) -> None:
    svi = SVI(*pair, pyro.optim.Adam({"lr": 1e-2}), objective)
    for _ in range(steps):
        svi.step(*args)


def _by_fit(pair: Pair, objective: ELBO, args: tuple, steps: int) -> None:
    try:
        fit(
            *pair, lambda step: args, objective, steps=steps, learning_rate=1e-2, information_every=None, progress=False
        )
    except ValueError as error:
        raise AssertionError(f"`fit` refuses the pair: {error}") from error


# A torch optimizer moves whatever has a gradient; SVI only what Pyro's store knows by the right name.
TRAINERS = {"an ELBO module with a torch optimizer": _by_torch, "pyro.infer.SVI": _by_svi, "fit": _by_fit}


def check_training(pair: Pair, make: Callable[[], Pair] | None, objective: ELBO, args: tuple) -> None:
    """Checks that every parameter of a pair, and of a second one in the same process, moves in each way of training."""
    for name, train in TRAINERS.items():
        with isolated():
            _check_moves(copy.deepcopy(pair), name, train, objective, args)
            second = _renamed(copy.deepcopy(pair)) if make is None else made(make)
            _check_moves(second, f"{name}, the second pair of the process,", train, objective, args)


def _check_moves(pair: Pair, name: str, train: Callable[..., None], objective: ELBO, args: tuple) -> None:
    with torch.no_grad(), isolated():
        for program in reversed(in_mode(pair, True)):
            program(*args)  # makes lazy parameters
    before = {n: p.detach().clone() for n, p in pair_parameters(pair).items()}
    still: list[str] = []
    for steps in ROUNDS:
        train(pair, copy.deepcopy(objective), args, steps)
        still = [n for n, p in pair_parameters(pair).items() if n in before and torch.equal(p, before[n])]
        if not still:
            return
    if train is _by_torch:
        remedy = "the objective does not depend on it. Use it in `forward`, without .detach(), or remove it"
    else:
        remedy = (
            "in Pyro's parameter store its name belongs to another module's parameter. Give each module a unique name: "
            "super().__init__(name or unique_name(self)), with unique_name from pyro_memory.naming"
        )
    raise AssertionError(
        f"{', '.join(f'`{n}`' for n in still)} did not move in {sum(ROUNDS)} steps of {name}: {remedy}"
    )


def _renamed(pair: Pair) -> Pair:
    """Gives modules, and those within them, names of their own."""
    for root in pair:
        if isinstance(root, PyroModule):
            old, new = root._pyro_name, unique_name(root)
            for module in root.modules():
                if isinstance(module, PyroModule) and module._pyro_name.startswith(old):
                    module._pyro_name = new + module._pyro_name[len(old) :]
    return pair
