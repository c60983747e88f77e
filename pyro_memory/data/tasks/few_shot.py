"""Few-shot tasks: targets, and a memory of examples drawn by a protocol."""

from __future__ import annotations

from collections.abc import Sequence
from operator import index

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

Task = tuple[Float[Tensor, "target channel height width"], SlotMemory]


@checked
class FewShotTasks:
    """Draws a task for each index: ``tasks[i]`` gives ``(x, memory)``, the same for the same seed and index.

    Each index has a random generator of its own, so that tasks can be drawn in any order, by any worker, and a training
    run goes on where it stopped.

    Args:
        data: the images to draw from.
        classes: how many classes are in memory; a pair (fewest, most) draws a number anew for each index, so that a
            model meets memories of many sizes.
        shots: how many slots a class gets; likewise.
        sizes: how a number of such a pair is drawn: "uniform", or "log-uniform", where one to two are as likely as two
            to four. Of few examples and of many a model then sees as much.
        targets: how many images a task asks for. Those that share a memory are drawn, with replacement, from what the
            memory leaves of its classes.
        protocol: "vma": a target is never in memory, but for ``recalled``, and every class has ``shots`` different
            images there (Bornschein et al., 2017, https://arxiv.org/abs/1709.07116). "gmn": memory and target are drawn
            with replacement, a random class a slot, so that the target itself may be in memory (Bartunov & Vetrov,
            2018, https://proceedings.mlr.press/v84/bartunov18a.html). Their numbers do not compare. Both have
            ``classes * shots`` slots; published tables may count examples in all, whatever the classes.
        per_target: gives each target a memory of its own, its class and ``classes - 1`` others (evaluation); otherwise
            all targets share one memory (training).
        seed: of the tasks.
        target_indices: fixed targets in order, ``targets`` of them a task; the tasks then have a length, and a target's
            memory depends on the seed and the target only. Needs ``per_target``. Under "vma" memories are nested:
            one of fewer classes or shots holds a part, in another order, of the same target's with more.
        turned: the share of tasks whose images, targets and memory alike, are turned by a random symmetry of the square
            (a quarter turn, a mirror image, ...): more letters to learn from, as in Towards a Neural Statistician
            (Edwards & Storkey, 2017), https://arxiv.org/abs/1606.02185.
        varied: the share of tasks whose images are each redrawn as another hand might: ``LabelledImages.varied``.
        recalled: the share of targets that are in memory after all: each by itself, with this probability, is the
            image of a slot of its class. For training a model that GMN's protocol will measure, where a target is
            in memory by chance, with probability ``1 - (1 - 1 / n) ** shots`` at one class of n images (Bartunov &
            Vetrov, 2016, https://arxiv.org/abs/1612.02192). All else stays as it was. Needs protocol "vma" and targets
            that are not fixed.

    Raises:
        ValueError: if the data have too few classes or images, or an argument is unusable.
    """

    def __init__(
        self,
        data: LabelledImages,
        *,
        classes: int | tuple[int, int],
        shots: int | tuple[int, int],
        targets: int,
        protocol: str = "vma",
        per_target: bool = False,
        seed: int = 0,
        target_indices: Numbers | None = None,
        turned: float = 0.0,
        varied: float = 0.0,
        recalled: float = 0.0,
        sizes: str = "uniform",
    ) -> None:
        self._ranges = _range("classes", classes), _range("shots", shots)
        most_classes, most_shots = (most for _, most in self._ranges)
        if targets < 1:
            raise ValueError(f"`targets` must be at least 1; got {targets}")
        if protocol not in ("vma", "gmn"):
            raise ValueError(f'`protocol` must be "vma" or "gmn"; got {protocol!r}')
        if most_classes > data.classes:
            raise ValueError(f"`classes` must be at most the data's {data.classes}; got {classes}")
        fewest = min(len(m) for m in data.members)
        if (most_shots if protocol == "vma" else 0) + 1 > fewest:
            raise ValueError(
                f"`shots` must leave an image of each class for the target; got {shots} where a class has {fewest}"
            )
        if target_indices is not None:
            target_indices = integers("target_indices", target_indices, low=0, high=len(data) - 1, item="target")
            target_indices = target_indices.flatten()
        check_shares(data.shape, turned=turned, varied=varied, fixed=target_indices is not None)
        if target_indices is not None and not len(target_indices):
            raise ValueError("`target_indices` must name at least one target; got none")
        if target_indices is not None and not per_target:
            raise ValueError("`target_indices` need per_target=True: targets of many classes cannot share one memory")
        if target_indices is not None and any(fewest < most for fewest, most in self._ranges):
            raise ValueError(
                "`classes` and `shots` must be numbers where `target_indices` fix the targets: their memories depend "
                f"on the seed alone; got {classes} and {shots}. Build tasks for each size"
            )
        if not 0 <= recalled <= 1:
            raise ValueError(f"`recalled` must lie in [0, 1]; got {recalled}")
        if recalled and (protocol != "vma" or target_indices is not None):
            raise ValueError(
                f'`recalled` must be 0 unless protocol="vma" and targets are drawn, tasks to train on; got {recalled}. '
                'To measure with targets in memory use protocol="gmn", where they are by chance'
            )
        if sizes not in ("uniform", "log-uniform"):
            raise ValueError(f'`sizes` must be "uniform" or "log-uniform"; got {sizes!r}')
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
        self.recalled = recalled
        self.sizes = sizes

    __repr__ = call_of

    def __len__(self) -> int:
        if self.target_indices is None:
            raise TypeError("tasks without `target_indices` have no end, hence no length")
        return -(-len(self.target_indices) // self.targets)

    def __bool__(self) -> bool:
        return True  # also where there is no length to ask for

    def __getitem__(self, index: int) -> Task:
        return self._task(index, wrong=False)

    def wrong_classes(self, index: int) -> SlotMemory:
        """Gives a memory of the same size with none of its task's classes in it: a control.

        Raises:
            ValueError: if the data may have too few other classes for that, whatever the index.
        """
        most = self._ranges[0][1]
        if 2 * most > self.data.classes:
            raise ValueError(
                f"`classes` must leave other classes to draw, {2 * most} in all; the data have {self.data.classes}"
            )
        return self._task(index, wrong=True)[1]

    def _task(self, index: int, wrong: bool) -> Task:
        generator = generator_for(self.seed, 11, index)
        classes, shots = (self._size(*ends, generator) for ends in self._ranges)
        if self.per_target:
            targets = self._targets(index)
            slots = [
                self._slots_for(int(t), classes, shots, generator_for(self.seed, 1, index, i), wrong)
                for i, t in enumerate(targets)
            ]
            x, values = self._show(index, targets, torch.stack(slots))
            if self.recalled and not wrong:
                x = self._recall(index, targets, torch.stack(slots), x, values)
            return x, SlotMemory(values, batch_dim=-1)
        generator = generator_for(self.seed, 0, index)
        chosen = order(self.data.classes, generator)[:classes]
        shared = self._slots(chosen, shots, None, generator)
        taken = shared if self.protocol == "vma" else None
        labels = chosen[torch.arange(self.targets, device="cpu") % classes]
        drawn = torch.stack([self._member(int(c), generator, taken) for c in labels])
        if wrong:
            shared = self._slots(self._other_classes(chosen, classes, generator), shots, None, generator)
        x, values = self._show(index, drawn, shared)
        if self.recalled and not wrong:
            each = len(drawn), *shared.shape
            x = self._recall(index, drawn, shared.expand(each), x, values.expand(*each, *values.shape[1:]))
        return x, SlotMemory(values)

    def _recall(
        self, index: int, targets: Tensor, slots: Int[Tensor, "target slot"], x: Tensor, values: Tensor
    ) -> Float[Tensor, "target channel height width"]:
        """Shows, in the place of some targets, a slot of their class."""
        generator = generator_for(self.seed, 12, index)
        own = self.data.labels[slots] == self.data.labels[targets].unsqueeze(1)
        held = uniform(generator, len(targets)) < self.recalled
        chosen = torch.multinomial(own.float(), 1, generator=generator).squeeze(1)
        shown = values[torch.arange(len(targets), device="cpu"), chosen]
        return torch.where(held.reshape(-1, 1, 1, 1), shown, x)

    def _size(self, fewest: int, most: int, generator: torch.Generator) -> int:
        if self.sizes == "uniform":
            return fewest + int(below(most + 1 - fewest, generator))
        return min(most, int(fewest * ((most + 1) / fewest) ** float(uniform(generator))))

    def _show(self, index: int, *groups: Tensor) -> list[Float[Tensor, "*image channel height width"]]:
        """The images of targets and slots: varied each by itself, turned all alike."""
        images = torch.cat([group.flatten() for group in groups])
        redraw, turning = generator_for(self.seed, 9, index), generator_for(self.seed, 4, index)
        varied = uniform(redraw) < self.varied
        x = self.data.varied(images, redraw) if varied else self.data[images]
        if uniform(turning) < self.turned:
            x = turn(x, turning)
        parts = x.split([group.numel() for group in groups])
        return [part.reshape(*group.shape, *x.shape[1:]) for group, part in zip(groups, parts, strict=True)]

    def _targets(self, index: int) -> Int[Tensor, " target"]:
        if self.target_indices is not None:
            if not 0 <= index < len(self):
                raise IndexError(f"`index` must be below {len(self)}; got {index}")
            return self.target_indices[index * self.targets : (index + 1) * self.targets]
        generator = generator_for(self.seed, 2, index)
        labels = below(self.data.classes, generator, self.targets)
        return torch.stack([self._member(int(c), generator) for c in labels])

    def _slots_for(
        self, target: int, classes: int, shots: int, generator: torch.Generator, wrong: bool
    ) -> Int[Tensor, " slot"]:
        """The memory of one target: its class and others, in random order."""
        if self.target_indices is not None:
            generator = generator_for(self.seed, 3, target)
        label = self.data.labels[target].reshape(1)
        chosen = torch.cat([label, self._other_classes(label, classes - 1, generator)])
        if wrong:
            chosen = self._other_classes(chosen, classes, generator)
        slots = self._slots(chosen, shots, torch.tensor([target], device="cpu"), generator)
        return slots[order(len(slots), generator)]

    def _slots(
        self, classes: Tensor, shots: int, target: Tensor | None, generator: torch.Generator
    ) -> Int[Tensor, " slot"]:
        if self.protocol == "gmn":
            labels = classes[below(len(classes), generator, len(classes) * shots)]
            return torch.stack([self._member(int(c), generator) for c in labels])
        slots = []
        for label in classes.tolist():
            free = self._free(label, target)
            slots.append(free[order(len(free), generator)[:shots]])
        return torch.cat(slots)

    def _member(self, label: int, generator: torch.Generator, taken: Tensor | None = None) -> Tensor:
        free = self._free(label, taken)
        return free[below(len(free), generator)]

    def _free(self, label: int, taken: Tensor | None) -> Int[Tensor, " image"]:
        """A class's images but for these."""
        members = self.data.members[label]
        return members if taken is None else members[~torch.isin(members, taken)]

    def _other_classes(self, taken: Tensor, count: int, generator: torch.Generator) -> Tensor:
        every = order(self.data.classes, generator)
        return every[~torch.isin(every, taken)][:count]


def _range(name: str, value: int | tuple[int, int]) -> tuple[int, int]:
    ends = tuple(map(index, value)) if isinstance(value, Sequence) else (index(value),) * 2
    if len(ends) != 2 or not 1 <= ends[0] <= ends[1]:
        raise ValueError(
            f"`{name}` must be at least 1, or a pair (fewest, most); got {value}. For a model without memory use "
            "SlotMemory.empty(...)"
        )
    return ends
