"""Variational structured memory: the generative model."""

from __future__ import annotations

from collections.abc import Sequence

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float, Int
from pyro.nn import PyroModule
from torch import Tensor

from pyro_memory.gate import check_least, checked
from pyro_memory.models.bases.base import BaseModel
from pyro_memory.naming import unique_name
from pyro_memory.nets import Context, Pages
from pyro_memory.recall import Recall, check_remembered, check_task
from pyro_memory.stores import SlotMemory, StructuredMemory


@checked
class VSM(PyroModule):
    r"""Draws the images of a task after recalling a concept and an episode; the base model draws each of them.

    .. code-block:: text

        k ~ r(k | S)            semantic recall: which concept
        s ~ r(s | k, S)         what the concept says
        j ~ r(j | k, S)         episodic recall: which episode, or none
        c ~ r(c | s, j, S)      the task's context
        i ~ images of j         each image: which of the episode's it is like, or none of them;
                                where j is none, of the exemplars of concept k
        x ~ base(x | c, m)      each image, with latents of its own; m is image i, beside it all others of j or k

    S is the task's support, possibly empty: ``r(. | {})`` is the generative prior. Trained with ``VSMGuide``, the bound
    is on ``log p(Q | S)``, and the KL of each of the first four sites says what the queries had to add to the support.

    Args:
        base: the base generative model, built with the ``code_dim`` of ``recall``; any ``BaseModel``.
        recall: a ``Recall``; the guide takes the same instance.

    ``forward(x, support, memory)``: x ``[task, query, channel, height, width]``; support a ``SlotMemory`` of one set a
    task with ``batch_dim=-2``; memory a ``StructuredMemory``. Sites ``k s j c`` in plate ``task``; ``i``, ``x`` and the
    base model's in plate ``item`` inside it. Where tasks have one query each, the bound is per image.

    After: Few-shot Generation via Recalling Brain-Inspired Episodic-Semantic Memory (Duan et al., 2023,
    https://openreview.net/forum?id=dxPcdEeQk9); of it only the abstract was at hand: the equations are this
    package's own.
    """

    def __init__(self, base: BaseModel, recall: Recall, *, name: str | None = None) -> None:
        super().__init__(name or unique_name(self))
        if base.code_dim and base.code_dim != recall.code_dim:
            raise ValueError(
                f"`base` must be told a code of {recall.code_dim} dimensions, as `recall` gives; got one built with "
                f"code_dim={base.code_dim}. Build both with one `code_dim`"
            )
        self.base = base
        self.recall = recall

    def context(
        self, page: Int[Tensor, "*page"], i: Int[Tensor, "*image"], c: Float[Tensor, "*batch code"],
        memory: StructuredMemory,
    ) -> Context:  # fmt: skip
        """What the base model is told: c, and features of image i of the page; where it looks at the whole page, those
        of the others too."""
        if self.base.content is None:
            return Context(c)
        if not self.base.whole_page:
            return Context(c, memory.read(page, i, self.base.content))
        pages, place = page.unique(return_inverse=True)
        every = torch.arange(memory.width + 1, device=page.device)
        features = memory.read(pages.unsqueeze(-1), every, self.base.content)
        there = memory.there(pages)
        shown = torch.cat([there, ~there.any(-1, keepdim=True)], -1)  # where a page is empty, an image of zeros
        return Context(c, tuple(f[place, i] for f in features), Pages(features[-1], shown, place))

    def forward(
        self, x: Float[Tensor, "task query channel height width"], support: SlotMemory, memory: StructuredMemory
    ) -> None:
        check_task(x, support, memory, self.recall, self.base.likelihood)
        with pyro.plate("task", len(x), dim=-2):
            page, c = self.recall(memory, self.recall.gather(support))
            with pyro.plate("item", x.shape[1], dim=-1):
                i = pyro.sample("i", memory.which(page))
                self.base.explain(x, self.context(page, i, c, memory))

    def recalled(self, support: SlotMemory, memory: StructuredMemory) -> tuple[Tensor, Tensor]:
        """Samples ``r(h | S)``: as a guide of ``imagined`` it says what each level of recall took from the support."""
        evidence = self.recall.gather(support)
        with pyro.plate("task", len(support.filled), dim=-2):
            return self.recall(memory, evidence)

    def imagined(self, support: SlotMemory, memory: StructuredMemory) -> tuple[Tensor, Tensor]:
        """Samples ``p(h)``, the generative prior: the same with an empty support."""
        return self.recalled(nothing_for(len(support.filled), support.values, self.recall.shape), memory)

    @torch.no_grad()
    def generate(
        self, support: SlotMemory, memory: StructuredMemory, images: int, *, remembered: bool = True,
        candidates: int = 1, **how: bool | int | float,
    ) -> Float[Tensor, "task image channel height width"]:  # fmt: skip
        r"""Draws new images of each task's class; each has a recall of its own.

        Args:
            support: the images given of each class, which ``remember`` has written to the memory.
            memory: the stores.
            images: how many to draw.
            remembered: False draws for a support that is no episode of the memory, or no longer: from concepts, other
                episodes and what the support says of the context. Images then are of its class only as far as those
                know it.
            candidates: draws of which one is kept for each image, in proportion to ``exp(recall.likeness(x, S))``
                (sampling importance resampling). Many draw from :math:`p(x | S) \, p_r(x, S) / p_r(x) p_r(S)`, r what
                recall has learned to tell sets apart by: nearer to the class and less varied than the model. Takes
                that many times as long.
            how: for the base model's ``generate``, such as ``guidance`` of an ``AutoregressiveBase``.

        Raises:
            ValueError: for a support that was not remembered, and for no candidates.

        References: Using the SIR algorithm to simulate posterior distributions (Rubin, 1988), Bayesian Statistics 3
        """
        check_least(1, candidates=candidates)
        if remembered:
            check_remembered(support, memory)
        tasks, draws = len(support.filled), images * candidates
        evidence = self.recall.gather(support)
        with pyro.plate("task", tasks, dim=-2), pyro.plate("item", draws, dim=-1):
            page, c = self.recall(memory, evidence)
            i = pyro.sample("i", memory.which(page))
        x = self.base.generate(self.context(page, i, c, memory), (tasks, draws), **how)
        if candidates == 1:
            return x
        likeness = self.recall.likeness(x, support).unflatten(1, (images, candidates))
        chosen = dist.Categorical(logits=likeness).sample() + candidates * torch.arange(images, device=x.device)
        return x.take_along_dim(chosen[..., None, None, None], 1)

    @torch.no_grad()
    def decode_concepts(
        self, s: Float[Tensor, "concept dim"], memory: StructuredMemory, images: int
    ) -> Float[Tensor, "concept image channel height width"]:
        """Draws images of an episode that a concept might have led to, embedded at s: for replay, and to look at
        prototypes. There is no image to read."""
        evidence = self.recall.gather(nothing_for(len(s), s, self.recall.shape))[2]
        s = s.unsqueeze(1)
        c = self.recall.c_dist(s, torch.cat([s, torch.ones_like(s[..., :1])], -1), evidence).sample()
        nothing = torch.full((len(s), 1), memory.episodes.slots + memory.concepts.concepts, device=s.device)
        none = torch.full_like(nothing, memory.width)
        return self.base.generate(self.context(nothing, none, c, memory), (len(s), images))


def nothing_for(tasks: int, like: Tensor, shape: Sequence[int]) -> SlotMemory:
    """An empty support for each of some tasks."""
    return SlotMemory(like.new_zeros(tasks, 0, *shape), batch_dim=-2)
