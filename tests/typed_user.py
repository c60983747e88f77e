"""What a checker of types knows in a user's program; ``make lint`` runs it over this file, nothing imports it."""

from typing import assert_type

import torch

from pyro_memory import (
    BoundEstimate,
    InformationGain,
    SlotMemory,
    StructuredMemory,
    importance_bound,
    information_gain,
    load_memory,
    load_pretrained,
)
from pyro_memory.guides import EmptyGuide, VMAGuide, VSMGuide
from pyro_memory.models import VMA, VSM, SequenceModel

assert_type(load_pretrained("vma-omniglot28"), tuple[VMA, VMAGuide])
assert_type(load_pretrained("vsm-vae-omniglot"), tuple[VSM, VSMGuide])
assert_type(load_pretrained("titans-mag-tinyshakespeare"), tuple[SequenceModel, EmptyGuide])
assert_type(load_memory("vsm-vae-omniglot"), StructuredMemory)

model, guide = load_pretrained("vma-omniglot28")
memory = SlotMemory(torch.zeros(4, 1, 28, 28))
assert_type(model.generate(memory, (10,)), torch.Tensor)
assert_type(importance_bound(model, guide, torch.zeros(2, 1, 28, 28), memory), BoundEstimate)
assert_type(information_gain(model, guide, torch.zeros(2, 1, 28, 28), memory), InformationGain)
assert_type(memory.write(torch.zeros(1, 1, 28, 28)), SlotMemory)
