"""How many data a run of a model explains."""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
from pyro.poutine.messenger import Messenger

from pyro_memory.inference import PARTICLES


class DataCount(Messenger):
    """Counts, while model and guide run in it, the data that one call explains.

    A datum is a cell of the plates around all that is observed; where a latent lies in some of these only, the others
    are parts of a datum. Latents in none of them belong to the data set. A subsampled plate counts at its full size, as
    in the bound.
    """

    def __init__(self) -> None:
        super().__init__()
        self.latents: dict[str, frozenset[Any]] = {}
        self.observed: dict[str, tuple[frozenset[Any], Any]] = {}

    def _pyro_post_sample(self, msg: dict[str, Any]) -> None:
        if type(msg["fn"]).__name__ == "_Subsample" or msg["infer"].get("_deterministic"):
            return
        plates = frozenset(f for f in msg["cond_indep_stack"] if f.vectorized and f.name != PARTICLES)
        if isinstance(msg["fn"], dist.Unit) and not plates:
            return  # a penalty, which explains no data
        if msg["is_observed"]:
            self.observed[msg["name"]] = plates, msg["scale"]
        else:
            self.latents[msg["name"]] = plates

    @property
    def unit(self) -> str:
        """What a datum is: "datum" for a cell of the plates around all that is observed, else its plates."""
        plates = self._plates()
        return "datum" if plates == self._around() else " x ".join(f.name for f in sorted(plates, key=lambda f: f.dim))

    def _around(self) -> frozenset[Any]:
        """The plates around all that is observed."""
        own = [plates for plates, _ in self.observed.values()]
        return frozenset.intersection(*own) if own else frozenset()

    def _plates(self) -> frozenset[Any]:
        """Those of them that hold the latents, too, but for latents in none."""
        common = self._around()
        for plates in self.latents.values():
            common = common & plates or common
        return common

    @property
    def data(self) -> float | None:
        """The number of data; None where no plate holds all that is observed."""
        common = self._plates()
        scales = [scale for _, scale in self.observed.values()]
        if not common or any(isinstance(s, torch.Tensor) and s.numel() > 1 for s in scales):
            return None
        if any(not math.isclose(scale, scales[0]) for scale in scales):
            return None
        return math.prod(int(f.size) for f in common) * float(scales[0])
