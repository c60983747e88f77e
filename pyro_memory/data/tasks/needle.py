"""A needle in a haystack: one sentence planted in real text, and a question about it at the end."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from pyro_memory.data.seeds import below, generator_for, uniform
from pyro_memory.data.sequences.text import CharacterText
from pyro_memory.gate import checked
from pyro_memory.naming import call_of

NEEDLE = " The secret number of {name} is {answer}. "
QUESTION = " The secret number of {name} is {answer}."
NAMES = ("Amsterdam", "Bergen", "Cairo", "Dakar", "Eton", "Fez", "Genoa", "Havana", "Izmir", "Jaipur", "Kyoto", "Lima")
CHARACTERS = "".join(sorted(set(NEEDLE + QUESTION + "".join(NAMES) + "0123456789") - set("{}")))


@checked
class NeedleTasks:
    r"""Draws texts that hide a sentence: ``tasks[i]`` gives ``(tokens, answers)``.

    .. code-block:: text

        ... real text ... The secret number of Cairo is 4821.  ... real text ... The secret number of Cairo is 4821.

    ``tokens`` is ``[batch, length]``, the last of them the digits asked for and a full stop; ``answers``, of the same
    shape, is true at these digits. The sentence stands between two words of the text, near its depth.

    Args:
        text: where the haystacks come from. Its vocabulary must hold ``CHARACTERS``: ``CharacterText(..., extra=...)``.
        split: "train", "valid" or "test".
        length: characters a sequence, needle and question included.
        depth: 0 plants the sentence at the start, 1 right before the question; None anywhere.
        digits: of the number.
        batch: sequences a batch.
        seed: of the tasks; a batch depends on seed and index only.

    Raises:
        ValueError: if an argument is unusable.

    References: RULER: What's the Real Context Size of Your Long-Context Language Models? (Hsieh et al., 2024),
    https://arxiv.org/abs/2404.06654
    """

    def __init__(
        self,
        text: CharacterText,
        *,
        split: str = "train",
        length: int,
        depth: float | None = None,
        digits: int = 4,
        batch: int = 8,
        seed: int = 0,
    ) -> None:
        if digits < 1 or batch < 1:
            raise ValueError(f"`digits` and `batch` must be at least 1; got {digits} and {batch}")
        if depth is not None and not 0 <= depth <= 1:
            raise ValueError(f"`depth` must lie in 0 .. 1, or be None; got {depth}")
        longest = max(NAMES, key=len)
        least = len((NEEDLE + QUESTION).format(name=longest, answer="0" * digits))
        prose = " ".join(text.part(split).split())
        if not least <= length <= len(prose):
            raise ValueError(
                f"`length` must lie in {least} .. {len(prose)}, needle and question and the text there is; got {length}"
            )
        text.encode(CHARACTERS)
        self.text = text
        self.prose = prose
        self.length = length
        self.depth = depth
        self.digits = digits
        self.batch = batch
        self.seed = seed

    __repr__ = call_of

    def __getitem__(self, index: int) -> tuple[Int[Tensor, "batch time"], Bool[Tensor, "batch time"]]:
        tokens = torch.stack([self.text.encode(self.read(index, row)) for row in range(self.batch)])
        answers = torch.zeros_like(tokens, dtype=torch.bool)
        answers[:, -1 - self.digits : -1] = True
        return tokens, answers

    def read(self, index: int, row: int) -> str:
        """Gives one sequence of a batch as text."""
        draw = generator_for(self.seed, 6, index, row)
        name = NAMES[int(below(len(NAMES), draw))]
        answer = "".join(map(str, below(10, draw, self.digits).tolist()))
        needle, question = (part.format(name=name, answer=answer) for part in (NEEDLE, QUESTION))
        room = self.length - len(needle) - len(question)
        start = int(below(len(self.prose) - room + 1, draw))
        hay = self.prose[start : start + room]
        depth = float(uniform(draw)) if self.depth is None else self.depth
        at = _word_end(hay, round(depth * room))
        return hay[:at] + needle + hay[at:] + question


def _word_end(hay: str, at: int) -> int:
    """The nearest place at or before ``at`` where a word ends."""
    return at if at in (0, len(hay)) else max(hay.rfind(" ", 0, at), 0)
