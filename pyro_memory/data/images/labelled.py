"""A labelled set of images, as every source of this package gives it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from pyro_memory.data.given import Numbers, classes_of, integers, names_of, tensor_of
from pyro_memory.data.images.variations import smooth_maps
from pyro_memory.gate import check_places, checked, told


@checked
@dataclass(frozen=True, eq=False, init=False)
class LabelledImages:
    """Images with classes, kept as bytes in the memory of the CPU.

    Images and labels may be given as tensors, arrays, lists or columns of pandas, of any number type: they are looked
    at and converted. Labels may be names.

    Attributes:
        images: ``[image, channel, height, width]``, in whole steps from 0 to ``levels``, of one channel of ink or of
            three, red, green and blue; ``[image, height, width]`` will do.
        labels: the class of each image, from 0 on; or its name.
        class_names: a name a class; by default the names among the labels, sorted (of pandas' categories, in their
            order), or the numbers of the labels.
        levels: what full ink is: 1 for binary images, 255 for grey ones and for colours.
        originals: gives the images as they were before they were subsampled, where they are at hand: ``varied`` redraws
            from these.
        ink: "dark" or "light", where the images come from files in which ink was darker or lighter than paper.

    ``data[indices]`` gives images in [0, 1], in torch's default dtype.

    Raises:
        ValueError: if images have other channels or have them last, hold anything but whole numbers from 0 to
            ``levels``, or are not one for each label, or a label names no class. The first bad item is named.

    Example::

        data = LabelledImages(np.zeros((20, 28, 28), bool), ["circle"] * 10 + ["square"] * 10)
    """

    images: UInt8[Tensor, "image channel height width"]
    labels: Int[Tensor, " image"]
    class_names: tuple[str, ...]
    levels: int
    originals: Callable[[], UInt8[Tensor, "image channel rows columns"]] | None
    ink: str | None

    def __init__(
        self,
        images: Numbers,
        labels: Numbers,
        class_names: Iterable[str] = (),
        levels: int = 1,
        originals: Callable[[], UInt8[Tensor, "image channel rows columns"]] | None = None,
        ink: str | None = None,
    ) -> None:
        if isinstance(originals, type):
            raise TypeError(f"`originals` must be a function that gives images, or None; got {told(originals)}")
        if ink not in (None, "dark", "light"):
            raise ValueError(f'`ink` must be "dark", "light" or None; got {ink!r}')
        if not 1 <= levels <= 255:
            raise ValueError(f"`levels` must lie in 1 .. 255, what a byte holds; got {levels}")
        images = _with_channels(tensor_of("images", images))
        labels, names = classes_of("labels", labels, names_of("class_names", class_names, None, "a class"))
        remedy = "Grey levels need levels=255, and (images * 255).round() if they lie in [0, 1]"
        if images.is_floating_point() and levels > 1 and 0 < images.max() <= 1:
            raise ValueError(f"`images` must be whole numbers from 0 to {levels}; got at most 1. {remedy}")
        images = integers("images", images, low=0, high=levels, item="image", dtype=torch.uint8, remedy=remedy)
        if labels.shape != images.shape[:1]:
            one_hot = ": give labels.argmax(-1)" if labels.dim() == 2 and len(labels) == len(images) else ""
            raise ValueError(
                f"`labels` must be one class for each of {len(images)} images; got shape {list(labels.shape)}{one_hot}"
            )
        remedy = "Number classes from 0 on" + ("; each has a name" if names else ", or give `class_names`")
        most = len(names or images) - 1
        labels = integers("labels", labels, low=0, high=most, item="image", remedy=remedy)
        count = len(names) or int(labels.max()) + 1
        self.__dict__.update(images=images, labels=labels, levels=levels, originals=originals, ink=ink)
        self.__dict__["class_names"] = names_of("class_names", names, count, "a class")

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.shape[self.shape[0] == 1 :]))
        ink = f", {self.ink} ink" if self.ink else ""
        return f"LabelledImages({len(self)} images of {shape} in {self.classes} classes{ink})"

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

    def __getitem__(self, indices: Int[Tensor, "*index"]) -> Float[Tensor, "*index channel height width"]:
        if indices.dim() == 0 and indices == len(self):  # where a loop over the images ends
            raise IndexError(f"`indices` must be below {len(self)}, the images")
        check_places("indices", indices, len(self), "the images")
        return self._shown(self.images[indices])

    def _shown(self, images: Tensor) -> Tensor:
        return images.to(torch.get_default_dtype()) / self.levels

    def varied(
        self, indices: Int[Tensor, "*index"], generator: torch.Generator
    ) -> Float[Tensor, "*index channel height width"]:
        """Gives images as other hands might have drawn them: each through a smooth map of its own, ``smooth_maps``.

        Each pixel is looked up where the map says, without interpolation, so that binary images stay binary; what lies
        outside is blank, or of the colour at the edge. Omniglot's 28x28 are redrawn from the drawings, decoded at the
        first call and kept: 200 MB, or 330 of 45 alphabets.
        """
        source = self.images if self.originals is None else self.originals()
        images, (height, width), (tall, wide) = indices.flatten(), self.shape[1:], source.shape[2:]
        noise = torch.randn(len(images), 24, generator=generator, device="cpu", dtype=torch.float32)
        moved = smooth_maps(noise, height, width) - smooth_maps(torch.zeros_like(noise[:1]), height, width)
        # Unmoved, these are the rows and columns that subsampling took, rounding aside; or the pixel itself.
        slack = 0.5 if self.originals is None else 1e-3
        rows = torch.arange(height, device="cpu").unsqueeze(-1) * (tall / height) + moved[..., 1] * (tall / 2) + slack
        columns = torch.arange(width, device="cpu") * (wide / width) + moved[..., 0] * (wide / 2) + slack
        inside = (rows >= 0) & (rows < tall) & (columns >= 0) & (columns < wide)
        rows, columns = rows.long().clamp(0, tall - 1), columns.long().clamp(0, wide - 1)
        found = source[images[:, None, None], :, rows, columns].movedim(-1, 1)
        if self.shape[0] == 1:  # of ink, which there is none of outside
            found = found * inside.unsqueeze(1)
        return self._shown(found.reshape(*indices.shape, *self.shape))


def _with_channels(images: Tensor) -> Tensor:
    """Images as ``[image, channel, height, width]``.

    Raises:
        ValueError: if there are none, or channels cannot be told.
    """
    shape = list(images.shape)
    if images.dim() == 3:
        images = images.unsqueeze(1)
    if images.dim() != 4 or images.shape[1] not in (1, 3):
        remedy = ""
        if images.dim() == 4:
            last = shape[-1] in (1, 3, 4) and shape[1] not in (2, 4)
            remedy = ": give images.permute(0, 3, 1, 2)" + (", [:, :3] of it" if shape[-1] == 4 else "") if last else ""
            remedy = ": leave the transparency out, images[:, :3]" if shape[1] == 4 else remedy
        raise ValueError(
            f"`images` must be [image, channel, height, width] of 1 or 3 channels, or [image, height, width]; got "
            f"{shape}{remedy}"
        )
    if not images.numel():
        raise ValueError(f"`images` must hold at least one image of at least one pixel; got shape {shape}")
    return images
