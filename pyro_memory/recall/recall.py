"""Recall from a structured memory: what a set of images says about concept, episode and context."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float, Int
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.nn.functional import softplus

from pyro_memory.addressing import NormalizedKey
from pyro_memory.gate import checked
from pyro_memory.naming import unique_name
from pyro_memory.nets import ImagePyramid, broadcast_cat, mlp, out_of_autocast, scale_for_relu
from pyro_memory.stores import SlotMemory, StructuredMemory


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


@checked
class Recall(PyroModule):
    r"""Recalls concept, episode and context from a set of images S, empty or not: ``r(h | S)``, h = (k, s, j, c).

    .. code-block:: text

        k ~ pi_k E[L(u)], u ~ concept k              which concept
        s ~ predictive of concept k, times L_s       what the concept says
        j ~ rho_jk E[L(u)], u ~ episode j; or none   which episode, if any
        c ~ N(f(s, e_j)), times L_c                  the context

    A network turns each image into Gaussian evidence about the embedding u of its class, about s and about c; evidence
    adds up over the set. L is its likelihood; L_s points where L points, with a precision of its own. Each conditional
    is the generative prior times a likelihood that is 1 for the empty set, so ``r(h | {})`` is that prior: one module
    is the prior, the recall from the support, and, given support and queries, the guide. In addresses a concept's
    Student-t stands as the normal distribution of its moments. s stays a Student-t whose degrees of freedom grow by the
    ratio of the evidence's precision to its own.

    Evidence on addresses is taught first, by ``Recognition``; then ``fixed = True`` holds it (and the features under
    it) while the model trains: scores of sampled addresses are so noisy before a decoder reads what they find that they
    wash out, prior and guide alike.

    Args:
        shape: channels, height, width of the images.
        dim: dimensions of embeddings, as the stores'.
        code_dim: dimensions of c.
        channels: of the image pyramid.
        hidden: width of the layers on top.
        key_dim: dimensions in which an image is matched with those of an episode.

    After: Few-shot Generation via Recalling Brain-Inspired Episodic-Semantic Memory (Duan et al., 2023,
    https://openreview.net/forum?id=dxPcdEeQk9); of it only the abstract was at hand: the equations are this
    package's own. Sums of Gaussian evidence: Bayesian Context Aggregation for Neural Processes (Volpp et al., 2021),
    https://openreview.net/forum?id=ufZN2-aehFa
    """

    def __init__(
        self, shape: Sequence[int], *, dim: int = 16, code_dim: int = 32, channels: Sequence[int] = (16, 24, 32),
        hidden: int = 128, key_dim: int = 32, name: str | None = None,
    ) -> None:  # fmt: skip
        super().__init__(name or unique_name(self))
        self.shape = tuple(shape)
        self.dim, self.code_dim = dim, code_dim
        self.fixed = False
        self.given: tuple | None = None  # what a guide found in a support, for the model that follows it
        self.features = ImagePyramid(shape, channels)
        self.hidden = nn.Linear(self.features.out_features, hidden)
        self.address = nn.Linear(hidden, 2 * dim)
        self.told = nn.Linear(hidden, dim + 2 * code_dim)
        self.key = nn.Linear(hidden, key_dim)
        self.similarity = NormalizedKey()
        self.context = mlp([2 * dim + 1, hidden, 2 * code_dim])
        for layer in (self.hidden, self.context[0]):
            scale_for_relu(layer)
        with torch.no_grad():  # an image says little about s and c beside its episode, until that is found to pay
            self.told.bias[: dim + code_dim] = -3.0

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"given": None}  # it belongs to a graph, which no copy shares

    @torch.no_grad()
    def calibrate(self, images: Float[Tensor, "image channel height width"]) -> Recall:
        """Scales the last layers so that over these images what each points to has mean 0 and variance 1.

        Embeddings then fill their prior from the start, and a set finds its own episode before anything is learned:
        an address that finds nothing gives no gradient to learn by. Some hundred training images are enough.

        References: Weight Normalization (data-dependent initialisation; Salimans & Kingma, 2016),
        https://arxiv.org/abs/1602.07868
        """
        hidden = self.look(images)
        for layer, aim in ((self.address, self.dim), (self.told, self.code_dim)):
            raw = layer(hidden)[..., -aim:]
            scale = 1 / raw.std(0).clamp(min=1e-6)
            layer.bias[-aim:] = (layer.bias[-aim:] - raw.mean(0)) * scale
            layer.weight[-aim:] *= scale.unsqueeze(-1)
        return self

    # --- what a set says

    def look(self, images: Float[Tensor, "*batch channel height width"]) -> Float[Tensor, "*batch hidden"]:
        """Computes the features of each image from which its evidence, its query and its key are read."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.fixed):
            return torch.relu(out_of_autocast(self.hidden(self.features(images)[-1].flatten(-3))))

    def evidence(self, seen: Float[Tensor, "*batch hidden"]) -> tuple[Evidence, Evidence, Evidence]:
        """Gives each image's evidence on addresses, content and context, from what ``look`` gave."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.fixed):
            address, aim = out_of_autocast(self.address(seen)).chunk(2, -1)
        content, code, code_aim = out_of_autocast(self.told(seen)).split([self.dim, self.code_dim, self.code_dim], -1)

        def of(logits: Tensor, aim: Tensor) -> Evidence:
            precision = softplus(logits)
            return Evidence(precision, precision * aim)

        return of(address, aim), of(content, aim), of(code, code_aim)

    def gather(self, support: SlotMemory) -> tuple[Evidence, Evidence, Evidence]:
        """Sums the evidence of each task's support, ``[task, 1, dim]``.

        A guide reads the support first, and the model that follows it in the same evaluation takes what the guide
        found: once, for this very object, and only while neither its images nor anything of this module has changed.

        Cost: one pass of the encoder over the images that are there; padding costs nothing.
        """
        if support.batch_dim != -2 or not len(support.values):
            raise ValueError(
                "`support` must be a SlotMemory of one set for each of one task or more, [task, item, *event] with "
                f"batch_dim=-2; got {support}"
            )
        given, self.given = self.given, None
        if given is not None and given[0][0] is support and given[0][1] == self._state(support):
            return given[1]
        tasks, width = support.filled.shape
        owners = torch.arange(tasks, device=support.values.device).unsqueeze(-1).expand(tasks, width)[support.filled]

        def summed(values: Tensor) -> Tensor:
            return values.new_zeros(tasks, values.shape[-1]).index_add(0, owners, values).unsqueeze(1)

        each = self.evidence(self.look(support.values[support.filled]))
        address, content, code = (Evidence(summed(e.precision), summed(e.shift)) for e in each)
        return address, content, code

    def _state(self, support: SlotMemory) -> list[Any]:
        """What evidence depends on beside which support it is of."""
        held = [support.values, support.mask, *self.parameters(), *self.buffers()]
        state: list[Any] = [torch.is_grad_enabled(), torch.is_autocast_enabled(support.values.device.type)]
        state += [self.fixed, self.training]
        for t in held:  # tensors of inference mode count no versions, and hold still but there
            state += [] if t is None else [t.data_ptr(), t.dtype, 0 if t.is_inference() else t._version]
        return state

    def gather_all(self, support: SlotMemory, seen: Float[Tensor, "task query hidden"]) -> tuple[Evidence, ...]:
        """Sums the evidence of each task's support and queries, and leaves the support's for the model."""
        found = self.gather(support)
        self.given = (support, self._state(support)), found
        asked = (Evidence(e.precision.sum(1, keepdim=True), e.shift.sum(1, keepdim=True)) for e in self.evidence(seen))
        return tuple(one + other for one, other in zip(found, asked, strict=True))

    def embed(self, support: SlotMemory) -> tuple[Float[Tensor, "task dim"], Float[Tensor, "task dim"]]:
        """Gives mean and variance of each set's embedding, under a standard normal prior: what an episode keeps."""
        evidence, _, _ = self.gather(support)
        loc, variance = evidence.update(torch.zeros_like(evidence.shift), torch.ones_like(evidence.shift))
        return loc.squeeze(1), variance.squeeze(1)

    def likeness(
        self, x: Float[Tensor, "task query channel height width"], support: SlotMemory
    ) -> Float[Tensor, "task query"]:
        r"""Nats by which an image x is likelier to be of the embedding of its task's set S than of any:

        .. math::
            \log E_{u \sim N(e_S, v_S)} L_x(u) - \log E_{u \sim N(0, 1)} L_x(u)

        L is the likelihood of the image's evidence and ``N(e_S, v_S)`` what ``embed`` gives. 0 for an empty set.
        """
        address, _, _ = self.evidence(self.look(x))
        loc, variance = self.embed(support)
        rows = torch.stack([loc, torch.zeros_like(loc)], 1), torch.stack([variance, torch.ones_like(variance)], 1)
        own, other = address.log_marginal(*(row.unsqueeze(1) for row in rows)).unbind(-1)
        return own - other

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

    def episode(self, j: Int[Tensor, "*batch"], memory: StructuredMemory) -> Float[Tensor, "*batch dim_and_count"]:
        """The embedding of each episode j and a 1; zeros for "none"."""
        loc = memory.episodes.loc
        return torch.nn.functional.pad(torch.cat([loc, torch.ones_like(loc[:, :1])], -1), (0, 0, 0, 1))[j]

    def c_dist(
        self, s: Float[Tensor, "*batch dim"], episode: Float[Tensor, "*episode dim_and_count"], evidence: Evidence
    ) -> dist.Distribution:
        """r(c | s, e_j, S), the episode as ``episode`` gives it."""
        prior_loc, raw = out_of_autocast(self.context(broadcast_cat([s, episode]))).chunk(2, -1)
        # It starts narrow, 0.13: what s and the episode say should reach the decoder before c has a use of its own.
        loc, variance = evidence.update(prior_loc, (softplus(raw - 2.0) + 1e-3).square())
        return dist.Normal(loc, variance.sqrt()).to_event(1)

    def matches(
        self, seen: Float[Tensor, "task query hidden"], page: Int[Tensor, "*batch"], memory: StructuredMemory
    ) -> tuple[dist.Categorical, Callable[[Tensor], Tensor]]:
        """q(i | x, page): which of a page's images a query is like, or none; and what gives the chosen one's key.

        Keys are those of the network as it is now; only the pages addressed are embedded. The key of none is zero.
        """
        pages, place = page.unique(return_inverse=True)
        there = memory.there(pages)
        row, column = there.nonzero(as_tuple=True)
        images = memory.images(pages[row], column)
        keys = seen.new_zeros(len(pages), memory.width + 1, self.key.out_features)
        there = torch.nn.functional.pad(there, (0, 1)).unsqueeze(-1)
        keys = keys.masked_scatter(there, out_of_autocast(self.key(self.look(images))))
        query, unit = self.similarity(out_of_autocast(self.key(seen)), keys)
        scores = (unit[place] * query.unsqueeze(-2)).sum(-1) + memory.which(page).logits
        return dist.Categorical(logits=scores), lambda i: keys[place, i]

    def forward(self, memory: StructuredMemory, evidence: tuple[Evidence, ...]) -> tuple[Tensor, Tensor]:
        """Samples the sites ``k``, ``s``, ``j``, ``c`` within the caller's plate; gives the page to read and c."""
        address, content, context = evidence
        k = pyro.sample("k", self.k_dist(memory, address), infer={"enumerate": "parallel"})
        s = pyro.sample("s", self.s_dist(k, memory, content))
        j = pyro.sample("j", self.j_dist(k, memory, address), infer={"enumerate": "parallel"})
        return memory.page(k, j), pyro.sample("c", self.c_dist(s, self.episode(j, memory), context))
