"""What a few-shot task must look like."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor, nn

from pyro_memory.checks import check_images
from pyro_memory.gate import checked
from pyro_memory.recall.recall import Recall
from pyro_memory.stores import SlotMemory, StructuredMemory


@checked
def check_task(
    x: Tensor, support: SlotMemory, memory: StructuredMemory, recall: Recall, likelihood: nn.Module | None = None
) -> None:
    """Raises a ValueError unless queries, support sets and stores fit one another and the recall."""
    if x.dim() != 5:
        raise ValueError(f"`x` must be [task, query, channel, height, width]; got shape {list(x.shape)}")
    check_images(x.flatten(0, 1), likelihood)
    if tuple(x.shape[2:]) != recall.shape:
        raise ValueError(
            f"`x` must hold images of {list(recall.shape)}, as `recall` was built for; got {list(x.shape[2:])}"
        )
    if support.batch_dim != -2 or support.values.shape[0] != len(x) or support.event_shape != x.shape[2:]:
        raise ValueError(
            f"`support` must be a SlotMemory of one set for each of the {len(x)} tasks, values [task, item, "
            f"{', '.join(map(str, x.shape[2:]))}] with batch_dim=-2; got {list(support.values.shape)} with "
            f"batch_dim={support.batch_dim}. An empty support has no items, [task, 0, ...]"
        )
    if memory.concepts.dim != recall.dim:
        raise ValueError(
            f"`memory` must hold embeddings of {recall.dim} dimensions, as `recall`; got {memory.concepts.dim}"
        )
    if tuple(memory.episodes.items.shape[2:]) != recall.shape:
        raise ValueError(
            f"`memory` must hold episodes of {list(recall.shape)} images; got {list(memory.episodes.items.shape[2:])}"
        )


@checked
def remembered_at(support: SlotMemory, memory: StructuredMemory) -> Int[Tensor, " task"]:
    """Which slot of the episodic store holds each task's support, the newest that does; -1 where none does, and for an
    empty support.

    Cost: O(tasks x slots x pixels), an image at a time.
    """
    episodes = memory.episodes
    found = torch.full((len(support.filled),), -1, device=episodes.ages.device)
    for task in support.filled.any(-1).nonzero().flatten().tolist():
        same = episodes.filled.clone()
        for image in support.values[task][support.filled[task]]:
            # A store may have been saved in half precision.
            near = ((episodes.items[same] - image).abs() < 1e-3).flatten(2).all(-1).any(-1)
            same = same.masked_scatter(same, near)
        if bool(same.any()):
            found[task] = episodes.ages.masked_fill(~same, torch.iinfo(torch.long).max).argmin()
    return found


@checked
def check_remembered(support: SlotMemory, memory: StructuredMemory) -> None:
    """Raises a ValueError unless each task's support, where it has images, is an episode of the memory."""
    lost = support.filled.any(-1) & (remembered_at(support, memory) < 0)
    if bool(lost.any()):
        raise ValueError(
            f"`support` must be remembered before the model recalls it; that of task {int(lost.nonzero()[0])} is no "
            "episode of `memory`. Write it, `memory = remember(model.recall, memory, support)`, or draw from concepts "
            "and other episodes by remembered=False"
        )
