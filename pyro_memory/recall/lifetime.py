"""A structured memory over time: each task becomes an episode, episodes become concepts, concepts are replayed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyro_memory.gate import check_least, checked
from pyro_memory.recall.consolidation import consolidate
from pyro_memory.recall.decisions import Consolidation
from pyro_memory.recall.recall import Recall
from pyro_memory.recall.replaying import replay
from pyro_memory.stores import SlotMemory, StructuredMemory


@checked
class Lifetime:
    """Lives through tasks in order, for ``fit``: ``lifetime[step]`` gives ``(x, support, memory)``.

    Before a task is answered its support is written as an episode, so that memory holds it beside what came before.
    Every ``consolidate_every`` steps, episodes are converted to concepts and what is free is refilled by replay. The
    newest step may be asked for again; earlier ones are gone.

    Args:
        tasks: ``tasks[step]`` gives ``(x, support)``, such as ``SetTasks``.
        recall: embeds the supports, as it is at that moment.
        memory: the stores at the start.
        consolidate_every: steps between consolidations; None never consolidates.
        timescale: the age at which an episode has had a chance of 1 - 1/e to be converted, in episodes.
        rule: how concepts take in an episode, see ``ConceptMemory.update``.
        forgetting: the power on what concepts knew, at each consolidation: the encoder that made it moves on.
        room, hypotheses: see ``consolidate``.
        replay: ``replay(s, items, memory)`` draws images from a concept's content, such as ``VSM.decode_concepts`` with
            its arguments in that order; None leaves converted slots free.
        replayed: how many slots to refill at a consolidation; by default half of those that are free.
        life: steps after which stores are as at the start again, such as ``ReturningClasses.life``; None for one life.
        rehearse: how many replayed episodes a step adds to its tasks, where memory holds some: their images, each pixel
            the likelier of 0 and 1, divided into support and queries. What is rehearsed is not written again.

    Attributes:
        memory: the stores after the newest step.
        consolidation: the record of the newest consolidation, or None.

    Cost of a step: one pass of the encoder over the supports; at a consolidation, O(episodes x concepts x dim).
    """

    def __init__(
        self,
        tasks: Any,
        recall: Recall,
        memory: StructuredMemory,
        *,
        consolidate_every: int | None = 25,
        timescale: float = 48.0,
        rule: str = "projected",
        forgetting: float = 0.95,
        room: int = 0,
        hypotheses: int = 1,
        replay: Callable[[Tensor, int, StructuredMemory], Tensor] | None = None,
        replayed: int | None = None,
        rehearse: int = 0,
        life: int | None = None,
    ) -> None:
        check_least(1, life=life)
        if consolidate_every is not None and consolidate_every < 1:
            raise ValueError(f"`consolidate_every` must be at least 1 step, or None; got {consolidate_every}")
        self.tasks, self.recall, self.memory = tasks, recall, memory
        self.consolidate_every = consolidate_every
        self.options = {"timescale": timescale, "rule": rule, "forgetting": forgetting, "room": room}
        self.options["hypotheses"] = hypotheses
        self.replay, self.replayed, self.rehearse = replay, replayed, rehearse
        self.life, self._born = life, memory
        self.newest = -1
        self._task: tuple[Tensor, SlotMemory] | None = None
        self.consolidation: Consolidation | None = None

    @torch.no_grad()
    def __getitem__(self, step: int) -> tuple[Tensor, SlotMemory, StructuredMemory]:
        if step < self.newest or (step == self.newest and self._task is None):
            raise ValueError(f"`step` must not be before {self.newest}, which was lived through; got {step}")
        device = self.memory.concepts.loc.device
        x, support = (part.to(device) for part in self.tasks[step])
        if step > self.newest:
            if self.life and step // self.life > self.newest // self.life:
                self.memory = self._born
            elif self.consolidate_every and step and step % self.consolidate_every == 0:
                self.memory = self._settle(self.memory)
            imagined = (self.memory.episodes.filled & self.memory.episodes.replayed).nonzero().flatten()
            more = self._rehearsed(x, support, imagined) if self.rehearse and len(imagined) else (x, support)
            self.memory = remember(self.recall, self.memory, support)
            self.newest, self._task = step, more
        return *self._task, self.memory

    def _rehearsed(self, x: Tensor, support: SlotMemory, imagined: Tensor) -> tuple[Tensor, SlotMemory]:
        chosen = imagined[torch.randint(len(imagined), (self.rehearse,), device=imagined.device)]
        images, counts = self.memory.episodes.items[chosen].round(), self.memory.episodes.counts[chosen]
        queries, width = x.shape[1], support.slots
        left = images[:, queries : queries + width]
        again = left.new_zeros(self.rehearse, width, *left.shape[2:])
        again[:, : left.shape[1]] = left
        there = torch.arange(width, device=x.device) < (counts - queries).clamp(max=left.shape[1]).unsqueeze(-1)
        values, mask = torch.cat([support.values, again]), torch.cat([support.filled, there])
        return torch.cat([x, images[:, :queries]]), SlotMemory(values, mask=mask, batch_dim=-2)

    def _settle(self, memory: StructuredMemory) -> StructuredMemory:
        settled, self.consolidation = consolidate(memory, **self.options)
        concepts, episodes = settled.concepts, settled.episodes
        free = int((~episodes.filled).sum())
        count = free // 2 if self.replayed is None else min(free, self.replayed)
        if self.replay is None or not count or not bool((concepts.counts > 0).any()):
            return settled
        draw = self.replay
        return StructuredMemory(concepts, replay(concepts, episodes, lambda s, n: draw(s, n, settled), count=count))

    def state_dict(self) -> dict[str, Tensor]:
        """Gives the stores and the step, for a checkpoint."""
        return self.memory.to_tensors() | {"newest": torch.tensor(self.newest, device="cpu")}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Goes on from what ``state_dict`` gave.

        Raises:
            ValueError: if the state holds no stores.
        """
        if "newest" not in state:
            raise ValueError("`state` must hold stores and step, as `state_dict` gives them; the checkpoint has none")
        state = dict(state)
        self.newest, self._task = int(state.pop("newest")), None
        self.memory = StructuredMemory.from_tensors(state)


@checked
@torch.no_grad()
def remember(recall: Recall, memory: StructuredMemory, support: SlotMemory) -> StructuredMemory:
    """Writes each task's support as an episode; an empty one leaves nothing to remember."""
    there = support.filled.any(-1)
    if not bool(there.any()):
        return memory
    loc, variance = (moment[there] for moment in recall.embed(support))
    responsibilities = memory.concepts.responsibilities(loc, variance)
    counts = support.filled.sum(-1)[there]
    episodes = memory.episodes.write(loc, variance, support.values[there], counts, responsibilities)
    return StructuredMemory(memory.concepts, episodes)
