"""Recall from a structured memory: what a set of images says about concept, episode and context."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float, Int
from pyro.nn import PyroModule
from torch import Tensor
from torch.nn.functional import softplus

from pyro_memory.naming import unique_name
from pyro_memory.nets import ImagePyramid, mlp, scale_for_relu
from pyro_memory.slots import SlotMemory
from pyro_memory.structured import StructuredMemory


@dataclass(frozen=True)
class Evidence:
    r"""What a set says about a vector u: the likelihood ``exp(-1/2 u' diag(precision) u + shift' u)``, up to a factor.

    Evidence of two sets is the sum of theirs, so that the order of images does not matter; zero says nothing.

    Attributes:
        precision: not negative, ``[*batch, dim]``.
        shift: precision times the value that the set points to, same shape.
    """

    precision: Float[Tensor, "*batch dim"]
    shift: Float[Tensor, "*batch dim"]

    def __add__(self, other: Evidence) -> Evidence:
        return Evidence(self.precision + other.precision, self.shift + other.shift)

    def update(self, loc: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of a normal distribution after this evidence."""
        precision = 1 / variance + self.precision
        return (loc / variance + self.shift) / precision, 1 / precision

    def log_marginal(self, loc: Float[Tensor, "*row dim"], variance: Tensor) -> Float[Tensor, "*batch row"]:
        r"""``log E_{N(u; loc, variance)}`` of the likelihood, for each row of a table of normals."""
        precision, shift = self.precision.unsqueeze(-2), self.shift.unsqueeze(-2)
        grown = 1 + variance * precision
        exponent = (2 * loc * shift + variance * shift.square() - precision * loc.square()) / grown
        return 0.5 * (exponent - grown.log()).sum(-1)


class Recall(PyroModule):
    r"""Recalls concept, episode and context from a set of images S, empty or not: ``r(h | S)``, h = (k, s, j, c).

    .. code-block:: text

        k ~ pi_k E[L(u)], u ~ concept k              which concept
        s ~ predictive of concept k, times L         what the concept says
        j ~ rho_jk E[L(u)], u ~ episode j; or none   which episode, if any
        c ~ N(f(s, e_j)), times L_c                  the context

    A network turns each image into Gaussian evidence about the embedding u of its class, and about c; evidence adds
    up over the set. L is its likelihood. Each conditional is the generative prior times a likelihood that is 1 for
    the empty set, so ``r(h | {})`` is that prior: one module is the prior, the recall from the support, and, given
    support and queries, the guide. In addresses a concept's Student-t stands as the normal distribution of its
    moments. s stays a Student-t whose degrees of freedom grow by the ratio of the evidence's precision to its own.

    Args:
        shape: channels, height, width of the images.
        dim: dimensions of embeddings, as the stores'.
        code_dim: dimensions of c.
        channels: of the image pyramid.
        hidden: width of the layers on top.

    After: Few-shot Generation via Recalling Brain-Inspired Episodic-Semantic Memory (Duan et al., 2023,
    https://openreview.net/forum?id=dxPcdEeQk9); of it only the abstract was at hand: the equations are this
    package's own. Sums of Gaussian evidence: Bayesian Context Aggregation for Neural Processes (Volpp et al., 2021),
    https://openreview.net/forum?id=ufZN2-aehFa
    """

    def __init__(
        self, shape: Sequence[int], *, dim: int = 16, code_dim: int = 32, channels: Sequence[int] = (16, 24, 32),
        hidden: int = 128, name: str | None = None,
    ) -> None:  # fmt: skip
        super().__init__(name or unique_name(self))
        self.shape = tuple(shape)
        self.dim, self.code_dim = dim, code_dim
        self.given: tuple | None = None  # what a guide found in a support, for the model that follows it
        self.features = ImagePyramid(shape, channels)
        self.experts = mlp([self.features.out_features, hidden, 2 * (dim + code_dim)])
        self.context = mlp([2 * dim + 1, hidden, 2 * code_dim])
        for network in (self.experts, self.context):
            scale_for_relu(network[0])
        with torch.no_grad():  # an image says little about c beside its class, until that is found to pay
            self.experts[-1].bias[2 * dim : 2 * dim + code_dim] = -3.0

    @torch.no_grad()
    def calibrate(self, images: Float[Tensor, "image channel height width"]) -> Recall:
        """Scales the network's last layer so that over these images what each points to has mean 0 and variance 1.

        Embeddings then fill their prior from the start, and a set finds its own episode before anything is learned:
        an address that finds nothing gives no gradient to learn by. Some hundred training images are enough.

        References: Weight Normalization (data-dependent initialisation; Salimans & Kingma, 2016),
        https://arxiv.org/abs/1602.07868
        """
        last = self.experts[-1]
        hidden = self.experts[:-1](self.features(images)[-1].flatten(-3))
        raw = last(hidden)
        scale = 1 / raw.std(0).clamp(min=1e-6)
        aims = torch.zeros_like(scale, dtype=torch.bool)
        aims[self.dim : 2 * self.dim] = aims[2 * self.dim + self.code_dim :] = True
        last.bias.copy_(torch.where(aims, (last.bias - raw.mean(0)) * scale, last.bias))
        last.weight.copy_(torch.where(aims.unsqueeze(-1), last.weight * scale.unsqueeze(-1), last.weight))
        return self

    # --- what a set says

    def evidence(self, images: Float[Tensor, "*batch channel height width"]) -> tuple[Evidence, Evidence]:
        """Gives each image's evidence on embedding and context."""
        raw = self.experts(self.features(images)[-1].flatten(-3))
        precision, aim, code_precision, code_aim = raw.split([self.dim] * 2 + [self.code_dim] * 2, -1)
        precision, code_precision = softplus(precision), softplus(code_precision)
        return Evidence(precision, precision * aim), Evidence(code_precision, code_precision * code_aim)

    def gather(self, support: SlotMemory) -> tuple[Evidence, Evidence]:
        """Sums the evidence of each task's support, ``[task, 1, dim]``.

        A guide reads the support first, and the model that follows it in the same evaluation takes what the guide
        found: once, for this very object, and only while no parameter has changed.

        Cost: one pass of the encoder over the images that are there; padding costs nothing.
        """
        given, self.given = self.given, None
        state = support, torch.is_grad_enabled(), self.experts[-1].weight._version
        if given is not None and given[0][0] is support and given[0][1:] == state[1:]:
            return given[1]
        tasks, width = support.filled.shape
        owners = torch.arange(tasks, device=support.values.device).unsqueeze(-1).expand(tasks, width)[support.filled]

        def summed(values: Tensor) -> Tensor:
            return values.new_zeros(tasks, values.shape[-1]).index_add(0, owners, values).unsqueeze(1)

        each = self.evidence(support.values[support.filled])
        return tuple(Evidence(summed(e.precision), summed(e.shift)) for e in each)

    def gather_all(self, support: SlotMemory, queries: Float[Tensor, "task query *image"]) -> tuple[Evidence, Evidence]:
        """Sums the evidence of each task's support and queries, and leaves the support's for the model."""
        found = self.gather(support)
        self.given = (support, torch.is_grad_enabled(), self.experts[-1].weight._version), found
        asked = (
            Evidence(e.precision.sum(1, keepdim=True), e.shift.sum(1, keepdim=True)) for e in self.evidence(queries)
        )
        return tuple(one + other for one, other in zip(found, asked, strict=True))

    def embed(self, support: SlotMemory) -> tuple[Float[Tensor, "task dim"], Float[Tensor, "task dim"]]:
        """Gives mean and variance of each set's embedding, under a standard normal prior: what an episode keeps."""
        evidence, _ = self.gather(support)
        loc, variance = evidence.update(torch.zeros_like(evidence.shift), torch.ones_like(evidence.shift))
        return loc.squeeze(1), variance.squeeze(1)

    # --- the conditionals

    def k_dist(self, memory: StructuredMemory, evidence: Evidence) -> dist.Categorical:
        """r(k | S)."""
        return dist.Categorical(
            logits=memory.concepts.prior().logits + evidence.log_marginal(*memory.concepts.moments())
        )

    def s_dist(self, k: Int[Tensor, "*batch"], memory: StructuredMemory, evidence: Evidence) -> dist.Distribution:
        """r(s | k, S)."""
        prior = memory.concepts.predictive(k).base_dist
        variance = prior.scale.square()
        loc, updated = evidence.update(prior.loc, variance)
        return dist.StudentT(prior.df + variance * evidence.precision, loc, updated.sqrt()).to_event(1)

    def j_dist(self, k: Int[Tensor, "*batch"], memory: StructuredMemory, evidence: Evidence) -> dist.Categorical:
        """r(j | k, S); the last address is "none"."""
        episodes = memory.episodes
        prior = episodes.responsibilities.clamp(min=1e-6).log().T[k]
        slots = prior + evidence.log_marginal(episodes.loc, episodes.variance)
        slots = slots.masked_fill(~episodes.filled, -torch.inf)
        loc, variance = (moment[k] for moment in memory.concepts.moments())
        none = evidence.log_marginal(loc.unsqueeze(-2), variance.unsqueeze(-2))
        return dist.Categorical(logits=torch.cat([slots, none.expand(slots.shape[:-1] + (1,))], -1))

    def c_dist(
        self, s: Float[Tensor, "*batch dim"], j: Int[Tensor, "*batch"], memory: StructuredMemory, evidence: Evidence
    ) -> dist.Distribution:
        """r(c | s, j, S)."""
        episodes = memory.episodes
        known = torch.cat([torch.ones_like(episodes.loc[:, :1]), torch.zeros_like(s[..., :1].reshape(-1, 1)[:1])])
        loc = torch.cat([episodes.loc, torch.zeros_like(known[-1:]).expand(1, self.dim)])
        lead = torch.broadcast_shapes(s.shape[:-1], j.shape)
        inputs = [s, loc[j], known[j]]
        prior_loc, raw = self.context(torch.cat([t.expand(lead + t.shape[-1:]) for t in inputs], -1)).chunk(2, -1)
        # It starts narrow, 0.13: what s and the episode say should reach the decoder before c has a use of its own.
        loc, variance = evidence.update(prior_loc, (softplus(raw - 2.0) + 1e-3).square())
        return dist.Normal(loc, variance.sqrt()).to_event(1)

    def forward(self, memory: StructuredMemory, evidence: tuple[Evidence, Evidence]) -> tuple[Tensor, Tensor]:
        """Samples the sites ``k``, ``s``, ``j``, ``c`` within the caller's plate; gives j and c."""
        embedding, context = evidence
        k = pyro.sample("k", self.k_dist(memory, embedding), infer={"enumerate": "parallel"})
        s = pyro.sample("s", self.s_dist(k, memory, embedding))
        j = pyro.sample("j", self.j_dist(k, memory, embedding), infer={"enumerate": "parallel"})
        return j, pyro.sample("c", self.c_dist(s, j, memory, context))
