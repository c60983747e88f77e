"""Two-digit composites of MNIST: 100 classes, of which some are kept for testing."""

from __future__ import annotations

from pathlib import Path

import torch

from pyro_memory.data.images.digits import mnist
from pyro_memory.data.images.labelled import LabelledImages
from pyro_memory.data.seeds import below, generator_for, order
from pyro_memory.gate import checked

SPLITS = {"background": (0, 64), "validation": (64, 80), "evaluation": (80, 100)}


@checked
def digit_pairs(
    split: str, *, per_class: int = 100, seed: int = 0, binary: bool = True, root: str | Path | None = None
) -> LabelledImages:
    """Lays two MNIST digits side by side, 28x56: the classes "00" to "99".

    A permutation drawn from the seed gives 64 classes to "background", 16 to "validation" and 20 to "evaluation".
    Digits of the first two come from MNIST's training file, those of the last from its test file, so that neither a
    class nor a digit's drawing is met twice. The same seed gives the same bits.

    Args:
        split: "background", "validation" or "evaluation".
        per_class: images of each class.
        seed: of the split and of the pairs.
        binary, root: see ``mnist``.

    Raises:
        ValueError: for an unknown split or fewer than one image a class; and what ``mnist`` raises.
    """
    if split not in SPLITS:
        raise ValueError(f"`split` must be one of {', '.join(SPLITS)}; got {split!r}")
    if per_class < 1:
        raise ValueError(f"`per_class` must be at least 1; got {per_class}")
    digits = mnist("test" if split == "evaluation" else "train", binary=binary, root=root)
    first, last = SPLITS[split]
    classes = order(100, generator_for(seed, 7))[first:last].sort().values.tolist()
    images = []
    for number in classes:
        generator = generator_for(seed, 8, number)
        halves = []
        for digit in divmod(number, 10):
            members = digits.members[digit]
            halves.append(digits.images[members[below(len(members), generator, per_class)]])
        images.append(torch.cat(halves, -1))
    labels = torch.arange(len(classes), device="cpu").repeat_interleave(per_class)
    return LabelledImages(torch.cat(images), labels, tuple(f"{n:02d}" for n in classes), digits.levels)
