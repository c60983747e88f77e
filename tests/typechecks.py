"""Shapes and types of every call, checked while the tests run: an argument that does not fit is named."""

import random
from pathlib import Path

from jaxtyping import install_import_hook

# beartype looks at random items of a sequence: by a stream of its own, not the one that tests seed and compare.
common, random.getrandbits = random.getrandbits, random.Random(0).getrandbits
from beartype import BeartypeConf, beartype

random.getrandbits = common

ROOT = Path(__file__).parents[1]
checked = beartype(conf=BeartypeConf(is_pep484_tower=True))  # a float may be given an int


def modules():
    """All of the package but the kernels, whose annotations carry no shapes: they import torch and triton alone."""
    yield from (f"pyro_memory.{path.stem}" for path in (ROOT / "pyro_memory").iterdir() if path.stem != "__init__")
    yield from ("pyro_memory.models", "pyro_memory.guides")


def install():
    install_import_hook(list(modules()), "typechecks.checked")
