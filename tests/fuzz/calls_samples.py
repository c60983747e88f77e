"""A small call of what judges how varied samples are, and of what draws concepts."""

import torch
from fuzz.calls_stores import examples
from fuzz.parts import ink

from pyro_memory.diagnostics import SampleDiversity, plot_concepts, sample_diversity


def called(**call):
    return call


ROWS = {
    "plot_concepts": lambda: (plot_concepts, called(concepts=examples(), which=None, ax=None)),
    "sample_diversity": lambda: (
        sample_diversity,
        called(
            features=(torch.rand(2, 3, 4), torch.rand(2, 3, 4)),
            images=(ink(2, 3, 1, 4, 4), ink(2, 3, 1, 4, 4)),
            examples=ink(2, 2, 1, 4, 4),
        ),
    ),
    "SampleDiversity": lambda: (
        SampleDiversity,
        called(distance=1.0, se=0.1, real=1.2, real_se=0.1, copies=0.0, real_copies=0.0),
    ),
}
