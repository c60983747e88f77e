"""The semantic store of a structured memory: concepts, each a conjugate posterior over embeddings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyro.distributions as dist
import torch
from jaxtyping import Float, Int
from torch import Tensor

from pyro_memory.distributions import NormalGamma, expected_log_prob
from pyro_memory.gate import check_places, checked
from pyro_memory.stores.exemplars import Exemplars
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
        exemplars: a few images of each concept, drawn from what it took in, or None.

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
    exemplars: Exemplars | None = None

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
        if (
            self.exemplars is not None
            and (self.exemplars.times.shape[0], self.exemplars.loc.shape[-1]) != self.loc.shape
        ):
            raise ValueError(
                f"`exemplars` must be of {self.concepts} concepts with embeddings of {self.dim}; got "
                f"{list(self.exemplars.loc.shape)}"
            )
        if not (self.concentration > 0 and self.prior_kappa > 0 and self.prior_alpha > 1 and self.prior_beta > 0):
            raise ValueError(
                "`concentration`, `prior_kappa` and `prior_beta` must be positive and `prior_alpha` above 1, so that "
                f"the prior's predictive has a variance; got {self.concentration:g}, {self.prior_kappa:g}, "
                f"{self.prior_beta:g} and {self.prior_alpha:g}"
            )

    @classmethod
    def reserve(
        cls, concepts: int, dim: int, *, exemplars: int = 0, event_shape: Sequence[int] = (),
        dtype: torch.dtype | None = None, device: torch.device | str | None = None, **prior: float,
    ) -> ConceptMemory:  # fmt: skip
        """Makes a store of empty concepts, each with places for ``exemplars`` images of ``event_shape``; ``prior`` are
        the weak prior's scalars and the concentration."""
        if concepts < 1 or dim < 1 or exemplars < 0:
            raise ValueError(
                "`concepts` and `dim` must be at least 1 and `exemplars` at least 0; got "
                f"{concepts}, {dim}, {exemplars}"
            )
        defaults = {f: cls.__dataclass_fields__[f].default for f in _PRIOR}
        row = [torch.full((concepts, dim), (defaults | prior)[f], dtype=dtype, device=device) for f in _PRIOR]
        like = {"dtype": dtype, "device": device}
        kept = Exemplars.reserve(concepts, exemplars, event_shape, dim, **like) if exemplars else None
        made = cls(*row, torch.zeros(concepts, dtype=row[0].dtype, device=device), **prior)
        return replace(made, exemplars=kept)

    def emptied(self, concepts: int | None = None) -> ConceptMemory:
        """Returns a store of the same prior whose concepts are all empty."""
        prior = {f: getattr(self, f) for f in ("concentration", *_PRIOR)}
        kept = self.exemplars
        places = {} if kept is None else {"exemplars": kept.places, "event_shape": kept.values.shape[2:]}
        return type(self).reserve(
            concepts or self.concepts, self.dim, dtype=self.loc.dtype, device=self.loc.device, **places, **prior
        )

    @property
    def concepts(self) -> int:
        """The number of concepts, empty ones included."""
        return self.loc.shape[0]

    @property
    def dim(self) -> int:
        """Dimensions of an embedding."""
        return self.loc.shape[1]

    @property
    def posterior(self) -> NormalGamma:
        """What is known of each concept's mean and precision."""
        return NormalGamma(self.loc, self.kappa, self.alpha, self.beta)

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
        items: Sequence[Float[Tensor, "item *event"]] | None = None,
    ) -> ConceptMemory:
        r"""Returns a store that took in episodes, one after the other, each by concept k with probability q_k.

        Args:
            loc, variance: moments of the embeddings; they enter by expected statistics, ``E e`` and ``E e^2``.
            responsibilities: q; a row may sum to less than 1.
            rule: ``"projected"`` takes the mixture ``q_k`` (updated) ``+ (1 - q_k)`` (unchanged) and projects it on a
                Normal-Gamma by matching E[tau], E[log tau], E[tau mu] and E[tau mu^2]: doubt stays doubt.
                ``"fractional"`` counts q_k episodes, which takes doubt for data. ``"hard"`` counts the likeliest only.
            items: images of each episode, of which a concept with exemplars keeps some; drawn at random.

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
        images = [None] * len(loc) if items is None else items
        for e, v, q, seen in zip(loc.detach(), variance.detach(), responsibilities.detach(), images, strict=True):
            store = store._take_in(e, v, q, rule, seen)
        return store

    def _take_in(self, e: Tensor, v: Tensor, q: Tensor, rule: str, items: Tensor | None) -> ConceptMemory:
        if rule == "hard":
            q = torch.zeros_like(q).scatter(0, q.argmax(keepdim=True), 1.0) * (q.sum() > 0)
        before, share = self.posterior, q.unsqueeze(-1)
        after = before.mixed(before.observed(e, v), share) if rule == "projected" else before.observed(e, v, share)
        kept = self.exemplars
        if kept is not None and items is not None:
            kept = kept.take_in(items, e, v, q)
        return self._with(after, self.counts + q, kept)

    def _with(self, posterior: NormalGamma, counts: Tensor, exemplars: Exemplars | None) -> ConceptMemory:
        return replace(self, **posterior._asdict(), counts=counts, exemplars=exemplars)

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
        prior = self.emptied().posterior.natural()
        faded = NormalGamma.of_natural(torch.lerp(prior, self.posterior.natural(), rate))
        kept = None if self.exemplars is None else self.exemplars.forget(rate)
        return self._with(NormalGamma(*(t.to(self.loc) for t in faded)), rate * self.counts, kept)

    def to(self, *args: Any, **kwargs: Any) -> ConceptMemory:
        """Moves to a device, or casts to a floating dtype."""
        moved = {name: t.to(*args, **kwargs) for name, t in self._tensors().items()}
        kept = self.exemplars
        return replace(self, **moved, exemplars=None if kept is None else kept.to(*args, **kwargs))

    def _tensors(self) -> dict[str, Tensor]:
        return {name: getattr(self, name) for name in ("loc", "kappa", "alpha", "beta", "counts")}

    def to_tensors(self) -> dict[str, Tensor]:
        """Gives the tensors that rebuild the store, for saving."""
        scalars = [getattr(self, name) for name in ("concentration", *_PRIOR)]
        kept = {} if self.exemplars is None else self.exemplars.to_tensors()
        held = self._tensors() | {f"exemplars.{name}": tensor for name, tensor in kept.items()}
        return held | {"scalars": torch.tensor(scalars, dtype=torch.float64, device="cpu")}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> ConceptMemory:
        """Rebuilds a store from ``to_tensors``; raises a ValueError if one is missing."""
        kept = {name.removeprefix("exemplars."): t for name, t in tensors.items() if name.startswith("exemplars.")}
        own = {name: t for name, t in tensors.items() if not name.startswith("exemplars.")}
        own = saved(own, "loc", "kappa", "alpha", "beta", "counts", "scalars")
        scalars = own.pop("scalars").tolist()
        exemplars = Exemplars.from_tensors(kept) if kept else None
        return cls(**own, **dict(zip(("concentration", *_PRIOR), scalars, strict=True)), exemplars=exemplars)
