"""The multi-sample bound with discrete latents that Pyro lacks."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from pyro_memory.gate import checked
from pyro_memory.inference.objective import Objective, Traces
from pyro_memory.inference.weights import Weights


@checked
class VIMCO(Objective):
    r"""Maximises a bound of K particles for each datum, discrete latents included.

    .. math::
        L_K = E_{h_{1..K} \sim q} \log \frac1K \sum_k w_k, \qquad w_k = \frac{p(x, h_k)}{q(h_k | x)}

    Weights belong to a datum: a cell of the plates that hold all sites. A subsample's scale stays outside the
    logarithm. Sites that can be reparameterised get pathwise gradients; every other one gets the score function
    with the signal ``L_K - L_{-k}``, where in ``L_{-k}`` the other particles stand in for the k-th weight, by their
    geometric or arithmetic mean. Where a plate inside a datum ends both programs, its cells are independent given what
    came before, and a site in one is scored by its own cell's share of the weight: only that share is replaced. The
    gradient is unbiased in every case. All particles run in one pass. Latents outside the plate over data are global:
    the particles of all data share one draw of them (see ``Objective``). What the model enumerates is summed.

    Args:
        num_particles: K, at least 2.
        baseline: the stand-in for the k-th weight, ``"geometric"`` or ``"arithmetic"``.
        global_draws: how many draws of the global latents a step takes, where there are any.
        max_plate_nesting: how many plates the model nests; found by a trial run if not given, and then kept: use one
            instance per model.
        vectorize_particles: False runs the particles one by one, for a model that cannot be vectorised.

    Raises:
        ValueError: for K < 2, an unknown baseline, and a pair that has no per-datum weights (see ``weigh``).

    Cost: K passes of model and guide (a draw of global latents), and O(K^2) logarithms per datum.

    References: Variational inference for Monte Carlo objectives (Mnih & Rezende, 2016),
    https://arxiv.org/abs/1602.06725

    Example::

        svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), VIMCO(num_particles=4))
    """

    def __init__(
        self,
        num_particles: int = 4,
        *,
        baseline: str = "geometric",
        global_draws: int = 1,
        max_plate_nesting: float = math.inf,
        vectorize_particles: bool = True,
    ) -> None:
        if num_particles < 2:
            raise ValueError(
                f"`num_particles` must be at least 2, since each particle's baseline is made of the others; got "
                f"{num_particles}. For one particle use pyro.infer.TraceGraph_ELBO"
            )
        if baseline not in _MEAN_OF_OTHERS:
            raise ValueError(f"`baseline` must be one of {sorted(_MEAN_OF_OTHERS)}; got {baseline!r}")
        self.baseline = baseline
        super().__init__(
            num_particles, global_draws=global_draws, max_plate_nesting=max_plate_nesting,
            vectorize_particles=vectorize_particles,
        )  # fmt: skip

    def per_datum(self, weights: Weights, traces: Traces) -> Float[Tensor, "*cells"]:
        bound = _bound(weights.log_weight)
        with torch.no_grad():
            signal = bound - leave_one_out_bound(weights.log_weight, self.baseline)
        score = (signal * weights.log_score).sum(0)
        for own in weights.local:
            with torch.no_grad():
                without = leave_one_out_bound(weights.log_weight, self.baseline, log_part=own.log_weight)
            score = score + ((bound.detach().unsqueeze(-1) - without) * own.log_score).sum((0, -1))
        return bound + score - score.detach()


def _bound(log_weight: Float[Tensor, "particle *cells"]) -> Float[Tensor, "*cells"]:
    return log_weight.logsumexp(0) - math.log(len(log_weight))


_MEAN_OF_OTHERS = {
    "geometric": lambda w, own: w.masked_fill(own, 0.0).sum(1) / (len(w) - 1),
    "arithmetic": lambda w, own: w.masked_fill(own, -math.inf).logsumexp(1) - math.log(len(w) - 1),
}


@checked
def leave_one_out_bound(
    log_weight: Float[Tensor, "particle *cells"],
    baseline: str = "geometric",
    *,
    log_part: Float[Tensor, "particle *cells inner"] | None = None,
) -> Float[Tensor, "particle *own"]:
    r"""Computes ``L_{-k}``: the bound with the k-th weight, or a part of it, replaced by a mean of the others'.

    Args:
        log_part: a share of each log weight, which may be -inf; the rest of the k-th weight then stays, and the
            result has its shape.

    It is exact where one weight outweighs the others by any factor: nothing is subtracted inside the logarithm.
    """
    if baseline not in _MEAN_OF_OTHERS:
        raise ValueError(f"`baseline` must be one of {sorted(_MEAN_OF_OTHERS)}; got {baseline!r}")
    k = len(log_weight)

    def rows(weights: Tensor) -> tuple[Tensor, Tensor]:
        own = torch.eye(k, dtype=torch.bool, device=weights.device).reshape(k, k, *[1] * (weights.dim() - 1))
        return weights.expand(k, *weights.shape), own

    all_of_them, own = rows(log_weight)
    if log_part is None:
        stand_in = _MEAN_OF_OTHERS[baseline](all_of_them, own)
        return torch.where(own, stand_in.unsqueeze(1), all_of_them).logsumexp(1) - math.log(k)
    others = all_of_them.masked_fill(own, -math.inf).logsumexp(1).unsqueeze(-1)
    rest = torch.where(log_part > -math.inf, log_weight.unsqueeze(-1) - log_part, -math.inf)
    return torch.logaddexp(others, rest + _MEAN_OF_OTHERS[baseline](*rows(log_part))) - math.log(k)
