"""A class-incremental stream: classes arrive in stages and do not come back."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from pyro_memory.data.images.labelled import LabelledImages
from pyro_memory.data.seeds import generator_for, order
from pyro_memory.data.tasks.sets import SetTasks
from pyro_memory.gate import checked


@checked
class ClassStream:
    """Divides the classes of a set into stages, and the images of each class into those to learn from and to test on.

    Args:
        data: the images.
        stages: how many groups of classes arrive one after the other; groups differ in size by one at most.
        held_out: the share of each class's images that is kept for testing.
        seed: of the order of classes and of the division of images.
        shuffle: whether classes come in random order; otherwise in the data's, alphabet after alphabet in Omniglot.

    Raises:
        ValueError: for fewer than two stages, more stages than classes, or a share that leaves a side empty.
    """

    def __init__(
        self, data: LabelledImages, *, stages: int, held_out: float = 0.25, seed: int = 0, shuffle: bool = True
    ) -> None:
        if not 2 <= stages <= data.classes:
            raise ValueError(f"`stages` must be from 2 to the data's {data.classes} classes; got {stages}")
        fewest = min(len(m) for m in data.members)
        if not (0 < held_out < 1 and 1 <= round(held_out * fewest) < fewest):
            raise ValueError(
                f"`held_out` must leave images on both sides of each class, the smallest of {fewest}; got {held_out}"
            )
        self.data, self.stages = data, stages
        every = order(data.classes, generator_for(seed, 9)) if shuffle else torch.arange(data.classes, device="cpu")
        self.classes: tuple[Int[Tensor, " class"], ...] = tuple(every.tensor_split(stages))
        self._train, self._test = [], []
        for label, members in enumerate(data.members):
            shuffled = members[order(len(members), generator_for(seed, 10, label))]
            cut = round(held_out * len(members))
            self._test.append(shuffled[:cut])
            self._train.append(shuffled[cut:])

    def __repr__(self) -> str:
        sizes = "+".join(str(len(c)) for c in self.classes)
        return f"ClassStream({self.stages} stages of {sizes} classes, {self.data!r})"

    def train(self, stage: int) -> LabelledImages:
        """The images to learn from at a stage."""
        return self._part(self._train, stage)

    def held_out(self, stage: int) -> LabelledImages:
        """The images of a stage's classes that are never learned from."""
        return self._part(self._test, stage)

    def tasks(self, stage: int, **options: Any) -> SetTasks:
        """Few-shot sets of the images to learn from; options as in ``SetTasks``."""
        return SetTasks(self.train(stage), **options)

    def _part(self, side: list[Int[Tensor, " member"]], stage: int) -> LabelledImages:
        if not 0 <= stage < self.stages:
            raise ValueError(f"`stage` must be from 0 to {self.stages - 1}; got {stage}")
        chosen = [side[label] for label in self.classes[stage].tolist()]
        labels = [label for label, members in enumerate(chosen) for _ in members]
        names = tuple(self.data.class_names[label] for label in self.classes[stage].tolist())
        return LabelledImages(self.data.images[torch.cat(chosen)], labels, names, self.data.levels)
