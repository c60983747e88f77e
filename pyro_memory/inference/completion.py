"""Filling in what is missing of data, by sampling back and forth between data and latents."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float
from pyro import poutine
from torch import Tensor

from pyro_memory.gate import checked
from pyro_memory.inference.particles import KeepFrozen, trial


@checked
@torch.no_grad()
def complete(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    x: Float[Tensor, "batch *event"],
    *args: Any,
    known: Bool[Tensor, "batch *event"] | None = None,
    sweeps: int = 10,
    site: str = "x",
) -> Float[Tensor, "sweep batch *event"]:
    r"""Iterates ``x -> (a, z) -> x``: latents from the guide, data from the model, the known part put back.

    With the exact posterior as guide this is Gibbs sampling, whose draws converge to p(x_unknown | x_known); with an
    amortised one it converges close to it (Rezende et al., 2014). Without ``known`` nothing is put
    back: corrupted data move to what the model holds likely.

    Args:
        model, guide: called as ``(x, *args)``, such as ``(x, memory)``.
        x: the data; what stands in its unknown part is where the chain starts.
        known: True where x is right and stays; nowhere by default.
        sweeps: how often to go back and forth.
        site: the name of the observed site.

    Returns:
        The chain, ``[sweeps + 1, batch, *event]``, x first.

    Raises:
        ValueError: if ``sweeps`` is below 1, the model has no such observed site, or the
            guide does not belong to it.

    Draws come from torch's global random stream; parameters, gradients and modes stay as they are.

    Cost: a pass of model and guide a sweep, and one before.

    References: Stochastic Backpropagation and Approximate Inference in Deep Generative Models (Rezende et al., 2014),
    https://arxiv.org/abs/1401.4082
    """
    known = torch.zeros_like(x, dtype=torch.bool) if known is None else known
    if sweeps < 1:
        raise ValueError(f"`sweeps` must be at least 1; got {sweeps}")
    trial(model, guide, (x, *args), {})
    chain = [x]
    for _ in range(sweeps):
        with KeepFrozen():
            latents = poutine.trace(guide).get_trace(chain[-1], *args)
            drawn = poutine.trace(poutine.replay(poutine.uncondition(model), trace=latents)).get_trace(chain[-1], *args)
        if site not in drawn or not drawn.nodes[site]["infer"].get("was_observed"):
            raise ValueError(f"`site` must be an observed site of the model; {site!r} is not")
        chain.append(torch.where(known, x, drawn.nodes[site]["value"]))
    return torch.stack(chain)
