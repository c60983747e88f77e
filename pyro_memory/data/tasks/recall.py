"""Associative recall: pairs of tokens to remember, and questions about them later in the same sequence."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from pyro_memory.data.seeds import below, generator_for, uniform
from pyro_memory.gate import checked
from pyro_memory.naming import call_of


@checked
class RecallTasks:
    r"""Draws a batch of recall sequences for each index: ``tasks[i]`` gives ``(tokens, answers)``.

    .. code-block:: text

        k1 v1 k2 v2 ... kP vP   f f f f   k2 v2   f f   kP vP   f   k1 v1 ...
        the pairs               filler    every key once more, its value to be predicted

    ``tokens`` is ``[batch, length]``; ``answers``, of the same shape, is true at the values that can be known: what a
    model is trained on and scored by. Keys and values of a sequence are drawn without and with replacement. Fillers are
    drawn from tokens of their own: they are tokens ``0 .. fillers - 1``, then come the keys, then as many values.

    Args:
        pairs: how many pairs a sequence holds.
        length: tokens a sequence; at least ``4 * pairs``.
        vocabulary: how many different tokens there are, fillers included.
        batch: sequences a batch.
        gap: the number of fillers between the last pair and the first question, where the questions then follow each
            other; None puts each question anywhere.
        fillers: how many of the tokens are fillers.
        seed: of the tasks; a batch depends on seed and index only.

    Raises:
        ValueError: if an argument is unusable.

    References: Zoology: Measuring and Improving Recall in Efficient Language Models (Arora et al., 2023),
    https://arxiv.org/abs/2312.04927. There the value does not follow the question's key in the input; here it does.
    """

    def __init__(
        self,
        *,
        pairs: int,
        length: int,
        vocabulary: int = 64,
        batch: int = 32,
        gap: int | None = None,
        fillers: int = 8,
        seed: int = 0,
    ) -> None:
        for name, value in (("pairs", pairs), ("batch", batch), ("fillers", fillers)):
            if value < 1:
                raise ValueError(f"`{name}` must be at least 1; got {value}")
        if length < 4 * pairs:
            raise ValueError(f"`length` must be at least 4 * pairs = {4 * pairs}, pairs and questions; got {length}")
        if gap is not None and not 0 <= gap <= length - 4 * pairs:
            raise ValueError(
                f"`gap` must lie in 0 .. length - 4 * pairs = {length - 4 * pairs}, what pairs and questions leave of "
                f"`length`; got {gap}"
            )
        keys = (vocabulary - fillers) // 2
        if keys < pairs:
            raise ValueError(
                f"`vocabulary` must hold {fillers} fillers and at least {pairs} keys and values, "
                f"{fillers + 2 * pairs} in all; got {vocabulary}"
            )
        self.pairs = pairs
        self.length = length
        self.vocabulary = vocabulary
        self.batch = batch
        self.gap = gap
        self.fillers = fillers
        self.keys = keys
        self.seed = seed

    __repr__ = call_of

    def __getitem__(self, index: int) -> tuple[Int[Tensor, "batch time"], Bool[Tensor, "batch time"]]:
        draw = generator_for(self.seed, 4, index)
        rows, start = (self.batch, self.pairs), 2 * self.pairs
        keys = self.fillers + uniform(draw, self.batch, self.keys).argsort(-1)[:, : self.pairs]
        values = self.fillers + self.keys + below(self.keys, draw, *rows)
        tokens = below(self.fillers, draw, self.batch, self.length)
        tokens[:, :start:2], tokens[:, 1:start:2] = keys, values
        asked = uniform(draw, *rows).argsort(-1)
        where = start + self._places(draw)
        tokens.scatter_(1, where, keys.gather(1, asked))
        tokens.scatter_(1, where + 1, values.gather(1, asked))
        return tokens, torch.zeros_like(tokens, dtype=torch.bool).scatter_(1, where + 1, True)

    def _places(self, draw: torch.Generator) -> Int[Tensor, "batch pair"]:
        """Where each question begins, counted from the end of the pairs; two tokens each, none overlapping."""
        if self.gap is not None:
            return (self.gap + 2 * torch.arange(self.pairs, device="cpu")).expand(self.batch, -1)
        # Choosing among the places that remain when every question is one token gives each arrangement equal chance.
        free = self.length - 3 * self.pairs
        chosen = uniform(draw, self.batch, free).argsort(-1)[:, : self.pairs].sort(-1).values
        return chosen + torch.arange(self.pairs, device="cpu")
