"""A labelled set of images, as every source of this package gives it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """Images with classes, kept as bytes.

    Attributes:
        images: ``[image, 1, height, width]``, ink from 0 to ``levels``.
        labels: the class of each image.
        class_names: a name a class.
        levels: what full ink is: 1 for binary images, 255 for grey ones.

    ``data[indices]`` gives floating-point images in [0, 1].
    """

    images: UInt8[Tensor, "image 1 height width"]
    labels: Int[Tensor, " image"]
    class_names: tuple[str, ...]
    levels: int = 1

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.shape[1:]))
        return f"LabelledImages({len(self)} images of {shape} in {self.classes} classes)"

    @property
    def classes(self) -> int:
        """The number of classes."""
        return len(self.class_names)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        return tuple(self.images.shape[1:])

    @cached_property
    def members(self) -> tuple[Int[Tensor, " member"], ...]:
        """For each class, the indices of its images."""
        order = self.labels.argsort(stable=True)
        return order.split(torch.bincount(self.labels, minlength=self.classes).tolist())

    def __getitem__(self, indices: Int[Tensor, "*index"]) -> Float[Tensor, "*index 1 height width"]:
        return self.images[indices].float() / self.levels
