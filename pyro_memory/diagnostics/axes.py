"""Functions from values to axes; they take ``ax`` and return it, and neither show nor save."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jaxtyping import Float
from torch import Tensor

from pyro_memory.gate import checked, told

if TYPE_CHECKING:
    from matplotlib.axes import Axes
else:
    Axes = Any  # matplotlib is loaded by who draws

LEVELS = {
    "k": "concept address",
    "s": "concept",
    "j": "episode address",
    "c": "context",
    "i": "image read",
    "z": "item",
}
BLUE, ORANGE, GREY = "#2f6f9f", "#d9822b", "#8a8a8a"


@checked
def axes_or_new(ax: Axes | None) -> Axes:
    """Gives ``ax``, or the axes of a new figure."""
    if ax is not None and not hasattr(ax, "set_title"):
        raise TypeError(f"`ax` must be matplotlib's Axes, or None for a new figure; got {told(ax)}")
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    return plt.subplots(layout="constrained")[1]


@checked
def plot_usage(
    usage: Float[Tensor, " slot"], prior: Float[Tensor, " slot"] | None = None, ax: Axes | None = None
) -> Axes:
    """Draws how often each slot is read, beside its prior."""
    ax = axes_or_new(ax)
    ax.bar(range(len(usage)), usage.numpy(force=True), color=BLUE, label="read")
    if prior is not None:
        ax.step(range(len(prior)), prior.numpy(force=True), where="mid", color=ORANGE, label="prior")
    ax.set(xlabel="slot", ylabel="probability")
    ax.legend(frameon=False)
    return ax


@checked
def plot_levels(nats: Mapping[int, Mapping[str, float]], ax: Axes | None = None) -> Axes:
    """Stacks the nats of each site over the number of shots: ``{shots: {site: nats}}``."""
    ax = axes_or_new(ax)
    shots, bottom = list(nats), [0.0] * len(nats)
    for site in dict.fromkeys(site for row in nats.values() for site in row):
        heights = [max(nats[n].get(site, 0.0), 0.0) for n in shots]
        ax.bar([str(n) for n in shots], heights, bottom=bottom, label=LEVELS.get(site, site))
        bottom = [b + h for b, h in zip(bottom, heights, strict=True)]
    ax.set(xlabel="images in the support", ylabel="nats")
    ax.legend(frameon=False)
    return ax


@checked
def plot_images(
    rows: Sequence[Float[Tensor, "column channel height width"]],
    labels: Sequence[str] = (),
    ax: Axes | None = None,
) -> Axes:
    """Draws rows of images, ink black on white, a label a row; shorter rows end early."""
    import numpy as np

    ax = axes_or_new(ax)
    height, width = rows[0].shape[-2:]
    columns = max(len(row) for row in rows)
    sheet = np.zeros((len(rows) * (height + 2), columns * (width + 2)))
    for i, row in enumerate(rows):
        for j, image in enumerate(row):
            top, left = i * (height + 2) + 1, j * (width + 2) + 1
            sheet[top : top + height, left : left + width] = image.mean(0).numpy(force=True)
    ax.imshow(sheet, cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
    ax.set(xticks=[], yticks=[(i + 0.5) * (height + 2) for i in range(len(labels))], yticklabels=labels)
    ax.tick_params(length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)
    return ax
