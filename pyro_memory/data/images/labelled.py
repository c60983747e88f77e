"""A labelled set of images, as every source of this package gives it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from pyro_memory.data.images.variations import smooth_maps
from pyro_memory.gate import checked


@checked
@dataclass(frozen=True, eq=False)
class LabelledImages:
    """Images with classes, kept as bytes.

    Attributes:
        images: ``[image, 1, height, width]``, ink from 0 to ``levels``.
        labels: the class of each image.
        class_names: a name a class.
        levels: what full ink is: 1 for binary images, 255 for grey ones.
        originals: gives the images as they were before they were subsampled, where they are at hand: ``varied`` redraws
            from these.

    ``data[indices]`` gives floating-point images in [0, 1].
    """

    images: UInt8[Tensor, "image 1 height width"]
    labels: Int[Tensor, " image"]
    class_names: tuple[str, ...]
    levels: int = 1
    originals: Callable[[], UInt8[Tensor, "image 1 rows columns"]] | None = None

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
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    @cached_property
    def members(self) -> tuple[Int[Tensor, " member"], ...]:
        """For each class, the indices of its images."""
        order = self.labels.argsort(stable=True)
        return order.split(torch.bincount(self.labels, minlength=self.classes).tolist())

    def __getitem__(self, indices: Int[Tensor, "*index"]) -> Float[Tensor, "*index 1 height width"]:
        return self.images[indices].float() / self.levels

    def varied(
        self, indices: Int[Tensor, "*index"], generator: torch.Generator
    ) -> Float[Tensor, "*index 1 height width"]:
        """Gives images as other hands might have drawn them: each through a smooth map of its own, ``smooth_maps``.

        Each pixel is looked up where the map says, without interpolation, so that binary images stay binary; what lies
        outside is blank. Omniglot's 28x28 are redrawn from the drawings, decoded at the first call and kept: 200 MB.
        """
        source = self.images if self.originals is None else self.originals()
        images, (height, width), (tall, wide) = indices.flatten(), self.shape[1:], source.shape[2:]
        noise = torch.randn(len(images), 24, generator=generator)
        moved = smooth_maps(noise, height, width) - smooth_maps(torch.zeros(1, 24), height, width)
        # Unmoved, these are the rows and columns that subsampling took, rounding aside; or the pixel itself.
        slack = 0.5 if self.originals is None else 1e-3
        rows = torch.arange(height).unsqueeze(-1) * (tall / height) + moved[..., 1] * (tall / 2) + slack
        columns = torch.arange(width) * (wide / width) + moved[..., 0] * (wide / 2) + slack
        inside = (rows >= 0) & (rows < tall) & (columns >= 0) & (columns < wide)
        rows, columns = rows.long().clamp(0, tall - 1), columns.long().clamp(0, wide - 1)
        found = source[images[:, None, None], 0, rows, columns] * inside
        return found.reshape(*indices.shape, *self.shape).float() / self.levels
