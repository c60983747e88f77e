"""The multi-sample bound with gradients that are reparameterised twice."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.util import sum_rightmost
from pyro.poutine import Trace
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_memory.gate import checked
from pyro_memory.inference.objective import Traces
from pyro_memory.inference.pairing import PARTICLES, Sites, base, frames_of, stochastic_sites
from pyro_memory.inference.vimco import VIMCO
from pyro_memory.inference.weights import Weights, _same, weigh


@checked
class DReG(VIMCO):
    r"""Maximises ``VIMCO``'s bound with a better gradient for continuous sites: doubly reparameterised IWAE.

    .. math::
        \nabla_\phi L_K = E \sum_k \tilde w_k^2 \frac{\partial \log w_k}{\partial z_k} \frac{dz_k}{d\phi}, \qquad
        \tilde w_k = \frac{w_k}{\sum_j w_j}, \quad z_k = z(\epsilon_k, \phi)

    The pathwise gradient of :math:`L_K` has a term :math:`-\sum_k \tilde w_k \nabla_\phi \log q_\phi(z_k)`, which has a
    mean but mostly noise: its signal to noise falls as :math:`1 / \sqrt K`. Reparameterised once more it takes the form
    of the rest, and what is left is above, whose signal to noise rises. It has the same mean, and vanishes draw by draw
    where q is the posterior. For a chain of sites the derivative is along the whole chain. Parameters of the model and
    discrete sites get what they get from ``VIMCO``.

    Sites after which the guide draws something that cannot be reparameterised, or makes a point of its own, keep the
    plain pathwise gradient, as the identity does not hold for them; so do all where a site of the guide is masked or
    sites differ in scale. Densities must be computable at any value, not only at what they have just drawn.

    Args:
        num_particles: K, at least 2.
        baseline: the stand-in for the k-th weight at discrete sites, ``"geometric"`` or ``"arithmetic"``.
        global_draws: how many draws of the global latents a step takes, where there are any.
        max_plate_nesting: how many plates the model nests; found by a trial run if not given, and then kept: use one
            instance per model.

    Raises:
        ValueError: for K < 2, an unknown baseline, and a pair that has no per-datum weights (see ``weigh``).

    Cost: that of ``VIMCO``, and a backward pass from log q to the values that it is evaluated at.

    References: Doubly Reparameterized Gradient Estimators for Monte Carlo Objectives (Tucker et al., 2018),
    https://arxiv.org/abs/1810.04152; Tighter Variational Bounds are Not Necessarily Better (Rainforth et al., 2018),
    https://arxiv.org/abs/1802.04537

    Example::

        svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), DReG(num_particles=16))
    """

    def __init__(
        self,
        num_particles: int = 4,
        *,
        baseline: str = "geometric",
        global_draws: int = 1,
        max_plate_nesting: float = math.inf,
    ) -> None:
        super().__init__(
            num_particles, baseline=baseline, global_draws=global_draws, max_plate_nesting=max_plate_nesting
        )

    def weights(self, traces: Traces) -> Weights:
        (pair,) = traces
        weights = weigh(*pair)
        share = weights.log_weight.detach().softmax(0)
        for site in (site for trace in pair for site in stochastic_sites(trace).values()):
            if "value_twice" in site:
                dims = {frame.dim for frame in frames_of(site) if frame.name in (PARTICLES, *weights.plates)}
                site["value_twice"].factor = _beside(site, share, dims)
        return weights

    def _get_trace(self, model: Callable, guide: Callable, args: tuple, kwargs: dict) -> tuple[Trace, Trace]:
        with _EachTwice() as values:
            model_trace, guide_trace = super()._get_trace(model, _GoesOn(values.of)(guide), args, kwargs)
        sites = stochastic_sites(guide_trace)
        chosen = [] if _is_tempered(sites, stochastic_sites(model_trace)) else _last(sites, values.of)
        chosen = [name for name in chosen if name not in self.global_sites]  # no particle has one of its own
        _hold_parameters([(sites[name], values.of[name]) for name in chosen])
        for value in values.of.values():
            value.views = ()  # their hooks would keep them for good
        return model_trace, guide_trace


class _Twice:
    """A continuous value twice: as the guide goes on with it, and as densities are evaluated at it.

    Gradients that come from densities are multiplied by ``factor``, so once however long the chain of values is. While
    ``cut``, none passes to what the value was made of.
    """

    def __init__(self, z: Tensor) -> None:
        self.factor: Tensor | None = None
        self.cut = False
        both = z.view_as(z)
        both.register_hook(lambda slope: torch.zeros_like(slope) if self.cut else None)
        self.views: tuple[Tensor, ...] = (both.view_as(both), both.view_as(both))
        self.views[1].register_hook(lambda slope: None if self.factor is None else slope * self.factor)


class _EachTwice(Messenger):
    """Lets traces and what is replayed from them hold the values that are for densities."""

    def __init__(self) -> None:
        super().__init__()
        self.of: dict[str, _Twice] = {}

    def _pyro_post_sample(self, msg: dict[str, Any]) -> None:
        z, name = msg["value"], msg["name"]
        if name not in self.of and not msg["is_observed"] and isinstance(z, Tensor) and z.requires_grad:
            self.of[name] = _Twice(z)
            msg["value"] = self.of[name].views[1]


class _GoesOn(Messenger):
    """Lets the guide go on with the values that are for it; it comes after the trace has looked."""

    def __init__(self, of: dict[str, _Twice]) -> None:
        super().__init__()
        self.of = of

    def _pyro_post_sample(self, msg: dict[str, Any]) -> None:
        if msg["name"] in self.of:
            msg["value"] = self.of[msg["name"]].views[0]


def _is_tempered(guide_sites: Sites, model_sites: Sites) -> bool:
    """Whether log q counts other than once in some weight."""
    scales = [site["scale"] for site in (*guide_sites.values(), *model_sites.values())]
    masks = [site["mask"] is not None or _has_mask(site["fn"]) for site in guide_sites.values()]
    return any(masks) or not all(_same(scale, scales[0]) for scale in scales)


def _has_mask(fn: Any) -> bool:
    return isinstance(fn, dist.MaskedDistribution) or (hasattr(fn, "base_dist") and _has_mask(fn.base_dist))


def _last(guide_sites: Sites, of: dict[str, _Twice]) -> list[str]:
    """The sites after which all can be reparameterised."""
    names: list[str] = []
    for name, site in reversed(guide_sites.items()):
        # A point that the guide makes may depend on parameters that its density at the point does not show; a point
        # that an automatic guide makes depends on its own auxiliary site alone.
        made = isinstance(base(site["fn"]), dist.Delta) and f"{name}_unconstrained" not in guide_sites
        if name not in of or made:
            break
        names.append(name)
    return names


def _hold_parameters(chosen: list[tuple[dict[str, Any], _Twice]]) -> None:
    """Makes log q of the chosen sites a function of their values alone, with the slopes that it has in these."""
    log_q = sum(site["unscaled_log_prob"].sum() for site, _ in chosen)
    views = [view for _, value in chosen for view in value.views]
    for _, value in chosen:
        value.cut = True
    slopes = torch.autograd.grad(log_q, views, retain_graph=True, allow_unused=True) if chosen else ()
    for (site, value), chain, density in zip(chosen, slopes[::2], slopes[1::2], strict=True):
        value.cut = False
        slope = sum(each for each in (chain, density) if each is not None)
        along = slope * (site["value"] - site["value"].detach())
        site["unscaled_log_prob"] = site["unscaled_log_prob"].detach() + sum_rightmost(along, site["fn"].event_dim)
        site["value_twice"] = value


def _beside(site: dict[str, Any], share: Tensor, dims: set[int]) -> Tensor:
    """The weights in the dimensions that the site's value has."""
    own = range(-site["value"].dim() + site["fn"].event_dim, 0)
    sizes = [int(site["value"].shape[i]) if dim in dims else 1 for i, dim in enumerate(own)]
    return share.reshape(*sizes, *[1] * site["fn"].event_dim)
