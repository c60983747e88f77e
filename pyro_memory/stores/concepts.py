"""The semantic store of a structured memory: concepts, each a conjugate posterior over embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pyro.distributions as dist
import torch
from jaxtyping import Float, Int
from torch import Tensor

from pyro_memory.distributions import expected_log_prob
from pyro_memory.gate import check_places, checked
from pyro_memory.stores.tensors import check_finite, saved

RULES = ("projected", "fractional", "hard")
_PRIOR = ("prior_loc", "prior_kappa", "prior_alpha", "prior_beta")


@checked
@dataclass(frozen=True, repr=False)
class ConceptMemory:
    r"""Holds concepts: what the embeddings of many episodes had in common. A value: ``update`` gives a new store.

    Concept k is a Normal-Gamma posterior for each dimension of an embedding e, dimensions independent:

    .. math::
        e \sim N(\mu, 1/\tau), \quad \mu | \tau \sim N(loc, 1/(\kappa\tau)), \quad \tau \sim Gamma(\alpha, \beta)

    so that its predictive is a Student-t of ``2 alpha`` degrees of freedom and squared scale
    ``beta (kappa + 1) / (alpha kappa)``.

    Attributes:
        loc, kappa, alpha, beta: the posteriors, ``[concept, dim]``.
        counts: expected number of episodes that each concept took in, ``[concept]``; 0 for an empty one.
        concentration: gamma, the weight of empty concepts: ``p(k)`` is proportional to ``counts_k + gamma / K``.
        prior_loc, prior_kappa, prior_alpha, prior_beta: the weak prior, that of an empty concept.

    Raises:
        ValueError: if shapes do not fit, a value is not finite, or a parameter is out of its range.

    References: Conjugate Bayesian analysis of the Gaussian distribution (Murphy, 2007),
    https://www.cs.ubc.ca/~murphyk/Papers/bayesGauss.pdf
    """

    loc: Float[Tensor, "concept dim"]
    kappa: Float[Tensor, "concept dim"]
    alpha: Float[Tensor, "concept dim"]
    beta: Float[Tensor, "concept dim"]
    counts: Float[Tensor, " concept"]
    concentration: float = 1.0
    prior_loc: float = 0.0
    prior_kappa: float = 0.1
    prior_alpha: float = 2.0
    prior_beta: float = 0.09

    def __post_init__(self) -> None:
        for name, tensor in self._tensors().items():
            check_finite(name, tensor, "concept", "A concept is a posterior: start from ConceptMemory.reserve")
        for name in ("kappa", "alpha", "beta"):
            tensor = getattr(self, name)
            if tensor.shape != self.loc.shape or self.loc.dim() != 2:
                raise ValueError(
                    f"`{name}` must have the shape of `loc`, [concept, dim]; got {list(tensor.shape)} and "
                    f"{list(self.loc.shape)}"
                )
            if not bool((tensor > 0).all()):
                raise ValueError(f"`{name}` must be positive; got {tensor.min().item():g} at least")
        if self.counts.shape != self.loc.shape[:1] or not bool((self.counts >= 0).all()):
            raise ValueError(
                f"`counts` must be one number for each of the {len(self.loc)} concepts, not negative; got shape "
                f"{list(self.counts.shape)}"
            )
        if not (self.concentration > 0 and self.prior_kappa > 0 and self.prior_alpha > 1 and self.prior_beta > 0):
            raise ValueError(
                "`concentration`, `prior_kappa` and `prior_beta` must be positive and `prior_alpha` above 1, so that "
                f"the prior's predictive has a variance; got {self.concentration:g}, {self.prior_kappa:g}, "
                f"{self.prior_beta:g} and {self.prior_alpha:g}"
            )

    @classmethod
    def reserve(
        cls, concepts: int, dim: int, *, dtype: torch.dtype | None = None,
        device: torch.device | str | None = None, **prior: float,
    ) -> ConceptMemory:  # fmt: skip
        """Makes a store of empty concepts; ``prior`` are the weak prior's scalars and the concentration."""
        if concepts < 1 or dim < 1:
            raise ValueError(f"`concepts` and `dim` must be at least 1; got {concepts} and {dim}")
        defaults = {f: cls.__dataclass_fields__[f].default for f in _PRIOR}
        row = [torch.full((concepts, dim), (defaults | prior)[f], dtype=dtype, device=device) for f in _PRIOR]
        return cls(*row, torch.zeros(concepts, dtype=row[0].dtype, device=device), **prior)

    def emptied(self, concepts: int | None = None) -> ConceptMemory:
        """Returns a store of the same prior whose concepts are all empty."""
        prior = {f: getattr(self, f) for f in ("concentration", *_PRIOR)}
        return type(self).reserve(
            concepts or self.concepts, self.dim, dtype=self.loc.dtype, device=self.loc.device, **prior
        )

    @property
    def concepts(self) -> int:
        """The number of concepts, empty ones included."""
        return self.loc.shape[0]

    @property
    def dim(self) -> int:
        """Dimensions of an embedding."""
        return self.loc.shape[1]

    def __repr__(self) -> str:
        used = self.counts > 0
        width = f", mean width {self.widths()[used].mean():.3g}" if used.any() else ""
        return (
            f"ConceptMemory({self.concepts} concepts of {self.dim} dimensions, {int(used.sum())} in use, "
            f"{self.counts.sum():.4g} episodes{width})"
        )

    # --- what a concept says

    def prior(self) -> dist.Categorical:
        """p(k): large concepts come to mind more easily, empty ones stay reachable."""
        return dist.Categorical(probs=self.counts + self.concentration / self.concepts)

    def predictive(self, k: Int[Tensor, "*batch"] | None = None) -> dist.Independent:
        """p(e | concept k), of all concepts or of those at addresses ``k``, any shape."""
        if k is not None:
            check_places("k", k, len(self.loc), "the concepts")
        loc, kappa, alpha, beta = (t if k is None else t[k] for t in (self.loc, self.kappa, self.alpha, self.beta))
        return dist.StudentT(2 * alpha, loc, (beta * (kappa + 1) / (alpha * kappa)).sqrt()).to_event(1)

    def new_predictive(self) -> dist.Independent:
        """p(e) of an empty concept."""
        one = self.emptied(1).predictive()
        return dist.StudentT(one.base_dist.df[0], one.base_dist.loc[0], one.base_dist.scale[0]).to_event(1)

    def moments(self) -> tuple[Float[Tensor, "concept dim"], Float[Tensor, "concept dim"]]:
        """Mean and variance of each predictive. Where alpha is below 1.05 the variance is that at 1.05: at 1 and below
        a Student-t has none, though projection may lead there from concepts that contradict one another."""
        alpha = self.alpha.clamp(min=1.05)
        return self.loc, self.beta * (self.kappa + 1) / ((alpha - 1) * self.kappa)

    def expected_log_predictive(
        self, loc: Float[Tensor, "*batch dim"], variance: Float[Tensor, "*batch dim"]
    ) -> Float[Tensor, "*batch concept"]:
        """``E_{N(e; loc, diag variance)} log p(e | concept k)``, nats, by quadrature. Cost: O(batch concepts dim)."""
        return expected_log_prob(self.predictive(), loc.unsqueeze(-2), variance.unsqueeze(-2))

    def responsibilities(
        self, loc: Float[Tensor, "*batch dim"], variance: Float[Tensor, "*batch dim"]
    ) -> Float[Tensor, "*batch concept"]:
        """Probabilities of the concepts for uncertain embeddings: ``p(k) exp E log p(e | k)``, normalised."""
        return (self.prior().logits + self.expected_log_predictive(loc, variance)).softmax(-1)

    def widths(self) -> Float[Tensor, " concept"]:
        """Mean over dimensions of the predictive's standard deviation."""
        return self.moments()[1].sqrt().mean(-1)

    def kl_to(self, other: ConceptMemory) -> Float[Tensor, " concept"]:
        """``KL(self || other)`` of each concept's posterior, nats, in closed form."""
        if other.loc.shape != self.loc.shape:
            raise ValueError(f"`other` must have shape {list(self.loc.shape)}; got {list(other.loc.shape)}")
        m, k, a, b = self.loc, self.kappa, self.alpha, self.beta
        tau = a / b
        ratio = other.kappa / k
        normal = 0.5 * (other.kappa * tau * (m - other.loc).square() + ratio - ratio.log() - 1)
        gamma = (
            other.alpha * (b / other.beta).log() + torch.lgamma(other.alpha) - torch.lgamma(a)
            + (a - other.alpha) * torch.digamma(a) + (other.beta - b) * tau
        )  # fmt: skip
        return (normal + gamma).sum(-1)

    # --- new stores from this one

    def update(
        self,
        loc: Float[Tensor, "episode dim"],
        variance: Float[Tensor, "episode dim"],
        responsibilities: Float[Tensor, "episode concept"],
        *,
        rule: str = "projected",
    ) -> ConceptMemory:
        r"""Returns a store that took in episodes, one after the other, each by concept k with probability q_k.

        Args:
            loc, variance: moments of the embeddings; they enter by expected statistics, ``E e`` and ``E e^2``.
            responsibilities: q; a row may sum to less than 1.
            rule: ``"projected"`` takes the mixture ``q_k`` (updated) ``+ (1 - q_k)`` (unchanged) and projects it on a
                Normal-Gamma by matching E[tau], E[log tau], E[tau mu] and E[tau mu^2]: doubt stays doubt.
                ``"fractional"`` counts q_k episodes, which takes doubt for data. ``"hard"`` counts the likeliest only.

        Raises:
            ValueError: for an unknown rule, shapes that do not fit, values out of range or not finite.

        Cost: O(episodes x concepts x dim). Order counts except for fractional updates with given responsibilities.

        References: Expectation propagation for approximate Bayesian inference (Minka, 2001),
        https://arxiv.org/abs/1301.2294
        """
        if rule not in RULES:
            raise ValueError(f"`rule` must be one of {', '.join(RULES)}; got {rule!r}")
        if bool((variance < 0).any()):
            raise ValueError("`variance` must not be negative")
        if bool((responsibilities < 0).any()) or bool((responsibilities.sum(-1) > 1 + 1e-4).any()):
            raise ValueError("`responsibilities` must be probabilities: not negative, rows summing to at most 1")
        store = self
        for e, v, q in zip(loc.detach(), variance.detach(), responsibilities.detach(), strict=True):
            store = store._take_in(e, v, q, rule)
        return store

    def _take_in(self, e: Tensor, v: Tensor, q: Tensor, rule: str) -> ConceptMemory:
        if rule == "hard":
            q = torch.zeros_like(q).scatter(0, q.argmax(keepdim=True), 1.0) * (q.sum() > 0)
        weight = (torch.ones_like(q) if rule == "projected" else q).unsqueeze(-1)
        kappa = self.kappa + weight
        loc = (self.kappa * self.loc + weight * e) / kappa
        alpha = self.alpha + weight / 2
        beta = self.beta + 0.5 * weight * (v + self.kappa * (e - self.loc).square() / kappa)
        updated = replace(self, loc=loc, kappa=kappa, alpha=alpha, beta=beta, counts=self.counts + q)
        return updated if rule != "projected" else self._mixed(updated, q.unsqueeze(-1))

    def _mixed(self, updated: ConceptMemory, q: Float[Tensor, "concept 1"]) -> ConceptMemory:
        """Projects ``q updated + (1 - q) self`` on the family; a certain assignment needs no projection."""
        tau, log_tau, tau_mu, tau_mu2 = (
            torch.lerp(old, new, q.double())
            for old, new in zip(self._expectations(), updated._expectations(), strict=True)
        )
        loc = tau_mu / tau
        alpha = _gamma_shape((tau.log() - log_tau).clamp(min=1e-12))
        mixed = {"loc": loc, "kappa": 1 / (tau_mu2 - loc * tau_mu), "alpha": alpha, "beta": alpha / tau}
        for name, value in mixed.items():
            kept = torch.where(q == 0, getattr(self, name), value.to(q.dtype))
            mixed[name] = torch.where(q == 1, getattr(updated, name), kept)
        return replace(updated, **mixed)

    def _expectations(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """E[tau], E[log tau], E[tau mu], E[tau mu^2], in double precision: the projection takes their differences."""
        loc, kappa, alpha, beta = (t.double() for t in (self.loc, self.kappa, self.alpha, self.beta))
        tau = alpha / beta
        return tau, alpha.digamma() - beta.log(), tau * loc, 1 / kappa + tau * loc.square()

    def forget(self, rate: float) -> ConceptMemory:
        """Returns a store that knows less: what was learned beyond the weak prior counts ``rate`` times, a power prior.

        Raises:
            ValueError: if ``rate`` is not in (0, 1]; 1 changes nothing.

        References: Power prior distributions for regression models (Ibrahim & Chen, 2000),
        https://doi.org/10.1214/ss/1009212673
        """
        if not 0 < rate <= 1:
            raise ValueError(f"`rate` must be in (0, 1], 1 to forget nothing; got {rate}")
        if rate == 1:
            return self
        prior = self.emptied()
        kappa = prior.kappa + rate * (self.kappa - prior.kappa)
        moment = prior.kappa * prior.loc + rate * (self.kappa * self.loc - prior.kappa * prior.loc)
        loc = moment / kappa
        alpha = prior.alpha + rate * (self.alpha - prior.alpha)

        def second(store: ConceptMemory) -> Tensor:
            return store.beta + 0.5 * store.kappa * store.loc.square()

        beta = second(prior) + rate * (second(self) - second(prior)) - 0.5 * kappa * loc.square()
        return replace(self, loc=loc, kappa=kappa, alpha=alpha, beta=beta, counts=rate * self.counts)

    def to(self, *args: Any, **kwargs: Any) -> ConceptMemory:
        """Moves to a device, or casts to a floating dtype."""
        return replace(self, **{name: t.to(*args, **kwargs) for name, t in self._tensors().items()})

    def _tensors(self) -> dict[str, Tensor]:
        return {name: getattr(self, name) for name in ("loc", "kappa", "alpha", "beta", "counts")}

    def to_tensors(self) -> dict[str, Tensor]:
        """Gives the tensors that rebuild the store, for saving."""
        scalars = [getattr(self, name) for name in ("concentration", *_PRIOR)]
        return self._tensors() | {"scalars": torch.tensor(scalars, dtype=torch.float64, device="cpu")}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> ConceptMemory:
        """Rebuilds a store from ``to_tensors``; raises a ValueError if one is missing."""
        tensors = saved(tensors, "loc", "kappa", "alpha", "beta", "counts", "scalars")
        scalars = tensors.pop("scalars").tolist()
        return cls(**tensors, **dict(zip(("concentration", *_PRIOR), scalars, strict=True)))


def _gamma_shape(c: Tensor) -> Tensor:
    """Solves ``log(a) - digamma(a) = c`` for a > 0, by Newton steps on 1 / a from Minka's approximation."""
    a = (3 - c + ((c - 3).square() + 24 * c).sqrt()) / (12 * c)
    for _ in range(6):
        slope = a.square() * (1 / a - torch.polygamma(1, a))
        a = 1 / (1 / a + (a.log() - a.digamma() - c) / slope)
    return a
