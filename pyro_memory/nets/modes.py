"""Modes of modules, training or evaluation, given back as they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from pyro_memory.gate import checked


@checked
@contextmanager
def modes_kept(module: nn.Module) -> Iterator[None]:
    """Gives each part back in the mode that it came in."""
    modes = [(part, part.training) for part in module.modules()]
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


@checked
@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Runs its body in evaluation mode, and gives each part back in the mode that it came in."""
    with modes_kept(module):
        module.eval()
        yield
