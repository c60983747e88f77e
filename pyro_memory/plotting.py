"""Functions from a record to axes; they take ``ax`` and return it, and neither show nor save."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from pyro_memory.consolidation import Consolidation
    from pyro_memory.results import BoundEstimate, InformationGain, MemoryContribution, TokenSurprise

LEVELS = {
    "k": "concept address",
    "s": "concept",
    "j": "episode address",
    "c": "context",
    "i": "image read",
    "z": "item",
}
BLUE, ORANGE, GREY = "#2f6f9f", "#d9822b", "#8a8a8a"


def axes_or_new(ax: Axes | None) -> Axes:
    """Gives ``ax``, or the axes of a new figure."""
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    return plt.subplots(layout="constrained")[1]


def plot_bound(estimate: BoundEstimate, ax: Axes | None = None) -> Axes:
    """Draws the bounds of the data as a histogram with their mean."""
    ax = axes_or_new(ax)
    ax.hist(estimate.bound.numpy(force=True), bins=40, color=BLUE)
    ax.axvline(estimate.mean, color=ORANGE, label=f"mean {estimate.mean:.2f} ± {estimate.se:.2f}")
    ax.set(xlabel="bound on log p(x), nats", ylabel="data")
    ax.legend(frameon=False)
    return ax


def plot_information(gain: InformationGain, ax: Axes | None = None) -> Axes:
    """Draws nats a site with two standard errors over data; a tick marks an address's ceiling."""
    ax = axes_or_new(ax)
    names = [name for name, site in gain.sites.items() if site.kl is not None]
    for i, name in enumerate(names):
        site = gain.sites[name]
        se = 0.0 if math.isnan(site.se) else site.se
        ax.barh(i, site.mean, xerr=2 * se, color=BLUE if name in gain.addresses else GREY)
        end = site.mean + 2 * se
        if name in gain.addresses:
            ceiling = gain.addresses[name].ceiling
            ax.plot([ceiling, ceiling], [i - 0.4, i + 0.4], color=ORANGE, label=f"ceiling of {name}")
            end = max(end, ceiling)
        ax.annotate(f" {site.mean:.2f}", (end, i), va="center")
    ax.set(yticks=range(len(names)), yticklabels=names, xlabel="KL(q || p), nats")
    ax.invert_yaxis()
    ax.margins(x=0.15)
    if gain.addresses:
        ax.legend(frameon=False)
    return ax


def plot_contribution(contribution: MemoryContribution, ax: Axes | None = None) -> Axes:
    """Draws the nats lost with each other memory, with two standard errors."""
    ax = axes_or_new(ax)
    names = list(contribution.alternatives)
    gains = [contribution.gain(name) for name in names]
    ax.barh(range(len(names)), [g for g, _ in gains], xerr=[2 * se for _, se in gains], color=BLUE)
    ax.axvline(0, color=GREY, linewidth=0.8)
    ax.set(yticks=range(len(names)), yticklabels=names, xlabel="nats per datum lost against the memory as given")
    return ax


def plot_surprise(surprise: TokenSurprise, ax: Axes | None = None, *, sequence: int = 0) -> Axes:
    """Draws nats over time for one sequence, elements that were not scored left out."""
    ax = axes_or_new(ax)
    nats = surprise.nats[sequence].masked_fill(~surprise.scored[sequence], math.nan)
    ax.plot(range(len(nats)), nats.numpy(force=True), color=BLUE, linewidth=0.7)
    ax.set(xlabel="time", ylabel="-log p(x_t | x_<t), nats")
    return ax


def plot_text(
    text: str, nats: Float[Tensor, " time"], ax: Axes | None = None, *, columns: int = 72, highest: float = 8.0
) -> Axes:
    """Writes a text in lines of ``columns`` characters, each on a ground as dark as it was surprising.

    Args:
        nats: the surprise of each character, one row of ``TokenSurprise.nats``.
        highest: nats of the darkest ground.

    Raises:
        ValueError: if there is not one number a character.
    """
    import numpy as np

    if len(text) != len(nats):
        raise ValueError(f"`nats` must have one number for each of the {len(text)} characters; got {len(nats)}")
    ax = axes_or_new(ax)
    places, row, column = [], 0, 0
    for character in text:
        places.append((row, column))
        row, column = (row + 1, 0) if character == "\n" or column == columns - 1 else (row, column + 1)
    sheet = np.full((places[-1][0] + 1 if places else 1, columns), np.nan)
    for (row, column), character, value in zip(places, text, nats.tolist(), strict=True):
        sheet[row, column] = value
        ax.text(
            column, row, "¶" if character == "\n" else character, ha="center", va="center", family="monospace", size=8
        )
    image = ax.imshow(sheet, cmap="Oranges", vmin=0, vmax=highest, aspect="auto", interpolation="nearest")
    ax.set(xticks=[], yticks=[])
    ax.figure.colorbar(image, ax=ax, label="surprise, nats", pad=0.01)
    return ax


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


def plot_conversion(record: Consolidation, ax: Axes | None = None) -> Axes:
    """Draws q(r) of each considered episode as a row: keep, the concepts by use, new."""
    ax = axes_or_new(ax)
    rows = record.probabilities[record.considered]
    order = rows[:, 1:-1].sum(0).argsort(descending=True) + 1
    used = order[rows[:, order].sum(0) > 1e-3]
    shown = rows[:, [0, *used.tolist(), rows.shape[1] - 1]]
    ax.imshow(shown.numpy(force=True), cmap="Blues", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    ax.set(xticks=range(shown.shape[1]), xlabel="outcome", ylabel="episode")
    ax.set_xticklabels(["keep", *(str(k - 1) for k in used.tolist()), "new"], rotation=90)
    return ax


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
