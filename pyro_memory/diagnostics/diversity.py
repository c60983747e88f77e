"""How varied generated images are, and how many are copies of what they were generated from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from pyro_memory.diagnostics.tables import Record, Rows
from pyro_memory.gate import checked

COPY = 0.9  # of the ink of two images together, the share that they have in common


@checked
@dataclass(frozen=True, repr=False)
class SampleDiversity(Record):
    """How varied images generated for a class are, beside real ones, and how many copy an example.

    Attributes:
        distance, se: mean distance between the features of two images generated for one class, and its standard error
            over classes.
        real, real_se: the same of real images of those classes.
        copies, real_copies: the share of generated images, and of real ones, that have nine tenths of their ink in
            common with the nearest example.
    """

    distance: float
    se: float
    real: float
    real_se: float
    copies: float
    real_copies: float

    @property
    def ratio(self) -> float:
        """Generated images' distance over that of real ones; 1 is as varied as the class."""
        return self.distance / self.real

    def _shown(self) -> tuple[str, Rows, Sequence[str]]:
        said = (
            f"SampleDiversity, distance within a class: {self.distance:.3g} of those generated (se {self.se:.2g}), "
            f"{self.real:.3g} of real ones (se {self.real_se:.2g}), {self.ratio:.0%}; copies of an example "
            f"{self.copies:.1%}, of real images {self.real_copies:.1%}; se over classes"
        )
        return said, (), ()

    def to_dict(self) -> dict[str, float]:
        """Gives the record as plain numbers."""
        return vars(self) | {"ratio": self.ratio}


@checked
@torch.no_grad()
def sample_diversity(
    features: tuple[Float[Tensor, "class image dim"], Float[Tensor, "class image_of_real dim"]],
    images: tuple[Float[Tensor, "class image *event"], Float[Tensor, "class image_of_real *event"]],
    examples: Float[Tensor, "class example *event"],
) -> SampleDiversity:
    r"""Compares images generated for each class with real ones: distances within a class, and copies of the examples.

    A copy has at least 0.9 of its ink in common with an example,
    :math:`\sum \min(x, m) / \sum \max(x, m) \ge 0.9` over pixels, as no two drawings by hand have.

    Args:
        features: of the generated images and of real ones, such as ``FeatureClassifier.features``.
        images: the same images, ink from 0 to 1.
        examples: what those of each class were generated from.

    Raises:
        ValueError: for fewer than two images of a class, or different classes.

    Cost: O(class x image x example x event).
    """
    if any(part is None for part in (*features, *images)):
        raise ValueError("`features` and `images` must be of generated images, then of real ones; got None")
    lengths = {len(t) for t in (*features, *images, examples)}
    if len(lengths) != 1 or min(f.shape[1] for f in features) < 2:
        raise ValueError(
            "`features`, `images` and `examples` must be of the same classes, two images of each or more; got "
            f"{[list(f.shape[:2]) for f in features]} and {len(examples)} classes of examples"
        )
    rows = []
    for part in features:
        apart = torch.stack([torch.pdist(one.double()).mean() for one in part])
        rows += [apart.mean().item(), (apart.std() / math.sqrt(len(apart))).item()]
    copied = []
    for part in images:
        one, other = part.flatten(2).unsqueeze(2), examples.flatten(2).unsqueeze(1)
        common = torch.minimum(one, other).sum(-1) / torch.maximum(one, other).sum(-1).clamp(min=1e-6)
        copied.append((common.amax(-1) >= COPY).double().mean().item())
    return SampleDiversity(*rows, *copied)
