"""The contract of a model and its guide."""

from __future__ import annotations

import copy
import random
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from pyro import poutine
from pyro.infer import ELBO
from pyro.nn import PyroModule
from torch import nn

from pyro_memory.diagnostics import importance_bound, information_gain
from pyro_memory.gate import checked
from pyro_memory.inference import VIMCO, stochastic_sites
from pyro_memory.testing.demands import copied, demand, isolated, made, pickled
from pyro_memory.testing.enumeration import check_gradient, check_particles
from pyro_memory.testing.moves import Pair, check_training, in_mode, pair_parameters


@checked
def check_pair(
    model: nn.Module,
    guide: nn.Module,
    *args: Any,
    make: Callable[[], Pair] | None = None,
    objective: ELBO | None = None,
    per_datum: bool = True,
    combinations: int = 64,
) -> None:
    r"""Checks what a model and its guide must keep to be trained, measured, saved and copied.

    - They sample the same latents in the same plates, in training and in evaluation mode.
    - Every parameter moves under ``pyro.infer.SVI``, under ``objective(model, guide)`` with a torch optimizer, and
      under ``fit``; and again for a second pair in the same process.
    - ``state_dict``, deepcopy and pickle give the same loss under the same seed.
    - Measuring (``importance_bound``, ``information_gain``) leaves ``requires_grad``, training mode, ``.grad`` and the
      state as they were, takes its draws from torch's random stream alone, and repeats itself under the same seed.
    - Particles in one pass weigh what each weighs in a pass of its own.
    - The bound of two particles and its gradient by VIMCO are those that enumerating all discrete latents gives,
      within 5 standard errors (see ``check_gradient``); so is the bound of ``TraceEnum_ELBO``, where the guide marks
      sites for it.
    - On a GPU, where there is one, the loss is finite.

    Args:
        model, guide: the pair; it stays as it is, copies are trained. Pyro's automatic guides lose their model in a
            copy, so they have no contract.
        *args: what both are called with: a few data. Keep it small, the checks run many passes.
        make: builds another such pair, ``lambda: (Model(), Guide())``. With it the second pair and the target of
            ``state_dict`` are new instances; without, renamed copies, which cannot show a name that the constructor
            fixes or a random tensor that ``state_dict`` misses.
        objective: what trains the pair; ``VIMCO(2)`` by default.
        per_datum: False for a pair with latents outside the plates of the data: it has no weight per datum, so
            ``importance_bound``, particles and VIMCO's gradient are left out. Give an ``objective`` then.
        combinations: how many joint values of the discrete latents may be enumerated; 0 where they cannot be.

    Raises:
        AssertionError: if something does not hold.
        ValueError: if there are more than ``combinations`` of them.

    Example::

        check_pair(MyModel(), MyGuide(), x, memory, make=lambda: (MyModel(), MyGuide()))
    """
    objective = VIMCO(2) if objective is None else objective
    with isolated(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(vars in|enumerat|was not registered)")
        pair = copied((model, guide), "the pair")
        _check_modules(pair)
        for training in (True, False):
            _check_sites(in_mode(pair, training), args)
        check_training((model, guide), make, objective, args)
        _check_copies((model, guide), make, objective, args)
        _check_measuring(pair, per_datum, args)
        if per_datum:
            check_particles(*in_mode(pair, False), args)
            check_gradient(*pair, args, combinations)
        _check_device((model, guide), objective, args)


def _check_modules(pair: Pair) -> None:
    for role, module in zip(("model", "guide"), pair, strict=True):
        demand(
            isinstance(module, PyroModule) or not isinstance(module, nn.Module),
            f"the {role}, a {type(module).__name__}, must be a PyroModule: SVI finds no parameter of a plain "
            "torch.nn.Module. Inherit from pyro.nn.PyroModule",
        )
    for name, parameter in pair_parameters(pair).items():
        demand(
            parameter.requires_grad,
            f"parameter `{name}` is frozen (requires_grad=False), so that it never learns. Unfreeze it, or keep what "
            "is fixed by register_buffer",
        )


def _check_sites(pair: Pair, args: tuple) -> None:
    with isolated(), torch.no_grad():
        guide_trace = poutine.trace(pair[1]).get_trace(*args)
        model_trace = poutine.trace(poutine.replay(pair[0], trace=guide_trace)).get_trace(*args)
    p = {n: s for n, s in stochastic_sites(model_trace).items() if not s["is_observed"]}
    q = {n: s for n, s in stochastic_sites(guide_trace).items() if not s["infer"].get("is_auxiliary")}
    missing, extra = [f"`{n}`" for n in p if n not in q], [f"`{n}`" for n in q if n not in p]
    demand(not missing, f"the guide must sample every latent of the model; missing: {', '.join(missing)}" + (
        f". It samples {', '.join(extra)} instead: use the model's site names" if extra else ""
    ))  # fmt: skip
    demand(not extra, f"the guide samples {', '.join(extra)}, which the model does not. Use the model's site names")
    for name, site in p.items():
        plates = [sorted(str((f.name, f.dim, f.size)) for f in s["cond_indep_stack"]) for s in (site, q[name])]
        demand(
            plates[0] == plates[1],
            f"site `{name}` must lie in the same plates (name, dim, size) in both programs; model: "
            f"{', '.join(plates[0]) or 'none'}, guide: {', '.join(plates[1]) or 'none'}. Open the same pyro.plate in "
            "both",
        )


def _loss(pair: Pair, objective: ELBO, args: tuple) -> float:
    with isolated(1):
        return copy.deepcopy(objective).loss(*pair, *args)


def _check_copies(pair: Pair, make: Callable[[], Pair] | None, objective: ELBO, args: tuple) -> None:
    pair = copy.deepcopy(pair)
    loss = _loss(pair, objective, args)
    with isolated():
        pair[1](*args)  # what a run leaves behind must not hinder a copy
    saved = [m.state_dict() if isinstance(m, nn.Module) else None for m in pair]
    with isolated(2):
        target = copied(pair, "the pair, after the guide ran,") if make is None else made(make)
        with torch.no_grad():
            for parameter in pair_parameters(target).values():
                parameter.add_(1.0)
        for module, state in zip(target, saved, strict=True):
            if state is not None:
                module.load_state_dict(state)
    copies = {
        "restored from its state_dict": target,
        "deepcopied": copied(pair, "the pair, after the guide ran,"),
        "pickled": pickled(pair, "the pair"),
    }
    for what, one in copies.items():
        again = _loss(in_mode(one, True) if pair[0].training else one, objective, args)
        demand(
            abs(again - loss) <= 1e-5 * max(1.0, abs(loss)),
            f"the pair {what} must give the same loss under the same seed; got {again:g} for {loss:g}. Keep what "
            "counts in parameters and register_buffer, and draw by pyro.sample or torch's random stream",
        )


def _check_measuring(pair: Pair, per_datum: bool, args: tuple) -> None:
    measures: dict[str, Callable[..., Any]] = {"information_gain": lambda p: information_gain(*p, *args, draws=2).joint}
    if per_datum:
        measures["importance_bound"] = lambda p: importance_bound(*p, *args, particles=3, chunk_size=2).bound
    for name, measure in measures.items():
        for flag in (True, False):
            one = in_mode(copied(pair, "the pair"), False)
            for parameter in pair_parameters(one).values():
                parameter.requires_grad_(flag)
                parameter.grad = torch.ones_like(parameter)
            with isolated(3):
                before, streams = _condition(one), _other_streams()
                try:
                    first = measure(one)
                except (ValueError, NotImplementedError):
                    if per_datum and name == "importance_bound":
                        raise
                    break  # a pair that has no information gain: the reason is the message's
                _compare(before, _condition(one), name)
                demand(
                    streams == _other_streams(),
                    f"`{name}` drew from Python's or NumPy's random stream, since model or guide does: use pyro.sample",
                )
            with isolated(3):
                second = measure(one)
            demand(
                str(first) == str(second),
                f"`{name}` must give the same twice under one seed; got {first} and {second}. Keep no state between "
                "calls, and draw by pyro.sample",
            )


def _condition(pair: Pair) -> dict[str, Any]:
    """What measuring must leave as it was, by name."""
    found: dict[str, Any] = {}
    for role, module in zip(("model", "guide"), pair, strict=True):
        if not isinstance(module, nn.Module):
            continue
        for name, parameter in module.named_parameters():
            found[f"requires_grad of `{role}.{name}`"] = parameter.requires_grad
            found[f".grad of `{role}.{name}`"] = None if parameter.grad is None else parameter.grad.clone()
        for name, inner in module.named_modules():
            found[f"the training mode of `{role}{'.' * bool(name)}{name}`"] = inner.training
        for name, tensor in module.state_dict().items():
            found[f"the value of `{role}.{name}`"] = tensor.clone()
    return found


def _compare(before: dict[str, Any], after: dict[str, Any], name: str) -> None:
    for what, old in before.items():
        new = after.get(what)
        same = torch.equal(old, new) if isinstance(old, torch.Tensor) and isinstance(new, torch.Tensor) else old is new
        demand(
            same,
            f"`{name}` must leave {what} as it was; it changed. Change nothing of a module in `forward` in evaluation "
            "mode",
        )


def _other_streams() -> str:
    return str((random.getstate(), np.random.get_state()))  # noqa: NPY002 (the global stream is what must stay)


def _check_device(pair: Pair, objective: ELBO, args: tuple) -> None:
    if not torch.cuda.is_available():
        return
    moved = [m.to("cuda") if isinstance(m, nn.Module) else m for m in copy.deepcopy(pair)]
    there = [a.to("cuda") if hasattr(a, "to") else a for a in args]
    loss = torch.as_tensor(_loss(tuple(moved), objective, tuple(there)))
    demand(torch.isfinite(loss).all(), f"on a GPU the loss must be finite; got {loss}")
