"""Concepts as images, at several times of a memory's life."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from pyro_memory.diagnostics.axes import Axes, plot_images
from pyro_memory.gate import checked
from pyro_memory.stores import ConceptMemory


@checked
def plot_concepts(
    concepts: ConceptMemory | Mapping[str, ConceptMemory], which: Int[Tensor, " row"] | Sequence[int] | None = None,
    ax: Axes | None = None,
) -> Axes:  # fmt: skip
    """Draws concepts as rows: the mean of the images that each keeps and their spread, at each time, and the images.

    A row is named by the episodes taken in and the mean predictive deviation of the embedding, at the first and at the
    last time; what a concept has of images are those of the last.

    Args:
        concepts: stores that keep exemplars; several are one store at several times, by name.
        which: the concepts to draw; by default the twelve that have taken in most by the last time.
        ax: where to draw; None makes a figure.

    Raises:
        ValueError: for no store, one that keeps no exemplars, or a concept that it does not have.
    """
    times = dict(concepts) if isinstance(concepts, Mapping) else {"": concepts}
    kept = [store.exemplars for store in times.values() if store.exemplars is not None]
    if len(kept) < max(1, len(times)) or kept[0].values.dim() < 4:
        raise ValueError(
            "`concepts` must be a store that keeps images as exemplars, or several by name; got "
            f"{list(map(str, times.values()))}. Give `exemplars` and `event_shape` to ConceptMemory.reserve"
        )
    first, *_, last = [*times.values(), *times.values()]
    rows = last.counts.argsort(descending=True)[:12] if which is None else torch.as_tensor(which)
    if not len(rows) or not bool(((rows >= 0) & (rows < min(s.concepts for s in times.values()))).all()):
        raise ValueError(f"`which` must name concepts from 0 to {last.concepts - 1}; got {rows.tolist()}")
    pairs = [torch.stack([part[rows] for part in store.prototypes()], 1) for store in kept]
    blank = torch.zeros_like(pairs[0][:, :1])
    sheet = torch.cat([part for pair in pairs for part in (pair, blank)] + [kept[-1].values[rows]], 1)
    before, after = (store.widths() for store in (first, last))
    names = [
        f"{k}: {last.counts[k]:.0f} episodes, width {before[k]:.2f}" + f" to {after[k]:.2f}" * (first is not last)
        for k in rows.tolist()
    ]
    ax = plot_images(list(sheet.reshape(*sheet.shape[:2], -1, *sheet.shape[-2:])), names, ax=ax)
    pitch = sheet.shape[-1] + 2
    heads = [*(f"{name}\nmean, spread" for name in times), "what is kept"]
    places = [*((3 * n + 1) * pitch for n in range(len(times))), (3 * len(times) + kept[-1].places / 2) * pitch]
    ax.set_xticks(places, heads)
    ax.xaxis.tick_top()
    ax.tick_params(length=0)
    return ax
