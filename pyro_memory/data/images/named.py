"""The image sets by name, for command lines."""

from __future__ import annotations

from pathlib import Path

from pyro_memory.data.images.digits import mnist
from pyro_memory.data.images.drawings import omniglot
from pyro_memory.data.images.labelled import LabelledImages
from pyro_memory.data.images.letters import glyphs
from pyro_memory.data.images.pairs import digit_pairs
from pyro_memory.gate import checked

LICENCES = {
    "glyphs": "drawn from matplotlib's fonts: Bitstream Vera, DejaVu and STIX licences",
    "omniglot": "Omniglot: MIT, (c) 2015 Brenden Lake",
    "omniglot26": "Omniglot: MIT, (c) 2015 Brenden Lake",
    "omniglot26-45-5": "Omniglot: MIT, (c) 2015 Brenden Lake",
    "mnist": "MNIST: CC BY-SA 3.0, Yann LeCun and Corinna Cortes",
    "digit-pairs": "MNIST: CC BY-SA 3.0, Yann LeCun and Corinna Cortes",
}
NAMES = ("glyphs", "omniglot", "omniglot26", "omniglot26-45-5", "mnist", "digit-pairs")


@checked
def load_images(name: str, split: str, root: str | Path | None = None) -> LabelledImages:
    """Loads "glyphs", "omniglot" (28x28), "omniglot26", "omniglot26-45-5", "mnist" or "digit-pairs" (of MNIST).

    Args:
        name: which set. "omniglot26-45-5" trains on 45 of Omniglot's alphabets and tests on five, see ``omniglot``.
        split: "background" to train on, "evaluation" to test on (MNIST: its training and test images, the same ten
            digits in both).
        root: the folder with the files; the glyphs need none.

    Raises:
        ValueError: if the name or split is unknown; and what the sets themselves raise.
    """
    if name not in NAMES:
        raise ValueError(f"`name` must be one of {', '.join(NAMES)}; got {name!r}")
    if name == "glyphs":
        return glyphs(split)
    if name == "digit-pairs":
        return digit_pairs(split, root=root)
    if name == "mnist":
        return mnist({"background": "train", "evaluation": "test"}.get(split, split), root=root)
    alphabets = "45-5" if name == "omniglot26-45-5" else "official"
    return omniglot(split, size=28 if name == "omniglot" else 26, alphabets=alphabets, root=root)
