"""A small call of what judges how varied samples are."""

import torch
from fuzz.parts import ink

from pyro_memory.diagnostics import SampleDiversity, sample_diversity


def called(**call):
    return call


ROWS = {
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
