"""Classes that come, are seen in episodes, leave, and come back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pyro_memory.data.given import Numbers, integers
from pyro_memory.data.images.labelled import LabelledImages
from pyro_memory.data.images.variations import TURNS, check_shares, turned
from pyro_memory.data.seeds import below, generator_for, order, uniform
from pyro_memory.gate import check_least, checked
from pyro_memory.naming import call_of
from pyro_memory.stores import SlotMemory


@dataclass
class _Life:
    """What has happened up to a step: who came in which order, who is there, who is gone."""

    generator: torch.Generator
    waiting: list[int]
    there: list[int] = field(default_factory=list)
    gone: list[int] = field(default_factory=list)
    plan: list[list[tuple[int, bool]]] = field(default_factory=list)  # a step's classes, and whether each came back


@checked
class ReturningClasses:
    """A stream of few-shot sets in which classes come, are seen in episodes, leave, and come back with few examples.

    ``stream[step]`` gives ``(x, support)`` as ``SetTasks`` does, the same for the same seed and step. Of a step's
    tasks, ``entering`` are classes that come in: back after an absence with probability ``returning``, otherwise never
    seen before (as long as there are some). The others are drawn from those that are there, the ``present`` that came
    in last. Who comes back has a support of ``back`` images, all others one of ``shots``. Queries are images that no
    support of the stream holds: a memory of it cannot hold them either.

    Args:
        data: the images to draw from.
        tasks, queries: sets a step, and images that each asks for.
        shots: images of a support, or several numbers of which each task draws one.
        back: the same of classes that come back; 0 is an empty support.
        items: the width of a support, by default the most shots.
        entering, present: classes that come in a step, and how many are there at a time.
        returning: the chance that one that comes in has been there before.
        life: steps after which a new life begins, with other classes; None has one life.
        classes: how many classes a life has; all by default.
        held_out: the share of each class's images that is asked for and never in a support of the stream.
        turned: whether a class turned by a quarter, a half or three quarters, or mirrored, is a class of its own: eight
            times as many.
        seed: of all of it.

    Raises:
        ValueError: if the data have too few classes or images, or an argument is unusable.
    """

    def __init__(
        self, data: LabelledImages, *, tasks: int = 8, queries: int = 4, shots: Numbers = 5, back: Numbers = (0, 1, 2),
        items: int | None = None, entering: int = 2, present: int = 16, returning: float = 0.5,
        life: int | None = None, classes: int | None = None, held_out: float = 0.3, turned: bool = False, seed: int = 0,
    ) -> None:  # fmt: skip
        self.shots, self.back = (
            integers(name, given, low=0, high=len(data), item="entry").flatten()
            for name, given in (("shots", shots), ("back", back))
        )
        check_least(1, tasks=tasks, queries=queries, entering=entering, life=life)
        if not (len(self.shots) and len(self.back)):
            raise ValueError(f"`shots` and `back` must be a number or several; got {shots} and {back}")
        most = max(int(self.shots.max()), int(self.back.max()))
        self.items = most if items is None else items
        if self.items < most:
            raise ValueError(f"`items` must be at least the most shots, {most}; got {items}")
        if not tasks - entering <= present or entering > tasks:
            raise ValueError(
                f"`tasks` ({tasks}) must be at least `entering` ({entering}) and leave at most `present` ({present}) "
                "to be drawn from those that are there"
            )
        if not 0 <= returning <= 1:
            raise ValueError(f"`returning` must lie in [0, 1], a chance; got {returning}")
        every = data.classes * (TURNS if turned else 1)
        self.classes = every if classes is None else classes
        if not present + entering <= self.classes <= every:
            raise ValueError(
                f"`classes` must be from {present + entering}, those there and those coming in, to {every}; got "
                f"{self.classes}"
            )
        if turned:
            check_shares(data.shape, turned=1.0, varied=0.0, fixed=False)
        smallest = min(len(m) for m in data.members)
        self.held = round(held_out * smallest)
        if not queries <= self.held <= smallest - most:
            raise ValueError(
                f"`held_out` must leave `queries` ({queries}) images to ask for and {most} for a support, of the "
                f"{smallest} of the smallest class; got {held_out}, which is {self.held} to ask for"
            )
        self.data, self.tasks, self.queries, self.seed, self.life = data, tasks, queries, seed, life
        self.entering, self.present, self.returning, self.turned = entering, present, returning, turned
        self._lives: dict[int, _Life] = {}

    __repr__ = call_of

    # --- the stream

    def __getitem__(self, step: int) -> tuple[Float[Tensor, "task query channel height width"], SlotMemory]:
        if step < 0:
            raise IndexError(f"`step` must be 0 or more; got {step}")
        index, at = self._when(step)
        rows, generator = self._lived(index, at).plan[at], generator_for(self.seed, 12, step)
        x, support, counts = [], [], []
        for label, back in rows:
            learned, asked = self._parts(index, label)
            x.append(self._images(label, asked[order(len(asked), generator)[: self.queries]]))
            chosen = learned[order(len(learned), generator)[: self.items]]
            support.append(self._images(label, torch.cat([chosen, chosen[:1].expand(self.items - len(chosen))])))
            shots = self.back if back else self.shots
            counts.append(shots[below(len(shots), generator)])
        return torch.stack(x), _padded(torch.stack(support), torch.stack(counts))

    def met(self, step: int) -> dict[int, tuple[int, int]]:
        """Who has left by the end of a step: for each class how many episodes it was met in, and how many episodes of
        the stream ago for the last time."""
        index, at = self._when(step)
        life = self._lived(index, at)
        seen: dict[int, tuple[int, int]] = {}
        there: list[int] = []
        for before, rows in enumerate(life.plan[: at + 1]):
            for label, _ in rows:
                seen[label] = (seen.get(label, (0, 0))[0] + 1, (at - before) * self.tasks)
            there = ([*there, *(label for label, _ in rows[: self.entering])])[-self.present :]
        return {label: row for label, row in seen.items() if label not in there}

    def returns(
        self, step: int, *, shots: int = 0, each: int = 1, tasks: int = 20, seed: int = 0
    ) -> Iterator[tuple[list[int], Tensor, SlotMemory]]:
        """Lets everyone who has left by the end of a step come back, to be measured: ``(classes, x, support)``, up to
        ``tasks`` sets at a time of one query each, ``each`` of every class, class after class.

        Queries, and the images of these supports, are among those that are held out: no memory of the stream has them.
        """
        index, _ = self._when(step)
        if shots + 1 > self.held:
            raise ValueError(f"`shots` must be below the {self.held} images of a class that are held out; got {shots}")
        gone = [label for _ in range(each) for label in sorted(self.met(step))]
        for begin in range(0, len(gone), tasks):
            part = gone[begin : begin + tasks]
            x, support = [], []
            for place, label in enumerate(part, begin):
                _, asked = self._parts(index, label)
                asked = asked[order(len(asked), generator_for(seed, 13, place))[: shots + 1]]
                images = self._images(label, asked)
                x.append(images[:1])
                support.append(images[1:])
            yield part, torch.stack(x), SlotMemory(torch.stack(support), batch_dim=-2)

    # --- who comes when

    def _when(self, step: int) -> tuple[int, int]:
        return (0, step) if self.life is None else divmod(step, self.life)

    def _lived(self, index: int, at: int) -> _Life:
        if index not in self._lives:
            generator = generator_for(self.seed, 11, index)
            every = order(self.data.classes * (TURNS if self.turned else 1), generator)
            self._lives = {index: _Life(generator, every[: self.classes].tolist()[::-1])}
        life = self._lives[index]
        while len(life.plan) <= at:
            life.plan.append(self._next(life))
        return life

    def _next(self, life: _Life) -> list[tuple[int, bool]]:
        generator, rows = life.generator, []
        for _ in range(self.entering):
            again = bool(life.gone) and (not life.waiting or bool(uniform(generator, 1) < self.returning))
            pool = life.gone if again else life.waiting
            rows.append((pool.pop(int(below(len(pool), generator)) if again else -1), again))
        others = order(len(life.there), generator)[: self.tasks - self.entering].tolist()
        rows += [(life.there[i], False) for i in others]
        life.there += [label for label, _ in rows[: self.entering]]
        leaving = max(0, len(life.there) - self.present)
        life.gone += life.there[:leaving]
        life.there = life.there[leaving:]
        return rows

    def _parts(self, index: int, label: int) -> tuple[Int[Tensor, " learned"], Int[Tensor, " asked"]]:
        """The images of a class that supports hold, and those that are asked for: divided anew in every life."""
        members = self.data.members[label % self.data.classes]
        members = members[order(len(members), generator_for(self.seed, 14, index * 100_003 + label))]
        return members[self.held :], members[: self.held]

    def _images(self, label: int, images: Int[Tensor, " image"]) -> Tensor:
        return turned(self.data[images], label // self.data.classes)


def _padded(images: Float[Tensor, "task item channel height width"], counts: Int[Tensor, " task"]) -> SlotMemory:
    mask = torch.arange(images.shape[1], device="cpu") < counts.unsqueeze(-1)
    return SlotMemory(images * mask.reshape(*mask.shape, 1, 1, 1), mask=mask, batch_dim=-2)
