"""Few-shot tasks: targets, and a memory of examples drawn by a protocol."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pyro_memory.data.images import LabelledImages
from pyro_memory.data.seeds import generator_for
from pyro_memory.data.variations import check_shares, turn
from pyro_memory.slots import SlotMemory

Task = tuple[Float[Tensor, "target 1 height width"], SlotMemory]


class FewShotTasks:
    """Draws a task for each index: ``tasks[i]`` gives ``(x, memory)``, the same for the same seed and index.

    Each index has a random generator of its own, so that tasks can be drawn in any order, by any worker, and a training
    run goes on where it stopped.

    Args:
        data: the images to draw from.
        classes: how many classes are in memory.
        shots: how many slots a class gets.
        targets: how many images a task asks for.
        protocol: "vma": a target is never in memory, and every class has ``shots`` different images there (Bornschein
            et al., 2017, https://arxiv.org/abs/1709.07116). "gmn": memory and target are drawn with replacement, a
            random class a slot, so that the target itself may be in memory (Bartunov & Vetrov, 2018,
            https://proceedings.mlr.press/v84/bartunov18a.html). Their numbers do not compare.
        per_target: gives each target a memory of its own, its class and ``classes - 1`` others (evaluation); otherwise
            all targets share one memory (training).
        seed: of the tasks.
        target_indices: fixed targets in order, ``targets`` of them a task; the tasks then have a length, and a target's
            memory depends on the seed and the target only. Needs ``per_target``.
        turned: the share of tasks whose images, targets and memory alike, are turned by a random symmetry of the square
            (a quarter turn, a mirror image, ...): more letters to learn from, as in Towards a Neural Statistician
            (Edwards & Storkey, 2017), https://arxiv.org/abs/1606.02185.
        varied: the share of tasks whose images are each redrawn as another hand might: ``LabelledImages.varied``.

    Raises:
        ValueError: if the data have too few classes or images, or an argument is unusable.
    """

    def __init__(
        self,
        data: LabelledImages,
        *,
        classes: int,
        shots: int,
        targets: int,
        protocol: str = "vma",
        per_target: bool = False,
        seed: int = 0,
        target_indices: Int[Tensor, " target"] | None = None,
        turned: float = 0.0,
        varied: float = 0.0,
    ) -> None:
        for name, value in (("classes", classes), ("shots", shots), ("targets", targets)):
            if value < 1:
                raise ValueError(
                    f"`{name}` must be at least 1; got {value}. For a model without memory use SlotMemory.empty(...)"
                )
        if protocol not in ("vma", "gmn"):
            raise ValueError(f'`protocol` must be "vma" or "gmn"; got {protocol!r}')
        if classes > data.classes:
            raise ValueError(f"`classes` must be at most the data's {data.classes}; got {classes}")
        fewest = min(len(m) for m in data.members)
        if protocol == "vma" and shots + 1 > fewest:
            raise ValueError(
                f"`shots` must leave an image of each class for the target; got {shots} where a class has {fewest}"
            )
        check_shares(data.shape, turned=turned, varied=varied, fixed=target_indices is not None)
        if target_indices is not None and not per_target:
            raise ValueError("`target_indices` need per_target=True: targets of many classes cannot share one memory")
        self.data = data
        self.classes = classes
        self.shots = shots
        self.targets = targets
        self.protocol = protocol
        self.per_target = per_target
        self.seed = seed
        self.target_indices = target_indices
        self.turned = turned
        self.varied = varied
        if target_indices is not None:
            self.__class__ = _FixedTasks

    def __getitem__(self, index: int) -> Task:
        return self._task(index, wrong=False)

    def wrong_classes(self, index: int) -> SlotMemory:
        """Gives a memory of the same size with none of its task's classes in it: a control."""
        return self._task(index, wrong=True)[1]

    def _task(self, index: int, wrong: bool) -> Task:
        if self.per_target:
            targets = self._targets(index)
            slots = [
                self._slots_for(int(t), generator_for(self.seed, 1, index, i), wrong) for i, t in enumerate(targets)
            ]
            x, values = self._show(index, targets, torch.stack(slots))
            return x, SlotMemory(values, batch_dim=-1)
        generator = generator_for(self.seed, 0, index)
        chosen = torch.randperm(self.data.classes, generator=generator)[: self.classes]
        labels = chosen[torch.arange(self.targets) % self.classes]
        targets = torch.stack([self._member(int(c), generator) for c in labels])
        if wrong:
            chosen = self._other_classes(chosen, self.classes, generator)
        x, values = self._show(index, targets, self._slots(chosen, targets, generator))
        return x, SlotMemory(values)

    def _show(self, index: int, *groups: Int[Tensor, "*image"]) -> list[Float[Tensor, "*image 1 height width"]]:
        """The images of targets and slots: varied each by itself, turned all alike."""
        images = torch.cat([group.flatten() for group in groups])
        redraw, turning = generator_for(self.seed, 9, index), generator_for(self.seed, 4, index)
        varied = torch.rand((), generator=redraw) < self.varied
        x = self.data.varied(images, redraw) if varied else self.data[images]
        if torch.rand((), generator=turning) < self.turned:
            x = turn(x, turning)
        parts = x.split([group.numel() for group in groups])
        return [part.reshape(*group.shape, *x.shape[1:]) for group, part in zip(groups, parts, strict=True)]

    def _targets(self, index: int) -> Int[Tensor, " target"]:
        if self.target_indices is not None:
            return self.target_indices[index * self.targets : (index + 1) * self.targets]
        generator = generator_for(self.seed, 2, index)
        labels = torch.randint(self.data.classes, (self.targets,), generator=generator)
        return torch.stack([self._member(int(c), generator) for c in labels])

    def _slots_for(self, target: int, generator: torch.Generator, wrong: bool) -> Int[Tensor, " slot"]:
        """The memory of one target: its class and others, in random order."""
        if self.target_indices is not None:
            generator = generator_for(self.seed, 3, target)
        label = self.data.labels[target].reshape(1)
        chosen = torch.cat([label, self._other_classes(label, self.classes - 1, generator)])
        if wrong:
            chosen = self._other_classes(chosen, self.classes, generator)
        slots = self._slots(chosen, torch.tensor([target]), generator)
        return slots[torch.randperm(len(slots), generator=generator)]

    def _slots(self, classes: Tensor, targets: Tensor, generator: torch.Generator) -> Int[Tensor, " slot"]:
        if self.protocol == "gmn":
            labels = classes[torch.randint(len(classes), (len(classes) * self.shots,), generator=generator)]
            return torch.stack([self._member(int(c), generator) for c in labels])
        slots = []
        for label in classes.tolist():
            members = self.data.members[label]
            free = members[~torch.isin(members, targets)]
            if len(free) < self.shots:
                raise ValueError(
                    f"`targets` ({self.targets}) must leave {self.shots} images of class "
                    f"{self.data.class_names[label]} for memory; {len(free)} are left. Ask for fewer targets or shots"
                )
            slots.append(free[torch.randperm(len(free), generator=generator)[: self.shots]])
        return torch.cat(slots)

    def _member(self, label: int, generator: torch.Generator) -> Tensor:
        members = self.data.members[label]
        return members[torch.randint(len(members), (), generator=generator)]

    def _other_classes(self, taken: Tensor, count: int, generator: torch.Generator) -> Tensor:
        order = torch.randperm(self.data.classes, generator=generator)
        others = order[~torch.isin(order, taken)][:count]
        if len(others) < count:
            raise ValueError(f"`classes` must leave other classes to draw; the data have {self.data.classes} in all")
        return others


class _FixedTasks(FewShotTasks):
    """The tasks of fixed targets: these end."""

    def __len__(self) -> int:
        return -(-len(self.target_indices) // self.targets)
