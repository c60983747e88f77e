"""A needle in a haystack: sentences planted in a text, and questions about them at its end."""

from __future__ import annotations

from math import prod

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from pyro_memory.data.seeds import below, generator_for, order, uniform
from pyro_memory.data.sequences.text import CharacterText
from pyro_memory.gate import checked
from pyro_memory.naming import call_of

KINDS = {"prose": "number", "filler": "number", "word": "word"}
NEEDLE = " The secret {noun} of {name} is {answer}. "
QUESTION = " The secret {noun} of {name} is {answer}."
NAMES = ("Amsterdam", "Bergen", "Cairo", "Dakar", "Eton", "Fez", "Genoa", "Havana", "Izmir", "Jaipur", "Kyoto", "Lima")
FILLER = "A boat drifts by. Rain falls on the roof. The kettle sings. Two birds cross the sky. We wait for the train. "
DIGITS, CONSONANTS, VOWELS = "0123456789", "BCDFGHJKLMNPQRSTVWXZ", "AEIOU"
CHARACTERS = "".join(
    sorted(set("".join((NEEDLE, QUESTION, *NAMES, *KINDS.values(), FILLER, DIGITS, CONSONANTS, VOWELS))) - set("{}"))
)


@checked
class NeedleTasks:
    r"""Draws texts that hide sentences: ``tasks[i]`` gives ``(tokens, answers)``.

    .. code-block:: text

        ... text ... The secret number of Cairo is 4821.  ... text ... The secret number of Cairo is 4821.

    ``tokens`` is ``[batch, length]``, the last of them the digits asked for and a full stop; ``answers``, of the same
    shape, is true at these digits. A sentence stands between two words of the text, near its depth. Whoever guesses
    is right once in ``1 / chance`` questions. A model that is trained on several ``questions`` a text learns from more
    answers at the cost of the same text; the last question is the one that ``depth`` is about.

    Args:
        text: where the haystacks come from. Its vocabulary must hold ``CHARACTERS``: ``CharacterText(..., extra=...)``.
        split: "train", "valid" or "test".
        length: characters a sequence, needles and questions included.
        depth: 0 plants the sentence asked for last at the start, 1 right before the questions; None anywhere.
        digits: of a number, or letters of a word.
        batch: sequences a batch.
        seed: of the tasks; a batch depends on seed and index only.
        kind: "prose" hides numbers in the text; "filler" in five sentences that repeat, of ``text`` only the
            vocabulary being used; "word" hides made-up words in the text, in capitals, a consonant and a vowel in turn.
        keys: how many sentences are planted, each of another name; those that are not asked for last, anywhere.
        questions: how many of them are asked for, one after the other.

    Raises:
        ValueError: if an argument is unusable.

    Example::

        text = CharacterText(load_text(), extra=CHARACTERS)
        tokens, answers = NeedleTasks(text, length=512, depth=0.5, kind="filler")[0]

    References: RULER: What's the Real Context Size of Your Long-Context Language Models? (Hsieh et al., 2024),
    https://arxiv.org/abs/2404.06654. There a text is made of words; here it is made of characters.
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
        kind: str = "prose",
        keys: int = 1,
        questions: int = 1,
    ) -> None:
        if digits < 1 or batch < 1:
            raise ValueError(f"`digits` and `batch` must be at least 1; got {digits} and {batch}")
        if depth is not None and not 0 <= depth <= 1:
            raise ValueError(f"`depth` must lie in 0 .. 1, or be None; got {depth}")
        if kind not in KINDS:
            raise ValueError(f'`kind` must be "prose", "filler" or "word"; got {kind!r}')
        if not 1 <= questions <= keys <= len(NAMES):
            raise ValueError(
                f"`keys` must lie in 1 .. {len(NAMES)}, the names there are, and `questions` in 1 .. `keys`; got "
                f"{keys} and {questions}"
            )
        self.noun = KINDS[kind]
        names = sorted(NAMES, key=len)
        least = sum(
            len(part.format(noun=self.noun, name=name, answer="0" * digits))
            for part, count in ((NEEDLE, keys), (QUESTION, questions))
            for name in names[-count:]
        )
        prose = " ".join(text.part(split).split())
        if kind == "filler":
            prose = FILLER * (2 + length // len(FILLER))  # so that it begins anywhere in a sentence
        if not least <= length <= len(prose):
            most = "any" if kind == "filler" else len(prose)
            raise ValueError(
                f"`length` must lie in {least} .. {most}, needles and questions and the text there is; got {length}"
            )
        text.encode(CHARACTERS)
        self.text = text
        self.prose = prose
        self.length = length
        self.depth = depth
        self.digits = digits
        self.batch = batch
        self.seed = seed
        self.kind = kind
        self.keys = keys
        self.questions = questions
        self.alphabets = [DIGITS if self.noun == "number" else (CONSONANTS, VOWELS)[i % 2] for i in range(digits)]
        self._hay = text.encode(prose)

    __repr__ = call_of

    @property
    def chance(self) -> float:
        """How often a guess is right in all its digits or letters."""
        return 1 / prod(map(len, self.alphabets))

    def __getitem__(self, index: int) -> tuple[Int[Tensor, "batch time"], Bool[Tensor, "batch time"]]:
        answers = torch.zeros(self.batch, self.length, dtype=torch.bool, device="cpu")
        rows = []
        for row in range(self.batch):
            hay, asked = self._draw(index, row)
            rows += [self._hay[part] if isinstance(part, slice) else self.text.encode(part) for part in hay + asked]
            end = self.length
            for question in reversed(asked):
                answers[row, end - 1 - self.digits : end - 1] = True
                end -= len(question)
        return torch.cat(rows).reshape(self.batch, self.length), answers

    def read(self, index: int, row: int) -> str:
        """Gives one sequence of a batch as text."""
        hay, asked = self._draw(index, row)
        return "".join(self.prose[part] if isinstance(part, slice) else part for part in hay + asked)

    def _draw(self, index: int, row: int) -> tuple[list[slice | str], list[str]]:
        """The text in parts, slices of the haystack and sentences planted between them; and the questions."""
        draw = generator_for(self.seed, 6, index, row)
        name = int(below(len(NAMES), draw))
        answer = self._answer(draw)
        # The one asked for last is drawn first, so that a task of one key is a task as it always was.
        others = [n for n in order(len(NAMES), draw).tolist() if n != name] if self.keys > 1 else []
        said = [(name, answer), *((n, self._answer(draw)) for n in others[: self.keys - 1])]
        needles, asked = (
            [sentence.format(noun=self.noun, name=NAMES[n], answer=a) for n, a in part]
            for sentence, part in ((NEEDLE, said), (QUESTION, said[self.questions - 1 :: -1]))
        )
        room = self.length - sum(map(len, needles + asked))
        start = int(below(len(self.prose) - room + 1, draw))
        depths = [float(uniform(draw)) if self.depth is None else self.depth]
        depths += [float(uniform(draw)) for _ in needles[1:]]
        planted = sorted((start + self._word_end(start, room, depth), i) for i, depth in enumerate(depths))
        ends = [start, *(at for at, _ in planted), start + room]
        hay: list[slice | str] = [slice(ends[0], ends[1])]
        for (_, i), at, end in zip(planted, ends[1:], ends[2:], strict=False):
            hay += [needles[i], slice(at, end)]
        return hay, asked

    def _answer(self, draw: torch.Generator) -> str:
        if self.noun == "number":
            return "".join(map(str, below(10, draw, self.digits).tolist()))
        return "".join(letters[int(below(len(letters), draw))] for letters in self.alphabets)

    def _word_end(self, start: int, room: int, depth: float) -> int:
        """The nearest place at or before a depth where a word of the haystack ends, counted from its start."""
        at = round(depth * room)
        return at if at in (0, room) else max(self.prose.rfind(" ", start, start + at) - start, 0)
