"""Few-shot sets: tasks of a support set and queries of one class each."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pyro_memory.data.given import Numbers, integers
from pyro_memory.data.images.labelled import LabelledImages
from pyro_memory.data.images.variations import check_shares, turn
from pyro_memory.data.seeds import below, generator_for, order, uniform
from pyro_memory.gate import checked
from pyro_memory.naming import call_of
from pyro_memory.stores import SlotMemory


@checked
class SetTasks:
    """Draws few-shot sets for each index: ``tasks[i]`` gives ``(x, support)``, the same for the same seed and index.

    x is ``[task, query, channel, height, width]``; support a ``SlotMemory`` of one set a task (``batch_dim=-2``),
    padded with zeros and masked. Queries and support are different images of one class, classes of an index distinct.

    Args:
        data: the images to draw from.
        tasks: how many tasks an index has.
        queries: how many images a task asks for.
        shots: images of a support, or several numbers of which each task draws one; 0 is an empty support.
        items: the width of a support, by default the most shots.
        seed: of the tasks.
        turned: the share of tasks that are shown turned by a quarter, a half or three quarters, or mirrored, queries
            and support alike, which keep letters letters: eight times as many classes to learn from.
        varied: the share of tasks whose images are each redrawn as another hand might: ``LabelledImages.varied``.
        targets: fixed queries, one a task, ``tasks`` of them an index; the sets then have a length. A target's support
            depends on seed and target only, but for the other targets of its index, which no support holds; one of few
            shots is the beginning of one of more: rows are paired.

    Raises:
        ValueError: if the data have too few classes or images, or an argument is unusable.
    """

    def __init__(
        self,
        data: LabelledImages,
        *,
        tasks: int,
        queries: int = 1,
        shots: Numbers = 5,
        items: int | None = None,
        seed: int = 0,
        turned: float = 0.0,
        varied: float = 0.0,
        targets: Numbers | None = None,
    ) -> None:
        self.shots = integers("shots", shots, low=0, high=len(data), item="entry").flatten()
        if tasks < 1 or queries < 1 or not len(self.shots):
            raise ValueError(
                f"`tasks` and `queries` must be at least 1 and `shots` a number or several; got {tasks}, {queries}, "
                f"{shots}"
            )
        most = int(self.shots.max())
        self.items = most if items is None else items
        if self.items < most:
            raise ValueError(f"`items` must be at least the most shots, {most}; got {items}")
        smallest = min(len(m) for m in data.members)
        if most + queries > smallest:
            raise ValueError(
                f"`shots` and `queries` together must be at most the {smallest} images of the smallest class; "
                f"got {most} and {queries}"
            )
        if targets is None and tasks > data.classes:
            raise ValueError(f"`tasks` must be at most the data's {data.classes} classes; got {tasks}")
        if targets is not None and queries != 1:
            raise ValueError(f"`queries` must be 1 with fixed `targets`, each a task of its own; got {queries}")
        check_shares(data.shape, turned=turned, varied=varied, fixed=targets is not None)
        if targets is not None:
            targets = integers("targets", targets, low=0, high=len(data) - 1, item="target").flatten()
            if not len(targets):
                raise ValueError("`targets` must name at least one image; got none")
            _check_left(data, targets, tasks, most)
        self.data, self.tasks, self.queries, self.seed, self.targets = data, tasks, queries, seed, targets
        self.turned, self.varied = turned, varied

    __repr__ = call_of

    def __len__(self) -> int:
        if self.targets is None:
            raise TypeError("sets without `targets` have no end, hence no length")
        return -(-len(self.targets) // self.tasks)

    def __bool__(self) -> bool:
        return True  # also where there is no length to ask for

    def __getitem__(self, index: int) -> tuple[Float[Tensor, "task query channel height width"], SlotMemory]:
        if self.targets is not None:
            return self._fixed(index, other=False)
        generator = generator_for(self.seed, 4, index)
        labels = order(self.data.classes, generator)[: self.tasks]
        wanted = self.queries + self.items
        drawn = torch.stack([self._draw(int(label), wanted, generator) for label in labels])
        counts = self.shots[below(len(self.shots), generator, self.tasks)]
        images, redraw = self.data[drawn], generator_for(self.seed, 9, index)
        for task in (uniform(redraw, self.tasks) < self.varied).nonzero().flatten().tolist():
            images[task] = self.data.varied(drawn[task], redraw)
        for task in (uniform(generator, self.tasks) < self.turned).nonzero().flatten().tolist():
            images[task] = turn(images[task], generator)
        return images[:, : self.queries], self._support(images[:, self.queries :], counts)

    def _draw(self, label: int, wanted: int, generator: torch.Generator) -> Int[Tensor, " item"]:
        members = self.data.members[label]
        chosen = members[order(len(members), generator)[:wanted]]  # padding repeats an image; it is masked
        return torch.cat([chosen, chosen[-1:].expand(wanted - len(chosen))])

    def _support(
        self, images: Float[Tensor, "task item channel height width"], counts: Int[Tensor, " task"]
    ) -> SlotMemory:
        mask = torch.arange(self.items, device="cpu") < counts.unsqueeze(-1)
        return SlotMemory(images * mask.reshape(*mask.shape, 1, 1, 1), mask=mask, batch_dim=-2)

    def wrong_classes(self, index: int) -> SlotMemory:
        """Gives supports of the same sizes, each of another class than its target's: a control.

        Raises:
            ValueError: without fixed ``targets``, or where the data have one class.
        """
        if self.data.classes == 1:
            raise ValueError("`data` must have a second class, for supports that are wrong; it has one")
        if self.targets is None:
            raise ValueError("`targets` must be given, so that supports of other classes have targets to be wrong for")
        return self._fixed(index, other=True)[1]

    def _fixed(self, index: int, other: bool) -> tuple[Tensor, SlotMemory]:
        if not 0 <= index < len(self):
            raise IndexError(f"`index` must be below {len(self)}; got {index}")
        targets = self.targets[index * self.tasks : (index + 1) * self.tasks]
        rows = torch.stack([self._others(int(t), other, targets) for t in targets])
        counts = torch.stack([self._count(int(t)) for t in targets])
        return self.data[targets].unsqueeze(1), self._support(self.data[rows], counts)

    def _others(self, target: int, other: bool, asked: Int[Tensor, " target"]) -> Int[Tensor, " item"]:
        """Images of the target's class without any that is asked for, in a fixed random order; or of another class."""
        generator = generator_for(self.seed, 5, target)
        label = int(self.data.labels[target])
        if other:
            label = (label + 1 + int(below(self.data.classes - 1, generator))) % self.data.classes
        members = self.data.members[label]
        members = members[members != target]
        others = members[order(len(members), generator)]
        others = others[~torch.isin(others, asked)][: self.items]
        return torch.cat([others, others.new_full((self.items - len(others),), target)])  # padding is masked

    def _count(self, target: int) -> Tensor:
        generator = generator_for(self.seed, 6, target)
        return self.shots[below(len(self.shots), generator)]


def _check_left(data: LabelledImages, targets: Int[Tensor, " target"], tasks: int, most: int) -> None:
    """Raises a ValueError if the targets of some index leave a class fewer images than a support holds."""
    sizes = [len(members) for members in data.members]
    for index, asked in enumerate(targets.split(tasks)):
        labels, counts = data.labels[asked.unique()].unique(return_counts=True)
        for label, count in zip(labels.tolist(), counts.tolist(), strict=True):
            if sizes[label] - count < most:
                raise ValueError(
                    f"`tasks` ({tasks}) must leave {most} images of class {data.class_names[label]} that are not asked "
                    f"for beside it; {sizes[label] - count} are left at index {index}. Ask for fewer an index, or "
                    "fewer shots"
                )
