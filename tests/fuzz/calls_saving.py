"""A small call of each public callable that writes a pair to one file or builds it from there."""

from fuzz.parts import folder, slots, vma, vma_guide

from pyro_memory.training import rebuild, save
from pyro_memory.zoo import load


def written():
    return save(folder() / "pair.safetensors", vma(), vma_guide(), slots())


ROWS = {
    "save": lambda: (
        save, {"path": folder() / "pair.safetensors", "model": vma(), "guide": vma_guide(), "stores": slots()},
    ),
    "load": lambda: (load, {"path": written(), "own": ()}),
    "rebuild": lambda: (rebuild, {"path": written(), "own": ()}),
}  # fmt: skip
