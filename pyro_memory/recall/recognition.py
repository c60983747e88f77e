"""Teaches a recall to address: which set does an image belong to?"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float
from pyro.nn import PyroModule
from torch import Tensor

from pyro_memory.gate import checked
from pyro_memory.naming import unique_name
from pyro_memory.recall.recall import Recall
from pyro_memory.stores import SlotMemory


@checked
class Recognition(PyroModule):
    r"""Says to which of several sets each image belongs, by the evidence with which a ``Recall`` addresses episodes.

    .. math::
        own_{tn} \sim Categorical(softmax_j \log E_{u \sim N(e_j, v_j)} L_{tn}(u)), \qquad own_{tn} = t

    ``N(e_j, v_j)`` is the embedding that set j leaves as an episode and L the likelihood of one image's evidence. No
    latents, so the guide is empty, and the bound is the log-probability of the right sets, nats. Chance is log tasks
    an image.

    Args:
        recall: the recall to teach.

    ``forward(x, support)``: x ``[task, query, channel, height, width]``; support one set a task, none empty.

    Raises:
        ValueError: for an empty set, and for a recall that is fixed.

    After: Prototypical Networks for Few-shot Learning (Snell et al., 2017), https://arxiv.org/abs/1703.05175

    Example::

        tasks = SetTasks(data, tasks=40, queries=2, shots=range(1, 6))
        fit(Recognition(recall), EmptyGuide(), tasks, Trace_ELBO(max_plate_nesting=2), steps=800)
        recall.fixed = True
    """

    def __init__(self, recall: Recall, *, name: str | None = None) -> None:
        super().__init__(name or unique_name(self))
        self.recall = recall

    def own_dist(self, x: Float[Tensor, "task query channel height width"], support: SlotMemory) -> dist.Categorical:
        """p(own | x, sets)."""
        if not x.shape[0] or not x.shape[1]:
            raise ValueError(f"`x` must hold an image of a task at least; got shape {list(x.shape)}")
        if not bool(support.filled.any(-1).all()):
            raise ValueError("`support` must hold at least one image a task; a set of none cannot be recognised")
        address, _, _ = self.recall.evidence(self.recall.look(x))
        return dist.Categorical(logits=address.log_marginal(*self.recall.embed(support)))

    def forward(self, x: Float[Tensor, "task query channel height width"], support: SlotMemory) -> None:
        if self.recall.fixed:
            raise ValueError("`recall` must not be fixed while it is taught; set `recall.fixed = False`")
        own_dist = self.own_dist(x, support)
        with pyro.plate("task", len(x), dim=-2), pyro.plate("item", x.shape[1], dim=-1):
            own = torch.arange(len(x), device=x.device).unsqueeze(-1).expand(x.shape[:2])
            pyro.sample("own", own_dist, obs=own)

    @torch.no_grad()
    def accuracy(self, x: Float[Tensor, "task query channel height width"], support: SlotMemory) -> float:
        """The share of images whose likeliest set is their own."""
        own = torch.arange(len(x), device=x.device).unsqueeze(-1)
        return (self.own_dist(x, support).logits.argmax(-1) == own).float().mean().item()
