"""How surprising each element of a sequence was."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from pyro import poutine
from pyro.poutine import Trace
from torch import Tensor

from pyro_memory.diagnostics.axes import BLUE, Axes, axes_or_new
from pyro_memory.diagnostics.sites import Site, frames
from pyro_memory.diagnostics.tables import Record, Rows, number, standard_error
from pyro_memory.gate import checked
from pyro_memory.inference import KeepFrozen, SameData, check_call, check_sites, stochastic_sites, told_by_site


@checked
@dataclass(frozen=True, repr=False)
class TokenSurprise(Record):
    """How surprising each element of sequences was: ``-log p(x_t | x_<t)``, in nats.

    Attributes:
        nats: ``[sequence, time]``.
        scored: which elements the model scored; the means are over these.
    """

    nats: Float[Tensor, "sequence time"]
    scored: Bool[Tensor, "sequence time"]

    @classmethod
    def cat(cls, parts: Sequence[TokenSurprise]) -> TokenSurprise:
        """Joins the surprise of several batches of one length."""
        return cls(torch.cat([p.nats for p in parts]), torch.cat([p.scored for p in parts]))

    @property
    def mean(self) -> float:
        """Nats per scored element."""
        return self.nats[self.scored].mean().item()

    @property
    def se(self) -> float:
        """The standard error of the mean, a ratio over sequences, which are what is independent."""
        counts = self.scored.sum(-1)
        share = (self.nats * self.scored).sum(-1) - self.mean * counts
        return standard_error(share / counts.double().mean())

    @property
    def bits(self) -> float:
        """Bits per scored element."""
        return self.mean / math.log(2)

    def _shown(self) -> tuple[str, Rows, Sequence[str]]:
        rows = [
            ("", "per element", "se"),
            ("nats", number(self.mean), number(self.se)),
            ("bits", number(self.bits), number(self.se / math.log(2))),
        ]
        return f"TokenSurprise of {int(self.scored.sum())} elements, {len(self.nats)} sequences", rows, ()

    def to_dict(self) -> dict[str, Any]:
        """Gives the summary as plain numbers."""
        return {
            "nats": self.mean, "se": self.se, "bits": self.bits, "elements": int(self.scored.sum()),
            "sequences": len(self.nats),
        }  # fmt: skip

    def plot(self, ax: Axes | None = None, *, sequence: int = 0) -> Axes:
        """Draws nats over time for one sequence, elements that were not scored left out."""
        ax = axes_or_new(ax)
        nats = self.nats[sequence].masked_fill(~self.scored[sequence], math.nan)
        ax.plot(range(len(nats)), nats.numpy(force=True), color=BLUE, linewidth=0.7)
        ax.set(xlabel="time", ylabel="-log p(x_t | x_<t), nats")
        return ax


@checked
@torch.no_grad()
def token_surprise(
    model: Callable, *args: Any, guide: Callable | None = None, draws: int = 1, site: str = "x", **kwargs: Any
) -> TokenSurprise:
    r"""Measures ``-log p(x_t | x_<t)`` for each element of each sequence, in nats.

    For a model whose observed site is autoregressive: its batch shape is the plate of sequences, and the first of its
    event dimensions is time. With a guide over global latents w, it is ``-log 1/K sum_k p(x_t | x_<t, w_k)``, w drawn
    from the guide, which does not learn from ``x_<t``.

    Args:
        model: such a model.
        *args, **kwargs: what model and guide are called with.
        guide: None where nothing is latent.
        draws: K.
        site: the observed site.

    Raises:
        ValueError: if there is no such site, it is not observed, or it has no dimension of time; if the model has
            latents that the guide does not draw, or that lie in a plate.

    The guide draws from torch's global random stream; parameters, gradients and modes stay as they are. Cost: ``draws``
    passes of the model.
    """
    if draws < 1:
        raise ValueError(f"`draws` must be at least 1; got {draws}")
    check_call(model, guide or model, args, kwargs, "args")
    log_probs, same = [], SameData()
    for _ in range(draws):
        with KeepFrozen(), told_by_site():
            given = poutine.trace(same(guide)).get_trace(*args, **kwargs) if guide is not None else None
            run = same(model if given is None else poutine.replay(model, trace=given))
            trace = poutine.trace(run).get_trace(*args, **kwargs)
        _check_latents(stochastic_sites(trace), given)
        same.check(model, (trace, trace), args, kwargs)
        log_prob, scored = _element_log_probs(trace.nodes.get(site), site)
        log_probs.append(log_prob)
    mean = torch.stack(log_probs).logsumexp(0) - math.log(draws)
    return TokenSurprise(-mean, scored)


def _check_latents(sites: dict[str, Site], given: Trace | None) -> None:
    """What is latent must be global, and drawn by the guide."""
    latents = {name: node for name, node in sites.items() if not node["is_observed"]}
    drawn = {} if given is None else stochastic_sites(given)
    missing = [name for name in latents if name not in drawn]
    if missing:
        raise ValueError(
            f"`guide` must draw the latents of the model, {', '.join(missing)}: without it they come from the prior, "
            "which has learned nothing. Give the guide that was trained with the model"
        )
    if drawn:
        check_sites(sites, drawn)
    local = [name for name, node in latents.items() if frames(node)]
    if local:
        raise ValueError(
            f"`model` must have global latents only; {', '.join(local)} lies in a plate, and a guide of it has seen "
            "what is to be surprising. Use importance_bound"
        )


def _element_log_probs(node: Site | None, name: str) -> tuple[Tensor, Tensor]:
    """Log probabilities ``[sequence, time]`` and which of them count."""
    plates = 0 if node is None else len(frames(node))
    if node is None or not node.get("is_observed") or plates != 1 or not node["fn"].event_dim:
        raise ValueError(
            f"`site` must be an observed site in one plate, its first event dimension time; {name!r} is none. The "
            'SequenceModel\'s is "x"'
        )
    scored, fn = None, node["fn"]
    while hasattr(fn, "base_dist"):
        scored = getattr(fn, "_mask", scored)
        fn = fn.base_dist
    log_prob = fn.log_prob(node["value"])
    log_prob = log_prob.flatten(2).sum(-1) if log_prob.dim() > 2 else log_prob
    if not isinstance(scored, Tensor):
        scored = torch.ones_like(log_prob, dtype=torch.bool)
    return log_prob, scored.expand(log_prob.shape)


@checked
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
